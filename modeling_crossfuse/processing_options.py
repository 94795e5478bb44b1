# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a call of the processor may set, and what a modality's settings may hold."""

import difflib
from collections.abc import Iterable

from transformers.processing_utils import ImagesKwargs


# Options of a call, and of a modality's settings, per kind. What would change the layout of the tensors is left out.
NOT_OPTIONS = {"data_format", "device", "disable_grouping", "input_data_format", "return_tensors"}
OPTIONS = {
    "text": {"add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side", "truncation"},
    "image": set(ImagesKwargs.__annotations__) - NOT_OPTIONS,
    "video": set(ImagesKwargs.__annotations__) - NOT_OPTIONS | {"do_sample_frames", "num_frames"},
    "audio": {"max_length", "pad_to_multiple_of", "padding", "sampling_rate", "truncation"},
    "series": set(),
}
# What only a modality's settings may hold.
SETTINGS = {
    "text": set(),
    "image": {"num_channels"},
    "video": {"num_channels"},
    "audio": {"feature_size", "hop_length", "n_fft"},
    "series": {"max_length", "mean", "num_channels", "std"},
}
# Those among both that are numbers above 0.
COUNTS = {
    "feature_size",
    "hop_length",
    "max_length",
    "n_fft",
    "num_channels",
    "num_frames",
    "pad_to_multiple_of",
    "sampling_rate",
}
KWARGS_NAMES = {"text": "text_kwargs", "image": "images_kwargs", "video": "videos_kwargs", "audio": "audio_kwargs"}
# The names that ProcessorMixin's callers use.
ALIASES = {"text": "text", "images": "image", "videos": "video", "audio": "audio"}


def close_match(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, if anything."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""
