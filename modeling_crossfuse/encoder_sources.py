# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The `encoders` that `from_encoders` of a model and of a processor take, read and checked."""

import os
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .configuration_encoders import KINDS
from .configuration_modalities import check_modality_name


# What every function that loads something from the Hub takes.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "trust_remote_code")

# The parts of a processor, and the kind that each is for.
SUB_PROCESSORS = {
    "tokenizer": "text",
    "image_processor": "image",
    "video_processor": "video",
    "feature_extractor": "audio",
}


def parts_of_kind(kind: str) -> list[str]:
    """What values of a kind are processed by. A video's frames are images, too."""
    kinds = ("image", "video") if kind == "video" else (kind,)
    return [part for part, own in SUB_PROCESSORS.items() if own in kinds]


@dataclass
class EncoderSource:
    """One entry of `encoders`."""

    name: str
    kind: str | None  # where the entry or its name says so
    encoder: str | PreTrainedModel | PreTrainedConfig | None  # the id or the folder; None for a built-in encoder
    revision: str | None  # of the id on the Hub
    settings: dict[str, Any]  # the other settings of the modality
    processors: dict[str, Any]  # the modality's own `tokenizer`, `image_processor` and so on

    @property
    def modality(self) -> dict[str, Any]:
        """The modality's settings, if its encoder is a built-in one."""
        return {**self.settings, "kind": self.kind or self.name}

    @property
    def where(self) -> str:
        """What error messages call it."""
        if isinstance(self.encoder, str):
            return f"`encoders[{self.name!r}]={self.encoder!r}`"
        return f"`encoders[{self.name!r}]`, a {type(self.encoder).__name__},"

    @property
    def name_or_path(self) -> str | None:
        """The id or the folder that the encoder comes from, if any."""
        if isinstance(self.encoder, str):
            return self.encoder
        config = getattr(self.encoder, "config", self.encoder)
        return getattr(config, "_name_or_path", None) or None


def read_encoders(encoders: dict[str, Any]) -> list[EncoderSource]:
    """The entries of `encoders`, or a `ValueError` if there are none, or a name or an entry can't be used."""
    if not isinstance(encoders, dict) or not encoders:
        raise ValueError(f"`encoders={encoders!r}`; expected a dict of at least one modality to its encoder")
    sources = []
    for name, entry in encoders.items():
        check_modality_name(name)
        settings = dict(entry) if isinstance(entry, dict) else {"encoder": entry}
        kind, encoder = settings.pop("kind", name if name in KINDS else None), settings.pop("encoder", None)
        encoder = _check_encoder(name, encoder)
        processors = {part: settings.pop(part) for part in SUB_PROCESSORS if part in settings}
        revision = settings.pop("revision", None)
        sources.append(EncoderSource(name, kind, encoder, revision, settings, processors))
    return sources


def _check_encoder(name: str, encoder: Any) -> Any:
    """An entry's encoder, folders as strings, or the error for what can't be one."""
    if hasattr(encoder, "merge_and_unload"):
        raise ValueError(
            f"`encoders[{name!r}]` is {type(encoder).__name__}; merge its adapters first: `model.merge_and_unload()`"
        )
    if isinstance(encoder, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(encoder))
        is_folder = isinstance(encoder, os.PathLike) or path.startswith((os.sep, "."))
        if is_folder and not os.path.isdir(path):
            raise OSError(f"`encoders[{name!r}]={os.fspath(encoder)!r}`: there is no such folder")
        return path
    if encoder is not None and not isinstance(encoder, (PreTrainedModel, PreTrainedConfig)):
        raise ValueError(
            f"`encoders[{name!r}]` is {type(encoder).__name__}; expected a Hub id, a folder, a PreTrainedModel, a "
            "config, or a dict of settings"
        )
    return encoder


def check_tokenizer(tokenizer: Any):
    """Raises a `TypeError` for what is no tokenizer."""
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"`tokenizer` is {type(tokenizer).__name__}; expected a tokenizer, as AutoTokenizer loads it")


def check_special_tokens(tokenizer: PreTrainedTokenizerBase | None, config: Any):
    """
    Raises a `ValueError` if answers that a tokenizer has ended do not end for the model, or what the model begins and
    fills them with would be read as text.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): that of the answers. One without `eos_token` makes none.
        config ([`CrossFuseConfig`] or [`~transformers.GenerationConfig`]): what the model goes by.
    """
    if getattr(tokenizer, "eos_token_id", None) is None:
        return
    ends, pad, start = config.eos_token_id, config.pad_token_id, config.decoder_start_token_id
    skipped = (None, *tokenizer.all_special_ids)  # when answers are decoded
    agrees = {
        "eos_token_id": tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends]),
        "pad_token_id": pad in skipped,
        "decoder_start_token_id": start in skipped,
    }
    if all(agrees.values()):
        return
    found = ", ".join(f"{name}={getattr(config, name)}" for name, is_same in agrees.items() if not is_same)
    end, begin, padding = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    padding = end if padding is None else padding
    begin = padding if begin is None else begin
    raise ValueError(
        f"the model has the special tokens `{found}`, and the tokenizer has others; expected a config such as "
        f"`CrossFuseConfig(pad_token_id={padding}, bos_token_id={begin}, eos_token_id={end}, "
        f"decoder_start_token_id={begin})`"
    )
