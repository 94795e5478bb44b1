# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw samples, as users and data sets give them, to pictures, sound, frames and series of one form."""

import io
import os
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .extras import needs


def to_array(where: str, value: Any) -> np.ndarray:
    """Numbers of any container as a NumPy array, or an error that says where they are wrong."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} is not an array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{where} is {type(value).__name__} of dtype {array.dtype}; expected numbers")
    if array.size == 0:
        raise ValueError(f"{where} is empty (shape {array.shape})")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{where} has values that are NaN or infinite")
    return array


def _open_file(where: str, sample: Any) -> io.BytesIO | str:
    """A path, bytes, or a dict of either as `datasets` gives it, to what the readers of files take."""
    if isinstance(sample, dict):
        if not {"bytes", "path"} & set(sample):
            raise TypeError(f"{where} is a dict of {', '.join(map(str, sample))}; expected `bytes` or `path`")
        sample = sample["bytes"] if sample.get("bytes") is not None else sample.get("path")
        if sample is None:
            raise ValueError(f"{where} has neither `bytes` nor `path`")
    if isinstance(sample, (bytes, bytearray)):
        return io.BytesIO(sample)
    path = os.fspath(sample)
    if not os.path.isfile(path):
        raise ValueError(f"{where}: there is no file {path!r}")
    return path


def _named_file(file: io.BytesIO | str) -> str:
    return f" ({file})" if file and isinstance(file, str) else ""


def is_list(sample: Any) -> bool:
    """Whether it is a list of things rather than a text or bytes."""
    return isinstance(sample, Sequence) and not isinstance(sample, (str, bytes, bytearray))


def _is_file(sample: Any) -> bool:
    return isinstance(sample, (str, os.PathLike, bytes, bytearray, dict))


def as_batch(name: str, kind: str, value: Any) -> list[Any]:
    """A list of samples from what the user gave for a modality of that name and kind."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        sample_axes = {"image": 3, "video": 4, "audio": 1, "series": 2}.get(kind, 0)
        if kind == "audio" and value.ndim == 2:
            raise ValueError(
                f"`{name}` is one array of shape {tuple(value.shape)}, which could be a batch or channels; "
                "expected a list of clips"
            )
        return list(value) if value.ndim > sample_axes else [value]
    if not is_list(value):
        return [value]
    samples = list(value)
    if not samples:
        raise ValueError(f"`{name}` is an empty list; expected at least one sample")
    first = next((sample for sample in samples if sample is not None), None)
    is_frame = isinstance(first, Image.Image) or getattr(first, "ndim", 4) in (2, 3)
    if (kind == "video" and is_frame) or (kind == "audio" and isinstance(first, Number)):
        return [samples]
    return samples


def load_picture(where: str, sample: Any, num_channels: int, do_rescale: bool) -> Image.Image | np.ndarray:
    """A picture in `num_channels` channels: a PIL image, or an array `(channels, height, width)` of 0 to 255."""
    if not _is_file(sample) and not isinstance(sample, Image.Image):
        return _read_pixels(where, to_array(where, sample), num_channels, do_rescale)
    file = "" if isinstance(sample, Image.Image) else _open_file(where, sample)
    try:
        image = ImageOps.exif_transpose(Image.open(file) if file else sample)
        image.load()
    except Exception as error:  # corrupt files make Pillow's decoders fail in many ways
        raise ValueError(f"{where}{_named_file(file)} is not a readable picture: {error}") from error
    image = _convert_picture(where, image, num_channels)
    return _read_pixels(where, image, num_channels, do_rescale) if isinstance(image, np.ndarray) else image


def _convert_picture(where: str, image: Image.Image, num_channels: int) -> Image.Image | np.ndarray:
    if 0 in image.size:
        raise ValueError(f"{where} is empty (size {image.size})")
    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        return np.asarray(image) / 65535
    if image.mode in ("I", "F"):
        return np.asarray(image)
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if num_channels not in modes:
        raise ValueError(f"{where} is a picture of mode {image.mode}; `num_channels={num_channels}` needs an array")
    if num_channels != 4 and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(modes[num_channels])


def _read_pixels(where: str, array: np.ndarray, num_channels: int, do_rescale: bool) -> np.ndarray:
    """Pixels with channels first, last or absent, to `(num_channels, height, width)` of 0 to 255."""
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    # The axis of `num_channels` is the channels', the first of two; failing that, one of size 1: a picture in grey.
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
    if 1 < high <= 2 and array.dtype.kind == "f" and (array % 1).any():  # overshot 1, rather than all but black
        raise ValueError(f"{where} has pixels up to {high:g}; clip floats to 0 to 1, or give 0 to 255")
    return array.astype(np.float32) * (255 if array.dtype.kind == "f" and high <= 1 else 1)


def target_size(size: Any) -> tuple[int, int] | None:
    """Height and width that an image processor resizes to, where its `size` fixes both."""
    if isinstance(size, int):
        return size, size
    height, width = (dict(size or {}).get(key) for key in ("height", "width"))
    return (height, width) if height and width else None


def picture_size(picture: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width of what [`load_picture`] gives."""
    return picture.shape[-2:] if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def fit_array(picture: Image.Image | np.ndarray, size: tuple[int, int]) -> Image.Image | np.ndarray:
    """
    Resizes a picture that Pillow, with which image processors resize, can't hold: floats in colour, or six channels.
    Any other is left to the image processor.
    """
    is_beyond_pillow = isinstance(picture, np.ndarray) and (picture.dtype != np.uint8 or len(picture) not in (1, 3))
    if not is_beyond_pillow or picture_size(picture) == size:
        return picture
    values = torch.from_numpy(np.array(picture, dtype=np.float32))[None]
    return torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True)[0].numpy()


# What counts as 1.0 in sound of integers; that of uint8 is centred at 128.
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31, np.dtype(np.uint8): 2.0**7}


def load_sound(where: str, sample: Any) -> tuple[np.ndarray, int | None]:
    """Sound as floats `(samples,)`, and its sampling rate where it says one."""
    rate = None
    if isinstance(sample, dict) and sample.get("array") is not None:
        sample, rate = sample["array"], sample.get("sampling_rate")
    elif hasattr(sample, "get_all_samples"):  # a torchcodec decoder, as `datasets` gives where torchcodec is installed
        decoded = sample.get_all_samples()
        sample, rate = decoded.data, decoded.sample_rate
    elif _is_file(sample):
        sample, rate = _read_sound_file(where, _open_file(where, sample))
    array = to_array(where, sample)
    if array.dtype in _FULL_SCALE:
        array = array / _FULL_SCALE[array.dtype] - (array.dtype == np.uint8)
    elif array.dtype.kind != "f":
        raise TypeError(f"{where} is of dtype {array.dtype}; expected floats from -1 to 1, or int16, int32 or uint8")
    if array.ndim == 2 and min(array.shape) <= 32:
        array = array.mean(int(np.argmin(array.shape)))
    if array.ndim != 1:
        raise ValueError(f"{where} has shape {array.shape}; expected `(samples,)`, or two axes for several channels")
    if np.abs(array).max() > 10:  # overdriven sound stays far below
        raise ValueError(f"{where} has floats up to {np.abs(array).max():g}; expected -1 to 1, or integers")
    return array.astype(np.float32, copy=False), rate


def _read_sound_file(where: str, file: io.BytesIO | str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise needs("reading audio files needs soundfile", "audio") from error
    try:
        return soundfile.read(file, dtype="float32")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise ValueError(f"{where}{_named_file(file)} is not a readable sound file: {error}") from error


def resample(where: str, sound: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Sound `(samples,)` of one sampling rate at another."""
    if not isinstance(rate, Number) or not 0 < rate < 1e7:
        raise ValueError(f"{where} has `sampling_rate={rate!r}`; expected hertz, above 0 and below 10 million")
    if rate == target:
        return sound
    try:
        import soxr
    except ImportError as error:
        raise needs(
            f"{where} has {rate} Hz where {target} Hz are expected, and resampling needs soxr", "audio"
        ) from error
    sound = soxr.resample(sound, rate, target)
    if len(sound) == 0:
        raise ValueError(f"{where} is too short: no sample is left at {target} Hz")
    return sound


def load_frames(where: str, sample: Any, num_frames: int | None) -> list[Any]:
    """Frames of a video, `num_frames` of them at equal distances where it has more."""
    if _is_file(sample):
        return _read_video_file(where, _open_file(where, sample), num_frames)
    frames = sample if is_list(sample) else to_array(where, sample)
    if not is_list(frames) and frames.ndim != 4:
        raise ValueError(f"{where} has shape {frames.shape}; expected frames and three more axes, or a list of frames")
    if len(frames) == 0:
        raise ValueError(f"{where} has no frame")
    return [frames[i] for i in _uniform_indices(len(frames), num_frames)]


def _uniform_indices(total: int, number: int | None) -> list[int]:
    if number is None or total <= number:
        return list(range(total))
    return np.linspace(0, total - 1, number).round().astype(int).tolist()


def _read_video_file(where: str, file: io.BytesIO | str, num_frames: int | None) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise needs("reading video files needs PyAV", "video") from error

    def decode(container):
        container.seek(0)
        return container.decode(video=0)

    try:
        with av.open(file) as container:
            # Counted by decoding: what a header says is often missing or wrong.
            wanted = set(_uniform_indices(sum(1 for _ in decode(container)), num_frames))
            frames = [frame.to_image() for i, frame in enumerate(decode(container)) if i in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{where}{_named_file(file)} is not a readable video: {error}") from error
    if not frames:
        raise ValueError(f"{where}{_named_file(file)} has no frame")
    return frames


def load_series(where: str, sample: Any, num_channels: int) -> np.ndarray:
    """A series as doubles `(steps, num_channels)`."""
    array = to_array(where, sample)
    if array.ndim == 0 or (array.ndim == 1 and num_channels == 1):
        array = array.reshape(-1, 1)
    elif array.ndim == 1:  # a table row or an embedding: one step
        array = array[None]
    if array.ndim != 2 or array.shape[1] != num_channels:
        raise ValueError(f"{where} has shape {np.shape(sample)}; expected `(steps, {num_channels})`")
    return array.astype(np.float64)


def pad_rows(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays `(steps, ...)` to one array `(rows, longest, ...)` and its mask `(rows, longest)`."""
    length = max(map(len, rows))
    values = np.zeros((len(rows), length, *rows[0].shape[1:]), dtype=rows[0].dtype)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for index, row in enumerate(rows):
        values[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return values, mask


def spread_rows(values: Any, rows: list[int], batch_size: int, fill: int) -> Any:
    """Values of the samples that have a modality, to all samples of the batch."""
    if isinstance(values, list):
        lengths = {len(row) for row in values}
        if len(lengths) > 1:  # tokens without padding
            spread = [[] for _ in range(batch_size)]
            for row, value in zip(rows, values):
                spread[row] = value
            return spread
        values = np.array(values, dtype=np.int64)
    if len(rows) == batch_size:
        return values
    spread = np.full((batch_size, *values.shape[1:]), fill, dtype=values.dtype)
    spread[rows] = values
    return spread
