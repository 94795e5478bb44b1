# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw samples, as users and data sets give them: batches, files, and arrays of numbers."""

import io
import os
import re
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL import Image


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


def open_file(where: str, sample: Any) -> io.BytesIO | str:
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


def reason(error: Exception) -> str:
    """What an error says, without the address of a file in memory."""
    return re.sub(r" ?<_io\.\w+ object at \w+>", "", str(error)) or type(error).__name__


def path_in_brackets(file: Any) -> str:
    return f" ({file})" if isinstance(file, str) else ""


def is_list(sample: Any) -> bool:
    """Whether a sample is a list, rather than a text or bytes."""
    return isinstance(sample, Sequence) and not isinstance(sample, (str, bytes, bytearray))


def is_file(sample: Any) -> bool:
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
