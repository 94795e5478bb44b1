# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw audio in one form."""

import io
from numbers import Number
from typing import Any

import numpy as np

from .extras import needs
from .media import is_file, open_file, path_in_brackets, to_array


# The integer that stands for 1.0 in audio; uint8 is centred at 128.
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31, np.dtype(np.uint8): 2.0**7}


def load_audio(where: str, sample: Any) -> tuple[np.ndarray, int | None]:
    """Audio as floats `(samples,)`, and its sampling rate if the sample says it."""
    rate = None
    if isinstance(sample, dict):  # of an array, which transformers' pipelines call `raw`, or of a file
        rate = sample.get("sampling_rate")
        sample = next((sample[key] for key in ("array", "raw") if sample.get(key) is not None), sample)
    if hasattr(sample, "get_all_samples"):  # the decoder that `datasets` gives where torchcodec is installed
        decoded = sample.get_all_samples()
        sample, rate = decoded.data, decoded.sample_rate
    elif is_file(sample):
        sample, rate = _read_audio_file(where, open_file(where, sample))
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
        raise ValueError(f"{where}{path_in_brackets(file)} is not a readable audio file: {error}") from error


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
