# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
From the raw samples of one modality to its tensors, with a function for each kind.

Samples are a dict: the key is what an error calls the sample, such as "`image` of sample 3". A function may change the
options that it is given, and calls `say` with what a user has to know of the modality, of which the first is logged.
"""

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from .encoder_processors import pixel_values
from .feature_extraction_crossfuse import CrossFuseFeatureExtractor
from .media import is_list, is_missing, load_series, path_in_brackets
from .media_audio import load_audio, resample
from .media_image import fits_pillow, has_several, image_size, images_of, load_images, resize_array, target_size
from .media_video import load_frames
from .processing_options import SETTINGS


logger = logging.get_logger(__name__)

# What was said for each object. It is not kept in the object, whose copies and fingerprints would change by it.
_SAID: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def say_once(speaker: Any, topic: str, message: str):
    """Logs a warning, once for each speaker and topic: the numbers in later messages would be others."""
    topics = _SAID.setdefault(speaker, set())
    if topic not in topics:
        topics.add(topic)
        logger.warning(message)


def check_text(where: str, text: Any):
    """Raises a `TypeError` or a `ValueError` unless a tokenizer can read a text."""
    if not isinstance(text, str):
        raise TypeError(f"{where} is {type(text).__name__}; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} has half of a character, {text[error.start]!a}, at place {error.start}; expected text that "
            "can be written in UTF-8"
        ) from error


def text_tensors(
    samples: dict[str, str], options: dict[str, Any], say: Callable[[str], None], tokenizer
) -> tuple[Any, Any]:
    """Tokens and their mask, a list for each sample; `padding` makes the lists equally long."""
    for where, text in samples.items():
        check_text(where, text)
        if not text.strip():
            raise ValueError(f"{where} is empty; expected text, or None where the sample has none")
    if options.get("max_length") is not None:
        options.setdefault("truncation", True)
    tokens = tokenizer(list(samples.values()), return_attention_mask=True, **options)
    for where, mask in zip(samples, tokens["attention_mask"]):
        if not any(mask):
            raise ValueError(f"{where} gives no token: {samples[where]!r}")
    if options.get("truncation"):
        _say_cut_text(samples, tokens["attention_mask"], options, say, tokenizer)
    return tokens["input_ids"], tokens["attention_mask"]


def _say_cut_text(
    samples: dict[str, str], masks: list[list[int]], options: dict[str, Any], say: Callable[[str], None], tokenizer
):
    """Says of the first text that was cut what it lost."""
    limit = options.get("max_length") or tokenizer.model_max_length
    for (where, text), mask in zip(samples.items(), masks):
        if sum(mask) != limit:  # more than that is not cut, such as by `truncation="do_not_truncate"`
            continue
        whole = tokenizer(text, add_special_tokens=options.get("add_special_tokens", True), verbose=False)
        if len(whole["input_ids"]) > limit:
            return say(_cut(where, f"{len(whole['input_ids']):,} tokens", f"{limit:,}", _change("max_length")))


def _cut(where: str, length: str, kept: str, change: str) -> str:
    return f"{where} has {length}, and is cut to {kept}, as all that are longer. {change}"


def _change(setting: str) -> str:
    return f"`{setting}` in the settings of the modality, or `--max_lengths` of a program, changes that."


def image_tensors(
    samples: dict[str, Any], options: dict[str, Any], say: Callable[[str], None], image_processor
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(samples, channels, height, width)`, or `(samples, images, ...)` of lists of images; and a mask."""
    pixels = _image_pixels([images_of(where, sample) for where, sample in samples.items()], options, image_processor)
    several = [has_several(sample) for sample in samples.values()]
    lists = [sample if is_several else [sample] for sample, is_several in zip(samples.values(), several)]
    number = max(map(len, lists))
    mask = np.array([[int(i < len(s) and not is_missing(s[i])) for i in range(number)] for s in lists])
    if not any(several):
        return pixels, mask
    values = np.zeros((*mask.shape, *pixels.shape[1:]), dtype=pixels.dtype)
    values[mask == 1] = pixels
    return values, mask


def _image_pixels(samples: list[list[tuple[str, Any]]], options: dict[str, Any], image_processor) -> np.ndarray:
    """Pixels `(images, channels, height, width)` of the images of all samples."""
    num_channels, layout = options.pop("num_channels", 3), options.pop("input_data_format", None)
    do_rescale = options.get("do_rescale", getattr(image_processor, "do_rescale", True))
    do_resize = options.pop("do_resize", getattr(image_processor, "do_resize", True))
    size = target_size(options.get("size", getattr(image_processor, "size", None)))
    loaded = [image for images in samples for image in load_images(images, num_channels, do_rescale, layout)]
    if do_resize and size is not None:
        loaded = [
            image if fits_pillow(image) or image_size(image) == size else resize_array(image, size) for image in loaded
        ]
    # Images that have the size already are not resized, since that would take most of the time.
    is_resized = [do_resize and image_size(image) != size for image in loaded]
    pixels: list[np.ndarray | None] = [None] * len(loaded)
    for resize in set(is_resized):
        rows = [row for row, value in enumerate(is_resized) if value == resize]
        processed = _process_images([loaded[row] for row in rows], image_processor, do_resize=resize, **options)
        for row, image in zip(rows, processed):
            pixels[row] = image
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        raise ValueError(
            f"{samples[0][0][0]} and others have different shapes after the image processor: "
            f"{', '.join(map(str, sorted(shapes)))}; set `size={{'height': ..., 'width': ...}}`"
        )
    return np.stack(pixels)


def _process_images(images: list[Any], image_processor, **options) -> list[np.ndarray]:
    output = pixel_values(image_processor(images, input_data_format="channels_first", **options))
    # Image processors of video models take images for the frames of one video.
    output = output[0] if len(output) == 1 and np.ndim(output[0]) == 4 else output
    return [np.asarray(image, dtype=np.float32) for image in output]


def video_tensors(
    samples: dict[str, Any], options: dict[str, Any], say: Callable[[str], None], image_processor, video_processor
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `(samples, frames, channels, height, width)`, and a mask of the frames."""
    num_frames = options.pop("num_frames", None)
    if not options.pop("do_sample_frames", True):
        num_frames = None
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"`num_frames={num_frames}`; expected at least 1")
    videos = [
        [(f"{where}, frame {index}", frame) for index, frame in enumerate(load_frames(where, sample, num_frames))]
        for where, sample in samples.items()
    ]
    if video_processor is not None:
        return pad_rows([_video_pixels(frames, dict(options), video_processor) for frames in videos])
    pixels = _image_pixels(videos, options, image_processor)
    return pad_rows(np.split(pixels, np.cumsum([len(frames) for frames in videos])[:-1]))


def _video_pixels(frames: list[tuple[str, Any]], options: dict[str, Any], video_processor) -> np.ndarray:
    """Pixels `(frames, channels, height, width)` of one video."""
    num_channels, layout = options.pop("num_channels", 3), options.pop("input_data_format", None)
    do_rescale = options.get("do_rescale", getattr(video_processor, "do_rescale", True))
    loaded = load_images(frames, num_channels, do_rescale, layout)
    arrays = [x if isinstance(x, np.ndarray) else np.moveaxis(np.atleast_3d(np.asarray(x)), -1, 0) for x in loaded]
    output = video_processor(
        [np.stack(arrays)],
        do_sample_frames=False,
        input_data_format="channels_first",
        return_tensors="pt",
        **options,
    )
    pixels = pixel_values(output)[0]
    if pixels.ndim != 4:
        raise ValueError(f"{frames[0][0]}: the `video_processor` cuts videos into patches; expected whole frames")
    return pixels.float().numpy()


def audio_tensors(
    samples: dict[str, Any], options: dict[str, Any], say: Callable[[str], None], feature_extractor
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the feature extractor gives, and its mask if it gives one."""
    extractor, given_rate = feature_extractor, options.pop("sampling_rate", None)
    changed = {key: options.pop(key) for key in SETTINGS["audio"] if key in options}
    max_seconds = changed.pop("max_seconds", None)
    if changed:
        extractor = type(extractor)(**{**extractor.to_dict(), **changed})
    target = extractor.sampling_rate
    clips = {where: _clip(where, sample, given_rate, target) for where, sample in samples.items()}
    options = _audio_options(extractor, options, has_limit=max_seconds is not None)
    limit = None if max_seconds is None else max(1, round(max_seconds * target))
    _say_cut_audio(clips, extractor, options, limit, say)
    clips = {where: clip[:limit] for where, clip in clips.items()}
    features = extractor(list(clips.values()), sampling_rate=target, return_tensors="np", **options)
    if len(features[extractor.model_input_names[0]]) != len(clips):
        raise ValueError(
            f"{type(extractor).__name__} makes several clips of one; expected a shorter one, such as by `max_seconds` "
            "in the settings of the modality"
        )
    mask = next((features[key] for key in features if key.endswith("mask")), None)
    return features[extractor.model_input_names[0]], mask


def _audio_options(extractor, options: dict[str, Any], has_limit: bool) -> dict[str, Any]:
    """The options of a feature extractor's call, with those that follow from others, or from a limit in seconds."""
    parameters = inspect.signature(extractor.__call__).parameters
    for key in options:
        if key not in parameters:  # some extractors would take it, and not read it
            raise ValueError(f"{type(extractor).__name__} has no option `{key}`; `max_seconds` cuts any audio")
    defaults = {}
    if "return_attention_mask" in parameters:
        defaults["return_attention_mask"] = True
    if "padding" in parameters and parameters["padding"].default in (False, None):
        defaults["padding"] = True  # a batch is one tensor
    if options.get("max_length") is not None and getattr(parameters.get("truncation"), "default", None) is False:
        defaults["truncation"] = True
    elif hasattr(extractor, "n_samples") and not options.get("truncation", not has_limit):  # whole windows
        defaults |= {"truncation": False, "padding": "longest", "pad_to_multiple_of": extractor.n_samples}
    return {**defaults, **options}


def _say_cut_audio(
    clips: dict[str, np.ndarray],
    extractor,
    options: dict[str, Any],
    limit: int | None,
    say: Callable[[str], None],
):
    """Says of the first clip that is cut, to `limit` samples or by its extractor, what it loses."""
    rate, limits = extractor.sampling_rate, [] if limit is None else [(limit, _change("max_seconds"))]
    truncation = inspect.signature(extractor.__call__).parameters.get("truncation")
    window = _window(extractor, options.get("max_length"))
    if window and options.get("truncation", getattr(truncation, "default", None)) is not False:
        change = f"That is the window of {type(extractor).__name__}."
        if options.get("max_length") is not None:
            change = "`max_length` in the settings of the modality changes that."
        elif hasattr(extractor, "n_samples"):
            change += f" For several windows, set the limit yourself: {_change('max_seconds')}"
        limits.append((window, change))
    if limits:
        kept, change = min(limits)
        for where, clip in clips.items():
            if len(clip) > kept:
                return say(_cut(where, f"{len(clip) / rate:.4g} s", f"{kept / rate:.4g} s", change))


def _window(extractor, max_length: int | None) -> int | None:
    """The samples that a feature extractor keeps where it cuts; some count `max_length` in frames."""
    if isinstance(extractor, CrossFuseFeatureExtractor):
        return None if max_length is None else max_length * extractor.hop_length
    if hasattr(extractor, "num_mel_bins"):
        frames = max_length or getattr(extractor, "max_length", None)
        return None if frames is None else frames * extractor.sampling_rate // 100  # of 10 ms
    if max_length is None and hasattr(extractor, "max_length_s"):
        return round(extractor.max_length_s * extractor.sampling_rate)
    default = inspect.signature(extractor.__call__).parameters.get("max_length")
    return max_length or getattr(extractor, "n_samples", None) or getattr(default, "default", None)


def _clip(where: str, sample: Any, given_rate: int | None, target: int) -> np.ndarray:
    """Audio `(samples,)` at the sampling rate `target`; `given_rate` is that of a sample that does not say its own."""
    audio, rate = load_audio(where, sample)
    rate = given_rate if rate is None else rate
    if rate is None:
        logger.warning_once(
            f"Audio is given as an array without a sampling rate and taken to have {target} Hz. Give "
            "`sampling_rate=...`, or dicts of `array` and `sampling_rate`."
        )
        return audio
    return resample(where, audio, rate, target)


def series_tensors(
    samples: dict[str, Any], options: dict[str, Any], say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Values `(samples, steps, channels)`, and a mask of the steps."""
    mean, std, max_length = options.get("mean"), options.get("std"), options.get("max_length")
    rows = []
    for where, sample in samples.items():
        values = load_series(where, sample, options.get("num_channels", 1))
        # In double precision, since large numbers that differ little, such as times, would become equal in single.
        values = (values - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
        if np.abs(values).max() > np.finfo(np.float32).max:
            raise ValueError(f"{where} has values beyond the range of float32")
        if max_length is not None and len(values) > max_length:
            say(_cut(where, f"{len(values):,} steps", f"{max_length:,}", _change("max_length")))
        singles = values.astype(np.float32)
        if 2 * _changes(singles) < _changes(values):
            logger.warning_once(
                "A series changes by less than float32, in which models compute, can tell, as times do. "
                "`CrossFuseProcessor.fit_series` learns from data by what to normalise it."
            )
        rows.append(singles[:max_length])
    return pad_rows(rows)


def _changes(values: np.ndarray) -> int:
    """How often a value differs from that of the step before."""
    return np.count_nonzero(np.diff(values, axis=0))


TENSORS = {
    "text": text_tensors,
    "image": image_tensors,
    "video": video_tensors,
    "audio": audio_tensors,
    "series": series_tensors,
}


# What the libraries raise that process samples.
_ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def make_tensors(
    kind: str, samples: dict[str, Any], options: dict[str, Any], parts: dict[str, Any], say: Callable[[str], None]
) -> tuple[Any, Any | None]:
    """Values and mask of a modality's samples. The error of a library gets the name of the sample that it is about."""
    try:
        return TENSORS[kind](samples, dict(options), say, **parts)
    except _ERRORS as error:
        if str(error).startswith(tuple(samples)):
            raise
        for where, sample in samples.items() if len(samples) > 1 else ():
            make_tensors(kind, {where: sample}, options, parts, say)
        (where, sample), others = next(iter(samples.items())), len(samples) - 1
        path = sample.get("path") if isinstance(sample, dict) else sample
        where += path_in_brackets(path) if kind != "text" else ""
        where += f" and {others} others" if others else ""
        raise ValueError(f"{where} can't be processed: {error or type(error).__name__}") from error


def _say_nothing(message: str):
    """What is cut of a placeholder is no loss."""


def placeholder(
    kind: str, samples: Sequence[Any], options: dict[str, Any], parts: dict[str, Any]
) -> tuple[Any, Any | None]:
    """Values and mask of one sample, of the form of those that a modality would have; nothing ever reads them."""
    if kind == "text":
        tokenizer = parts["tokenizer"]
        padding = {key: options[key] for key in ("padding", "max_length", "pad_to_multiple_of") if key in options}
        tokens = tokenizer.pad({"input_ids": [[0]], "attention_mask": [[0]]}, **padding)
        return tokens["input_ids"], tokens["attention_mask"]
    part = next((part for part in parts.values() if part is not None), None)
    if kind == "audio":
        sample = {"array": np.zeros(part.sampling_rate // 10), "sampling_rate": part.sampling_rate}
    elif kind == "series":
        sample = np.zeros((1, options.get("num_channels", 1)))
    else:
        image = np.zeros(target_size(options.get("size", part.size)) or (32, 32), dtype=np.uint8)
        sample = [image] if kind == "video" or any(map(is_list, samples)) else image
    return TENSORS[kind]({"a placeholder": sample}, dict(options), _say_nothing, **parts)


def pad_rows(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays `(steps, ...)` as one array `(rows, longest, ...)`, padded with 0, and its mask `(rows, longest)`."""
    values = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return values.numpy(), mask.numpy()


def spread_rows(values: Any, rows: list[int], batch_size: int, fill: int) -> Any:
    """A batch whose `rows` have the values, and whose other rows, of samples without the modality, have `fill`."""
    if isinstance(values, list):
        if len({len(row) for row in values}) > 1:  # tokens without padding
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


def convert_tensors(data: dict[str, Any], return_tensors: str | None) -> dict[str, Any]:
    """Arrays as PyTorch's tensors; without `return_tensors`, tokens and masks as lists, as tokenizers give them."""
    if return_tensors is None:
        return {
            key: value.tolist() if getattr(value, "dtype", None) == np.int64 else value for key, value in data.items()
        }
    for name, value in data.items():
        if isinstance(value, list):
            raise ValueError(f"`{name}` has rows of different lengths; use `padding=True`, or `return_tensors=None`")
    if return_tensors == "np":
        return data
    return {key: torch.from_numpy(value) for key, value in data.items()}
