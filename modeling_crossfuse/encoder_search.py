# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Finding an encoder within a model of transformers, and building it again."""

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_patches import GRID_ARGUMENTS
from .encoder_probe import MASK_ARGUMENTS, DecoderError, declares_decoder, first_line, parameters_of, probe


# What the models of transformers call the values of each kind, the more specific name first.
VALUES_ARGUMENTS = {
    "text": ("input_ids",),
    "image": ("pixel_values",),
    "video": ("pixel_values_videos", "pixel_values"),
    "audio": ("input_features", "input_values"),
}
# Beginnings of the names of modules of transformers that have no models.
_NO_MODELS = (
    "configuration_",
    "convert_",
    "feature_extraction_",
    "image_processing_",
    "modular_",
    "processing_",
    "tokenization_",
    "video_processing_",
)


class JointError(ValueError):
    """A model that takes the values of a kind only together with those of another is given as an encoder of one."""


def _values_argument(encoder: PreTrainedModel, kind: str) -> str | None:
    """The argument by which a model takes values of a kind and nothing else, or None."""
    if getattr(encoder.forward, "__func__", encoder.forward) is nn.Module.forward:  # it has none of its own
        return None
    parameters = parameters_of(encoder)
    names = VALUES_ARGUMENTS[kind]
    if kind in ("image", "video") and _grid_arguments(encoder):
        names = (*names, "hidden_states")
    name = next((name for name in names if name in parameters), None)
    if name is None and kind != "text" and _declares(encoder, kind):
        name = next(iter(parameters), None)  # `hidden_states`, in some
    known = {name, *MASK_ARGUMENTS[kind], *_grid_arguments(encoder)}
    required = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return None if set(required) - known or any(key.startswith("decoder_") for key in parameters) else name


def _declares(encoder: PreTrainedModel, kind: str) -> bool:
    """Whether a model says that it is for values of a kind, whatever its argument is called."""
    modalities = getattr(encoder, "input_modalities", ())
    only = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    return getattr(encoder, "main_input_name", None) in VALUES_ARGUMENTS[kind] or only == (kind,)


def _grid_arguments(encoder: PreTrainedModel | type[PreTrainedModel]) -> list[str]:
    return sorted(GRID_ARGUMENTS & set(parameters_of(encoder)))


def _takes_only(encoder: PreTrainedModel, kind: str) -> bool:
    others = {name for names in VALUES_ARGUMENTS.values() for name in names} - set(VALUES_ARGUMENTS[kind])
    if kind == "image":
        others.remove("pixel_values_videos")
    return not others & set(parameters_of(encoder))


def _parts(model: PreTrainedModel) -> list[nn.Module]:
    """The model and what within it has a config."""
    return [module for module in model.modules() if isinstance(getattr(module, "config", None), PreTrainedConfig)]


def _takes_jointly(model: PreTrainedModel, kind: str) -> bool:
    """Whether a model takes values of a kind, but no part of it takes them, and no values of another kind."""
    taking = [part for part in _parts(model) if set(VALUES_ARGUMENTS[kind]) & set(parameters_of(part))]
    return bool(taking) and not any(_takes_only(part, kind) for part in taking)


def _candidates(model: PreTrainedModel, kind: str) -> list[nn.Module]:
    """
    The model and the parts of it that take values of a kind, from the outside in: those before all that take no other
    kind, as the towers of dual models do. A part that is no `PreTrainedModel` counts where it is in none that counts.
    """
    within = _parts(model)
    fitting = [module for module in within if _values_argument(module, kind) is not None]
    single = [module for module in fitting if _takes_only(module, kind)]
    inner = {id(part) for module in single for part in module.modules() if part is not module}
    fitting = [module for module in fitting if isinstance(module, PreTrainedModel) or id(module) not in inner]
    return sorted(fitting, key=lambda module: not _takes_only(module, kind))


def find_encoder(model: PreTrainedModel, kind: str, where: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    The encoder of a kind within a model: the model itself, the encoder of an encoder-decoder, or a tower of a dual
    model. It goes by what the model declares, and runs what it found on a few made-up values.

    Args:
        model (`PreTrainedModel`): any model of transformers.
        kind (`str`): `"text"`, `"image"`, `"video"` or `"audio"`.
        where (`str`): what error messages call the model.

    Returns:
        `tuple[PreTrainedModel, dict]`: the encoder, and the fields of [`CrossFuseWrappedEncoderConfig`] that say how
        it is called.

    Raises:
        ValueError: if the model has no encoder of the kind; the message says what it takes, or why it failed.
    """
    errors = []
    for candidate in _candidates(model, kind):
        try:
            _check_rebuilt(candidate)
            return candidate, probe(candidate, _declared_settings(candidate, kind))
        except ValueError as error:
            errors.append(_explain(error, candidate, kind, where))
    if _takes_jointly(model, kind) and not any(isinstance(error, DecoderError) for error in errors):
        raise JointError(
            f"{where} is no encoder of kind {kind!r}: {type(model).__name__} takes it only together with another kind"
        )
    if not errors:
        known = dict.fromkeys(name for names in VALUES_ARGUMENTS.values() for name in names)
        taken = [name for name in known if name in parameters_of(model)]
        expected = " or ".join(f"`{name}`" for name in VALUES_ARGUMENTS[kind])
        raise ValueError(
            f"{where} is no encoder of kind {kind!r}: {type(model).__name__} takes "
            f"{', '.join(f'`{name}`' for name in taken) or 'something else'}; expected a model with an encoder that "
            f"takes {expected}"
        )
    raise errors[0]


def _declared_settings(encoder: PreTrainedModel, kind: str) -> CrossFuseWrappedEncoderConfig:
    return CrossFuseWrappedEncoderConfig(
        kind=kind,
        encoder=_config_of(encoder),
        architecture=type(encoder).__name__,
        values_argument=_values_argument(encoder, kind),
        grid_arguments=(_grid_arguments(encoder) or None) if kind in ("image", "video") else None,
    )


def _explain(error: ValueError, encoder: PreTrainedModel, kind: str, where: str) -> ValueError:
    """The error for a part of a model that is no encoder; what fails and is a decoder is not expected to be one."""
    if kind == "text" and declares_decoder(encoder):
        error = DecoderError("reads from left to right, as a decoder does; expected an encoder")
    return type(error)(f"{where} is no encoder of kind {kind!r}: {type(encoder).__name__} {error}")


def _config_of(encoder: PreTrainedModel) -> PreTrainedConfig:
    """A copy of an encoder's config: as part of another it would lose, for its model, the attention implementation."""
    config = copy.deepcopy(encoder.config)
    if hasattr(config, "quantization_config"):  # which is for the whole model to say
        del config.quantization_config
    if getattr(config, "mask_ratio", None):  # pretraining hides most of its input from it, by chance
        config.mask_ratio = 0.0
    return config


def complete(config: CrossFuseWrappedEncoderConfig, model: PreTrainedModel, where: str) -> PreTrainedModel:
    """
    Fills in what a config does not say of the encoder within `model`, and returns that encoder. Errors are those of
    [`find_encoder`].
    """
    encoder, settings = find_encoder(model, config.kind, where)
    config.encoder = _config_of(encoder)
    for key, value in settings.items():
        setattr(config, key, value)
    return encoder


def infer_kind(model: PreTrainedModel | type[PreTrainedModel], where: str) -> str:
    """The kind of values that a model, or its class, takes, for a modality whose name does not say."""
    kinds = [kind for kind in VALUES_ARGUMENTS if _values_argument(model, kind) and _takes_only(model, kind)]
    kinds.sort(key=lambda kind: kind not in model.input_modalities)  # videos are `pixel_values`, too
    if not kinds:
        raise ValueError(
            f"{where} does not say what kind of values it is for; give "
            '`{"kind": ..., "encoder": ...}` with one of text, image, video, audio'
        )
    return kinds[0]


def encoder_class(config: PreTrainedConfig, architecture: str | None = None) -> type[PreTrainedModel]:
    """
    The class of an encoder, by its name, among the models that stand beside its config's class.

    Raises:
        ValueError: if there is no such class.
    """
    classes = MODEL_MAPPING.get(type(config), ())
    classes = {found.__name__: found for found in (classes if isinstance(classes, tuple) else (classes,))}
    if architecture in classes:
        return classes[architecture]
    for module in _modeling_modules(type(config).__module__):
        found = getattr(module, architecture or "", None)
        if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module.__name__:
            return found
    raise ValueError(f"`architecture={architecture!r}` is no model for a {type(config).__name__}")


def _modeling_modules(configuration: str) -> Iterator[ModuleType]:
    """The modules of models beside that of a configuration, its twin first; or the same, if it has both."""
    package, _, name = configuration.rpartition(".")
    twin = name.replace("configuration_", "modeling_")
    yield importlib.import_module(f"{package}.{twin}" if package else twin)
    if twin == name:
        return
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name != twin and not module.name.startswith(_NO_MODELS):
            yield importlib.import_module(f"{package}.{module.name}")


def build_encoder(config: PreTrainedConfig, architecture: str) -> PreTrainedModel:
    """A new encoder, without the pooling layer that some have and that would only make one position of it."""
    found = encoder_class(config, architecture)
    has_pooler = "add_pooling_layer" in inspect.signature(found.__init__).parameters
    return found(config, add_pooling_layer=False) if has_pooler else found(config)


def _check_rebuilt(encoder: PreTrainedModel):
    """Raises a `ValueError` unless the encoder can be built again from its config alone, as loading has to."""
    try:
        with torch.device("meta"):
            rebuilt = build_encoder(copy.deepcopy(encoder.config), type(encoder).__name__)
    except Exception as error:
        raise ValueError(f"can't be built from its config alone ({first_line(error)})") from error
    own = encoder.state_dict()
    buffers = [name for name, _ in encoder.named_buffers() if name not in own]
    if buffers and not isinstance(encoder, PreTrainedModel):  # which, when it is loaded, makes them again
        raise ValueError(f"has a buffer that is not saved, `{buffers[0]}`")
    parameters = dict(rebuilt.named_parameters())
    if any(key not in own for key in parameters) or any(
        value.shape != own[key].shape for key, value in rebuilt.state_dict().items() if key in own
    ):
        raise ValueError("has other weights when it is built from its config alone")


def take_weights(encoder: nn.Module, source: nn.Module, dtype: torch.dtype, copied: bool):
    """
    Gives an encoder the weights of another of the same class, and whether each trains.

    Args:
        encoder, source (`nn.Module`): the encoder, and that whose weights it takes.
        dtype (`torch.dtype`): that of the encoder; other weights are cast.
        copied (`bool`): whether the source keeps weights of its own.
    """
    weights = source.state_dict(keep_vars=True)
    taken = {key: _take(weights[key], dtype, copied) for key in encoder.state_dict() if key in weights}
    encoder.load_state_dict(taken, strict=False, assign=True)  # counters of frozen batch norms may be missing
    for key, parameter in encoder.named_parameters():
        parameter.requires_grad_(weights[key].requires_grad)
    if isinstance(encoder, PreTrainedModel):
        encoder.tie_weights()


def _take(weight: torch.Tensor, dtype: torch.dtype, copied: bool) -> torch.Tensor:
    taken = weight.detach()
    if taken.is_floating_point() and taken.dtype != dtype:
        taken = taken.to(dtype)
    elif copied:
        taken = taken.clone()
    return nn.Parameter(taken, requires_grad=False) if isinstance(weight, nn.Parameter) else taken
