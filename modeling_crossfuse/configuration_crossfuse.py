# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""CrossFuse configuration: one sub-config per modality, one for the fusion, one for the decoder."""

import copy
import difflib
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import as_validated_field, strict
from huggingface_hub.errors import StrictDataclassError
from transformers import __version__
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig


KINDS = ("text", "image", "video", "audio", "series")

# The fusion methods that a config may name; `register_fusion` adds to them.
FUSION_TYPES = ["concat", "joint", "bottleneck", "latent"]

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

# Starts of keyword arguments that `generate` keeps from the encoder, and what `forward` means something else by.
_RESERVED_STARTS = ("cache_params", "cross_attn", "decoder_", "modality_mask", "past_key_values", "use_cache")

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


@strict
class _LayerConfig(PreTrainedConfig):
    """
    What the one Transformer layer class reads from a config, whichever part it is built for. Refuses keys that it does
    not know, and names the one that was probably meant.
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
    rope_theta: float | int = positive_float(default=10_000.0)
    initializer_range: float = positive_float(default=0.02)

    def _refuse_unknown_keys(self, kwargs: dict[str, Any]):
        known = _known_keys()
        allowed = sorted(field.name for field in fields(self))
        for key, value in kwargs.items():
            if key in known:
                continue
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"Did you mean `{close[0]}`? " if close else ""
            raise ValueError(
                f"`{key}={value!r}` is not a key of {type(self).__name__}. {hint}Allowed keys: {', '.join(allowed)}."
            )

    def __post_init__(self, **kwargs):
        self._refuse_unknown_keys(kwargs)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        # Attributes that other code set on the config are not written: they could not be read back.
        kept = _known_keys() | {field.name for field in fields(self)} | {"transformers_version"}
        return {key: value for key, value in super().to_dict().items() if key in kept}


@strict
class _PartConfig(_LayerConfig):
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
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def validate_heads(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` is not a multiple of `num_attention_heads="
                f"{self.num_attention_heads}`"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"`hidden_size={self.hidden_size}` over `num_attention_heads={self.num_attention_heads}` gives heads "
                f"of {self.head_dim} channels; an even number is expected"
            )
        groups = self.num_key_value_heads or self.num_attention_heads
        if self.num_attention_heads % groups:
            raise ValueError(
                f"`num_attention_heads={self.num_attention_heads}` is not a multiple of `num_key_value_heads={groups}`"
            )

    def to_dict(self) -> dict[str, Any]:
        base = {field.name for field in fields(PreTrainedConfig)} - {"dtype"}
        kept = {field.name for field in fields(self)} - base | {"model_type", "transformers_version"}
        return {key: value for key, value in super().to_dict().items() if key in kept}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


@strict
class CrossFuseEncoderConfig(_PartConfig):
    """What the built-in encoders of every kind share: `num_hidden_layers` and `modality_dropout`."""

    kind: ClassVar[str]
    position_axes: ClassVar[int] = 1
    num_hidden_layers: int = natural_int(default=4)
    modality_dropout: float | int = probability(default=0.0)

    def __post_init__(self, **kwargs):
        # `to_dict` writes the kind, so that a part which was saved by itself gives it back here.
        if kwargs.get("kind") == getattr(self, "kind", None):
            kwargs.pop("kind", None)
        super().__post_init__(**kwargs)

    def validate_rotary(self):
        if self.position_embedding_type == "rotary" and self.head_dim < 2 * self.position_axes:
            raise ValueError(
                f"`num_attention_heads={self.num_attention_heads}` leaves heads of {self.head_dim} channels; rotary "
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

_VALUE_NAMES = {
    "text": "input_ids",
    "image": "pixel_values",
    "video": "pixel_values_videos",
    "audio": "input_features",
}
_MASK_NAMES = {
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

    def _tensor_name(self, name: str, plain: str) -> str:
        return plain if name == self[name].kind else f"{name}_{plain}"

    def value_name(self, name: str) -> str:
        """The keyword argument of `forward` that takes the modality's values, such as `left_eye_pixel_values`."""
        kind = self[name].kind
        return f"{name}_values" if kind == "series" else self._tensor_name(name, _VALUE_NAMES[kind])

    def mask_name(self, name: str) -> str:
        """The keyword argument of `forward` that takes the modality's mask, such as `left_eye_image_mask`."""
        kind = self[name].kind
        return f"{name}_mask" if kind == "series" else self._tensor_name(name, _MASK_NAMES[kind])

    def embeds_name(self, name: str) -> str | None:
        """The keyword argument of `forward` that takes ready embeddings, for modalities of kind `text`."""
        return self._tensor_name(name, "inputs_embeds") if self[name].kind == "text" else None

    @property
    def tensor_names(self) -> list[str]:
        """Every keyword argument of `forward` that carries a modality."""
        names = [method(name) for name in self for method in (self.value_name, self.mask_name, self.embeds_name)]
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
    kind = settings.pop("kind", name)
    if kind not in ENCODER_CONFIGS:
        raise ValueError(
            f"`modalities[{name!r}]` has `kind={kind!r}`; expected one of {', '.join(KINDS)}"
            + ("" if "kind" in modality else " (without `kind`, a modality's name is its kind)")
        )
    return _build_part(f"modalities[{name!r}]", ENCODER_CONFIGS[kind], settings)


def _build_part(where: str, config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    try:
        return config_class(**settings)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"`{where}`: {error}") from error


@strict
class CrossFuseFusionConfig(_PartConfig):
    """
    Configuration of the fusion: how the streams become the memory.

    Args:
        type (`str`, defaults to `"concat"`): `"concat"`, `"joint"`, `"bottleneck"`, `"latent"`, or a name given to
            [`register_fusion`].
        num_layers (`int`, defaults to 2): layers of the fusion; `"concat"` has none.
        num_latents (`int`, defaults to 16): bottleneck positions of `"bottleneck"`, or the length of `"latent"`'s
            memory.
        options (`dict`, *optional*): whatever a fusion of your own needs.
    """

    model_type = "crossfuse_fusion"
    base_config_key = "fusion"
    type: str = "concat"
    num_layers: int = natural_int(default=2)
    num_latents: int = positive_int(default=16)
    options: dict[str, Any] | None = None

    def validate_fusion_type(self):
        if self.type not in FUSION_TYPES:
            raise ValueError(
                f"`type={self.type!r}` is not a fusion; expected one of {', '.join(FUSION_TYPES)}, or a name given to "
                "`register_fusion` before"
            )
        if self.type == "latent" and self.num_layers == 0:
            raise ValueError("`num_layers=0` leaves fusion 'latent' without a layer; expected at least 1")


@strict
class CrossFuseDecoderConfig(_PartConfig):
    """
    Configuration of the decoder: causal self-attention over the answer, cross-attention to the memory.

    Args:
        vocab_size (`int`, defaults to 32000): size of the vocabulary that answers are made of.
        num_hidden_layers (`int`, defaults to 4): number of layers.
        use_cache (`bool`, defaults to `True`): whether to return the keys and values for the next step.
    """

    model_type = "crossfuse_decoder"
    base_config_key = "decoder"
    vocab_size: int = positive_int(default=32_000)
    num_hidden_layers: int = positive_int(default=4)
    use_cache: bool = True


@strict
class CrossFuseConfig(_LayerConfig):
    r"""
    Configuration of a CrossFuse model: any number of named modalities, a fusion and a decoder.

    Settings of the layers (`num_attention_heads`, `norm_type`, `dropout`, ...) given here hold in every part; a part's
    own settings win.

    Args:
        d_model (`int`, defaults to 256): width of the streams, the memory and, unless they say otherwise, of every
            part.
        modalities (`dict[str, dict]`, *optional*): name of each modality to its settings. `kind` is one of `text`,
            `image`, `video`, `audio`, `series`, and may be left out where the name is the kind. The order is that of
            `modality_mask` and of the memory. Defaults to one modality `text`.
        fusion (`dict`, *optional*): see [`CrossFuseFusionConfig`].
        decoder (`dict`, *optional*): see [`CrossFuseDecoderConfig`].
        num_hidden_layers (`int`, defaults to 4): layers of each encoder and of the decoder.
        num_attention_heads (`int`, defaults to 4): attention heads.
        num_key_value_heads (`int`, *optional*): heads of the keys and values; fewer than `num_attention_heads` is
            grouped-query attention (Ainslie et al., 2023).
        intermediate_size (`int`, *optional*): width inside the feed-forward; 8/3 (SwiGLU) or 4 (GELU) times the part's
            width by default.
        mlp_type (`str`, defaults to `"swiglu"`): `"swiglu"` (Shazeer, 2020) or `"gelu"`.
        norm_type (`str`, defaults to `"rmsnorm"`): `"rmsnorm"` (Zhang & Sennrich, 2019) or `"layernorm"`.
        norm_eps (`float`, defaults to 1e-6): added to the norms' variance.
        dropout (`float`, defaults to 0.0): dropout after the embeddings, attention and feed-forward.
        attention_dropout (`float`, defaults to 0.0): dropout of attention weights.
        position_embedding_type (`str`, defaults to `"rotary"`): `"rotary"` (Su et al., 2021; one group of channels per
            axis for images and videos) or `"sinusoidal"` (Vaswani et al., 2017). Rotary positions act within
            attention: an encoder with `num_hidden_layers=0` has none.
        rope_theta (`float`, defaults to 10000.0): base wavelength of rotary positions.
        initializer_range (`float`, defaults to 0.02): standard deviation of initial weights.
        modality_dropout (`float`, defaults to 0.0): probability with which training leaves out a modality of a sample;
            never its last one. Each modality may have its own.
        num_answers (`int`, defaults to 0): distinct answers that an auxiliary classifier on the mean of the memory
            tells apart in training, given `answer_ids`; 0 builds none. Where each of many answers has a few examples,
            the encoders learn several times faster from it than from the decoder alone.
        answer_loss_weight (`float`, defaults to 1.0): weight of that classifier's loss beside the decoder's. Above 1,
            the encoders follow the classifier more than the decoder.
        label_smoothing (`float`, defaults to 0.0): share of the target probability spread over the vocabulary in
            training.
        tie_word_embeddings (`bool`, defaults to `True`): whether the decoder's token embedding is also its output
            layer.
        pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id (`int`): special tokens of the answers.
        src_vocab_size, tgt_vocab_size (`int`, *optional*): short forms of `modalities={"text": {"vocab_size": ...}}`
            and `decoder={"vocab_size": ...}` for a text-only model. They are not saved.

    Raises:
        ValueError: if a key is unknown, or a modality, the fusion or the decoder is wrong in any way.
        huggingface_hub.errors.StrictDataclassError: as in every transformers config, if the value of another key has
            the wrong type or is out of range. Either message names the key, the value and what is allowed.

    Example:

    ```python
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration

    >>> config = CrossFuseConfig(
    ...     d_model=64,
    ...     num_hidden_layers=2,
    ...     modalities={
    ...         "text": {"vocab_size": 100},
    ...         "image": {"image_size": 32, "patch_size": 8},
    ...         "wrist": {"kind": "series", "num_channels": 6},
    ...     },
    ...     fusion={"type": "bottleneck", "num_layers": 1, "num_latents": 4},
    ...     decoder={"vocab_size": 100},
    ... )
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> config.modalities["image"].patch_size
    8
    ```
    """

    model_type = "crossfuse"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"hidden_size": "d_model"}
    sub_configs_defaults = {
        "modalities": CrossFuseModalitiesConfig,
        "fusion": CrossFuseFusionConfig,
        "decoder": CrossFuseDecoderConfig,
    }

    d_model: int = positive_int(default=256)
    num_hidden_layers: int = natural_int(default=4)
    modalities: dict | PreTrainedConfig | None = None
    fusion: dict | PreTrainedConfig | None = None
    decoder: dict | PreTrainedConfig | None = None
    modality_dropout: float | int = probability(default=0.0)
    num_answers: int = natural_int(default=0)
    answer_loss_weight: float | int = positive_float(default=1.0)
    label_smoothing: float | int = probability(default=0.0)
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1

    def __post_init__(self, **kwargs):
        src_vocab_size, tgt_vocab_size = kwargs.pop("src_vocab_size", None), kwargs.pop("tgt_vocab_size", None)
        self._refuse_unknown_keys(kwargs)
        self.modalities = self._build_modalities(src_vocab_size)
        self.fusion = self._build(CrossFuseFusionConfig, self.fusion, {})
        decoder_defaults = {"num_hidden_layers": max(self.num_hidden_layers, 1)}
        if tgt_vocab_size is not None:
            if isinstance(self.decoder, PreTrainedConfig) or "vocab_size" in (self.decoder or {}):
                raise ValueError(f"`tgt_vocab_size={tgt_vocab_size!r}` and the `vocab_size` of `decoder`; drop one")
            decoder_defaults["vocab_size"] = tgt_vocab_size
        self.decoder = self._build(CrossFuseDecoderConfig, self.decoder, decoder_defaults)
        super().__post_init__(**kwargs)

    def _shared(self) -> dict[str, Any]:
        return {"hidden_size": self.d_model, "dtype": self.dtype, **{key: getattr(self, key) for key in LAYER_FIELDS}}

    def _build(self, config_class: type[_PartConfig], part: Any, defaults: dict[str, Any]) -> PreTrainedConfig:
        if isinstance(part, PreTrainedConfig):
            return part
        where = config_class.base_config_key
        return _build_part(where, config_class, {**self._shared(), **defaults, **copy.deepcopy(part or {})})

    def _build_modalities(self, src_vocab_size: int | None) -> CrossFuseModalitiesConfig:
        modalities = self.modalities
        if isinstance(modalities, PreTrainedConfig):
            return modalities
        if src_vocab_size is not None and modalities is not None:
            raise ValueError(
                f"`src_vocab_size={src_vocab_size!r}` is the short form of a text-only model; with `modalities`, give "
                '`modalities={"text": {"vocab_size": ...}}` instead'
            )
        if modalities is None:
            modalities = {"text": {} if src_vocab_size is None else {"vocab_size": src_vocab_size}}
        if not modalities:
            raise ValueError("`modalities` is empty; expected at least one modality")
        inherited = ("num_hidden_layers", "modality_dropout")
        defaults = {**self._shared(), **{key: getattr(self, key) for key in inherited}}
        parts = {
            name: {**defaults, **copy.deepcopy(part)} if isinstance(part, dict) else part
            for name, part in modalities.items()
        }
        names = parts.pop("names", list(parts))
        for name in parts:
            check_modality_name(name)
        return CrossFuseModalitiesConfig(names=names, **parts)

    def validate_widths(self):
        for where in ("fusion", "decoder"):
            part = getattr(self, where)
            if isinstance(part, PreTrainedConfig) and part.hidden_size != self.d_model:
                raise ValueError(f"`{where}` has `hidden_size={part.hidden_size}`; expected `d_model={self.d_model}`")

    def validate_tensor_names(self):
        """Two modalities may not ask for the same keyword argument of `forward`, nor one for what `generate` keeps."""
        if not isinstance(self.modalities, CrossFuseModalitiesConfig):
            return
        names = self.modalities.tensor_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`modalities` has two modalities that are both given as `{twice[0]}`; rename one")
        reserved = [name for name in names if name.startswith(_RESERVED_STARTS)]
        if reserved:
            raise ValueError(
                f"`modalities` has one that would be given as `{reserved[0]}`, which is no name for an input: "
                f"`generate` keeps what starts with {', '.join(_RESERVED_STARTS)} for the decoder; rename it"
            )

    def validate_special_tokens(self):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            tokens = getattr(self, name)
            for token in tokens if isinstance(tokens, list) else [tokens]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"`{name}={tokens}` is not a token of the decoder; expected at least 0 and below "
                        f"`vocab_size={self.vocab_size}`"
                    )

    def __setattr__(self, key, value):
        super().__setattr__(key, value)
        if key == "dtype":  # saving a model sets it here only
            for name in self.sub_configs_defaults:
                part = self.__dict__.get(name)
                if isinstance(part, PreTrainedConfig):
                    part.dtype = value

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):
        self.decoder.vocab_size = value

    @property
    def use_cache(self) -> bool:
        return self.decoder.use_cache

    @use_cache.setter
    def use_cache(self, value: bool):
        self.decoder.use_cache = value

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The decoder's config; with `encoder=True`, that of the first modality of kind `text`, if there is one."""
        if encoder and not decoder:
            return next((part for part in self.modalities.values() if part.kind == "text"), self)
        return self.decoder

    def to_diff_dict(self) -> dict[str, Any]:
        # The base class would leave out of each part what equals the part's own default; a public format says it all.
        base = PreTrainedConfig().to_dict()
        output = self.to_dict()
        output.pop("_name_or_path", None)  # where it was loaded from, which is nobody else's business
        kept = {key: value for key, value in output.items() if key not in base or value != base[key]}
        return {**kept, "transformers_version": output["transformers_version"]}


__all__ = [
    "CrossFuseAudioConfig",
    "CrossFuseConfig",
    "CrossFuseDecoderConfig",
    "CrossFuseEncoderConfig",
    "CrossFuseFusionConfig",
    "CrossFuseImageConfig",
    "CrossFuseModalitiesConfig",
    "CrossFuseSeriesConfig",
    "CrossFuseTextConfig",
    "CrossFuseVideoConfig",
]
