# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Loading a model that a stranger may have made: no pickled weights, no other files, no memory without weights."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .encoder_sources import HUB_ARGUMENTS
from .hub import warn_of_other_version
from .older_formats import stored_modalities
from .quantization import settle_loaded_quantization


logger = logging.get_logger(__name__)


def explain_loading(error: Exception, where: str, folder: str | os.PathLike | None = None) -> OSError:
    """The error for a model, an encoder, or its processor, that can't be loaded from the Hub or from a folder."""
    text = " ".join(str(error).split())
    variants = _variants(folder) if folder is not None else []
    if "safetensors" in text and variants:
        arguments = " or ".join(f"variant={variant!r}" for variant in variants)
        return OSError(f"{where} has no `model.safetensors`; load it by `from_pretrained(..., {arguments})`")
    if "safetensors" in text:
        return OSError(
            f"{where} has no weights in safetensors, and pickled ones can run code when they are read. If you trust "
            "them, convert them first: `AutoModel.from_pretrained(..., use_safetensors=False).save_pretrained(folder)`"
        )
    return OSError(f"{where} can't be loaded: {text}")


def refuse_missing_weights(model: PreTrainedModel, checkpoint_files: list[str] | None):
    """
    Raises a `ValueError` if a model is large and next to none of it can be in the files, before memory is taken for
    what they lack: a config that came with them may ask for anything.
    """
    wanted = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(os.path.getsize(file) for file in checkpoint_files or ())
    if checkpoint_files and wanted > max(2**26, 16 * stored):
        raise ValueError(
            f"the config asks for {wanted:,} weights, but the files with weights have {stored:,} bytes; they are not "
            "this model's. To begin with random weights, build the model from its config"
        )


def _variants(folder: str | os.PathLike) -> list[str]:
    """The variants, such as fp16, of the weights in a folder."""
    names = (path.name for path in Path(folder).glob("model.*.safetensors"))
    found = (re.fullmatch(r"model\.(.+?)(-\d+-of-\d+)?\.safetensors", name) for name in names)
    return sorted({match[1] for match in found})


def refuse_outside_shards(folder: str | os.PathLike, subfolder: str | None = None):
    """
    Raises a `ValueError` if an index of shards in a folder, that of any variant, can't be read or leads out of it. On
    the Hub, the client checks that.
    """
    for index in Path(folder, subfolder or "").glob("model.safetensors.index*.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            outside = sorted(name for name in names if os.path.basename(name) != name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{index} is not the index of shards that `save_pretrained` writes; save it anew"
            ) from error
        if outside:
            raise ValueError(f"`weight_map` of {index} names {outside[0]!r}; expected files in the same folder")


def _register_remote_encoders(name_or_path: str | os.PathLike, kwargs: dict[str, Any]):
    """Registers the configs of encoders that come with code of their own, so that the model's config can be read."""
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs and key != "trust_remote_code"}
    place = {"revision": kwargs.get("revision") or "main", "subfolder": kwargs.get("subfolder") or ""}
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub, **place)
    for part in (config.get("modalities") or {}).values():
        model_type = (part.get("encoder") or {}).get("model_type") if isinstance(part, dict) else None
        if model_type is None or model_type in CONFIG_MAPPING or part.get("source") is None:
            continue
        revision = part.get("revision") or "main"
        found = AutoConfig.from_pretrained(part["source"], trust_remote_code=True, **hub, revision=revision)
        AutoConfig.register(model_type, type(found), exist_ok=True)


def _warn_of_other_order(modalities: Iterable[str], name_or_path: str | os.PathLike, kwargs: dict[str, Any]):
    """Warns if a config that is given has the modalities of a saved model in another order, or other ones."""
    place = {key: kwargs[key] for key in ("cache_dir", "revision", "subfolder") if kwargs.get(key) is not None}
    try:
        settings, _ = PreTrainedConfig.get_config_dict(name_or_path, local_files_only=True, **place)
    except OSError:  # the weights are there without a config
        return
    saved, given = stored_modalities(settings), list(modalities)
    if saved and saved != given:
        logger.warning(
            f"the model in {name_or_path} was saved with the modalities {', '.join(saved)}, and `config` has "
            f"{', '.join(given)}: `modality_mask` goes by these. A processor that was saved with the model gives it "
            "in the old order; call `processor.fit_modalities(model.config)`"
        )


class SafeLoadingMixin:
    """Loads models from files that are not trusted."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        if kwargs.get("trust_remote_code") and kwargs.get("config") is None:
            _register_remote_encoders(pretrained_model_name_or_path, kwargs)
        if pretrained_model_name_or_path is not None:
            refuse_outside_shards(pretrained_model_name_or_path, kwargs.get("subfolder"))
        if kwargs.get("use_safetensors") is None:  # which stands for pickled weights where there are no others
            kwargs["use_safetensors"] = True
        gives_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except OSError as error:
            if re.search("no file named model.safetensors|cannot be loaded with `safetensors`", str(error)):
                folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
                raise explain_loading(error, f"`{folder}`", folder) from error
            raise
        if isinstance(kwargs.get("config"), PreTrainedConfig):
            _warn_of_other_order(model.config.modalities, pretrained_model_name_or_path, kwargs)
        new_names = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        model.new_parts = {name.partition(".")[0] for name in new_names}
        if kwargs.get("trust_remote_code"):
            warn_of_other_version(model.config)
        for encoder in model.get_encoder().encoders.children():
            encoder.apply_frozen()
        if getattr(model, "hf_quantizer", None) is not None:
            settle_loaded_quantization(model)
        return (model, info) if gives_info else model
