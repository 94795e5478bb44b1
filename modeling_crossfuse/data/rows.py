# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Data sets: their rows, their columns, and what is in the columns."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from ..media import unique_names


logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    import datasets
    import pyarrow


# What a sample that can't be read raises. Other errors are those of a program.
READING_ERRORS = (OSError, TypeError, ValueError)
# What a data set raises whose row can't be decoded; torchcodec and soundfile raise a `RuntimeError`.
DECODING_ERRORS = (*READING_ERRORS, RuntimeError)
# The column with the numbers that rows had before some of them were selected.
ROW_NUMBER = "__row__"


def get_column(row: Mapping[str, Any], column: str) -> Any:
    """
    The value of a column of a row or, after a dot, of a field of a struct; `None` if the struct is `None`. The error
    for a column that does not exist, a `KeyError`, lists those that do.
    """
    if not isinstance(row, Mapping):
        raise TypeError(
            f"a row is {type(row).__name__}; expected a dict of columns, as a `datasets.Dataset` has with "
            "`with_format(None)`"
        )
    value = row
    head, rest = "", column
    while True:
        if rest in value:  # the whole name is tried first, since it may have a dot itself
            return value[rest]
        part, dot, rest = rest.partition(".")
        if not dot or part not in value:
            where = f"the field {head!r}" if head else "a row"
            known = ", ".join(str(name) for name in value if name != ROW_NUMBER)
            raise KeyError(f"no column {column!r}; {where} has {known}")
        head, value = f"{head}.{part}" if head else part, value[part]
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise KeyError(f"no column {column!r}; {head!r} is {type(value).__name__} and has no fields")


def top_column(rows: "datasets.Dataset", column: str) -> str:
    """The column of the data set that has `column`, which may be a field of a struct."""
    return column if column in rows.column_names else column.split(".")[0]


def select_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> Sequence[Mapping[str, Any]]:
    """The rows with only these columns. A row of a `datasets.Dataset` would decode all others, too."""
    if not hasattr(rows, "select_columns"):
        return rows
    numbers = [ROW_NUMBER] if ROW_NUMBER in rows.column_names else []
    return rows.select_columns(list(dict.fromkeys([*(top_column(rows, column) for column in columns), *numbers])))


def select_rows(rows: "datasets.Dataset", indices: Sequence[int]) -> "datasets.Dataset":
    """Some of the rows, which keep their numbers."""
    if ROW_NUMBER not in rows.column_names:
        rows = rows.add_column(ROW_NUMBER, np.arange(len(rows)))
    return rows.select(indices)


def row_numbers(rows: Any) -> Sequence[int]:
    """The number of each row, from 0, in the data set that it was selected from."""
    if ROW_NUMBER in getattr(rows, "column_names", ()):
        return list(rows[ROW_NUMBER])
    return getattr(rows, "numbers", range(len(rows)))


def row_name(number: int, part: str | None = None) -> str:
    """What errors call a row, such as "row 107 of the training data"."""
    return f"row {number}" + (f" of {part}" if part else "")


class Row(dict):
    """A row that has a name: what errors call it, such as "row 107"."""

    def __init__(self, row: Mapping[str, Any], name: str):
        super().__init__(row)
        self.name = name


def row_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What errors call the rows of a batch: by their numbers if they are a [`Row`], or else by their places."""
    return unique_names([getattr(row, "name", f"row {place} of the batch") for place, row in enumerate(rows)])


class NumberedRows(torch.utils.data.Dataset):
    """
    Rows that know their numbers, so that an error in a batch of [`CrossFuseDataCollator`] names the row of the data
    set. [`CrossFuseTrainer`] does this by itself; another Trainer takes `train_dataset=NumberedRows(rows)`.

    Args:
        rows (`datasets.Dataset` or `torch.utils.data.Dataset`): the rows, which have a number.
        part (`str`, *optional*): what they are rows of, such as `"the training data"`.

    Raises:
        ValueError: if a row can't be read; the message names it and, if it is known, its column and file.

    Example:

    ```python
    >>> from modeling_crossfuse.data.rows import NumberedRows

    >>> NumberedRows([{"say": "red"}, {"say": "blue"}], "the training data")[1].name
    'row 1 of the training data'
    ```
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], part: str | None = None):
        self.numbers, self.part = row_numbers(rows), part
        has_column = ROW_NUMBER in getattr(rows, "column_names", ())
        self.rows = rows.remove_columns([ROW_NUMBER]) if has_column else rows
        _warn_of_single_precision(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        name = row_name(self.numbers[index], self.part)
        row = read_row(self.rows, index, name)
        return Row(row, name) if isinstance(row, Mapping) and not isinstance(row, Row) else row


def read_row(rows: Any, index: int, name: str) -> Any:
    """A row; the `ValueError` for one that can't be read has its name and, if they are known, its column and file."""
    try:
        return rows[index]
    except DECODING_ERRORS as error:
        raise ValueError(f"{name}{_undecodable(rows, index)} can't be read: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an error says, without the address of a file in memory."""
    return re.sub(r" ?<_io\.\w+ object at \w+>", "", str(error)) or type(error).__name__


def _undecodable(rows: Any, index: int) -> str:
    """The column of a row that `datasets` can't decode, and its files."""
    columns = rows.column_names if getattr(rows, "format", {"type": "custom"})["type"] != "custom" else ()
    for column in columns:
        part = rows.select_columns([column])
        try:
            part[index]
        except DECODING_ERRORS:
            files = list(paths_in(part.with_format("arrow")[index].to_pylist()))
            return f", column {column!r}" + (f" ({', '.join(files)})" if files else "")
    return ""


def paths_in(value: Any) -> Iterator[str]:
    """The paths in a value of a data set that is not decoded."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in [value["path"]] if "path" in value else value.values():
            yield from paths_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from paths_in(part)


def undecoded(rows: "datasets.Dataset") -> "datasets.Dataset":
    """The rows with images, audio and videos as files, which errors can name; as they are if they have a format."""
    if rows.format["type"] is not None:
        _warn_of_single_precision(rows)
        return rows
    for column, feature in rows.features.items():
        stored = _change_features(feature, _undecoded_feature)
        if stored != feature:
            rows = rows.cast_column(column, stored)
    return rows


def _change_features(feature: Any, change: Callable[[Any], Any]) -> Any:
    """A feature of a data set, with what `change` makes of each part that is no struct and no list."""
    if isinstance(feature, dict):
        return {name: _change_features(part, change) for name, part in feature.items()}
    if hasattr(feature, "feature"):  # a list
        return dataclasses.replace(feature, feature=_change_features(feature.feature, change))
    return change(feature)


def _undecoded_feature(feature: Any) -> Any:
    """Images, audio and videos as files, but for features that say what of a file to take: `datasets` does that."""
    from datasets import Audio, Image, Video

    if getattr(feature, "mode", None) not in (None, "RGB") or getattr(feature, "stream_index", None) is not None:
        return feature
    return next((kind(decode=False) for kind in (Audio, Image, Video) if isinstance(feature, kind)), feature)


def _warn_of_single_precision(rows: Any):
    """Warns of doubles of which the format of a `datasets.Dataset` makes single precision."""
    chosen = getattr(rows, "format", {"type": None})
    if chosen["type"] not in ("numpy", "torch") or "dtype" in chosen["format_kwargs"]:
        return
    dtypes = {column: {part.dtype for part in _parts(rows.features[column])} for column in chosen["columns"]}
    doubles = [column for column in dtypes if "float64" in dtypes[column]]
    if doubles:
        logger.warning_once(
            f"The format {chosen['type']!r} of `datasets` makes float32 of the float64 of {', '.join(doubles)}: "
            "numbers that differ little, such as times, become equal. `rows.with_format(None)` keeps all digits."
        )


def _parts(feature: Any) -> Iterator[Any]:
    """The parts of a feature of a data set that are no struct and no list."""
    if isinstance(feature, dict) or hasattr(feature, "feature"):
        for part in feature.values() if isinstance(feature, dict) else [feature.feature]:
            yield from _parts(part)
    else:
        yield feature


def has_text(feature: Any) -> bool:
    """Whether a feature of a `datasets.Dataset`, or a field of it if it is a struct, is text."""
    if isinstance(feature, dict):
        return any(has_text(part) for part in feature.values())
    return getattr(feature, "dtype", None) in ("string", "large_string")


def check_exists(what: str, name_or_path: str):
    """Raises a `FileNotFoundError` for a path that is not there; the Hub would take it for an id and say so."""
    is_path = (
        Path(name_or_path).is_absolute() or name_or_path.startswith(".") or name_or_path.rstrip("/").count("/") > 1
    )
    if is_path and not Path(name_or_path).exists():
        raise FileNotFoundError(f"there is no {what} at {name_or_path}")


def load_rows(
    dataset: str | None, split: str = "test", max_samples: int | None = None, config: str | None = None
) -> "datasets.Dataset":
    """
    A split of a data set. Images, videos and audio are left as they are stored, dicts of `bytes` and `path`, wherever
    they are in a column. So the processor reads them: it needs no `torchcodec`, and an error names the row.

    Args:
        dataset (`str`): a name on the Hub, a folder that `load_dataset` reads, or one that `save_to_disk` wrote.
        split (`str`, defaults to `"test"`): its split.
        max_samples (`int`, *optional*): how many rows to keep, at equal distances, since a data set may be sorted.
        config (`str`, *optional*): the data set's configuration, if it has several.
    """
    from datasets import load_from_disk

    if dataset is None:
        raise ValueError("`dataset` is missing; give a data set's name or folder")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples={max_samples}` is not at least 1")
    check_exists("data set", dataset)
    if Path(dataset).is_file():
        raise ValueError(f"the data set {dataset} is a file; expected its folder")
    if Path(dataset, "state.json").exists():  # a single split, as `Dataset.save_to_disk` writes it
        rows = load_from_disk(dataset)
    elif Path(dataset, "dataset_dict.json").exists():
        rows = _load_saved_split(dataset, split)
    else:
        rows = _load_split(dataset, config, split)
    rows = undecoded(rows.with_format(None))  # a format that was saved with the rows would decode them
    if max_samples is not None and max_samples < len(rows):
        rows = select_rows(rows, np.linspace(0, len(rows) - 1, max_samples).round().astype(int))
    return rows


def _load_saved_split(dataset: str, split: str) -> "datasets.Dataset":
    """A split of what `DatasetDict.save_to_disk` wrote."""
    from datasets import load_from_disk

    splits = json.loads(Path(dataset, "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    if split not in splits:
        raise ValueError(f"the data set {dataset} has no split {split!r}; it has {', '.join(splits)}")
    try:
        return load_from_disk(str(Path(dataset, split)))
    except IndexError as error:  # of `datasets`, which can't load what it saved without rows
        raise ValueError(f"the split {split!r} of the data set {dataset} has no rows") from error


def _load_stored_audio(dataset: str, config: str | None, split: str) -> "datasets.Dataset":
    """A split whose audio files are stored as they are, for which `datasets` would ask for torchcodec, too."""
    from datasets import Audio, Features, load_dataset

    class StoredAudio(Audio):
        def encode_example(self, value: str | dict[str, Any]) -> dict[str, Any]:
            return value if isinstance(value, dict) else {"bytes": None, "path": str(value)}

    def store(feature: Any) -> Any:
        return StoredAudio(decode=False) if isinstance(feature, Audio) else feature

    features = load_dataset(dataset, config, split=split, streaming=True).features
    return load_dataset(dataset, config, split=split, features=Features(_change_features(features, store)))


def _load_split(dataset: str, config: str | None, split: str) -> "datasets.Dataset":
    from datasets import get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        try:
            return load_dataset(dataset, config, split=split)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, ImportError):
                return _load_stored_audio(dataset, config, split)
            raise
    except DatasetGenerationError as error:  # its cause says why
        raise ValueError(f"the data set {dataset} can't be read: {error.__cause__ or error}") from error
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"the split {split!r} of the data set {dataset} has no rows") from error
        if not str(error).startswith("Unknown split"):
            raise
        names = ", ".join(get_dataset_split_names(dataset, config))
        raise ValueError(f"the data set {dataset} has no split {split!r}; it has {names}") from error


def check_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]):
    """Raises a `ValueError` if the first row lacks a column."""
    for column in columns:
        try:
            value = get_column(rows[0], column)
            if value is None and hasattr(rows, "features"):  # a struct that is None does not tell its fields
                get_column(rows.features, column)
        except KeyError as error:
            raise ValueError(error.args[0]) from error


def find_feature(features: Mapping[str, Any], column: str) -> Any:
    """The feature of a column, or of a field of a struct. A column that does not exist is a `ValueError`."""
    try:
        return get_column(features, column)
    except KeyError as error:
        raise ValueError(error.args[0]) from error


def read_rows(rows: "datasets.Dataset", columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Each row, with only these columns. Images, audio and video in them are not decoded."""
    for table in select_columns(rows, columns).with_format("arrow").iter(batch_size=1000):
        yield from table.to_pylist()


def are_missing(rows: "datasets.Dataset", column: str) -> np.ndarray:
    """Which rows have None in a column, or nothing but None in its list: booleans `(rows,)`."""
    rows = select_columns(rows, [column])
    if column not in rows.column_names:  # a field of a struct
        rows = select_columns(rows.flatten(), [column])
    tables = rows.with_format("arrow").iter(batch_size=1000)
    missing = [_are_missing(table.column(0).combine_chunks()) for table in tables]
    return np.concatenate(missing) if missing else np.zeros(0, dtype=bool)


def _are_missing(values: "pyarrow.Array") -> np.ndarray:
    import pyarrow as pa
    from pyarrow import compute

    missing = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        given = values.flatten().is_valid().to_numpy(zero_copy_only=False)
        parents = compute.list_parent_indices(values).to_numpy(zero_copy_only=False)
        missing |= np.bincount(parents[given], minlength=len(values)) == 0
    return missing


def class_names(rows: Any, column: str) -> list[str] | None:
    """The names of a column's `ClassLabel`, or list of them; `None` for another column, or rows without features."""
    features = getattr(rows, "features", None)
    feature = None if features is None else find_feature(features, column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else list(names)
