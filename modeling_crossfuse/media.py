# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw samples, as users and data sets give them: batches, files, and arrays of numbers."""

import base64
import binascii
import contextlib
import io
import os
import urllib.request
from collections.abc import Sequence
from decimal import Decimal
from numbers import Number
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import get_session
from PIL import Image


def is_missing(sample: Any) -> bool:
    """Whether a sample is `None`, or what Python, NumPy, pandas or Arrow have for a value that is not there."""
    if sample is None or sample is np.ma.masked or type(sample).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(sample, Decimal):
        return sample.is_nan()
    if isinstance(sample, (Number, np.datetime64)):
        return bool(sample != sample)  # NaN and NaT
    return getattr(sample, "is_valid", True) is False  # a scalar of Arrow


def to_array(where: str, value: Any) -> np.ndarray:
    """The numbers in any container as a NumPy array. Errors begin with `where`."""
    try:
        array, missing = _read_array(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        if _has_missing(value):  # a row of an array, whose shape is not known then
            raise ValueError(f"{where} has missing values; expected numbers only, or None in place of all") from error
        raise ValueError(f"{where} is not an array: {error}") from error
    if missing:
        raise ValueError(
            f"{where} has {missing} missing of {array.size} values; expected numbers only, or None in place of all"
        )
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{where} is {type(value).__name__} of dtype {array.dtype}; expected numbers")
    if array.size == 0:
        raise ValueError(f"{where} is empty (shape {array.shape})")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{where} has values that are NaN or infinite")
    return array


def _read_array(value: Any) -> tuple[np.ndarray, int]:
    """Any container as a NumPy array, and how many of its values are missing."""
    if isinstance(value, torch.Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)  # NumPy has no bfloat16
    elif hasattr(value, "to_pylist"):  # an array of Arrow, which gives NaN for what is missing
        value = value.to_pylist()
    elif _is_list_of_arrays(value):  # `np.asarray` would forget their masks, and not read pandas' nested lists
        arrays, missing = zip(*map(_read_array, value))
        return np.stack(arrays), sum(missing)
    array, missing = np.asarray(value), np.ma.count_masked(value) if np.ma.isMaskedArray(value) else 0
    if array.dtype == object:
        missing += sum(map(is_missing, array.flat))
        if not missing and all(isinstance(number, Number) for number in array.flat):  # such as decimal numbers
            array = array.astype(np.float64)
    return array, missing


def _is_list_of_arrays(value: Any) -> bool:
    is_any_list = is_list(value) or _is_object_array(value)
    return is_any_list and any(isinstance(part, (np.ndarray, torch.Tensor)) for part in value)


def _has_missing(value: Any) -> bool:
    """Whether lists have a missing value at any depth."""
    return any(map(_has_missing, value)) if is_list(value) or _is_object_array(value) else is_missing(value)


# Of a path, which may be as long as its file system allows, or of what was taken for one.
_SHOWN = 120


def shorten(text: str, length: int = _SHOWN) -> str:
    """A user's text as errors show it: without its middle where it is long, and without what can't be printed."""
    text = text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates can't be encoded


class NamedBytes(io.BytesIO):
    """The bytes of a file, which errors call by `name`, if it has one."""

    def __init__(self, data: Any, name: str = ""):
        super().__init__(data)
        self.name = name

    def __repr__(self) -> str:
        return repr(shorten(self.name)) if self.name else "bytes"


def open_file(where: str, sample: Any) -> NamedBytes | str:
    """
    What readers of files take: a path, or bytes. The sample is a path, bytes, a dict of either as `datasets` gives it,
    an open file, the address of a file (`http://`, `https://`), a data URL, or base64.
    """
    name = None
    if isinstance(sample, dict):
        if not {"bytes", "path"} & set(sample):
            keys = shorten(", ".join(map(str, sample)))
            raise TypeError(f"{where} is a dict of {keys}; expected `bytes` or `path`")
        if sample.get("bytes") is not None:
            name, sample = sample.get("path"), sample["bytes"]
        elif sample.get("path") is None:
            raise ValueError(f"{where} has neither `bytes` nor `path`")
        else:
            sample = sample["path"]
    if isinstance(sample, (str, os.PathLike)):
        return _open_path(where, os.fspath(sample))
    if hasattr(sample, "read"):
        name, sample = name or getattr(sample, "name", ""), _read_open_file(where, sample)
    name = os.fspath(name) if isinstance(name, (str, os.PathLike)) else ""  # an open file may have a number
    try:
        file = NamedBytes(sample, name)
    except TypeError as error:
        raise TypeError(f"{where} has {type(sample).__name__} in place of a path or bytes") from error
    if len(sample) == 0:
        raise ValueError(f"{where}{path_in_brackets(file)} is empty (0 bytes)")
    return file


def _open_path(where: str, path: str) -> NamedBytes | str:
    if os.path.isfile(path):
        return path
    if path.startswith(("http://", "https://")):
        return _download(where, path)
    if path.startswith("data:"):
        try:
            return NamedBytes(urllib.request.urlopen(path).read(), "data URL")
        except (OSError, ValueError) as error:
            raise ValueError(f"{where} is not a data URL that can be read: {shorten(path, 60)!r}") from error
    if len(path) >= 64:  # no file that can be read is shorter
        with contextlib.suppress(binascii.Error, ValueError):
            return NamedBytes(base64.b64decode("".join(path.split()), validate=True), "base64")
    raise ValueError(f"{where}: there is no file {shorten(path)!r}")


def _download(where: str, address: str) -> NamedBytes:
    name = address.split("?")[0]  # what follows may be a key
    try:
        response = get_session().get(address, follow_redirects=True, timeout=60)
        response.raise_for_status()
    except Exception as error:  # of the library that huggingface_hub downloads with, which changes
        reason = shorten(" ".join(str(error).replace(address, name).split()), 200)
        raise ValueError(f"{where}: {shorten(name)} can't be downloaded: {reason}") from error
    return NamedBytes(response.content, name)


def _read_open_file(where: str, file: Any) -> bytes:
    """The bytes of an open file from its beginning, wherever it is."""
    try:
        with contextlib.suppress(AttributeError, OSError):  # a stream begins where it is
            file.seek(0)
        data = file.read()
    except Exception as error:  # files may be those of any library
        raise ValueError(f"{where} is a file that can't be read: {error}") from error
    if isinstance(data, str):
        raise TypeError(
            f"{where} is a file opened as text; expected one opened as bytes, such as by `open(path, 'rb')`"
        )
    return data


def path_in_brackets(file: Any) -> str:
    """The name of what [`open_file`] gives, after a space; empty if it has none."""
    name = file if isinstance(file, str) else getattr(file, "name", "")
    return f" ({shorten(name)})" if name else ""


def is_list(sample: Any) -> bool:
    """Whether a sample is a list, rather than a text or bytes."""
    return isinstance(sample, Sequence) and not isinstance(sample, (str, bytes, bytearray, memoryview))


def is_file(sample: Any) -> bool:
    """Whether [`open_file`] takes a sample."""
    return isinstance(sample, (str, os.PathLike, bytes, bytearray, memoryview, dict)) or hasattr(sample, "read")


def number_axes(value: Any) -> int:
    """How many axes an array has that is given as nested lists of numbers; 0 if it is given otherwise."""
    axes = 0
    while is_list(value):
        value = next((part for part in value if not is_missing(part)), None)
        axes += 1
    return axes if isinstance(value, Number) else 0


def _is_object_array(value: Any) -> bool:
    """Whether a value is a list as pandas has it in a column."""
    return isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1


def plain(sample: Any) -> Any:
    """A sample without the wrapping of Arrow or pandas."""
    if _is_object_array(sample):
        return sample.tolist()
    return sample.as_py() if hasattr(sample, "as_py") else sample


def _list_of_column(value: Any) -> Any:
    """A column of samples, as pandas, Arrow and NumPy have it, as a list. An array of numbers stays as it is."""
    to_list = getattr(value, "to_pylist", None) or getattr(value, "to_list", None)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "OU":
        to_list = value.tolist
    samples = None if to_list is None else to_list()
    return value if samples is None or number_axes(samples) == 1 else samples


# How many axes an array has that is one sample.
_SAMPLE_AXES = {"image": (2, 3), "video": (4,), "audio": (1,), "series": (1, 2)}


def as_batch(name: str, kind: str, value: Any, is_batch: bool = False) -> list[Any]:
    """
    The list of samples that a modality of this name and kind is given. A list may be one sample, too, unless
    `is_batch`.
    """
    value = _list_of_column(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        most_axes = max(_SAMPLE_AXES.get(kind, (0,)))
        if kind == "audio" and value.ndim == 2:
            raise ValueError(
                f"`{name}` is one array of shape {tuple(value.shape)}, which could be a batch or channels; "
                "expected a list of clips"
            )
        return list(value) if value.ndim > most_axes else [value]
    if not is_list(value):
        return [plain(value)]
    samples = list(map(plain, value))
    if not samples:
        raise ValueError(f"`{name}` is an empty list; expected at least one sample")
    if is_batch:
        return samples
    first = next((sample for sample in samples if not is_missing(sample)), None)
    is_frame = isinstance(first, Image.Image) or getattr(first, "ndim", 4) in (2, 3)
    # Nested lists of numbers are the array that they make, except for series, whose samples may be numbers.
    is_sample = kind != "series" and number_axes(samples) in _SAMPLE_AXES.get(kind, ())
    return [samples] if is_sample or (kind == "video" and is_frame) else samples


def unique_names(names: Sequence[str]) -> list[str]:
    """What errors call samples; one that comes again, as where a batch is filled up with rows, gets its place."""
    return [name if name not in names[:place] else f"{name} (sample {place})" for place, name in enumerate(names)]


def load_series(where: str, sample: Any, num_channels: int) -> np.ndarray:
    """A series as doubles `(steps, num_channels)`."""
    array = to_array(where, sample)
    shape = array.shape
    if array.ndim == 0 or (array.ndim == 1 and num_channels == 1):
        array = array.reshape(-1, 1)
    elif array.ndim == 1:  # a table row or an embedding: one step
        array = array[None]
    if array.ndim != 2 or array.shape[1] != num_channels:
        raise ValueError(f"{where} has shape {shape}; expected `(steps, {num_channels})`")
    doubles = array.astype(np.float64)
    is_wide = array.dtype.itemsize >= 8 and array.dtype != np.float64
    if is_wide and np.count_nonzero(np.diff(doubles, axis=0)) < np.count_nonzero(np.diff(array, axis=0)):
        raise ValueError(
            f"{where} has numbers of dtype {array.dtype} that differ by less than float64 can tell; subtract the "
            "first, for example"
        )
    return doubles
