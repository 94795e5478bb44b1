# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw samples, as users and data sets give them, to images, frames, audio and series in one form."""

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
    """The numbers in any container as a NumPy array. Errors begin with `where`."""
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
    """What readers of files take, from a path, bytes, or a dict of either, as `datasets` gives it."""
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


def _path_in_brackets(file: Any) -> str:
    return f" ({file})" if isinstance(file, str) else ""


def is_list(sample: Any) -> bool:
    """Whether a sample is a list, rather than a text or bytes."""
    return isinstance(sample, Sequence) and not isinstance(sample, (str, bytes, bytearray))


def _is_file(sample: Any) -> bool:
    return isinstance(sample, (str, os.PathLike, bytes, bytearray, dict))


def as_batch(name: str, kind: str, value: Any) -> list[Any]:
    """The list of samples that a modality of this name and kind is given."""
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


def load_image(where: str, sample: Any, num_channels: int, do_rescale: bool) -> Image.Image | np.ndarray:
    """An image in `num_channels` channels: a PIL image, or an array `(channels, height, width)` of 0 to 255."""
    if not _is_file(sample) and not isinstance(sample, Image.Image):
        return _read_pixels(where, to_array(where, sample), num_channels, do_rescale)
    file = _open_file(where, sample) if _is_file(sample) else None
    try:
        image = ImageOps.exif_transpose(sample if file is None else Image.open(file))
        image.load()
    except Exception as error:  # corrupt files make Pillow's decoders fail in many ways
        raise ValueError(f"{where}{_path_in_brackets(file)} is not a readable image: {error}") from error
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


# The integer that stands for 1.0 in audio; uint8 is centred at 128.
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31, np.dtype(np.uint8): 2.0**7}


def load_audio(where: str, sample: Any) -> tuple[np.ndarray, int | None]:
    """Audio as floats `(samples,)`, and its sampling rate if the sample says it."""
    rate = None
    if isinstance(sample, dict) and sample.get("array") is not None:
        sample, rate = sample["array"], sample.get("sampling_rate")
    elif hasattr(sample, "get_all_samples"):  # the decoder that `datasets` gives where torchcodec is installed
        decoded = sample.get_all_samples()
        sample, rate = decoded.data, decoded.sample_rate
    elif _is_file(sample):
        sample, rate = _read_audio_file(where, _open_file(where, sample))
    array = to_array(where, sample)
    if array.dtype in _FULL_SCALE:
        array = array / _FULL_SCALE[array.dtype] - (array.dtype == np.uint8)
    elif array.dtype.kind != "f":
        raise TypeError(f"{where} is of dtype {array.dtype}; expected floats from -1 to 1, or int16, int32 or uint8")
    if array.ndim == 2 and min(array.shape) <= 32:
        array = array.mean(int(np.argmin(array.shape)))
    if array.ndim != 1:
        raise ValueError(f"{where} has shape {array.shape}; expected `(samples,)`, or two axes for several channels")
    if np.abs(array).max() > 10:  # overdriven audio stays far below that
        raise ValueError(f"{where} has floats up to {np.abs(array).max():g}; expected -1 to 1, or integers")
    return array.astype(np.float32, copy=False), rate


def _read_audio_file(where: str, file: io.BytesIO | str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise needs("reading audio files needs soundfile", "audio") from error
    try:
        return soundfile.read(file, dtype="float32")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise ValueError(f"{where}{_path_in_brackets(file)} is not a readable audio file: {error}") from error


def resample(where: str, audio: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resamples audio `(samples,)` from one sampling rate to another."""
    if not isinstance(rate, Number) or not 0 < rate < 1e7:
        raise ValueError(f"{where} has `sampling_rate={rate!r}`; expected hertz, above 0 and below 10 million")
    if rate == target:
        return audio
    try:
        import soxr
    except ImportError as error:
        raise needs(
            f"{where} has {rate} Hz where {target} Hz are expected, and resampling needs soxr", "audio"
        ) from error
    audio = soxr.resample(audio, rate, target)
    if len(audio) == 0:
        raise ValueError(f"{where} is too short: no sample is left at {target} Hz")
    return audio


def load_frames(where: str, sample: Any, num_frames: int | None) -> list[Any]:
    """The frames of a video; if it has more than `num_frames`, so many at equal distances."""
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
            # Frames are counted by decoding, since headers often say nothing or the wrong number.
            wanted = set(_uniform_indices(sum(1 for _ in decode(container)), num_frames))
            frames = [frame.to_image() for i, frame in enumerate(decode(container)) if i in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{where}{_path_in_brackets(file)} is not a readable video: {error}") from error
    if not frames:
        raise ValueError(f"{where}{_path_in_brackets(file)} has no frame")
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
