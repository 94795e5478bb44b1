# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Composing a model of encoders that exist already, and freezing them."""

import copy
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .configuration_crossfuse import CrossFuseConfig
from .configuration_encoders import KINDS, CrossFuseWrappedEncoderConfig
from .configuration_layers import build_part
from .configuration_modalities import check_modality_name
from .encoder_search import complete, infer_kind
from .hub import warn_of_other_version


# What every function that loads something from the Hub takes.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "trust_remote_code")

# The parts of a processor, and the kind that each is for.
SUB_PROCESSORS = {
    "tokenizer": "text",
    "image_processor": "image",
    "video_processor": "video",
    "feature_extractor": "audio",
}


@dataclass
class EncoderSource:
    """
    One entry of the `encoders` that [`~EncodersMixin.from_encoders`] and
    [`~CrossFuseProcessor.from_encoders`] take, read.

    Args:
        name (`str`): the modality.
        kind (`str`, *optional*): its kind, where the entry or its name says so.
        encoder: an id or a folder, a model, or a config; None for a built-in encoder.
        revision (`str`, *optional*): of the id on the Hub.
        settings (`dict`): the other settings of the modality.
        processors (`dict`): the modality's own `tokenizer`, `image_processor` and so on, which a model has no use for.
    """

    name: str
    kind: str | None
    encoder: Any
    revision: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    processors: dict[str, Any] = field(default_factory=dict)

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
    """
    The entries of `encoders`, checked.

    Raises:
        ValueError: if there are none, or a name or an entry can't be used.
    """
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


def explain_loading(error: Exception, where: str) -> OSError:
    """The error for an encoder, or its processor, that can't be loaded."""
    text = " ".join(str(error).split())
    if "safetensors" in text:
        return OSError(
            f"{where} has no weights in safetensors, and pickled ones can run code when they are read. If you trust "
            "them, convert them first: `AutoModel.from_pretrained(..., use_safetensors=False).save_pretrained(folder)`"
        )
    return OSError(f"{where} can't be loaded: {text}")


def _load(source: EncoderSource, hub: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    if isinstance(source.encoder, PreTrainedModel):
        return source.encoder
    if isinstance(source.encoder, PreTrainedConfig):
        return AutoModel.from_config(copy.deepcopy(source.encoder), dtype=dtype)
    try:
        return AutoModel.from_pretrained(
            source.encoder, revision=source.revision or "main", dtype=dtype, use_safetensors=True, **hub
        )
    except (OSError, ValueError) as error:
        raise explain_loading(error, source.where) from error


def _wrap(
    source: EncoderSource, model: PreTrainedModel, hub: dict[str, Any], defaults: dict[str, Any]
) -> tuple[CrossFuseWrappedEncoderConfig, PreTrainedModel]:
    """The config of a modality whose encoder is within a model of transformers, and that encoder."""
    settings = {
        "kind": source.kind or infer_kind(model, source.where),
        "encoder": copy.deepcopy(model.config),
        "source": _origin(source),
        "revision": _commit(source, hub),
        **defaults,
        **source.settings,
    }
    config = build_part(f"encoders[{source.name!r}]", CrossFuseWrappedEncoderConfig, settings)
    return config, complete(config, model, source.where)


def _origin(source: EncoderSource) -> str | None:
    """The id or the folder of an encoder, without where the folder is on this machine."""
    name = source.name_or_path
    return os.path.basename(name.rstrip(os.sep)) if name is not None and os.path.isabs(name) else name


def _commit(source: EncoderSource, hub: dict[str, Any]) -> str | None:
    """The commit on the Hub that an encoder was loaded from, of which a copy lies in the cache."""
    if source.name_or_path is None or os.path.isdir(source.name_or_path):
        return None
    cache = {"cache_dir": hub["cache_dir"]} if "cache_dir" in hub else {}
    try:
        file = cached_file(
            source.name_or_path, "config.json", revision=source.revision, local_files_only=True, **cache
        )
    except OSError:
        return source.revision
    return extract_commit_hash(file, None)


def _check_quantizers(quantizers: dict[str, Any], frozen: Iterable[str]):
    """Raises a `ValueError` unless the quantised encoders are frozen, and quantised alike, as one config says it."""
    for name in quantizers:
        if name not in frozen:
            raise ValueError(f"the encoder of {name!r} is quantised and can't train; give `freeze=({name!r},)`, too")
    different = {str(quantizer.quantization_config) for quantizer in quantizers.values()}
    if len(different) > 1:
        raise ValueError(f"the encoders of {', '.join(quantizers)} are quantised in different ways; expected one way")


def _adopt_quantizer(model: PreTrainedModel, quantizers: dict[str, Any]):
    """Makes a model know which of its encoders are quantised, as saving and loading it need."""
    quantizer = copy.copy(next(iter(quantizers.values())))
    quantizer.quantization_config = copy.deepcopy(quantizer.quantization_config)
    # A regular expression of all modules but those of the quantised encoders.
    others = rf"(?!.*encoders\.({'|'.join(quantizers)})\.).*"
    quantizer.quantization_config.modules_to_not_convert = [others]
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config


def _read_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype={dtype!r}`; expected a floating point dtype, such as torch.bfloat16 or 'bfloat16'")
    return found


def _answer_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The special tokens of answers, where a tokenizer has them under the names that its family uses."""

    def first(*names: str) -> int | None:
        tokens = (getattr(tokenizer, f"{name}_token_id") for name in names)
        return next((token for token in tokens if token is not None), None)

    start = first("bos", "cls", "pad", "eos", "sep")
    return {
        "pad_token_id": first("pad", "eos", "sep"),
        "bos_token_id": start,
        "eos_token_id": first("eos", "sep"),
        "decoder_start_token_id": start,
    }


def _register_remote_encoders(name_or_path: str | os.PathLike, kwargs: dict[str, Any]):
    """Makes the types of encoders that come with code of their own known, so that a config can be read."""
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs and key != "trust_remote_code"}
    revision = {"revision": kwargs["revision"]} if kwargs.get("revision") else {}
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub, **revision)
    modalities = [part for part in (config.get("modalities") or {}).values() if isinstance(part, dict)]
    for part in modalities:
        model_type = (part.get("encoder") or {}).get("model_type")
        if model_type is None or model_type in CONFIG_MAPPING or part.get("source") is None:
            continue
        revision = {"revision": part["revision"]} if part.get("revision") else {}
        found = AutoConfig.from_pretrained(part["source"], trust_remote_code=True, **hub, **revision)
        AutoConfig.register(model_type, type(found), exist_ok=True)


def _check_shards(folder: str | os.PathLike | None):
    """Raises a `ValueError` if the index of shards in a folder leads out of it; on the Hub, the client checks that."""
    index = None if folder is None else os.path.join(folder, "model.safetensors.index.json")
    if index is None or not os.path.isfile(index):
        return
    with open(index, encoding="utf-8") as file:
        names = set(json.load(file).get("weight_map", {}).values())
    outside = sorted(name for name in names if os.path.basename(name) != name)
    if outside:
        raise ValueError(f"`weight_map` of {index} names {outside[0]!r}; expected files in the same folder")


def _has_reverse(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


class EncodersMixin:
    """What models with encoders can do: be composed of existing encoders, and freeze them."""

    @classmethod
    def from_encoders(
        cls,
        encoders: dict[str, Any],
        decoder: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        freeze: Iterable[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | str = torch.float32,
        **kwargs,
    ):
        r"""
        A model of encoders that exist already, with a new fusion and a new decoder.

        Of a model with several parts the one that fits is taken: the encoder of an encoder-decoder such as T5 or
        Whisper, the tower of a dual model such as CLIP or SigLIP. Poolers are left out. The weights are the source's.

        Args:
            encoders (`dict[str, Any]`): name of each modality to its encoder: a Hub id or a folder, whose weights have
                to be safetensors; a `PreTrainedModel`, whose weights are copied; a config of transformers, for random
                weights; or a dict of the modality's settings, with one of these as its `encoder`, and `kind`
                where neither the name nor the encoder says it, `revision`, `modality_dropout`. A dict without
                `encoder` is a built-in encoder, as in [`CrossFuseConfig`].
            decoder, fusion (`dict`, *optional*): as in [`CrossFuseConfig`].
            freeze (`Iterable[str]`, *optional*): modalities whose encoders training is to leave as they are. Quantised
                encoders have to be among them.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): that of the answers: the decoder gets its vocabulary and
                special tokens. Otherwise they are settings of `decoder` and of the config.
            dtype (`torch.dtype` or `str`, defaults to `torch.float32`): of all weights.
            kwargs: other settings of [`CrossFuseConfig`], such as `d_model`; `attn_implementation`; and, for loading,
                `cache_dir`, `force_download`, `local_files_only`, `proxies`, `token` and `trust_remote_code`.

        Raises:
            ValueError: if a model has no encoder of the modality's kind, or only a decoder.
            OSError: if an id or a folder does not exist, or has no weights in safetensors.

        Example:

        ```python
        >>> import torch
        >>> from transformers import BertConfig, ResNetConfig
        >>> from modeling_crossfuse import CrossFuseForConditionalGeneration

        >>> bert = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> resnet = ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1])
        >>> model = CrossFuseForConditionalGeneration.from_encoders(
        ...     {"text": bert, "image": resnet, "wrist": {"kind": "series", "num_channels": 6}},
        ...     decoder={"vocab_size": 50, "num_hidden_layers": 1},
        ...     freeze=("text",),
        ...     d_model=32,
        ... )
        >>> model.config.modalities["text"].architecture, model.config.modalities["image"].hidden_size
        ('BertModel', 16)
        >>> outputs = model(
        ...     input_ids=torch.tensor([[5, 6, 7]]),
        ...     pixel_values=torch.zeros(1, 3, 32, 32),
        ...     decoder_input_ids=torch.tensor([[1]]),
        ... )
        >>> outputs.encoder_last_hidden_state.shape  # 3 tokens, 8 x 8 places of the feature map
        torch.Size([1, 67, 32])
        ```
        """
        dtype = _read_dtype(dtype)
        check_tokenizer(tokenizer)
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        built = {key: kwargs.pop(key) for key in ("attn_implementation",) if key in kwargs}
        if tokenizer is not None:
            decoder = {"vocab_size": len(tokenizer), **(decoder or {})}
            kwargs = {**_answer_settings(tokenizer), **kwargs}
        defaults = {key: kwargs[key] for key in ("modality_dropout",) if key in kwargs}
        modalities, models, quantizers = {}, {}, {}
        sources = read_encoders(encoders)
        for source in sources:
            if source.encoder is None:
                modalities[source.name] = source.modality
                continue
            model = _load(source, hub, dtype)
            modalities[source.name], models[source.name] = _wrap(source, model, hub, defaults)
            if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
                quantizers[source.name] = quantizer
        freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze or ())
        frozen = {name for name in models if modalities[name].frozen}
        _check_quantizers(quantizers, frozen.union(freeze))
        config = CrossFuseConfig(modalities=modalities, decoder=decoder, fusion=fusion, **kwargs)
        for name, encoder in models.items():
            # Where the encoder has not the default, which not all have, someone chose it.
            if encoder.config._attn_implementation not in (None, "sdpa"):
                config.modalities[name].encoder._attn_implementation = encoder.config._attn_implementation
        model = cls._from_config(config, dtype=dtype, **built)
        for source in sources:
            if source.encoder is not None:
                copied = isinstance(source.encoder, PreTrainedModel)  # it goes on by itself
                model.get_encoder().encoders[source.name].take_weights(models[source.name], dtype, copied)
        model.freeze_modalities(*freeze)
        if quantizers:
            _adopt_quantizer(model, quantizers)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        if kwargs.get("trust_remote_code") and kwargs.get("config") is None:
            _register_remote_encoders(pretrained_model_name_or_path, kwargs)
        _check_shards(pretrained_model_name_or_path)
        if kwargs.get("use_safetensors") is None:  # which stands for pickled weights where there are no others
            kwargs["use_safetensors"] = True
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if re.search("no file named model.safetensors|cannot be loaded with `safetensors`", str(error)):
                raise explain_loading(error, f"`{pretrained_model_name_or_path}`") from error
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        warn_of_other_version(model.config)
        for encoder in model.get_encoder().encoders.children():
            encoder.apply_frozen()
        if getattr(model, "is_quantized", False) and not model._trains_quantized_weights():
            model.is_quantized = False  # Trainer refuses models for it, and what trains here is not quantised
        if getattr(model, "hf_quantizer", None) is not None:
            # What a quantiser reads in a format of its own it writes in it, too: saving has nothing to turn back.
            conversions = getattr(model, "_weight_conversions", None) or []
            model._weight_conversions = [conversion for conversion in conversions if _has_reverse(conversion)]
        return loaded

    def _trains_quantized_weights(self) -> bool:
        frozen = [part for part in self.get_encoder().encoders.children() if part.config.frozen]
        resting = {id(parameter) for part in frozen for parameter in part.parameters()}
        return any(type(p) is not nn.Parameter for p in self.parameters() if id(p) not in resting)

    def freeze_modalities(self, *names: str):
        """
        Makes training leave the encoders of modalities as they are: their parameters get no gradient, their dropout is
        off, their batch norm keeps its statistics, and no graph is built for them. Their projections and all that
        follows train on. The config says so, and saved models remember it.

        Args:
            names (`str`): modalities.

        Raises:
            ValueError: if there is no such modality.
        """
        self._set_frozen(names, True)

    def unfreeze_modalities(self, *names: str):
        """Makes the encoders of modalities train again; the arguments are those of `freeze_modalities`."""
        self._set_frozen(names, False)

    def _set_frozen(self, names: Iterable[str], frozen: bool):
        for name in names:
            if name not in self.config.modalities:
                raise ValueError(f"{name!r} is no modality of this model; it has {', '.join(self.config.modalities)}")
            if not frozen and any(type(p) is not nn.Parameter for p in self.get_encoder().encoders[name].parameters()):
                raise ValueError(f"the encoder of {name!r} is quantised and can't train")
        for name in names:
            self.get_encoder().encoders[name].set_frozen(frozen, self.training)
