# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Configuration that every part shares: the settings of the layers, and how values and keys are checked."""

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import as_validated_field, strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig


# What the layers of every part share: set once on `CrossFuseConfig`, overridable in each part.
LAYER_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "mlp_type",
    "norm_type",
    "norm_eps",
    "dropout",
    "attention_dropout",
    "position_embedding_type",
    "rope_theta",
    "initializer_range",
)

# Rotary positions, as transformers names them, where nothing is said.
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

# Keys that transformers itself puts into, or reads from, any config.
BASE_KEYS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "use_bfloat16",
}


@as_validated_field
def positive_int(value: int):
    """At least 1."""
    if value < 1:
        raise ValueError(f"expected an integer of at least 1, got {value}")


@as_validated_field
def natural_int(value: int):
    """At least 0."""
    if value < 0:
        raise ValueError(f"expected an integer of at least 0, got {value}")


@as_validated_field
def optional_positive_int(value: int | None):
    """None, or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"expected None or an integer of at least 1, got {value}")


@as_validated_field
def positive_float(value: float | int):
    """Above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a number above 0, got {value}")


@as_validated_field
def probability(value: float | int):
    """At least 0 and below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"expected a probability of at least 0 and below 1, got {value}")


def _known_keys() -> set[str]:
    """Keys that a config takes although they are not among its fields."""
    return BASE_KEYS | set(GenerationConfig._get_default_generation_params())


def close_match(name: str, allowed: Iterable[str]) -> str:
    """A sentence for an error message: what was probably meant, if anything. It begins with a space."""
    close = difflib.get_close_matches(name, sorted(allowed), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def refuse_unknown_keys(config: PreTrainedConfig, kwargs: dict[str, Any]):
    """Raises a `ValueError` for a key that the config does not know; it names the one that was probably meant."""
    known = _known_keys()
    allowed = sorted({field.name for field in fields(config)} | set(getattr(config, "also_takes", ())))
    for key, value in kwargs.items():
        if key in known:
            continue
        raise ValueError(
            f"`{key}={value!r}` is not a key of {type(config).__name__}.{close_match(key, allowed)} Allowed keys: "
            f"{', '.join(allowed)}."
        )


def read_rope_parameters(rope_parameters: dict[str, Any] | None, rope_theta: float | int | None) -> dict[str, Any]:
    """
    Rotary positions as transformers' configs have them, `{"rope_type": "default", "rope_theta": ...}`, from these or
    from their short form `rope_theta`. Raises a `ValueError` for anything else, and for two that differ.
    """
    given = dict(rope_parameters or {})
    unknown = sorted(given.keys() - _DEFAULT_ROPE.keys())
    if given.get("rope_type", "default") != "default":
        raise ValueError(f"`rope_parameters` has `rope_type={given['rope_type']!r}`; expected 'default'")
    if unknown:
        raise ValueError(f"`rope_parameters` has the key `{unknown[0]}`; expected {', '.join(_DEFAULT_ROPE)}")
    if rope_theta is not None and given.setdefault("rope_theta", rope_theta) != rope_theta:
        raise ValueError(f"`rope_theta={rope_theta!r}` and `rope_parameters={rope_parameters!r}` differ; drop one")
    theta = {**_DEFAULT_ROPE, **given}["rope_theta"]
    if isinstance(theta, bool) or not isinstance(theta, (float, int)) or not 0 < theta < float("inf"):
        raise ValueError(f"`rope_theta={theta!r}`; expected a number above 0")
    return {**_DEFAULT_ROPE, **given}


# No model has more. A file that asks for more would take all memory before it could fail, or never end.
MAX_SIZE, MAX_LAYERS, MAX_LABELS, MAX_MODALITIES, MAX_DEPTH = 2**25, 1000, 2**20, 1000, 16


def refuse_huge(where: str, value: Any, depth: int = 0):
    """Raises a `ValueError` for sizes, numbers of layers and levels of nesting that no model has."""
    if depth > MAX_DEPTH:
        raise ValueError(f"`{where}` is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, part in value.items():
            refuse_huge(f"{where}.{key}" if where else str(key), part, depth + 1)
    elif isinstance(value, (list, tuple)):
        for part in value:
            refuse_huge(where, part, depth + 1)
    elif isinstance(value, int):
        key = where.rpartition(".")[2]
        limit = MAX_LAYERS if "layers" in key else MAX_LABELS if key == "num_labels" else MAX_SIZE
        if abs(value) > limit and "theta" not in key:
            raise ValueError(f"`{where}={value}`; expected at most {limit:,}")


@strict
class LayerConfig(PreTrainedConfig):
    """
    What the one Transformer layer class reads from a config, whichever part it is built for. Refuses keys that it does
    not know.
    """

    num_attention_heads: int = positive_int(default=4)
    num_key_value_heads: int | None = optional_positive_int(default=None)
    intermediate_size: int | None = optional_positive_int(default=None)
    mlp_type: Literal["swiglu", "gelu"] = "swiglu"
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = positive_float(default=1e-6)
    dropout: float | int = probability(default=0.0)
    attention_dropout: float | int = probability(default=0.0)
    position_embedding_type: Literal["rotary", "sinusoidal"] = "rotary"
    rope_parameters: dict[str, Any] | None = None
    initializer_range: float = positive_float(default=0.02)
    # Keys that are no fields, since they name what is part of one.
    also_takes: ClassVar[tuple[str, ...]] = ("rope_theta",)

    def __post_init__(self, **kwargs):
        self.rope_parameters = read_rope_parameters(self.rope_parameters, kwargs.pop("rope_theta", None))
        refuse_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)

    @property
    def rope_theta(self) -> float | int:
        """The base wavelength of rotary positions. It is kept in `rope_parameters`."""
        return read_rope_parameters(self.rope_parameters, None)["rope_theta"]

    @rope_theta.setter
    def rope_theta(self, value: float | int):
        self.rope_parameters = read_rope_parameters({**(self.rope_parameters or {}), "rope_theta": value}, None)

    def to_dict(self) -> dict[str, Any]:
        # Attributes that other code set on the config are not written: they could not be read back.
        kept = _known_keys() | {field.name for field in fields(self)} | {"transformers_version"}
        output = {key: value for key, value in super().to_dict().items() if key in kept}
        output.pop("rope_parameters", None)  # files have the short form, which every release reads
        return {**output, "rope_theta": self.rope_theta}


@strict
class PartConfig(LayerConfig):
    """A sub-config of [`CrossFuseConfig`]: layer settings, a width, and nothing of the whole model's own keys."""

    hidden_size: int = positive_int(default=256)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            # SwiGLU has three matrices where GELU has two: 8/3 keeps the parameters equal (Shazeer, 2020).
            ratio = 8 / 3 if self.mlp_type == "swiglu" else 4
            self.intermediate_size = -(-int(self.hidden_size * ratio) // 32) * 32

    @property
    def _head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def validate_heads(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` is not a multiple of `num_attention_heads="
                f"{self.num_attention_heads}`"
            )
        if self._head_dim % 2:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` over `num_attention_heads={self.num_attention_heads}` gives heads "
                f"of {self._head_dim} channels; an even number is expected"
            )
        groups = self.num_key_value_heads or self.num_attention_heads
        if self.num_attention_heads % groups:
            raise ValueError(
                f"`num_attention_heads={self.num_attention_heads}` is not a multiple of `num_key_value_heads={groups}`"
            )

    def to_dict(self) -> dict[str, Any]:
        base = {field.name for field in fields(PreTrainedConfig)} - {"dtype"}
        kept = {field.name for field in fields(self)} - base | {"rope_theta", "model_type", "transformers_version"}
        return {key: value for key, value in super().to_dict().items() if key in kept}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


def build_part(where: str, config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    """A config of the class. An error in its settings is a `ValueError` that begins with `where`."""
    try:
        return config_class(**settings)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"`{where}`: {error}") from error
