# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Learning how an encoder is called: it is run on made-up values, in one way after the other."""

import contextlib
import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_calls import CONSTANT_ARGUMENTS, LENGTHS_ARGUMENTS, call_encoder
from .encoder_patches import patch_layouts


# What the models of transformers call the mask of each kind, the more specific name first.
MASK_ARGUMENTS = {
    "text": ("attention_mask",),
    "image": (),
    "video": (),
    "audio": ("attention_mask", "input_features_mask", "feature_attention_mask", "padding_mask", *LENGTHS_ARGUMENTS),
}
# Orders in which encoders take the dimensions of their values.
_LAYOUTS = {
    # The last two: an encoder of films, to which a picture is one of equal frames.
    "image": [
        ["num_channels", "height", "width"],
        ["frames", "num_channels", "height", "width"],
        ["num_channels", "frames", "height", "width"],
    ],
    # The last: an encoder of pictures, which gets each frame by itself.
    "video": [
        ["frames", "num_channels", "height", "width"],
        ["num_channels", "frames", "height", "width"],
        ["num_channels", "height", "width"],
    ],
    "audio": [
        ["samples"],
        ["one", "samples"],
        ["frames", "num_mel_bins"],
        ["num_mel_bins", "frames"],
        ["one", "frames", "num_mel_bins"],
    ],
}
_LENGTHS = ("length", "frames", "samples")
# Widths of a frame of sound and numbers of frames for encoders that do not declare any. Many sizes of the chunks that
# an encoder may work in divide these numbers, and that of samples.
_USUAL_MEL_BINS = (80, 128)
_USUAL_FRAMES = (256, 1_600)
_USUAL_SAMPLES = 9_600
# How many of the reasons why an encoder could not be called an error message gives: those of what fits best.
_REASONS = 4
# What is found out of how an encoder is called.
_FOUND_FIELDS = (
    "architecture",
    "values_argument",
    "mask_argument",
    "grid_arguments",
    "constant_arguments",
    "patch_layout",
    "one_by_one",
    "encoder_layout",
    "hidden_size",
)
# Arguments by which a model continues what it has read: one that takes any of them may be a decoder.
_CACHES = {"cache", "past_key_values", "cache_params", "state", "mems"}


class DecoderError(ValueError):
    """A model that reads from left to right, to continue what it has read, is given as an encoder."""


def parameters_of(encoder: PreTrainedModel | type[PreTrainedModel]) -> dict[str, inspect.Parameter]:
    """The arguments of an encoder's `forward`, by name, without `self`."""
    parameters = dict(inspect.signature(encoder.forward).parameters)
    parameters.pop("self", None)  # of a class
    return parameters


def declares_decoder(encoder: PreTrainedModel) -> bool:
    """Whether a model can continue a text, and its attention says that it takes no notice of what follows."""
    causal = any(getattr(module, "is_causal", False) is True for module in encoder.modules())
    return causal and bool(_CACHES & set(parameters_of(encoder)))


def made_up_values(encoder: nn.Module, config: CrossFuseWrappedEncoderConfig) -> torch.Tensor:
    """Values of two samples that an encoder takes, as `forward` does."""
    for layout, values in _made_up_values(encoder, config):
        if layout != config.encoder_layout:
            continue
        with contextlib.suppress(Exception):  # of another size than it takes
            _run(encoder, config, values)
            break
    if config.kind == "image" and values.dim() == 5:
        values = values[:, 0] if config.encoder_layout[0] == "frames" else values[:, :, 0]
    if config.kind == "video":
        values = values.unsqueeze(1) if config.encodes_images else values
        values = values.transpose(1, 2) if config.encoder_layout[1] == "frames" else values
    return values


def first_line(error: Exception) -> str:
    """The type of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def probe(encoder: PreTrainedModel, settings: CrossFuseWrappedEncoderConfig) -> dict[str, Any]:
    """
    Runs an encoder on made-up values to learn how it takes them and what it gives.

    Args:
        encoder (`PreTrainedModel`): the encoder.
        settings ([`CrossFuseWrappedEncoderConfig`]): what it declares; the rest is tried in it.

    Returns:
        `dict`: the fields of [`CrossFuseWrappedEncoderConfig`] that say how the encoder is called.

    Raises:
        ValueError: if no way to call it works; the message gives the first reasons. A [`DecoderError`] if it works,
            but reads from left to right.
    """
    kind = settings.kind
    masks = [name for name in MASK_ARGUMENTS[kind] if name in parameters_of(encoder)][:1]
    if getattr(encoder.config, "feat_extract_norm", None) == "group":
        masks = []  # it was trained without, since its norm is over all that is there, padding included
    training, reasons = encoder.training, []
    encoder.eval()
    try:
        for values in _ways_to_call(encoder, settings, [*masks, None]):
            try:
                settings.hidden_size = _run(encoder, settings, values)
            except Exception as error:
                reasons.append(first_line(error))
                continue
            if kind == "text" and _is_decoder(encoder, settings, values):
                raise DecoderError("reads from left to right, as a decoder does; expected an encoder")
            return {name: getattr(settings, name) for name in _FOUND_FIELDS}
    finally:
        encoder.train(training)
    first = list(dict.fromkeys(reasons))[:_REASONS]
    raise ValueError(f"fails on values of kind {kind!r} ({'; '.join(first)})")


def _ways_to_call(
    encoder: PreTrainedModel, settings: CrossFuseWrappedEncoderConfig, masks: list[str | None]
) -> Iterator[torch.Tensor]:
    """Sets in `settings` each way in which an encoder may be called, and gives values for it."""
    constants = [name for name in CONSTANT_ARGUMENTS if name in parameters_of(encoder)]
    cuts = [] if settings.grid_arguments else [None]
    if settings.kind in ("image", "video"):
        cuts += patch_layouts(encoder, settings)
    for layout, values in _made_up_values(encoder, settings):
        settings.encoder_layout = layout
        for way in product([constants, None] if constants else [None], cuts, masks):
            settings.constant_arguments, settings.patch_layout, settings.mask_argument = way
            for one_by_one in _batches(settings):
                settings.one_by_one = one_by_one
                yield values


def _batches(config: CrossFuseWrappedEncoderConfig) -> list[bool]:
    """Values of `one_by_one`: sounds with a mask may come back packed, from which it can't be told what is whose."""
    if config.mask_argument in LENGTHS_ARGUMENTS:
        return [True]
    return [False, True] if config.kind == "audio" and config.mask_argument else [False]


@torch.no_grad()
def _run(encoder: PreTrainedModel, settings: CrossFuseWrappedEncoderConfig, values: torch.Tensor) -> int:
    """The width of what an encoder gives for made-up values."""
    parameter = next(encoder.parameters())
    values = values.to(device=parameter.device, dtype=parameter.dtype if values.is_floating_point() else None)
    axis = next((1 + place for place, name in enumerate(settings.encoder_layout) if name in _LENGTHS), 1)
    mask = torch.ones(values.shape[0], values.shape[axis], dtype=torch.long, device=values.device)
    if settings.kind == "audio":
        mask[-1, -mask.shape[1] // 4 :] = 0
    if settings.kind in ("image", "video") and axis == 2:
        values = values.transpose(1, 2)  # as `forward` takes it
    if settings.kind == "image" and values.dim() == 5:
        values = values[:, 0]
    hidden_states, _ = call_encoder(encoder, settings, values, mask)
    return hidden_states.shape[-1]


@torch.no_grad()
def _is_decoder(encoder: PreTrainedModel, settings: CrossFuseWrappedEncoderConfig, tokens: torch.Tensor) -> bool:
    """Whether a model that can continue a text takes no notice, at the first tokens, of the last one."""
    if not _CACHES & set(parameters_of(encoder)):
        return False
    changed = tokens.clone()
    changed[:, -1] = torch.where(tokens[:, -1] == tokens[:, 0], tokens[:, 1], tokens[:, 0])
    mask = torch.ones_like(tokens).to(encoder.device)
    first, second = (call_encoder(encoder, settings, ids.to(mask.device), mask)[0] for ids in (tokens, changed))
    first, second = first[:, :-1], second[:, :-1]
    # Experts sum over other tokens of the batch, which may change the last digits.
    return torch.equal(first, second) or (declares_decoder(encoder) and torch.allclose(first, second, atol=1e-5))


def _made_up_values(
    encoder: PreTrainedModel, config: CrossFuseWrappedEncoderConfig
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Two samples in each layout that an encoder may take, of the sizes that its config declares."""
    generator = torch.Generator().manual_seed(0)
    if config.kind == "text":
        vocab_size = config.vocab_size or 256
        # The last tokens of a vocabulary, no two neighbours alike; the first are special ones.
        yield ["length"], vocab_size - 1 - torch.arange(32).view(2, 16) % max(2, min(50, vocab_size - 10))
        return
    sizes = {"one": 1, "samples": _USUAL_SAMPLES}
    if config.kind in ("image", "video"):
        sizes["num_channels"] = config.num_channels if isinstance(config.num_channels, int) else 3
        sizes["height"], sizes["width"] = _picture_size(config)
    tried = []
    for sizes["frames"], sizes["num_mel_bins"] in _frame_sizes(encoder, config):
        for layout in _layouts(config):
            shape = [2, *(sizes[axis] for axis in layout)]
            if sizes["num_mel_bins"] != (config.num_mel_bins or sizes["num_mel_bins"]):
                layout = ["features" if axis == "num_mel_bins" else axis for axis in layout]
            if (layout, shape) not in tried:
                tried.append((layout, shape))
                yield layout, torch.randn(shape, generator=generator)


def _layouts(config: CrossFuseWrappedEncoderConfig) -> list[list[str]]:
    """Features are spectra, whereas values may be waves too."""
    spectra = config.values_argument == "input_features"
    return [layout for layout in _LAYOUTS[config.kind] if not (spectra and "samples" in layout)]


def _frame_sizes(encoder: PreTrainedModel, config: CrossFuseWrappedEncoderConfig) -> list[tuple[int, int]]:
    """Numbers of frames, and widths of a frame of sound: those that are declared, and those that are usual."""
    if config.kind != "audio":
        return [(config.num_frames or 8, 0)]
    positions = getattr(config.encoder, "max_source_positions", None)
    clip = 2 * positions if positions else getattr(config.encoder, "max_length", None)  # of one length only
    frames = [_USUAL_FRAMES[0], *([clip] if clip else []), *_USUAL_FRAMES[1:]]
    # Several mel frames may be stacked: then the first weights say how wide that is.
    first = next((module.in_features for module in encoder.modules() if isinstance(module, nn.Linear)), None)
    if first == getattr(config.encoder, "hidden_size", None):  # those of a layer, not of what is in front of them
        first = None
    bins = [config.num_mel_bins or _USUAL_MEL_BINS[0], *([first] if first else []), *_USUAL_MEL_BINS]
    return list(product(dict.fromkeys(frames), dict.fromkeys(bins)))


def _picture_size(config: CrossFuseWrappedEncoderConfig) -> tuple[int, int]:
    size = config.image_size
    if config.grid_arguments and config.patch_size:  # of any size, so of a small one
        size = 4 * config.patch_size * config.spatial_merge_size
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return int(size or 224), int(size or 224)
