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
"""Calling an encoder of transformers: its arguments from a modality's values, its hidden states from its outputs."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_modalities import CrossFuseWrappedEncoderConfig


# Where outputs carry hidden states, what fits better first.
_OUTPUT_FIELDS = ("last_hidden_state", "encoder_last_hidden_state", "feature_maps", "hidden_states")

# Arguments by which encoders take pictures cut into patches, and how many there are along each axis.
GRID_ARGUMENTS = {
    "grid_thw",
    "image_grid_thw",
    "merge_sizes",
    "pixel_attention_mask",
    "pixel_position_ids",
    "spatial_shapes",
}


def call_encoder(
    encoder: PreTrainedModel, config: CrossFuseWrappedEncoderConfig, values: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Runs an encoder on values, as `config` says.

    Args:
        encoder (`PreTrainedModel`): the encoder.
        config ([`CrossFuseWrappedEncoderConfig`]): how it is called.
        values (`torch.Tensor` of shape `(batch, ...)`): the modality's values; one picture per row.
        mask (`torch.Tensor` of shape `(batch, length)`): their mask.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: hidden states `(batch, length, hidden_size)` and their mask
        `(batch, length)`.
    """
    argument, arguments = config.values_argument, {}
    if config.kind == "text" and values.is_floating_point():
        argument = "inputs_embeds"
    elif config.kind == "text":  # what stands in the padding may be no token; positions may be counted by what is none
        values = values.masked_fill(mask == 0, getattr(config.encoder, "pad_token_id", None) or 0)
    elif "frames" in config.encoder_layout and config.kind == "video":
        values, mask = _fill_frames(values, mask, config.num_frames or 0)
    if config.grid_arguments:
        arguments = _patch_arguments(values, config)
        values = arguments.pop("patches")
    elif config.kind == "video" and config.encoder_layout[1] == "frames":
        values = values.transpose(1, 2)
    if config.mask_argument is not None:
        arguments[config.mask_argument] = mask
    outputs = encoder(**{argument: values}, **arguments)
    hidden_states = hidden_states_of(outputs, len(mask))
    return hidden_states, _mask_of(encoder, config, outputs, mask, hidden_states.shape[1])


def _fill_frames(values: torch.Tensor, mask: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Films `(batch, frames, ...)` and their mask, each of at least `number` frames: the last frame that is kept stands
    in for those that are not, since encoders of films take no mask.
    """
    mask = torch.nn.functional.pad(mask, (0, max(number - mask.shape[1], 0)))
    places = torch.arange(mask.shape[1], device=mask.device).where(mask != 0, 0).cummax(1).values
    return values[torch.arange(len(values), device=mask.device)[:, None], places], mask


def hidden_states_of(outputs: Any, batch_size: int) -> torch.Tensor:
    """
    The hidden states `(batch, length, width)` among an encoder's outputs. Feature maps `(batch, width, height, ...)`
    become a sequence; where samples of equal length come packed one after the other, they are taken apart.

    Raises:
        ValueError: if there are none.
    """
    found = next((value for value in _tensors(outputs) if value.is_floating_point() and value.dim() > 1), None)
    if found is None:
        raise ValueError("its outputs have no hidden states")
    if found.dim() > 3:
        found = found.flatten(2).transpose(1, 2)
    if found.dim() == 2 and found.shape[0] == batch_size:
        return found.unsqueeze(1)
    if found.dim() == 2 or found.shape[0] != batch_size:
        packed = found.flatten(0, -2)
        if len(packed) % batch_size:
            raise ValueError(f"its hidden states of shape {tuple(found.shape)} are not those of {batch_size} samples")
        return packed.unflatten(0, (batch_size, -1))
    return found


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


def _mask_of(encoder, config, outputs: Any, mask: torch.Tensor, length: int) -> torch.Tensor:
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
            return (torch.arange(length, device=mask.device) < lengths.clamp(min=1)[:, None]).long()
    # The encoder does not say: each position stands for its share of the values.
    places = torch.arange(length, device=mask.device) * mask.shape[1] // length
    return mask[:, places]


def _patch_arguments(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> dict[str, torch.Tensor]:
    """
    Pictures `(batch, channels, height, width)` or frames `(batch, frames, channels, height, width)` as `patches`, and
    the arguments that say how many there are.
    """
    make = _packed_patches if "thw" in "".join(config.grid_arguments) else _padded_patches
    arguments = make(values, config)
    return {name: arguments[name] for name in ["patches", *config.grid_arguments]}


def _crop(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> tuple[torch.Tensor, int, int]:
    """Pictures `(..., height, width)` cut to whole patches, which are merged, and the number of rows and columns."""
    merge = config.spatial_merge_size
    rows, columns = (length // config.patch_size // merge * merge for length in values.shape[-2:])
    return values[..., : rows * config.patch_size, : columns * config.patch_size], rows, columns


def _packed_patches(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> dict[str, torch.Tensor]:
    """
    Patches `(batch * patches, channels * frames * height * width)` of all samples, those that the encoder merges
    beside each other, as Qwen2-VL (Wang et al., 2024) takes them, and their number along each axis `(batch, 3)`.
    """
    size, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    values = values.unsqueeze(1) if values.dim() == 4 else values
    lacking = -values.shape[1] % frames  # the last frame again, so that a picture is a film of equal frames
    values = torch.cat([values, values[:, -1:].repeat(1, lacking, 1, 1, 1)], dim=1)
    values, rows, columns = _crop(values, config)
    batch, number, channels = values.shape[:3]
    times = number // frames
    patches = values.reshape(
        batch, times, frames, channels, rows // merge, merge, size, columns // merge, merge, size
    ).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    grid = torch.tensor([times, rows, columns], device=values.device).expand(batch, -1)
    return {
        "patches": patches.reshape(-1, channels * frames * size * size),
        "grid_thw": grid,
        "image_grid_thw": grid,
        "merge_sizes": torch.full_like(grid[:, 0], merge),
    }


def _padded_patches(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> dict[str, torch.Tensor]:
    """
    Patches `(batch, patches, height * width * channels)` of pictures, as SigLIP 2 (Tschannen et al., 2025) takes them,
    all of which are kept, their number along each axis `(batch, 2)`, and the column and row of each.
    """
    size = config.patch_size
    values, rows, columns = _crop(values, config)
    batch, channels = values.shape[:2]
    patches = values.reshape(batch, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(batch, rows * columns, size * size * channels)
    places = torch.arange(rows * columns, device=values.device)
    return {
        "patches": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=values.device),
        "pixel_position_ids": torch.stack([places % columns, places // columns], dim=-1).expand(batch, -1, -1),
        "spatial_shapes": torch.tensor([rows, columns], device=values.device).expand(batch, -1),
    }
