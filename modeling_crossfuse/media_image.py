# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw images in one form."""

from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from transformers.utils import logging

from .media import is_file, is_list, is_missing, number_axes, open_file, path_in_brackets, shorten, to_array


logger = logging.get_logger(__name__)

# Pillow's modes by the number of channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# How to turn an image by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def has_several(sample: Any) -> bool:
    """Whether one sample is a list of images, or an array of several, rather than an image."""
    return getattr(sample, "ndim", 0) == 4 or (is_list(sample) and number_axes(sample) not in (1, 2, 3))


def images_of(where: str, sample: Any) -> list[tuple[str, Any]]:
    """The images of one sample, without those that are missing, and what errors call them."""
    if not has_several(sample):
        return [(where, sample)]
    return [(f"{where}, image {index}", image) for index, image in enumerate(sample) if not is_missing(image)]


def load_images(
    images: list[tuple[str, Any]], num_channels: int, do_rescale: bool = True, input_data_format: str | None = None
) -> list[Image.Image | np.ndarray]:
    """
    The images of one sample, given with what errors call them, in `num_channels` channels: PIL images, or arrays
    `(channels, height, width)` of 0 to 255.
    """
    is_array = [not (is_file(image) or isinstance(image, Image.Image)) for _, image in images]
    loaded = [
        _read_pixels(where, to_array(where, _shades_of_bits(image)), num_channels, input_data_format)
        if array
        else _read_image(where, image, num_channels, do_rescale)
        for array, (where, image) in zip(is_array, images)
    ]
    if not do_rescale:
        return loaded
    # Floats go to 1 or to 255 in all images of a sample: a dark frame of a video has the scale of the others.
    highest = max((x.max() for x, array in zip(loaded, is_array) if array and x.dtype.kind == "f"), default=0)
    return [
        _scale_pixels(where, pixels, highest) if array else pixels
        for array, (where, _), pixels in zip(is_array, images, loaded)
    ]


def _read_image(where: str, sample: Any, num_channels: int, do_rescale: bool) -> Image.Image | np.ndarray:
    """A file or a PIL image."""
    where, image = _open_image(where, sample)
    if num_channels not in _MODES:
        raise ValueError(f"{where} is an image of mode {image.mode}; `num_channels={num_channels}` needs an array")
    if image.mode[0] in "IF":
        return _read_shades(where, image, num_channels, do_rescale)
    return _convert_image(where, _turn(image), num_channels)


def _open_image(where: str, sample: Any) -> tuple[str, Image.Image]:
    """The image of a file, or a PIL image, with its pixels read; and what errors call it, with its file."""
    file = open_file(where, sample) if is_file(sample) else None
    where += path_in_brackets(getattr(sample, "filename", "") if file is None else file)
    try:
        image = sample if file is None else Image.open(file)
        # Of the others, further frames are thumbnails or layers.
        if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False) and image.tell() == 0:
            logger.warning_once(
                f"An image of format {image.format} has several frames or pages; the first is read. For all of them, "
                "give a list of images, to a modality of kind 'image' or 'video'."
            )
        image.load()
    except Exception as error:  # corrupt files make Pillow's decoders fail in many ways
        reason = shorten(str(error) or type(error).__name__, 300)  # the error of a size that can't be has no text
        raise ValueError(f"{where} is not a readable image: {reason}") from error
    if 0 in image.size:
        raise ValueError(f"{where} is empty (size {image.size})")
    return where, image


def _read_shades(where: str, image: Image.Image, num_channels: int, do_rescale: bool) -> np.ndarray:
    """A grey image of more than 8 bits, which Pillow would cut off at 255."""
    full_scale = _full_scale(image)
    shades = np.asarray(_turn(image), dtype=np.float32)
    if full_scale is None and do_rescale:
        raise ValueError(
            f"{where} is an image of mode {image.mode}, whose full scale is not known; expected 8 or 16 bits a "
            "channel, or an array of floats from 0 to 1"
        )
    if full_scale is not None:
        is_transparent = shades == image.info.get("transparency", -1)
        shades = shades * (255 / full_scale)
        if image.format == "TIFF" and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
            shades = 255 - shades  # 0 is white
        if num_channels != 4:
            shades[is_transparent] = 255
    return np.stack([shades] * 3 + [np.full_like(shades, 255)])[:num_channels]


def _turn(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says, if that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    except Exception:  # cameras and editors write broken EXIF; the pixels are fine
        logger.warning_once("An image has EXIF that can't be read; its pixels are taken as they are.")
        return image


def _full_scale(image: Image.Image) -> int | None:
    """What stands for white in an image of one channel and more than 8 bits, where that is known."""
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        return 2 ** image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1  # of 12 bits, too
    # Pillow scales mode I of PGM to 16 bits, and its earlier releases have PNG of 16 bits in mode I. PFM has floats.
    is_known = (image.format in ("PNG", "PPM") and image.mode != "F") or (
        image.mode.startswith("I;16") and image.format not in ("FITS", "MCIDAS")
    )
    return 65535 if is_known else None


def _convert_image(where: str, image: Image.Image, num_channels: int) -> Image.Image:
    """An image of 8 bits a channel in the mode of `num_channels`."""
    try:
        if image.mode == "LAB":  # Pillow converts it by colour profiles alone
            lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        if image.mode == "La":
            image = image.convert("LA")
        if num_channels != 4 and image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert(_MODES[num_channels])
    except (ImageCms.PyCMSError, ValueError) as error:
        raise ValueError(f"{where} is an image of mode {image.mode} that can't be converted: {error}") from error


def check_layout(input_data_format: str | None, where: str = ""):
    """Raises a `ValueError` if `input_data_format` is none of transformers' layouts of an image."""
    if input_data_format not in (None, "channels_first", "channels_last"):
        raise ValueError(
            f"{where}`input_data_format={input_data_format!r}`; expected 'channels_first' or 'channels_last'"
        )


def _shades_of_bits(array: Any) -> Any:
    """Black and white, which NumPy and PyTorch have as booleans, as 0 and 255; other arrays as they are."""
    return array * np.uint8(255) if str(getattr(array, "dtype", "")).endswith("bool") else array


def _read_pixels(where: str, array: np.ndarray, num_channels: int, input_data_format: str | None) -> np.ndarray:
    """Pixels with channels first, last or absent, to `(num_channels, height, width)`."""
    shape = array.shape
    check_layout(input_data_format)
    if array.ndim == 2:
        array, input_data_format = array[None], "channels_first"
    places = {"channels_first": (0,), "channels_last": (-1,), None: (0, -1)}[input_data_format]
    # Axes of the size `num_channels` have the channels. If there is none, an axis of size 1 has them: a grey image.
    axes = [[axis for axis in places if array.ndim == 3 and array.shape[axis] == size] for size in (num_channels, 1)]
    axes = axes[0] or axes[1]
    if not axes:
        raise ValueError(
            f"{where} has shape {shape}; expected `(height, width)`, `({num_channels}, height, width)` or "
            f"`(height, width, {num_channels})`"
        )
    if len(axes) > 1:
        raise ValueError(
            f"{where} has shape {shape}, whose first or last axis could have the channels; expected "
            "`input_data_format='channels_first'` or `'channels_last'` with it"
        )
    array = np.moveaxis(array, axes[0], 0)
    return array if len(array) == num_channels else np.repeat(array, num_channels, axis=0)


def _scale_pixels(where: str, array: np.ndarray, highest: float) -> np.ndarray:
    """Pixels to 0 to 255; `highest` is the highest of the floats of a sample's images."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" and array.dtype != np.int64:  # NumPy's and PyTorch's type of numbers in lists
        raise ValueError(
            f"{where} has dtype {array.dtype}, whose full scale is not known; expected uint8, or floats from 0 to 1"
        )
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise ValueError(f"{where} has pixels from {low:g} to {high:g}; expected 0 to 255, or floats from 0 to 1")
    if array.dtype.kind != "f":
        return array.astype(np.uint8)
    # They are more likely floats that went beyond 1 than an image that is nearly black.
    if 1 < highest <= 2 and (array % 1).any():
        raise ValueError(f"{where} has pixels up to {highest:g}; clip floats to 0 to 1, or give 0 to 255")
    return array.astype(np.float32) * (255 if highest <= 1 else 1)


def target_size(size: Any) -> tuple[int, int] | None:
    """Height and width that an image processor resizes to, where its `size` fixes both."""
    if isinstance(size, int):
        return size, size
    height, width = (dict(size or {}).get(key) for key in ("height", "width"))
    return (height, width) if height and width else None


def image_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width of what [`load_images`] gives."""
    return image.shape[-2:] if isinstance(image, np.ndarray) else (image.height, image.width)


def fits_pillow(image: Image.Image | np.ndarray) -> bool:
    """Whether Pillow, by which image processors resize, can hold an image: it has no floats in colour, for example."""
    return not isinstance(image, np.ndarray) or (image.dtype == np.uint8 and len(image) in (1, 3))


def resize_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image `(channels, height, width)` of any numbers, as Pillow does other images."""
    values = torch.from_numpy(np.array(image, dtype=np.float32))[None]
    return torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True)[0].numpy()
