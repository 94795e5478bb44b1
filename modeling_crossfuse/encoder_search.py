# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Finding an encoder within a model of transformers, and building it again."""

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_patches import GRID_ARGUMENTS
from .encoder_probe import MASK_ARGUMENTS, DecoderError, continues_texts, first_line, parameters_of, probe


# What the models of transformers call the values of each kind, the more specific name first.
VALUES_ARGUMENTS = {
    "text": ("input_ids",),
    "image": ("pixel_values",),
    "video": ("pixel_values_videos", "pixel_values"),
    "audio": ("input_features", "input_values"),
}


class JointError(ValueError):
    """A model that takes the values of a kind only together with those of another is given as an encoder of one."""


def _values_argument(encoder: nn.Module | type[PreTrainedModel], kind: str) -> str | None:
    """The argument by which a model takes values of a kind and nothing else, or None."""
    if getattr(encoder.forward, "__func__", encoder.forward) is nn.Module.forward:  # it has none of its own
        return None
    parameters, grid_arguments = parameters_of(encoder), _grid_arguments(encoder, kind)
    names = (*VALUES_ARGUMENTS[kind], "hidden_states") if grid_arguments else VALUES_ARGUMENTS[kind]
    argument = next((name for name in names if name in parameters), None)
    if argument is None and kind != "text" and _is_made_for(encoder, kind):
        argument = next(iter(parameters), None)  # `hidden_states`, in some
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    lacking = required - {argument, *MASK_ARGUMENTS.get(kind, ()), *grid_arguments}
    return None if lacking or any(name.startswith("decoder_") for name in parameters) else argument


def _is_made_for(encoder: nn.Module | type[PreTrainedModel], kind: str) -> bool:
    """Whether a model says that it is for values of a kind, whatever its argument is called."""
    modalities = getattr(encoder, "input_modalities", ())
    modalities = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    return getattr(encoder, "main_input_name", None) in VALUES_ARGUMENTS[kind] or modalities == (kind,)


def _grid_arguments(encoder: nn.Module | type[PreTrainedModel], kind: str) -> list[str]:
    return sorted(GRID_ARGUMENTS & set(parameters_of(encoder))) if kind in ("image", "video") else []


def _takes_only(encoder: nn.Module | type[PreTrainedModel], kind: str) -> bool:
    """Whether a model takes no values of another kind. An encoder of images may take videos, too."""
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
    The model and the parts of it that take values of a kind, from the outside in. Those that take no other kind, as
    the towers of dual models do, come first. A part that is no `PreTrainedModel` counts only outside of these.
    """
    fitting = [module for module in _parts(model) if _values_argument(module, kind) is not None]
    single = [module for module in fitting if _takes_only(module, kind)]
    inner = {id(part) for module in single for part in module.modules() if part is not module}
    fitting = [module for module in fitting if isinstance(module, PreTrainedModel) or id(module) not in inner]
    return sorted(fitting, key=lambda module: not _takes_only(module, kind))


def find_encoder(
    model: PreTrainedModel, config: CrossFuseWrappedEncoderConfig, where: str
) -> tuple[nn.Module, CrossFuseWrappedEncoderConfig]:
    """
    The encoder of `config.kind` within a model (the model itself, the encoder of an encoder-decoder, or a tower of a
    dual model), and a copy of `config` that says how it is called. What does not run on made-up values is no encoder.

    Raises:
        ValueError: if the model has no encoder of the kind. The message, in which the model is called `where`, says
            what it takes, or why its encoder failed.
    """
    kind, errors = config.kind, []
    for candidate in _candidates(model, kind):
        try:
            _check_rebuilt(candidate)
            return candidate, probe(candidate, _describe(candidate, config))
        except ValueError as error:
            errors.append(_explain(error, candidate, kind, where))
    if _takes_jointly(model, kind) and not any(isinstance(error, DecoderError) for error in errors):
        raise JointError(
            f"{where} is no encoder of kind {kind!r}: {type(model).__name__} takes it only together with another kind"
        )
    if errors:
        raise errors[0]
    known = dict.fromkeys(name for names in VALUES_ARGUMENTS.values() for name in names)
    taken = ", ".join(f"`{name}`" for name in known if name in parameters_of(model))
    expected = " or ".join(f"`{name}`" for name in VALUES_ARGUMENTS[kind])
    raise ValueError(
        f"{where} is no encoder of kind {kind!r}: {type(model).__name__} takes {taken or 'something else'}; expected "
        f"a model with an encoder that takes {expected}"
    )


def _describe(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig) -> CrossFuseWrappedEncoderConfig:
    """A copy of a modality's config that says what an encoder says of itself."""
    described = copy.copy(config)
    # A copy: as part of another config it would lose, for its model, the attention implementation.
    described.encoder = copy.deepcopy(encoder.config)
    if hasattr(described.encoder, "quantization_config"):  # which is for the whole model to say
        del described.encoder.quantization_config
    if getattr(described.encoder, "mask_ratio", None):  # pretraining hides most of its input from it, by chance
        described.encoder.mask_ratio = 0.0
    described.architecture = type(encoder).__name__
    described.values_argument = _values_argument(encoder, config.kind)
    described.grid_arguments = _grid_arguments(encoder, config.kind) or None
    return described


def _explain(error: ValueError, encoder: nn.Module, kind: str, where: str) -> ValueError:
    """The error for a part of a model that is no encoder; what fails and is a decoder is not expected to be one."""
    if isinstance(error, DecoderError) or (kind == "text" and continues_texts(encoder)):
        error = DecoderError("reads from left to right, as a decoder does; expected an encoder")
    return type(error)(f"{where} is no encoder of kind {kind!r}: {type(encoder).__name__} {error}")


def infer_kind(model: PreTrainedModel | type[PreTrainedModel] | None, where: str) -> str:
    """The kind of values that a model, or its class, takes, for a modality whose name does not say."""
    kinds = [] if model is None else list(VALUES_ARGUMENTS)
    kinds = [kind for kind in kinds if _values_argument(model, kind) and _takes_only(model, kind)]
    if not kinds:
        raise ValueError(
            f"{where} does not say what kind of values it is for; give "
            '`{"kind": ..., "encoder": ...}` with one of text, image, video, audio'
        )
    # Of image and video, which both are `pixel_values`, the one that the model names.
    return min(kinds, key=lambda kind: kind not in model.input_modalities)


def encoder_class(config: PreTrainedConfig, architecture: str) -> type[nn.Module]:
    """The class of an encoder, by its name, among the models that stand beside its config's class."""
    classes = MODEL_MAPPING.get(type(config), ())
    classes = {found.__name__: found for found in (classes if isinstance(classes, tuple) else (classes,))}
    if architecture in classes:
        return classes[architecture]
    package, _, configuration = type(config).__module__.rpartition(".")
    for name in _modeling_modules(package, configuration):
        found = getattr(importlib.import_module(f"{package}.{name}".lstrip(".")), architecture, None)
        if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(package):
            return found
    raise ValueError(f"`architecture={architecture!r}` is no model for a {type(config).__name__}")


def _modeling_modules(package: str, configuration: str) -> Iterator[str]:
    """The modules of models beside that of a configuration, its twin first; or the same, if it has both."""
    yield configuration.replace("configuration_", "modeling_")
    if "configuration_" in configuration:
        modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
        yield from (module.name for module in modules if module.name.startswith("modeling_"))


def build_encoder(config: PreTrainedConfig, architecture: str) -> nn.Module:
    """A new encoder, without the pooling layer that some have and that would only make one position of it."""
    found = encoder_class(config, architecture)
    has_pooler = "add_pooling_layer" in inspect.signature(found.__init__).parameters
    return found(config, add_pooling_layer=False) if has_pooler else found(config)


def _check_rebuilt(encoder: nn.Module):
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
    lacking = any(name not in own for name, _ in rebuilt.named_parameters())
    if lacking or any(own[name].shape != value.shape for name, value in rebuilt.state_dict().items() if name in own):
        if any(hasattr(module, "base_layer") for module in encoder.modules()):
            raise ValueError("has layers with adapters of peft; merge them first: `PeftModel.merge_and_unload()`")
        raise ValueError("has other weights when it is built from its config alone")
