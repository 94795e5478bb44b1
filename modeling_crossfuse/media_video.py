# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw videos in one form, and what containers of video and audio hold."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.utils import logging

from .extras import needs
from .media import is_file, is_list, open_file, path_in_brackets, to_array


logger = logging.get_logger(__name__)


def load_frames(where: str, sample: Any, num_frames: int | None) -> list[Any]:
    """
    The frames of a video; if it has more than `num_frames`, so many, evenly spread over its time. A list or an array
    of frames has no time: every so many frames are taken.
    """
    if is_file(sample):
        return _read_video_file(where, open_file(where, sample), num_frames)
    if hasattr(sample, "get_frames_at"):  # the decoder that `datasets` gives where torchcodec is installed
        return _read_decoder(where, sample, num_frames)
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


def _even_times(times: np.ndarray, total: int) -> np.ndarray | None:
    """
    As many seconds as `times`, evenly from the first to the last; `None` if `times`, those of every so many of a
    video's `total` frames, are as even as its frames allow.
    """
    even = np.linspace(times[0], times[-1], len(times))
    is_even = np.abs(times - even).max() <= (times[-1] - times[0]) / max(total - 1, 1)
    return None if is_even or len(times) == total else even + 1e-6  # so that rounding does not give the frame before


def _read_decoder(where: str, decoder: Any, num_frames: int | None) -> list[Any]:
    """The frames of torchcodec's `VideoDecoder`: those that [`_read_video_file`] reads from the same file."""
    total = len(decoder)
    if total == 0:
        raise ValueError(f"{where} has no frame")
    try:
        frames = decoder.get_frames_at(_uniform_indices(total, num_frames))
        seconds = _even_times(np.asarray(frames.pts_seconds), total)
        if seconds is None:
            return list(frames.data)
        played = decoder.get_frames_played_at(seconds[1:-1].tolist())
    except RuntimeError as error:
        raise ValueError(f"{where} is a video that can't be decoded: {error}") from error
    return [frames.data[0], *played.data, frames.data[-1]]


def _read_video_file(where: str, file: io.BytesIO | str, num_frames: int | None) -> list[Image.Image]:
    where += path_in_brackets(file)
    # Frames are counted by decoding, since headers often say nothing or the wrong number; and those that are wanted
    # are decoded again, since all might not fit into memory.
    with open_stream(where, file, "video") as (stream, frames):
        times = [frame.time for frame in frames]
        reorders = stream.codec_context.codec.reorder
    if not times:
        raise ValueError(f"{where} has no frame")
    chosen, images = _choose_frames(times, reorders, num_frames), {}
    missing = set(chosen)
    with open_stream(where, file, "video") as (_, frames):
        for index, frame in enumerate(frames):
            if index in missing:
                images[index] = _upright(frame)
                missing.remove(index)
            if not missing:
                break
    return [images[index] for index in chosen]


def _choose_frames(times: Sequence[float | None], reorders: bool, number: int | None) -> list[int]:
    """
    Which frames to take, in the order of time. `times` are in the decoder's order. If it `reorders` frames itself,
    times that go back are wrong, as in AVI files. They are missing in streams without a container.
    """
    if None in times or (reorders and list(times) != sorted(times)):
        times = range(len(times))
    order = np.argsort(times, kind="stable")
    times = np.asarray(times, dtype=float)[order]
    indices = _uniform_indices(len(times), number)
    seconds = _even_times(times[indices], len(times))
    if seconds is not None:
        indices = np.searchsorted(times, seconds, side="right") - 1  # what is on the screen then
    return order[indices].tolist()


def _upright(frame: Any) -> Image.Image:
    """A frame as its container says that it is shown: turned by multiples of 90 degrees, or mirrored."""
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    x_to_x, x_to_y, _, y_to_x, y_to_y = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(x_to_y) > abs(x_to_x):
        image, x_to_x, y_to_y = image.transpose(Image.Transpose.TRANSPOSE), y_to_x, x_to_y
    image = ImageOps.mirror(image) if x_to_x < 0 else image
    return ImageOps.flip(image) if y_to_y < 0 else image


def import_av(what: str) -> Any:
    """PyAV; the `ImportError` says that `what` needs it."""
    try:
        import av
    except ImportError as error:
        raise needs(f"{what} needs PyAV", "video") from error
    return av


def open_container(file: io.BytesIO | str) -> Any:
    """PyAV's container of a file, whatever the encoding of its tags."""
    av = import_av("reading videos")
    if isinstance(file, str):
        file = os.path.abspath(file)  # FFmpeg would take `a:b.mp4` for an address
    else:
        file.seek(0)
    # As PyAV does from version 19 on, which has no such option.
    options = {"metadata_errors": "surrogateescape"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(file, **options)


@contextmanager
def open_stream(where: str, file: io.BytesIO | str, kind: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """PyAV's main stream of a kind ("video" or "audio") in a file, and its frames."""
    av = import_av(f"reading {where}")
    try:
        with open_container(file) as container:
            stream = container.streams.best(kind)
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise ValueError(f"it has no {kind} stream")
            yield stream, _decode(where, container, stream)
    except Exception as error:  # corrupt files make decoders fail in many ways
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{where} is not a readable {kind} file: {reason}") from error


def _decode(where: str, container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream. Warns of a file that ends before its time, or is damaged."""
    av = import_av(f"reading {where}")
    start = end = (container.start_time or 0) / av.time_base
    longest, is_damaged = 0.1, False
    for packet in container.demux():
        if packet.pts is not None:
            now = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            longest, end = max(longest, now - end), max(end, now)
        frames = packet.decode() if packet.stream.index == stream.index else []
        is_damaged |= packet.is_corrupt or any(frame.is_corrupt for frame in frames)
        yield from frames
    claimed, there = (container.duration or 0) / av.time_base, end - min(start, 0)  # some count from the first frame
    if claimed - there > longest + 1e-3:  # the last packet may not say how long it lasts
        logger.warning_once(
            f"{where} ends after {there:.2f} s, before the {claimed:.2f} s that its header says; was it cut off?"
        )
    elif is_damaged:
        logger.warning_once(f"{where} is damaged in places; what can be decoded of these is used")
