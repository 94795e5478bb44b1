# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw audio in one form."""

import io
import re
from numbers import Number
from typing import Any

import numpy as np
from transformers.utils import logging

from .extras import needs
from .media import is_file, open_file, path_in_brackets, to_array
from .media_video import import_av, open_stream


logger = logging.get_logger(__name__)

# The integer that stands for 1.0 in audio; uint8 is centred at 128.
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31, np.dtype(np.uint8): 2.0**7}


def load_audio(where: str, sample: Any) -> tuple[np.ndarray, int | None]:
    """Audio as floats `(samples,)`, and its sampling rate if the sample says it."""
    rate = None
    if isinstance(sample, dict):  # of an array, which transformers' pipelines call `raw`, or of a file
        rate = sample.get("sampling_rate")
        sample = next((sample[key] for key in ("array", "raw") if sample.get(key) is not None), sample)
    if hasattr(sample, "get_all_samples"):  # the decoder that `datasets` gives where torchcodec is installed
        try:
            decoded = sample.get_all_samples()
        except RuntimeError as error:
            raise ValueError(f"{where} is audio that can't be decoded: {error}") from error
        sample, rate = decoded.data.mean(0), decoded.sample_rate
    elif is_file(sample):
        file = open_file(where, sample)
        where += path_in_brackets(file)
        sample, rate = _read_audio_file(where, file)
    array = to_array(where, sample)
    if array.dtype in _FULL_SCALE:
        array = array / _FULL_SCALE[array.dtype] - (array.dtype == np.uint8)
    elif array.dtype.kind != "f":
        raise TypeError(f"{where} is of dtype {array.dtype}; expected floats from -1 to 1, or int16, int32 or uint8")
    if array.ndim == 2 and min(array.shape) <= 32 and array.shape[0] != array.shape[1]:
        array = array.mean(int(np.argmin(array.shape)))
    if array.ndim != 1:
        raise ValueError(
            f"{where} has shape {array.shape}; expected `(samples,)`, or two axes of which the shorter has "
            "the channels"
        )
    if np.abs(array).max() > 10:  # overdriven audio stays far below that
        raise ValueError(f"{where} has floats up to {np.abs(array).max():g}; expected -1 to 1, or integers")
    return array.astype(np.float32, copy=False), rate


def _read_audio_file(where: str, file: io.BytesIO | str) -> tuple[np.ndarray, int]:
    """Audio `(samples,)`, the mean of its channels, by soundfile or, if that can't read it, by PyAV."""
    try:
        import soundfile
    except ImportError as error:
        raise needs("reading audio files needs soundfile", "audio") from error
    try:
        with soundfile.SoundFile(file) as reader:
            audio = reader.read(dtype="float32", always_2d=True).mean(1)
            _warn_if_cut(where, reader, len(audio))
            return audio, reader.samplerate
    except soundfile.LibsndfileError as error:
        reason = error.error_string  # the message of the error may have the representation of `file`
    except TypeError as error:
        raise ValueError(f"{where} is raw audio, by its name; expected a file whose header says its format") from error
    return _read_container(where, file, reason)


# What libsndfile logs of audio whose length, by its header, is beyond the end of the file.
_CUT_OFF = re.compile(r"^ *(?:data|riff|SSND|Data Size|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


def _warn_if_cut(where: str, reader: Any, samples: int):
    lengths = _CUT_OFF.search(reader.extra_info)
    # Without such a line, as of MP3 files, what the header says may be an estimate.
    claimed, there = map(int, lengths.groups()) if lengths else (0.95 * reader.frames, samples)
    if there < claimed < 2e9:  # streams, whose length nobody knew when they began, claim more
        seconds = samples / reader.samplerate
        logger.warning_once(
            f"{where} ends after {seconds:.2f} s, before the end that its header says; was it cut off?"
        )


def _read_container(where: str, file: io.BytesIO | str, reason: str) -> tuple[np.ndarray, int]:
    """The main sound of a file that soundfile can't read for a `reason`, such as m4a, webm and videos."""
    with open_stream(where, file, "audio") as (stream, frames):
        if stream.container.format.name == "wav":  # those of big endian numbers would come out wrong
            raise ValueError(reason)
        resampler = import_av(f"reading {where}").AudioResampler(format="fltp")  # of the file's own rate and channels
        parts = [part for frame in frames for part in resampler.resample(frame)]
        if not parts:
            raise ValueError("it has no sample")
        return np.concatenate([part.to_ndarray().mean(0) for part in parts]), parts[0].sample_rate


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
