# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Learning how an encoder is called: one way after the other is tried on made-up values."""

import contextlib
import inspect
from collections.abc import Iterator
from itertools import product

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_calls import CONSTANT_ARGUMENTS, LENGTHS_ARGUMENTS, call_encoder
from .encoder_patches import patch_layouts
from .made_up import made_up_values


# What the models of transformers call the mask of each kind, the more specific name first.
MASK_ARGUMENTS = {
    "text": ("attention_mask",),
    "audio": ("attention_mask", "input_features_mask", "feature_attention_mask", "padding_mask", *LENGTHS_ARGUMENTS),
}
# Orders in which encoders take the dimensions of their values.
_IMAGE_LAYOUT = ["num_channels", "height", "width"]
_VIDEO_LAYOUTS = [["frames", *_IMAGE_LAYOUT], ["num_channels", "frames", "height", "width"]]
_LAYOUTS = {
    "text": [["length"]],
    "image": [_IMAGE_LAYOUT, *_VIDEO_LAYOUTS],  # an encoder of videos gets an image as a video of equal frames
    "video": [*_VIDEO_LAYOUTS, _IMAGE_LAYOUT],  # an encoder of images gets each frame by itself
    "audio": [
        ["samples"],
        ["one", "samples"],
        ["frames", "num_mel_bins"],
        ["num_mel_bins", "frames"],
        ["one", "frames", "num_mel_bins"],
    ],
}
# Sizes for encoders that do not declare any. Many sizes of the chunks that an encoder may work in divide these numbers
# of frames and of samples.
_USUAL_MEL_BINS, _USUAL_FRAMES = (80, 128), (256, 1_600)
_USUAL_SIZES = {"length": 16, "one": 1, "samples": 9_600}
# How many of the reasons why an encoder could not be called an error message gives: those of what fits best.
_REASONS = 4
# Arguments by which a model continues what it has read: one that takes any of them may be a decoder.
_CACHES = {"cache", "past_key_values", "cache_params", "state", "mems"}


class DecoderError(ValueError):
    """A model that reads from left to right, to continue what it has read, is given as an encoder."""


def parameters_of(encoder: nn.Module | type[PreTrainedModel]) -> dict[str, inspect.Parameter]:
    """The arguments of an encoder's `forward`, by name, without `self`."""
    parameters = inspect.signature(encoder.forward).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}  # which a class has


def _has_cache(encoder: nn.Module) -> bool:
    return bool(_CACHES & set(parameters_of(encoder)))


def continues_texts(encoder: nn.Module) -> bool:
    """Whether a model can continue a text, and its attention says that it takes no notice of what follows."""
    return _has_cache(encoder) and any(getattr(module, "is_causal", False) is True for module in encoder.modules())


def first_line(error: Exception) -> str:
    """The type of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def probe(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig) -> CrossFuseWrappedEncoderConfig:
    """
    Fills in a config's settings of how its encoder is called: each way is tried on made-up values until one works.

    Raises:
        ValueError: if no way works; the message gives the first reasons.
        DecoderError: if one works, but the model reads from left to right.
    """
    training, reasons = encoder.training, []
    encoder.eval()
    try:
        for values in _ways_to_call(encoder, config):
            try:
                config.hidden_size = _call(encoder, config, values).shape[-1]
            except Exception as error:
                reasons.append(first_line(error))
                continue
            if config.kind == "text" and _ignores_what_follows(encoder, config, values):
                raise DecoderError("reads from left to right")
            return config
    finally:
        encoder.train(training)
    first = list(dict.fromkeys(reasons))[:_REASONS]
    raise ValueError(f"fails on values of kind {config.kind!r} ({'; '.join(first)})")


def values_that_fit(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig) -> torch.Tensor:
    """Made-up values of two samples for an encoder whose config is complete, as its `forward` takes them."""
    for layout, values in _layouts_with_values(encoder, config):
        if layout == config.encoder_layout:
            with contextlib.suppress(Exception):  # of another size than it takes
                _call(encoder, config, values)
                return values.unsqueeze(1) if config.kind == "video" and config.encodes_images else values
    raise ValueError("takes no values of the sizes that its config declares")


def _ways_to_call(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig) -> Iterator[torch.Tensor]:
    """Sets in `config` each way in which an encoder may be called, and gives values for it."""
    constants = [name for name in CONSTANT_ARGUMENTS if name in parameters_of(encoder)]
    patches = [] if config.grid_arguments else [None]
    if config.kind in ("image", "video"):
        patches += patch_layouts(encoder, config)
    masks = _mask_arguments(encoder, config.kind)
    for layout, values in _layouts_with_values(encoder, config):
        config.encoder_layout = layout
        for way in product([constants, None] if constants else [None], patches, masks):
            config.constant_arguments, config.patch_layout, config.mask_argument = way
            for one_by_one in _batches(config):
                config.one_by_one = one_by_one
                yield values


def _mask_arguments(encoder: nn.Module, kind: str) -> list[str | None]:
    """The argument that may take the mask, if any, and None."""
    if getattr(encoder.config, "feat_extract_norm", None) == "group":
        return [None]  # it was trained without a mask, since its norm is over all positions, padding included
    return [*[name for name in MASK_ARGUMENTS.get(kind, ()) if name in parameters_of(encoder)][:1], None]


def _batches(config: CrossFuseWrappedEncoderConfig) -> list[bool]:
    """Values of `one_by_one` to try: audio with a mask may come back packed, without the number of frames of each."""
    if config.mask_argument in LENGTHS_ARGUMENTS:
        return [True]
    return [False, True] if config.kind == "audio" and config.mask_argument else [False]


@torch.no_grad()
def _call(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig, values: torch.Tensor) -> torch.Tensor:
    """The hidden states for made-up values, of which the second audio sample is shorter than the first."""
    parameter = next(encoder.parameters())
    values = values.to(device=parameter.device, dtype=parameter.dtype if values.is_floating_point() else None)
    axis = next((axis for axis, name in enumerate(config.layout, 1) if name in ("frames", "samples")), 1)
    mask = torch.ones(values.shape[0], values.shape[axis], dtype=torch.long, device=values.device)
    if config.kind == "audio":
        mask[-1, -mask.shape[1] // 4 :] = 0
    return call_encoder(encoder, config, values, mask)[0]


def _ignores_what_follows(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig, tokens: torch.Tensor) -> bool:
    """Whether a model that can continue a text gives the same at all tokens but the last when the last one changes."""
    if not _has_cache(encoder):
        return False
    changed = tokens.clone()
    changed[:, -1] = torch.where(tokens[:, -1] == tokens[:, 0], tokens[:, 1], tokens[:, 0])
    first, second = (_call(encoder, config, ids)[:, :-1] for ids in (tokens, changed))
    # Experts sum over other tokens of the batch, which may change the last digits.
    return torch.equal(first, second) or (continues_texts(encoder) and torch.allclose(first, second, atol=1e-5))


def _layouts_with_values(
    encoder: nn.Module, config: CrossFuseWrappedEncoderConfig
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Each layout that an encoder may take, with two samples, as `forward` takes them, of the sizes it declares."""
    generator = torch.Generator().manual_seed(0)
    height, width = _image_size(config)
    channels = config.num_channels if isinstance(config.num_channels, int) else 3
    sizes = {**_USUAL_SIZES, "vocab_size": config.vocab_size or 256}
    sizes |= {"num_channels": channels, "height": height, "width": width}
    tried = []
    for sizes["frames"], sizes["num_mel_bins"] in _frame_sizes(encoder, config):
        for layout in _LAYOUTS[config.kind]:
            if config.values_argument == "input_features" and "samples" in layout:  # features are spectra, not waves
                continue
            values = made_up_values(_layout_of_values(config.kind, layout), sizes, generator=generator)
            if sizes["num_mel_bins"] != (config.num_mel_bins or sizes["num_mel_bins"]):
                layout = ["features" if name == "num_mel_bins" else name for name in layout]
            if (layout, values.shape) not in tried:
                tried.append((layout, values.shape))
                yield layout, values


def _layout_of_values(kind: str, layout: list[str]) -> list[str]:
    """How `forward` takes, one image per row, the values that an encoder takes in `layout`."""
    if kind == "image" or (kind == "video" and "frames" not in layout):
        return _IMAGE_LAYOUT
    return _VIDEO_LAYOUTS[0] if kind == "video" else layout


def _frame_sizes(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig) -> list[tuple[int, int]]:
    """Numbers of frames, and widths of a frame of audio: those that are declared, and those that are usual."""
    if config.kind != "audio":
        return [(config.num_frames or 8, 0)]
    positions = getattr(config.encoder, "max_source_positions", None)
    clip = 2 * positions if positions else getattr(config.encoder, "max_length", None)  # of one length only
    frames = [_USUAL_FRAMES[0], clip, *_USUAL_FRAMES[1:]]
    # Several mel frames may be stacked: then the first weights say how wide that is.
    first = next((module.in_features for module in encoder.modules() if isinstance(module, nn.Linear)), None)
    if first == getattr(config.encoder, "hidden_size", None):  # those of a layer, not of what is in front of them
        first = None
    bins = [config.num_mel_bins or _USUAL_MEL_BINS[0], first, *_USUAL_MEL_BINS]
    return list(product(*(dict.fromkeys(filter(None, sizes)) for sizes in (frames, bins))))


def _image_size(config: CrossFuseWrappedEncoderConfig) -> tuple[int, int]:
    size = config.image_size or 224
    if config.grid_arguments and config.patch_size:  # of any size, so of a small one
        size = 4 * config.patch_size * config.spatial_merge_size
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    height, width = (size[0], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)
