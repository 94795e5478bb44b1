# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of the modalities: the layers' settings that every part shares, and one config per encoder."""

import difflib
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import as_validated_field, strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, __version__
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig


KINDS = ("text", "image", "video", "audio", "series")

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
_BASE_KEYS = {
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
    return _BASE_KEYS | set(GenerationConfig._get_default_generation_params())


def refuse_unknown_keys(config: PreTrainedConfig, kwargs: dict[str, Any]):
    """Raises a `ValueError` for a key that the config does not know; it names the one that was probably meant."""
    known = _known_keys()
    allowed = sorted({field.name for field in fields(config)} | set(getattr(config, "also_takes", ())))
    for key, value in kwargs.items():
        if key in known:
            continue
        close = difflib.get_close_matches(key, allowed, n=1)
        hint = f"Did you mean `{close[0]}`? " if close else ""
        raise ValueError(
            f"`{key}={value!r}` is not a key of {type(config).__name__}. {hint}Allowed keys: {', '.join(allowed)}."
        )


def read_rope_parameters(rope_parameters: dict[str, Any] | None, rope_theta: float | int | None) -> dict[str, Any]:
    """
    Rotary positions as transformers' configs have them, `{"rope_type": "default", "rope_theta": ...}`.

    Args:
        rope_parameters (`dict`, *optional*): what is given of it.
        rope_theta (`float`, *optional*): the short form of its only setting.

    Raises:
        ValueError: for another `rope_type`, another key, a wavelength that is not above 0, or two that differ.
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


# More than any model has. A file that asks for more would take all memory, or forever, before it could fail.
MAX_SIZE, MAX_LAYERS, MAX_LABELS, MAX_MODALITIES, MAX_DEPTH = 2**25, 1000, 2**20, 1000, 16


def refuse_huge(where: str, value: Any, depth: int = 0):
    """Raises a `ValueError` for settings, of whatever part, that no model has: sizes, layers, or levels of nesting."""
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


@strict
class CrossFuseEncoderConfig(PartConfig):
    """What the built-in encoders of every kind share: `num_hidden_layers`, `modality_dropout` and `frozen`."""

    kind: ClassVar[str]
    is_wrapped: ClassVar[bool] = False
    # What the dimensions of the values are, after the batch. Those that are a field of the config have its size.
    layout: ClassVar[tuple[str, ...]]
    position_axes: ClassVar[int] = 1
    num_hidden_layers: int = natural_int(default=4)
    modality_dropout: float | int = probability(default=0.0)
    frozen: bool = False

    def __post_init__(self, **kwargs):
        # `to_dict` writes the kind, so that a part which was saved by itself gives it back here.
        if kwargs.get("kind") == getattr(self, "kind", None):
            kwargs.pop("kind", None)
        super().__post_init__(**kwargs)

    def validate_rotary(self):
        if self.position_embedding_type == "rotary" and self._head_dim < 2 * self.position_axes:
            raise ValueError(
                f"`num_attention_heads={self.num_attention_heads}` leaves heads of {self._head_dim} channels; rotary "
                f"positions of kind {self.kind!r} need at least {2 * self.position_axes}"
            )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "kind": self.kind}


@strict
class CrossFuseTextConfig(CrossFuseEncoderConfig):
    """
    Configuration of a modality of kind `text`: `input_ids` of shape `(batch, length)`.

    Args:
        vocab_size (`int`, defaults to 32000): size of the vocabulary of the text's tokenizer.
    """

    model_type = "crossfuse_text"
    kind: ClassVar[str] = "text"
    layout: ClassVar[tuple[str, ...]] = ("length",)
    vocab_size: int = positive_int(default=32_000)


@strict
class CrossFuseImageConfig(CrossFuseEncoderConfig):
    """
    Configuration of a modality of kind `image`: `pixel_values` of shape `(batch, channels, height, width)` or
    `(batch, images, channels, height, width)`. Pictures of another size than `image_size` work too.

    Args:
        image_size (`int`, defaults to 224): height and width that the processor resizes to, in pixels.
        patch_size (`int`, defaults to 16): pixels per side that become one position of the stream.
        num_channels (`int`, defaults to 3): colour channels.
        stem_type (`str`, defaults to `"patch"`): `"patch"` is one linear projection of a patch (Dosovitskiy et al.,
            2021); `"conv"` is stages of residual convolutions that each halve the picture (Xiao et al., 2021, *Early
            Convolutions Help Transformers See Better*): it learns from far fewer pictures. `patch_size` must be a
            power of two, and at least 2, then.
        stem_depth (`int`, defaults to 1): residual blocks in each stage of the `"conv"` stem, none in its first.
        stem_width (`int`, *optional*): channels of the first stage of the `"conv"` stem, doubled at each stage up to
            `hidden_size`. Defaults to an eighth of `hidden_size`.
    """

    model_type = "crossfuse_image"
    kind: ClassVar[str] = "image"
    layout: ClassVar[tuple[str, ...]] = ("images", "num_channels", "height", "width")
    position_axes: ClassVar[int] = 2
    image_size: int = positive_int(default=224)
    patch_size: int = positive_int(default=16)
    num_channels: int = positive_int(default=3)
    stem_type: Literal["patch", "conv"] = "patch"
    stem_depth: int = natural_int(default=1)
    stem_width: int | None = optional_positive_int(default=None)

    def validate_stem(self):
        if self.stem_type == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(
                f"`patch_size={self.patch_size}` is not a power of two of at least 2, as `stem_type='conv'` needs"
            )


@strict
class CrossFuseVideoConfig(CrossFuseEncoderConfig):
    """
    Configuration of a modality of kind `video`: `pixel_values_videos` of shape
    `(batch, frames, channels, height, width)`. Other sizes and numbers of frames than the config's work too.

    Args:
        image_size (`int`, defaults to 224): height and width that the processor resizes each frame to, in pixels.
        patch_size (`int`, defaults to 16): pixels per side that become one position.
        num_frames (`int`, defaults to 8): frames that the processor samples.
        temporal_patch_size (`int`, defaults to 2): frames that become one position.
        num_channels (`int`, defaults to 3): colour channels.
    """

    model_type = "crossfuse_video"
    kind: ClassVar[str] = "video"
    layout: ClassVar[tuple[str, ...]] = ("frames", "num_channels", "height", "width")
    position_axes: ClassVar[int] = 3
    image_size: int = positive_int(default=224)
    patch_size: int = positive_int(default=16)
    num_frames: int = positive_int(default=8)
    temporal_patch_size: int = positive_int(default=2)
    num_channels: int = positive_int(default=3)


@strict
class CrossFuseAudioConfig(CrossFuseEncoderConfig):
    """
    Configuration of a modality of kind `audio`: log-mel `input_features` of shape `(batch, num_mel_bins, frames)`.

    Args:
        num_mel_bins (`int`, defaults to 80): mel bands per frame.
        num_conv_layers (`int`, defaults to 2): convolutions of the stem; each halves the number of frames.
    """

    model_type = "crossfuse_audio"
    kind: ClassVar[str] = "audio"
    layout: ClassVar[tuple[str, ...]] = ("num_mel_bins", "frames")
    num_mel_bins: int = positive_int(default=80)
    num_conv_layers: int = positive_int(default=2)


@strict
class CrossFuseSeriesConfig(CrossFuseEncoderConfig):
    """
    Configuration of a modality of kind `series`: `<name>_values` of shape `(batch, steps, num_channels)`.

    Args:
        num_channels (`int`, defaults to 1): numbers per time step.
        patch_length (`int`, defaults to 1): time steps that become one position.
    """

    model_type = "crossfuse_series"
    kind: ClassVar[str] = "series"
    layout: ClassVar[tuple[str, ...]] = ("steps", "num_channels")
    num_channels: int = positive_int(default=1)
    patch_length: int = positive_int(default=1)


ENCODER_CONFIGS = {
    config.kind: config
    for config in (
        CrossFuseTextConfig,
        CrossFuseImageConfig,
        CrossFuseVideoConfig,
        CrossFuseAudioConfig,
        CrossFuseSeriesConfig,
    )
}

# The names under which configs of transformers say the same.
_DECLARED = {
    "image_size": ("image_size", "input_size", "img_size"),
    "num_channels": ("num_channels", "in_channels", "in_chans"),
    "num_frames": ("num_frames", "frames_per_clip"),
    "num_mel_bins": ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "n_mels", "input_dim"),
    "patch_size": ("patch_size",),
    "spatial_merge_size": ("spatial_merge_size", "merge_kernel_size", "merge_size", "pooling_kernel_size"),
    "temporal_patch_size": ("temporal_patch_size", "patch_temporal"),
    "vocab_size": ("vocab_size",),
}


@strict
class CrossFuseWrappedEncoderConfig(PreTrainedConfig):
    """
    Configuration of a modality whose encoder is a model of transformers. `from_encoders` fills in all of it, given a
    model or its config. A config written by hand is complete enough to build a model once it has `architecture`,
    `values_argument`, `encoder_layout` and `hidden_size`.

    Args:
        kind (`str`): `"text"`, `"image"`, `"video"` or `"audio"`.
        encoder (`PreTrainedConfig` or `dict`): the encoder's config, as a dict with its `model_type`.
        architecture (`str`, *optional*): name of the encoder's class, such as `"WhisperEncoder"`.
        values_argument, mask_argument (`str`, *optional*): what the encoder's `forward` calls the values and, where it
            takes one, the mask.
        grid_arguments (`list[str]`, *optional*): arguments by which an encoder that takes pictures as patches learns
            how many there are.
        constant_arguments (`list[str]`, *optional*): arguments that the encoder gets the same for all values of a
            size, since a modality has nothing of the kind.
        patch_layout (`list[str]`, *optional*): the axes of the patches that an encoder takes. Without it, they are the
            usual ones for `grid_arguments` or, without these either, the encoder takes whole pictures.
        one_by_one (`bool`, defaults to `False`): whether the encoder gets the samples of a batch one by one, since it
            would give them back packed, each without its padding.
        encoder_layout (`list[str]`, *optional*): what the dimensions of the encoder's values are, after the batch.
        hidden_size (`int`, *optional*): width of what the encoder gives.
        source, revision (`str`, *optional*): the model on the Hub, or the folder, that the weights came from.
        modality_dropout (`float`, defaults to 0.0): as in [`CrossFuseConfig`].
        frozen (`bool`, defaults to `False`): whether training leaves the encoder as it is.
    """

    model_type = "crossfuse_wrapped_encoder"
    is_wrapped: ClassVar[bool] = True
    kind: Literal["text", "image", "video", "audio"] | None = None
    encoder: dict | PreTrainedConfig | None = None
    architecture: str | None = None
    values_argument: str | None = None
    mask_argument: str | None = None
    grid_arguments: list[str] | None = None
    constant_arguments: list[str] | None = None
    patch_layout: list[str] | None = None
    one_by_one: bool = False
    encoder_layout: list[str] | None = None
    hidden_size: int | None = optional_positive_int(default=None)
    source: str | None = None
    revision: str | None = None
    modality_dropout: float | int = probability(default=0.0)
    frozen: bool = False

    def __post_init__(self, **kwargs):
        refuse_unknown_keys(self, kwargs)
        if isinstance(self.encoder, dict):
            self.encoder = _read_encoder_config(self.encoder)
        super().__post_init__(**kwargs)

    def validate_encoder(self):
        if not isinstance(self.encoder, PreTrainedConfig):
            raise ValueError(f"`encoder={self.encoder!r}` is not the config of a transformers model")
        if self.kind is None:
            raise ValueError("`kind` is missing; expected one of text, image, video, audio")

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        encoder = self.__dict__.get("encoder")
        return {"encoder": type(encoder)} if isinstance(encoder, PreTrainedConfig) else {}

    def __setattr__(self, key, value):
        super().__setattr__(key, value)
        if key == "dtype" and self.sub_configs:  # the base class sets it one level deep only
            self.encoder.dtype = value

    @property
    def missing_settings(self) -> list[str]:
        """What has to be known before the encoder can be built and called, but is not."""
        needed = ("architecture", "values_argument", "encoder_layout", "hidden_size")
        return [name for name in needed if getattr(self, name) is None]

    @property
    def layout(self) -> tuple[str, ...]:
        """What the dimensions of the modality's values are, after the batch."""
        if self.kind in ("image", "video"):
            return ENCODER_CONFIGS[self.kind].layout
        return tuple(self.encoder_layout)

    @property
    def encodes_images(self) -> bool:
        """Whether each picture is encoded by itself; an encoder of kind `video` then gets each frame so."""
        return self.kind == "image" or (self.kind == "video" and "frames" not in self.encoder_layout)

    @property
    def takes_patches(self) -> bool:
        """Whether the encoder takes pictures cut into patches."""
        return self.patch_layout is not None or bool(self.grid_arguments)

    def _declared(self, field: str) -> Any:
        names = (name for name in _DECLARED[field] if getattr(self.encoder, name, None) is not None)
        name = next(names, None)
        return None if name is None else getattr(self.encoder, name)

    @property
    def image_size(self) -> Any:
        return self._declared("image_size")

    @property
    def num_channels(self) -> int | None:
        return self._declared("num_channels")

    @property
    def num_frames(self) -> int | None:
        return self._declared("num_frames")

    @property
    def num_mel_bins(self) -> int | None:
        return self._declared("num_mel_bins")

    @property
    def patch_size(self) -> int | None:
        return _one_number(self._declared("patch_size"))

    @property
    def spatial_merge_size(self) -> int:
        return _one_number(self._declared("spatial_merge_size")) or 1

    @property
    def temporal_patch_size(self) -> int:
        return self._declared("temporal_patch_size") or 1

    @property
    def vocab_size(self) -> int | None:
        return self._declared("vocab_size")

    @vocab_size.setter
    def vocab_size(self, value: int):
        self.encoder.vocab_size = value

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        return self

    def to_dict(self) -> dict[str, Any]:
        own = [field.name for field in fields(self) if field.name in type(self).__annotations__]
        output = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        encoder = self.encoder.to_diff_dict()
        for key in ("_name_or_path", "transformers_version"):
            encoder.pop(key, None)
        return {**output, "encoder": {**encoder, "model_type": self.encoder.model_type}, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


def _one_number(size: Any) -> int | None:
    return size[0] if isinstance(size, (list, tuple)) else size


def _read_encoder_config(settings: dict[str, Any]) -> PreTrainedConfig:
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`encoder` has `model_type={model_type!r}`, which is no model type of transformers. If it has code "
            "that you trust, load the model by its own class, such as CrossFuseForConditionalGeneration, with "
            "`trust_remote_code=True`"
        )
    return CONFIG_MAPPING[model_type].from_dict(settings)


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
        modalities = {key: value for key, value in kwargs.items() if key not in _BASE_KEYS}
        names = list(modalities) if self.names is None else self.names
        if sorted(names) != sorted(modalities):
            raise ValueError(f"`modalities` has `names={names!r}`, but settings for {', '.join(modalities)}")
        self.names = []
        super().__post_init__()
        for name in names:
            check_modality_name(name)
            setattr(self, name, _build_modality(name, modalities[name]))
            self.names.append(name)

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        # The base class asks while it initialises, too, before there are names.
        return {name: type(getattr(self, name)) for name in self.__dict__.get("names") or ()}

    def __setattr__(self, key, value):
        super().__setattr__(key, value)
        if key == "dtype":  # the base class sets it one level deep only
            for name in self.sub_configs:
                getattr(self, name).dtype = value

    def __getitem__(self, name: str) -> CrossFuseEncoderConfig:
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

    def _tensor_name(self, name: str, plain: str) -> str:
        return plain if name == self[name].kind else f"{name}_{plain}"

    def hidden_states_name(self, name: str) -> str:
        """
        The keyword argument of `forward` that takes what the modality's encoder gave before, `(batch, length,
        hidden_size)`, instead of values. Its mask, `(batch, length)`, has the same name and `_mask` at the end.
        """
        return f"{name}_hidden_states"

    def value_name(self, name: str) -> str:
        """The keyword argument of `forward` that takes the modality's values, such as `left_eye_pixel_values`."""
        kind = self[name].kind
        if kind == "series":
            return f"{name}_values"
        plain = getattr(self[name], "values_argument", None) if kind == "audio" else None
        return self._tensor_name(name, plain or VALUE_NAMES[kind])

    def mask_name(self, name: str) -> str:
        """The keyword argument of `forward` that takes the modality's mask, such as `left_eye_image_mask`."""
        kind = self[name].kind
        return f"{name}_mask" if kind == "series" else self._tensor_name(name, MASK_NAMES[kind])

    def embeds_name(self, name: str) -> str | None:
        """The keyword argument of `forward` that takes ready embeddings, for modalities of kind `text`."""
        return self._tensor_name(name, "inputs_embeds") if self[name].kind == "text" else None

    @property
    def tensor_names(self) -> list[str]:
        """Every keyword argument of `forward` that carries a modality."""
        return [tensor for name in self for tensor in self.tensor_names_of(name)]

    def tensor_names_of(self, name: str) -> list[str]:
        """Every keyword argument of `forward` that carries one modality."""
        encoded = self.hidden_states_name(name)
        names = [self.value_name(name), self.mask_name(name), self.embeds_name(name), encoded, f"{encoded}_mask"]
        return [name for name in names if name is not None]

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


def build_part(where: str, config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    """A config of the class from its settings; raises a `ValueError` that begins with `where`, which names them."""
    try:
        return config_class(**settings)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"`{where}`: {error}") from error


__all__ = [
    "CrossFuseAudioConfig",
    "CrossFuseEncoderConfig",
    "CrossFuseImageConfig",
    "CrossFuseModalitiesConfig",
    "CrossFuseSeriesConfig",
    "CrossFuseTextConfig",
    "CrossFuseVideoConfig",
    "CrossFuseWrappedEncoderConfig",
]
