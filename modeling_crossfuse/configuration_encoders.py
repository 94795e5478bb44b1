# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of encoders: a class for each kind that is built in, and one for the encoders of transformers."""

import math
from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig

from .configuration_layers import (
    PartConfig,
    natural_int,
    optional_positive_int,
    positive_int,
    probability,
    refuse_unknown_keys,
)


KINDS = ("text", "image", "video", "audio", "series")


@strict
class CrossFuseBuiltInEncoderConfig(PartConfig):
    """What the built-in encoders of every kind share: `num_hidden_layers`, `modality_dropout` and `frozen`."""

    kind: ClassVar[str]
    is_wrapped: ClassVar[bool] = False
    # What the dimensions of the values are, after the batch. Those that are a field of the config have its size.
    layout: ClassVar[tuple[str, ...]]
    position_axes: ClassVar[int] = 1
    # Whether each image is encoded by itself.
    encodes_images: ClassVar[bool] = False
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
class CrossFuseTextConfig(CrossFuseBuiltInEncoderConfig):
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
class CrossFuseImageConfig(CrossFuseBuiltInEncoderConfig):
    """
    Configuration of a modality of kind `image`: `pixel_values` of shape `(batch, channels, height, width)` or
    `(batch, images, channels, height, width)`. Images of other sizes work, too.

    Args:
        image_size (`int`, defaults to 224): height and width that the processor resizes to, in pixels.
        patch_size (`int`, defaults to 16): pixels per side that become one position of the stream.
        num_channels (`int`, defaults to 3): colour channels.
        stem_type (`str`, defaults to `"patch"`): `"patch"` is one linear projection of a patch (Dosovitskiy et al.,
            2021); `"conv"` is stages of residual convolutions that each halve the image (Xiao et al., 2021, *Early
            Convolutions Help Transformers See Better*): it learns from far fewer images. `patch_size` must be a
            power of two, and at least 2, then.
        stem_depth (`int`, defaults to 1): residual blocks in each stage of the `"conv"` stem, none in its first.
        stem_width (`int`, *optional*): channels of the first stage of the `"conv"` stem, doubled at each stage up to
            `hidden_size`. Defaults to an eighth of `hidden_size`.
    """

    model_type = "crossfuse_image"
    kind: ClassVar[str] = "image"
    layout: ClassVar[tuple[str, ...]] = ("images", "num_channels", "height", "width")
    position_axes: ClassVar[int] = 2
    encodes_images: ClassVar[bool] = True
    image_size: int = positive_int(default=224)
    patch_size: int = positive_int(default=16)
    num_channels: int = positive_int(default=3)
    stem_type: Literal["patch", "conv"] = "patch"
    stem_depth: int = natural_int(default=1)
    stem_width: int | None = optional_positive_int(default=None)

    def validate_stem(self):
        if self.stem_type == "conv" and (self.patch_size < 2 or not math.log2(self.patch_size).is_integer()):
            raise ValueError(
                f"`patch_size={self.patch_size}` is not a power of two of at least 2, as `stem_type='conv'` needs"
            )


@strict
class CrossFuseVideoConfig(CrossFuseBuiltInEncoderConfig):
    """
    Configuration of a modality of kind `video`: `pixel_values_videos` of shape
    `(batch, frames, channels, height, width)`. Other sizes and numbers of frames work, too.

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
class CrossFuseAudioConfig(CrossFuseBuiltInEncoderConfig):
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
class CrossFuseSeriesConfig(CrossFuseBuiltInEncoderConfig):
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
_ENCODER_KEYS = {
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
    model or its config. Of one written by hand, a model can be built once it has `architecture`, `values_argument`,
    `encoder_layout` and `hidden_size`.

    Args:
        kind (`str`): `"text"`, `"image"`, `"video"` or `"audio"`.
        encoder (`PreTrainedConfig` or `dict`): the encoder's config, as a dict with its `model_type`.
        architecture (`str`, *optional*): name of the encoder's class, such as `"WhisperEncoder"`.
        values_argument, mask_argument (`str`, *optional*): what the encoder's `forward` calls the values and, where it
            takes one, the mask.
        grid_arguments (`list[str]`, *optional*): arguments by which an encoder that takes images as patches learns
            how many there are.
        constant_arguments (`list[str]`, *optional*): arguments that the encoder gets the same for all values of a
            size, since a modality has nothing of the kind.
        patch_layout (`list[str]`, *optional*): the axes of the patches that an encoder takes. Without it, they are the
            usual ones for `grid_arguments` or, without these either, the encoder takes whole images.
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
    encoder: PreTrainedConfig | dict | None = None
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
        """The settings that are needed to build and call the encoder, and are missing."""
        needed = ("architecture", "values_argument", "encoder_layout", "hidden_size")
        return [name for name in needed if getattr(self, name) is None]

    @property
    def layout(self) -> tuple[str, ...]:
        """What the dimensions of the modality's values are, after the batch."""
        if self.kind == "audio":
            return tuple(self.encoder_layout or ())
        return ENCODER_CONFIGS[self.kind].layout

    @property
    def encodes_images(self) -> bool:
        """Whether each image is encoded by itself. For kind `video`, an image is a frame."""
        return self.kind == "image" or (self.kind == "video" and "frames" not in self.encoder_layout)

    @property
    def window(self) -> int | None:
        """How many mel frames the encoder reads at once, if it is one that reads no other number, as Whisper's is."""
        positions = getattr(self.encoder, "max_source_positions", None)
        return 2 * positions if positions and self.encoder_layout == ["num_mel_bins", "frames"] else None

    @property
    def takes_patches(self) -> bool:
        """Whether the encoder takes images cut into patches."""
        return self.patch_layout is not None or bool(self.grid_arguments)

    def _read(self, field: str) -> Any:
        """What the encoder's config says under any of the names that configs of transformers have for a field."""
        values = (getattr(self.encoder, key, None) for key in _ENCODER_KEYS[field])
        return next((value for value in values if value is not None), None)

    @property
    def image_size(self) -> Any:
        return self._read("image_size")

    @property
    def num_channels(self) -> int | None:
        return self._read("num_channels")

    @property
    def num_frames(self) -> int | None:
        return self._read("num_frames")

    @property
    def num_mel_bins(self) -> int | None:
        return self._read("num_mel_bins")

    @property
    def patch_size(self) -> int | None:
        return _one_number(self._read("patch_size"))

    @property
    def spatial_merge_size(self) -> int:
        return _one_number(self._read("spatial_merge_size")) or 1

    @property
    def temporal_patch_size(self) -> int:
        return self._read("temporal_patch_size") or 1

    @property
    def vocab_size(self) -> int | None:
        return self._read("vocab_size")

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
