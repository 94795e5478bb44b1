# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw images in one form."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .media import is_file, open_file, path_in_brackets, to_array


def load_image(where: str, sample: Any, num_channels: int, do_rescale: bool) -> Image.Image | np.ndarray:
    """An image in `num_channels` channels: a PIL image, or an array `(channels, height, width)` of 0 to 255."""
    if not is_file(sample) and not isinstance(sample, Image.Image):
        return _read_pixels(where, to_array(where, sample), num_channels, do_rescale)
    file = open_file(where, sample) if is_file(sample) else None
    try:
        image = ImageOps.exif_transpose(sample if file is None else Image.open(file))
        image.load()
    except Exception as error:  # corrupt files make Pillow's decoders fail in many ways
        raise ValueError(f"{where}{path_in_brackets(file)} is not a readable image: {error}") from error
    image = _convert_image(where, image, num_channels)
    return _read_pixels(where, image, num_channels, do_rescale) if isinstance(image, np.ndarray) else image


def _convert_image(where: str, image: Image.Image, num_channels: int) -> Image.Image | np.ndarray:
    """The image in the mode of `num_channels`, or an array where its values would not fit into 8 bits."""
    if 0 in image.size:
        raise ValueError(f"{where} is empty (size {image.size})")
    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        return np.asarray(image) / 65535
    if image.mode in ("I", "F"):
        return np.asarray(image)
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if num_channels not in modes:
        raise ValueError(f"{where} is an image of mode {image.mode}; `num_channels={num_channels}` needs an array")
    if num_channels != 4 and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(modes[num_channels])


def _read_pixels(where: str, array: np.ndarray, num_channels: int, do_rescale: bool) -> np.ndarray:
    """Pixels with channels first, last or absent, to `(num_channels, height, width)` of 0 to 255."""
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    # The first axis of the size `num_channels` has the channels. If there is none, an axis of size 1 has them, and the
    # image is grey.
    axes = [axis for size in (num_channels, 1) for axis in (0, -1) if array.ndim == 3 and array.shape[axis] == size]
    if not axes:
        raise ValueError(
            f"{where} has shape {shape}; expected `(height, width)`, `({num_channels}, height, width)` or "
            f"`(height, width, {num_channels})`"
        )
    array = np.moveaxis(array, axes[0], 0)
    if len(array) != num_channels:
        array = np.repeat(array, num_channels, axis=0)
    if array.dtype == np.uint8 or not do_rescale:
        return array
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise ValueError(f"{where} has pixels from {low:g} to {high:g}; expected 0 to 255, or floats from 0 to 1")
    # They are more likely floats that went beyond 1 than an image that is nearly black.
    if 1 < high <= 2 and array.dtype.kind == "f" and (array % 1).any():
        raise ValueError(f"{where} has pixels up to {high:g}; clip floats to 0 to 1, or give 0 to 255")
    return array.astype(np.float32) * (255 if array.dtype.kind == "f" and high <= 1 else 1)


def target_size(size: Any) -> tuple[int, int] | None:
    """Height and width that an image processor resizes to, where its `size` fixes both."""
    if isinstance(size, int):
        return size, size
    height, width = (dict(size or {}).get(key) for key in ("height", "width"))
    return (height, width) if height and width else None


def image_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width of what [`load_image`] gives."""
    return image.shape[-2:] if isinstance(image, np.ndarray) else (image.height, image.width)


def fits_pillow(image: Image.Image | np.ndarray) -> bool:
    """Whether Pillow, by which image processors resize, can hold an image: it has no floats in colour, for example."""
    return not isinstance(image, np.ndarray) or (image.dtype == np.uint8 and len(image) in (1, 3))


def resize_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image `(channels, height, width)` of any numbers, as Pillow does other images."""
    values = torch.from_numpy(np.array(image, dtype=np.float32))[None]
    return torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True)[0].numpy()
