# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Calling an encoder of transformers: its arguments from a modality's values, its hidden states from its outputs."""

from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_patches import patch_arguments
from .packing import Packing, pack_samples, unpack_samples


# Where outputs carry hidden states, what fits better first.
_OUTPUT_FIELDS = ("last_hidden_state", "encoder_last_hidden_state", "feature_maps", "hidden_states")

# Arguments by which encoders of packed audio, one clip after the other, take the number of frames of each.
LENGTHS_ARGUMENTS = ("feature_lens",)
# Arguments that encoders get the same for all values of a size.
CONSTANT_ARGUMENTS = ("bbox", "noise")


def call_encoder(
    encoder: nn.Module, config: CrossFuseWrappedEncoderConfig, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Calls an encoder as `config` says, with the values `(batch, ...)` of a modality, one image per row, and their mask
    `(batch, length)`. Gives hidden states `(batch, length, hidden_size)` and their mask `(batch, length)`.
    """
    if config.window is not None and mask.shape[1] > config.window:
        return _call_by_windows(encoder, config, values, mask)
    if config.one_by_one:
        return _call_one_by_one(encoder, config, values, mask)
    argument, arguments = config.values_argument, {}
    if config.kind == "text" and values.is_floating_point():
        argument = "inputs_embeds"
    elif config.kind == "text":  # padding may hold anything, and some models count positions by their pad token
        values = values.masked_fill(mask == 0, getattr(config.encoder, "pad_token_id", None) or 0)
    elif "frames" in config.encoder_layout and config.kind == "video":
        values, mask = _fill_frames(values, mask, config.num_frames or 0)
    elif "frames" in config.encoder_layout and config.kind == "image":
        values = values.unsqueeze(1).expand(-1, config.num_frames or config.temporal_patch_size, -1, -1, -1)
    if config.constant_arguments:
        arguments |= _constant_arguments(values, config)
    if config.takes_patches:
        arguments |= patch_arguments(values, config)
        values = arguments.pop("patches")
    elif config.encoder_layout[1:2] == ["frames"] and config.kind in ("image", "video"):
        values = values.transpose(1, 2)
    if config.mask_argument is not None:
        arguments[config.mask_argument] = mask
    outputs = encoder(**{argument: values}, **arguments)
    hidden_states = hidden_states_of(outputs, mask.shape[0], padded=config.kind in ("text", "audio"))
    return hidden_states, _mask_of(encoder, config, outputs, mask, hidden_states.shape[1])


def _constant_arguments(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> dict[str, torch.Tensor]:
    """
    `bbox`, the place of each token on a page, is zero for a text that is on none. Encoders that are trained on images
    with patches left out sort the patches by `noise`; an ascending one keeps them in their order.
    """
    arguments, device = {}, values.device
    if "bbox" in config.constant_arguments:
        arguments["bbox"] = torch.zeros(*values.shape[:2], 4, device=device)
    if "noise" in config.constant_arguments:
        patches = values.shape[-2] // config.patch_size * (values.shape[-1] // config.patch_size)
        arguments["noise"] = torch.arange(patches, device=device).expand(values.shape[0], -1)
    return arguments


def _call_one_by_one(
    encoder: nn.Module, config: CrossFuseWrappedEncoderConfig, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`call_encoder`], for audio that an encoder gives back packed, without its padding."""
    encoded = []
    for clip, kept in zip(values, mask):
        if config.mask_argument in LENGTHS_ARGUMENTS:
            length = kept.sum()
            clip = clip.narrow(config.encoder_layout.index("frames"), 0, int(length))
            arguments = {config.values_argument: clip, config.mask_argument: length[None]}
        else:
            arguments = {config.values_argument: clip[None], config.mask_argument: kept[None]}
        encoded.append(hidden_states_of(encoder(**arguments), 1)[0])
    lengths = torch.tensor([len(states) for states in encoded], device=mask.device)
    hidden_states = nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    return hidden_states, _mask_of_lengths(lengths, hidden_states.shape[1])


def _call_by_windows(
    encoder: nn.Module, config: CrossFuseWrappedEncoderConfig, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`call_encoder`], for audio longer than the encoder's window: each window by itself, and then joined."""
    if mask.shape[1] % config.window:
        raise ValueError(f"it reads windows of {config.window} frames; expected a multiple of these")
    values = values.unflatten(-1, (-1, config.window)).movedim(-2, 1).flatten(0, 1)  # (batch * windows, mel, frames)
    windows = mask.unflatten(1, (-1, config.window)).flatten(0, 1)
    present = windows.amax(1, keepdim=True)  # in a clip that is shorter than others, the last windows are padding
    packing = Packing.of(present)
    hidden_states, kept = call_encoder(encoder, config, pack_samples(values, packing), pack_samples(windows, packing))
    hidden_states, kept = unpack_samples(hidden_states, packing), unpack_samples(kept, packing) * present
    batch_size = len(mask)
    return hidden_states.unflatten(0, (batch_size, -1)).flatten(1, 2), kept.unflatten(0, (batch_size, -1)).flatten(1)


def _mask_of_lengths(lengths: torch.Tensor, length: int) -> torch.Tensor:
    return (torch.arange(length, device=lengths.device) < lengths[:, None]).long()


def _fill_frames(values: torch.Tensor, mask: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Videos `(batch, frames, ...)` and their mask, each of at least `number` frames. Encoders of videos take no mask, so
    the last frame that is kept stands in for those that are not.
    """
    mask = nn.functional.pad(mask, (0, max(number - mask.shape[1], 0)))
    places = torch.arange(mask.shape[1], device=mask.device).where(mask != 0, 0).cummax(1).values
    return values[torch.arange(values.shape[0], device=mask.device)[:, None], places], mask


def hidden_states_of(outputs: Any, batch_size: int, padded: bool = False) -> torch.Tensor:
    """
    The hidden states `(batch, length, width)` among an encoder's outputs, or a `ValueError`. Feature maps
    `(batch, width, height, ...)` become a sequence. Samples that come packed, one after the other, are taken apart,
    which needs samples of the same length and so no `padded` ones.
    """
    found = next((value for value in _tensors(outputs) if value.is_floating_point() and value.dim() > 1), None)
    if found is None:
        raise ValueError("its outputs have no hidden states")
    if found.dim() > 3:
        found = found.flatten(2).transpose(1, 2)
    if found.shape[0] == batch_size:
        return found.unsqueeze(1) if found.dim() == 2 else found
    packed = found.flatten(0, -2)
    if padded or len(packed) % batch_size:
        raise ValueError(f"its hidden states of shape {tuple(found.shape)} are not those of {batch_size} samples")
    return packed.unflatten(0, (batch_size, -1))


def _tensors(outputs: Any) -> list[torch.Tensor]:
    """What may be the hidden states, what fits better first."""
    if isinstance(outputs, ModelOutput):
        others = [field for field in outputs if field not in _OUTPUT_FIELDS and "logits" not in field]
        values = [outputs[field] for field in [*_OUTPUT_FIELDS, *others] if outputs.get(field) is not None]
    else:
        values = list(outputs) if isinstance(outputs, tuple) else [outputs]
    # Of several stages, the last.
    values = [value[-1] if isinstance(value, (list, tuple)) and value else value for value in values]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _mask_of(
    encoder: nn.Module, config: CrossFuseWrappedEncoderConfig, outputs: Any, mask: torch.Tensor, length: int
) -> torch.Tensor:
    """The mask `(batch, length)` of an encoder's hidden states, of which there may be fewer than values."""
    if config.encodes_images:
        return mask.new_ones(mask.shape[0], length)
    if mask.shape[1] == length:
        return mask
    carried = outputs.get("attention_mask") if isinstance(outputs, ModelOutput) else None
    if carried is not None and carried.shape == (mask.shape[0], length):
        return carried.long()
    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        if hasattr(encoder, name):
            lengths = getattr(encoder, name)(mask.sum(-1))
            lengths = lengths[-1] if isinstance(lengths, tuple) else lengths
            return _mask_of_lengths(lengths.clamp(min=1), length)
    # The encoder does not say: each position stands for its share of the values.
    return mask[:, torch.arange(length, device=mask.device) * mask.shape[1] // length]
