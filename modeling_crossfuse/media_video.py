# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw videos in one form."""

import io
from typing import Any

import numpy as np
from PIL import Image

from .extras import needs
from .media import is_file, is_list, open_file, path_in_brackets, to_array


def load_frames(where: str, sample: Any, num_frames: int | None) -> list[Any]:
    """The frames of a video; if it has more than `num_frames`, so many at equal distances."""
    if is_file(sample):
        return _read_video_file(where, open_file(where, sample), num_frames)
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
        raise ValueError(f"{where}{path_in_brackets(file)} is not a readable video: {error}") from error
    if not frames:
        raise ValueError(f"{where}{path_in_brackets(file)} has no frame")
    return frames
