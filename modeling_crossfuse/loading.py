# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Loading a model that a stranger may have made: no pickled weights, no other files, no memory without weights."""

import json
import os
import re
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from .encoder_sources import HUB_ARGUMENTS
from .hub import warn_of_other_version
from .quantization import settle_loaded_quantization


def explain_loading(error: Exception, where: str) -> OSError:
    """The error for an encoder, or its processor, that can't be loaded."""
    text = " ".join(str(error).split())
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


def _refuse_outside_shards(folder: str | os.PathLike):
    """Raises a `ValueError` if the index of shards in a folder leads out of it. On the Hub, the client checks that."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.isfile(index):
        return
    with open(index, encoding="utf-8") as file:
        names = set(json.load(file).get("weight_map", {}).values())
    outside = sorted(name for name in names if os.path.basename(name) != name)
    if outside:
        raise ValueError(f"`weight_map` of {index} names {outside[0]!r}; expected files in the same folder")


def _register_remote_encoders(name_or_path: str | os.PathLike, kwargs: dict[str, Any]):
    """Registers the configs of encoders that come with code of their own, so that the model's config can be read."""
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs and key != "trust_remote_code"}
    config, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub, revision=kwargs.get("revision") or "main")
    for part in (config.get("modalities") or {}).values():
        model_type = (part.get("encoder") or {}).get("model_type") if isinstance(part, dict) else None
        if model_type is None or model_type in CONFIG_MAPPING or part.get("source") is None:
            continue
        revision = part.get("revision") or "main"
        found = AutoConfig.from_pretrained(part["source"], trust_remote_code=True, **hub, revision=revision)
        AutoConfig.register(model_type, type(found), exist_ok=True)


class SafeLoadingMixin:
    """Loads models from files that are not trusted."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        if kwargs.get("trust_remote_code") and kwargs.get("config") is None:
            _register_remote_encoders(pretrained_model_name_or_path, kwargs)
        if pretrained_model_name_or_path is not None:
            _refuse_outside_shards(pretrained_model_name_or_path)
        if kwargs.get("use_safetensors") is None:  # which stands for pickled weights where there are no others
            kwargs["use_safetensors"] = True
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if re.search("no file named model.safetensors|cannot be loaded with `safetensors`", str(error)):
                raise explain_loading(error, f"`{pretrained_model_name_or_path}`") from error
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if kwargs.get("trust_remote_code"):
            warn_of_other_version(model.config)
        for encoder in model.get_encoder().encoders.children():
            encoder.apply_frozen()
        if getattr(model, "hf_quantizer", None) is not None:
            settle_loaded_quantization(model)
        return loaded
