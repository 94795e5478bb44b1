# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and films cut into patches, for encoders that take them so."""

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

# What a batch of films is made of: `times` groups of `frames`, each of `rows` by `columns` groups of patches, which an
# encoder merges, and each patch of `height` by `width`.
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
_PLAIN_LAYOUTS = [
    *_PADDED_LAYOUTS,
    [_LINE_BY_LINE, "frames", "height", "width", "num_channels"],
]
# Whole frames, as pictures of a batch.
_FRAMES_LAYOUT = ["batch times frames", "num_channels", "rows merged_rows height", "columns merged_columns width"]


def patch_layouts(encoder: torch.nn.Module, config: CrossFuseWrappedEncoderConfig) -> list[list[str]]:
    """The layouts in which an encoder may take patches, what fits better first; none where nothing says their size."""
    if not config.patch_size:
        return []
    names = config.grid_arguments or []
    if not names:
        return [*_PLAIN_LAYOUTS, _FRAMES_LAYOUT] if config.num_frames else _PLAIN_LAYOUTS
    if "target_sizes" in names:
        return _STRIP_LAYOUTS
    if not _are_packed(names):
        return _PADDED_LAYOUTS
    # One that says that it merges nothing, although its config does, merges afterwards.
    unmerged = getattr(encoder, "spatial_merge_size", None) == 1 < config.spatial_merge_size
    return [_UNMERGED_LAYOUT] if unmerged else _PACKED_LAYOUTS


def _are_packed(grid_arguments: list[str]) -> bool:
    return "thw" in "".join(grid_arguments)


def patch_arguments(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> dict[str, torch.Tensor]:
    """
    Pictures `(batch, channels, height, width)` or frames `(batch, frames, channels, height, width)` as `patches`, and
    the arguments that say how many there are.

    Raises:
        ValueError: if the encoder's layout has no place for several frames.
    """
    names = config.grid_arguments or []
    usual = _PACKED_LAYOUTS if _are_packed(names) else _PADDED_LAYOUTS
    layout = config.patch_layout or usual[0]
    films = _cut(values.unsqueeze(1) if values.dim() == 4 else values, config)
    patches = _arrange(films, layout)
    arguments = {"patches": patches, **_grid(films, patches, layout)}
    return {name: arguments[name] for name in ["patches", *names]}


def _cut(values: torch.Tensor, config: CrossFuseWrappedEncoderConfig) -> torch.Tensor:
    """Films `(batch, frames, channels, height, width)`, less what is no whole patch, as `_DIMENSIONS`."""
    size, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    lacking = -values.shape[1] % frames  # the last frame again, so that a picture is a film of equal frames
    values = torch.cat([values, values[:, -1:].repeat(1, lacking, 1, 1, 1)], dim=1)
    rows, columns = (length // (size * merge) for length in values.shape[-2:])
    values = values[..., : rows * merge * size, : columns * merge * size]
    batch, number, channels = values.shape[:3]
    return values.reshape(batch, number // frames, frames, channels, rows, merge, size, columns, merge, size)


def _arrange(films: torch.Tensor, layout: list[str]) -> torch.Tensor:
    sizes = {**dict(zip(_DIMENSIONS, films.shape)), "one": 1}
    order = [name for axis in layout for name in axis.split() if name != "one"]
    left_out = [name for name in _DIMENSIONS if name not in order]
    if any(sizes[name] > 1 for name in left_out):
        raise ValueError(f"takes no several {' or '.join(name for name in left_out if sizes[name] > 1)}")
    films = films.permute([_DIMENSIONS.index(name) for name in [*order, *left_out]])
    return films.reshape([prod(sizes[name] for name in axis.split()) for axis in layout])


def _grid(films: torch.Tensor, patches: torch.Tensor, layout: list[str]) -> dict[str, torch.Tensor]:
    """How many patches of each sample there are along each axis, and the column and row of each."""
    sizes = dict(zip(_DIMENSIONS, films.shape))
    merge = sizes["merged_rows"]
    whole = "merged_rows height" in layout  # what is merged is one patch
    rows, columns = (sizes[name] * (1 if whole else merge) for name in ("rows", "columns"))
    grid = torch.tensor([sizes["times"], rows, columns], device=films.device).expand(len(films), -1)
    places = torch.arange(rows * columns, device=films.device)
    return {
        "grid_thw": grid,
        "image_grid_thw": grid,
        "merge_sizes": torch.full_like(grid[:, 0], merge),
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=films.device),
        "pixel_position_ids": torch.stack([places % columns, places // columns], dim=-1).expand(len(films), -1, -1),
        "spatial_shapes": grid[:, 1:],
        "target_sizes": grid[:, 1:],
    }
