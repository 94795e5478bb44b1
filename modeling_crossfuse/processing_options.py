# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a call of the processor may set, and what a modality's settings may have."""

from collections.abc import Iterable
from math import inf
from typing import Any

from transformers.processing_utils import ImagesKwargs

from .configuration_layers import close_match
from .configuration_modalities import check_modality_name
from .media import to_array
from .media_image import check_layout


# Options of a call, and of a modality's settings, per kind; without those that would change the layout of the tensors.
NOT_OPTIONS = {"data_format", "device", "disable_grouping", "return_tensors"}
OPTIONS = {
    "text": {"add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side", "truncation"},
    "image": set(ImagesKwargs.__annotations__) - NOT_OPTIONS,
    "video": set(ImagesKwargs.__annotations__) - NOT_OPTIONS | {"do_sample_frames", "num_frames"},
    "audio": {"max_length", "pad_to_multiple_of", "padding", "sampling_rate", "truncation"},
    "series": set(),
}
# What a modality's settings may have, but no call.
SETTINGS = {
    "text": set(),
    "image": {"num_channels"},
    "video": {"num_channels"},
    "audio": {"feature_size", "hop_length", "max_seconds", "n_fft"},
    "series": {"max_length", "mean", "num_channels", "std"},
}
# Those of both that are integers of at least 1.
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
# Options of a call that are for all kinds.
_CALL_OPTIONS = {"return_tensors", "sample_names", "all_modalities", "common_kwargs"}
# What no modality can be called.
_RESERVED = {"images", "videos", *_CALL_OPTIONS, *KWARGS_NAMES.values()}.union(*OPTIONS.values())


def options_of(kind: str, image_processors: Iterable[Any]) -> set[str]:
    """The options for a kind. Image processors may have some of their own."""
    if kind not in ("image", "video"):
        return OPTIONS[kind]
    own = [set(processor.valid_kwargs.__annotations__) for processor in image_processors if processor is not None]
    return OPTIONS[kind] | set().union(*own) - NOT_OPTIONS


def check_settings(name: str, settings: dict[str, Any], image_processor: Any):
    """Raises a `ValueError` if a modality's name or settings can't be used. Statistics become lists of numbers."""
    kind = settings["kind"]
    if name in _RESERVED | options_of("image", [image_processor]):
        raise ValueError(f"`modalities` has the name {name!r}, which is an argument of the processor; choose another")
    check_modality_name(name)
    allowed = {"kind", *options_of(kind, [image_processor]), *SETTINGS[kind]}
    for key, value in settings.items():
        if key in COUNTS and value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"`modalities[{name!r}]` has `{key}={value!r}`; expected an integer of at least 1")
        if key == "max_seconds" and value is not None and not (isinstance(value, (int, float)) and 0 < value < inf):
            raise ValueError(f"`modalities[{name!r}]` has `{key}={value!r}`; expected a number above 0")
        if key not in allowed:
            raise ValueError(
                f"`modalities[{name!r}]` has `{key}={value!r}`.{close_match(key, allowed)} Allowed for {kind!r}: "
                f"{', '.join(sorted(allowed))}."
            )
    check_layout(settings.get("input_data_format"), f"`modalities[{name!r}]` has ")
    for key in ("mean", "std"):
        if kind == "series" and settings.get(key) is not None:
            settings[key] = _read_statistics(name, key, settings)


def _read_statistics(name: str, key: str, settings: dict[str, Any]) -> list[float]:
    num_channels = settings.get("num_channels", 1)
    values = to_array(f"`modalities[{name!r}]['{key}']`", settings[key])
    if values.shape != (num_channels,):
        raise ValueError(
            f"`modalities[{name!r}]` has `{key}` of shape {values.shape}; expected `num_channels={num_channels}` "
            "numbers"
        )
    if key == "std" and values.min() <= 0:
        raise ValueError(f"`modalities[{name!r}]` has `std={settings[key]!r}`; expected numbers above 0")
    return values.astype(float).tolist()


def take_options(arguments: dict[str, Any], allowed: dict[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Takes the options out of a call's arguments: for each kind, those among `allowed` that are given for it."""
    # `max_length=64` by itself means tokens. Audio is cut by `audio_kwargs` or by a modality's settings.
    allowed_by_itself = {**allowed, "audio": {"sampling_rate"}}
    nested = {kind: dict(arguments.pop(key, None) or {}) for kind, key in KWARGS_NAMES.items()}
    flat = {key: arguments.pop(key) for key in set(arguments) & set().union(*allowed_by_itself.values())}
    options = {kind: {key: flat[key] for key in set(flat) & allowed_by_itself[kind]} for kind in allowed}
    for kind, chosen in nested.items():
        chosen.pop("return_tensors", None)
        for key in chosen:
            where = f"`{KWARGS_NAMES[kind]}`"
            if key not in allowed[kind]:
                raise ValueError(
                    f"{where} has `{key}`.{close_match(key, allowed[kind])} Allowed: "
                    f"{', '.join(sorted(allowed[kind]))}."
                )
            if key in flat:
                raise ValueError(f"`{key}` is given twice: by itself and in {where}")
        options[kind] |= chosen
    return options
