# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of the modalities: the encoder of each, and the keyword arguments of `forward` that carry it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import __version__
from transformers.configuration_utils import PreTrainedConfig

from .configuration_encoders import (
    ENCODER_CONFIGS,
    KINDS,
    CrossFuseBuiltInEncoderConfig,
    CrossFuseWrappedEncoderConfig,
)
from .configuration_layers import BASE_KEYS, build_part


# What transformers calls the values and the mask of a kind. A series goes by the modality's own name.
VALUE_NAMES = {
    "text": "input_ids",
    "image": "pixel_values",
    "video": "pixel_values_videos",
    "audio": "input_features",
}
MASK_NAMES = {
    "text": "attention_mask",
    "image": "image_mask",
    "video": "video_mask",
    "audio": "feature_attention_mask",
}
# The dimensions that masks run along.
_LENGTHS = ("length", "images", "frames", "samples", "steps")


class TensorNames(NamedTuple):
    """
    The keyword arguments of `forward` that carry one modality: its values and their mask; embeddings in place of the
    ids of tokens, for kind `text` alone; or what its encoder gave before, and the mask of that.
    """

    values: str
    mask: str
    embeds: str | None
    hidden_states: str
    hidden_states_mask: str


def tensor_names(name: str, kind: str, values_argument: str | None = None) -> TensorNames:
    """
    The names for a modality. Where its name is not its kind, they begin with it, such as `left_eye_pixel_values`.

    Args:
        name (`str`): the modality.
        kind (`str`): its kind.
        values_argument (`str`, *optional*): what its encoder calls audio, such as `"input_values"`.
    """
    if kind == "series":
        values, mask = f"{name}_values", f"{name}_mask"
    else:
        prefix = "" if name == kind else f"{name}_"
        values = prefix + ((kind == "audio" and values_argument) or VALUE_NAMES[kind])
        mask = prefix + MASK_NAMES[kind]
    embeds = f"{prefix}inputs_embeds" if kind == "text" else None
    return TensorNames(values, mask, embeds, f"{name}_hidden_states", f"{name}_hidden_states_mask")


class TensorSpec(NamedTuple):
    """
    One of the ways in which `forward` can be given a modality.

    Args:
        name, mask_name (`str`): the keyword arguments of the tensor and of its mask.
        layout (`tuple[str, ...]`): what the dimensions of the tensor are, after the batch.
        mask_axis (`int`): the dimension of the tensor that the mask runs along. Dimension 0 is the batch.
        is_tokens (`bool`): whether it holds the ids of tokens.
        is_encoded (`bool`): whether it is what the encoder gave before.
    """

    name: str
    mask_name: str
    layout: tuple[str, ...]
    mask_axis: int
    is_tokens: bool = False
    is_encoded: bool = False


def mask_axis(layout: Iterable[str]) -> int:
    """The dimension of values that their mask runs along. Dimension 0 is the batch."""
    return next((axis for axis, dimension in enumerate(layout, start=1) if dimension in _LENGTHS), 1)


def _tensor_specs(names: TensorNames, part: PreTrainedConfig) -> tuple[TensorSpec, ...]:
    """The ways to give a modality, its values first."""
    axis = mask_axis(part.layout)
    specs = [TensorSpec(names.values, names.mask, part.layout, axis, is_tokens=part.kind == "text")]
    if names.embeds is not None:
        # The embeddings of an encoder of transformers may be narrower than its hidden states.
        width = "embedding_size" if part.is_wrapped else "hidden_size"
        specs.append(TensorSpec(names.embeds, names.mask, ("length", width), mask_axis=1))
    encoded = TensorSpec(names.hidden_states, names.hidden_states_mask, ("length", "hidden_size"), 1, is_encoded=True)
    return (*specs, encoded)


@strict
class CrossFuseModalitiesConfig(PreTrainedConfig):
    """
    The modalities of a [`CrossFuseConfig`], in order: a mapping of name to encoder config.

    Example:

    ```python
    >>> from modeling_crossfuse import CrossFuseConfig

    >>> config = CrossFuseConfig(modalities={"image": {}, "wrist": {"kind": "series", "num_channels": 6}})
    >>> list(config.modalities)
    ['image', 'wrist']
    >>> config.modalities["wrist"].num_channels
    6
    >>> config.modalities.value_name("wrist"), config.modalities.mask_name("wrist")
    ('wrist_values', 'wrist_mask')
    ```
    """

    model_type = "crossfuse_modalities"
    base_config_key = "modalities"

    # The order, which a JSON file with sorted keys would lose.
    names: list[str] | None = None

    def __post_init__(self, **kwargs):
        modalities = {key: value for key, value in kwargs.items() if key not in BASE_KEYS}
        names = list(modalities) if self.names is None else self.names
        if sorted(names) != sorted(modalities):
            raise ValueError(f"`modalities` has `names={names!r}`, but settings for {', '.join(modalities)}")
        self.names = []
        super().__post_init__()
        for name in names:
            check_modality_name(name)
            setattr(self, name, _build_modality(name, modalities[name]))
            self.names.append(name)
        self._tensor_names = {
            name: tensor_names(name, part.kind, getattr(part, "values_argument", None)) for name, part in self.items()
        }
        self._tensor_specs = {name: _tensor_specs(self._tensor_names[name], part) for name, part in self.items()}

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        # The base class asks while it initialises, too, before there are names.
        return {name: type(getattr(self, name)) for name in self.__dict__.get("names") or ()}

    def __setattr__(self, key, value):
        super().__setattr__(key, value)
        if key == "dtype":  # the base class sets it one level deep only
            for name in self.sub_configs:
                getattr(self, name).dtype = value

    def __getitem__(self, name: str) -> CrossFuseBuiltInEncoderConfig:
        if name not in self.names:
            raise KeyError(f"no modality named {name!r}; this config has {', '.join(self.names)}")
        return getattr(self, name)

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name) -> bool:
        return name in self.names

    def keys(self):
        return list(self.names)

    def items(self):
        return [(name, getattr(self, name)) for name in self.names]

    def values(self):
        return [getattr(self, name) for name in self.names]

    def names_of_kind(self, kind: str) -> list[str]:
        """The modalities of a kind, in the config's order."""
        return [name for name, part in self.items() if part.kind == kind]

    @property
    def tensor_specs(self) -> dict[str, tuple[TensorSpec, ...]]:
        """The ways in which `forward` can be given each modality, its values first."""
        return self._tensor_specs

    @property
    def tensor_names(self) -> list[str]:
        """Every keyword argument of `forward` that carries a modality."""
        return [tensor for names in self._tensor_names.values() for tensor in names if tensor is not None]

    def tensor_names_of(self, name: str) -> TensorNames:
        """The keyword arguments of `forward` that carry one modality."""
        return self._tensor_names[name]

    def value_name(self, name: str) -> str:
        """The keyword argument of `forward` that takes the modality's values, such as `left_eye_pixel_values`."""
        return self._tensor_names[name].values

    def mask_name(self, name: str) -> str:
        """The keyword argument of `forward` that takes the modality's mask, such as `left_eye_image_mask`."""
        return self._tensor_names[name].mask

    def embeds_name(self, name: str) -> str | None:
        """The keyword argument of `forward` that takes ready embeddings, for modalities of kind `text`."""
        return self._tensor_names[name].embeds

    def hidden_states_name(self, name: str) -> str:
        """
        The keyword argument of `forward` that takes what the modality's encoder gave before, `(batch, length,
        hidden_size)`, instead of values.
        """
        return self._tensor_names[name].hidden_states

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self

    def to_dict(self) -> dict[str, Any]:
        output = {name: config.to_dict() for name, config in self.items()}
        for part in output.values():
            part.pop("transformers_version", None)
        return {"names": self.keys(), **output, "transformers_version": __version__}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


def check_modality_name(name: Any):
    """Raises a `ValueError` unless a modality can have the name."""
    if (
        not isinstance(name, str)
        or not name.isidentifier()
        or name.startswith("_")
        or hasattr(CrossFuseModalitiesConfig, name)
    ):
        raise ValueError(
            f"`modalities` has the name {name!r}; expected a Python identifier that is not an attribute of a config"
        )


def _build_modality(name: str, modality: Any) -> PreTrainedConfig:
    """A modality's config from what the user wrote, or an error that says which modality is wrong and how."""
    if isinstance(modality, PreTrainedConfig):
        if not hasattr(modality, "kind"):
            raise ValueError(f"`modalities[{name!r}]` is a {type(modality).__name__}; expected an encoder config")
        return modality
    if not isinstance(modality, dict):
        raise ValueError(f"`modalities[{name!r}]` is {modality!r}; expected a dict of its settings")
    settings = dict(modality)
    if "encoder" in settings:
        kind = settings.setdefault("kind", name if name in KINDS else None)
        settings.pop("model_type", None)
        return build_part(f"modalities[{name!r}]", CrossFuseWrappedEncoderConfig, settings)
    kind = settings.pop("kind", name)
    if kind not in ENCODER_CONFIGS:
        raise ValueError(
            f"`modalities[{name!r}]` has `kind={kind!r}`; expected one of {', '.join(KINDS)}"
            + ("" if "kind" in modality else " (without `kind`, a modality's name is its kind)")
        )
    return build_part(f"modalities[{name!r}]", ENCODER_CONFIGS[kind], settings)


__all__ = ["CrossFuseModalitiesConfig"]
