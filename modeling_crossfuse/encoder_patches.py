# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Images and videos cut into patches, for encoders that take patches."""

from math import prod

import torch

from .configuration_encoders import CrossFuseWrappedEncoderConfig


# Arguments by which encoders take how many patches there are along each axis, or where each one is.
GRID_ARGUMENTS = {
    "grid_thw",
    "image_grid_thw",
    "merge_sizes",
    "pixel_attention_mask",
    "pixel_position_ids",
    "spatial_shapes",
    "target_sizes",
}

# What a batch of videos is made of: `times` groups of `frames`, each of `rows` by `columns` groups of patches, which
# an encoder merges, and each patch of `height` by `width`.
_DIMENSIONS = (
    "batch",
    "times",
    "frames",
    "num_channels",
    "rows",
    "merged_rows",
    "height",
    "columns",
    "merged_columns",
    "width",
)
_MERGED = "batch times rows columns merged_rows merged_columns"
_LINE_BY_LINE = "batch times rows merged_rows columns merged_columns"
_OF_A_SAMPLE = "rows merged_rows columns merged_columns"

# Layouts of patches: the axes of what an encoder takes, each of one or more dimensions; the usual one first.
_PACKED_LAYOUTS = [
    [_MERGED, "num_channels frames height width"],  # Qwen2-VL (Wang et al., 2024)
    [_LINE_BY_LINE, "num_channels", "height", "width"],
    ["one", _LINE_BY_LINE, "num_channels", "height", "width"],
    ["batch times rows columns", "merged_rows height", "merged_columns width", "num_channels"],
]
_UNMERGED_LAYOUT = [_LINE_BY_LINE, "frames num_channels height width"]
_STRIP_LAYOUTS = [["one", "num_channels", "height", f"batch {_OF_A_SAMPLE} width"]]  # NaViT (Dehghani et al., 2023)
_PADDED_LAYOUTS = [["batch", _OF_A_SAMPLE, "height width num_channels"]]  # SigLIP 2 (Tschannen et al., 2025)
_PLAIN_LAYOUTS = [*_PADDED_LAYOUTS, [_LINE_BY_LINE, "frames", "height", "width", "num_channels"]]
# Whole frames, as images of a batch.
_FRAMES_LAYOUT = ["batch times frames", "num_channels", "rows merged_rows height", "columns merged_columns width"]


def patch_layouts(encoder: torch.nn.Module, config: CrossFuseWrappedEncoderConfig) -> list[list[str]]:
    """The layouts in which an encoder may take patches, what fits better first; none where nothing says their size."""
    if not config.patch_size:
        return []
    if not config.grid_arguments:
        return [*_PLAIN_LAYOUTS, _FRAMES_LAYOUT] if config.num_frames else _PLAIN_LAYOUTS
    if "target_sizes" in config.grid_arguments:
        return _STRIP_LAYOUTS
    layouts = _usual_layouts(config)
    # An encoder that says that it merges nothing, although its config does, merges afterwards.
    unmerged = getattr(encoder, "spatial_merge_size", None) == 1 < config.spatial_merge_size
    return [_UNMERGED_LAYOUT] if unmerged and layouts is _PACKED_LAYOUTS else layouts


def _usual_layouts(config: CrossFuseWrappedEncoderConfig) -> list[list[str]]:
    return _PACKED_LAYOUTS if any("thw" in name for name in config.grid_arguments or ()) else _PADDED_LAYOUTS


def patch_arguments(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> dict[str, torch.Tensor]:
    """
    Images `(batch, channels, height, width)` or videos `(batch, frames, channels, height, width)` as `patches`, and
    the arguments that say how many there are. If a layout has no place for several frames, they are a `ValueError`.
    """
    layout = config.patch_layout or _usual_layouts(config)[0]
    videos = _cut(values.unsqueeze(1) if values.dim() == 4 else values, config)
    patches = _arrange(videos, layout)
    arguments = {"patches": patches, **_grid(videos, patches, layout)}
    return {name: arguments[name] for name in ["patches", *(config.grid_arguments or [])]}


def _cut(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> torch.Tensor:
    """Videos `(batch, frames, channels, height, width)`, without incomplete patches, as `_DIMENSIONS`."""
    size, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    lacking = -values.shape[1] % frames  # the last frame again, so that an image is a video of equal frames
    values = torch.cat([values, values[:, -1:].repeat(1, lacking, 1, 1, 1)], dim=1)
    rows, columns = (length // (size * merge) for length in values.shape[-2:])
    values = values[..., : rows * merge * size, : columns * merge * size]
    batch, number, channels = values.shape[:3]
    return values.reshape(batch, number // frames, frames, channels, rows, merge, size, columns, merge, size)


def _arrange(videos: torch.Tensor, layout: list[str]) -> torch.Tensor:
    """Videos of `_DIMENSIONS`, turned so that each axis is what the layout names."""
    sizes = {**dict(zip(_DIMENSIONS, videos.shape)), "one": 1}
    order = [name for axis in layout for name in axis.split() if name != "one"]
    left_out = [name for name in _DIMENSIONS if name not in order]
    if any(sizes[name] > 1 for name in left_out):
        raise ValueError(f"takes no several {' or '.join(name for name in left_out if sizes[name] > 1)}")
    videos = videos.permute([_DIMENSIONS.index(name) for name in [*order, *left_out]])
    return videos.reshape([prod(sizes[name] for name in axis.split()) for axis in layout])


def _grid(videos: torch.Tensor, patches: torch.Tensor, layout: list[str]) -> dict[str, torch.Tensor]:
    """How many patches of each sample there are along each axis, and the column and row of each."""
    sizes, device, batch_size = dict(zip(_DIMENSIONS, videos.shape)), videos.device, len(videos)
    merge = sizes["merged_rows"]
    is_merged = "merged_rows height" in layout  # the patches that an encoder merges come as one
    rows, columns = (sizes[name] * (1 if is_merged else merge) for name in ("rows", "columns"))
    grid = torch.tensor([sizes["times"], rows, columns], device=device).expand(batch_size, -1)
    places = torch.arange(rows * columns, device=device)
    return {
        "grid_thw": grid,
        "image_grid_thw": grid,
        "merge_sizes": torch.full_like(grid[:, 0], merge),
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=device),
        "pixel_position_ids": torch.stack([places % columns, places // columns], dim=-1).expand(batch_size, -1, -1),
        "spatial_shapes": grid[:, 1:],
        "target_sizes": grid[:, 1:],
    }
