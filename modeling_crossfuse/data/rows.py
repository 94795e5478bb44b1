# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Data sets: their rows, their columns, and what is in the columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import datasets
    import pyarrow


def get_column(row: Mapping[str, Any], column: str) -> Any:
    """
    The value of a column of a row or, after a dot, of a field of a struct; `None` if the struct is `None`. The error
    for a column that does not exist, a `KeyError`, lists those that do.
    """
    value = row
    head, rest = "", column
    while True:
        if rest in value:  # the whole name is tried first, since it may have a dot itself
            return value[rest]
        part, dot, rest = rest.partition(".")
        if not dot or part not in value:
            where = f"the field {head!r}" if head else "a row"
            raise KeyError(f"no column {column!r}; {where} has {', '.join(map(str, value))}")
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
    return rows.select_columns(list(dict.fromkeys(top_column(rows, column) for column in columns)))


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
    A split of a data set, with audio left undecoded, so that `torchcodec` is not needed.

    Args:
        dataset (`str`): a name on the Hub, a folder that `load_dataset` reads, or one that `save_to_disk` wrote.
        split (`str`, defaults to `"test"`): its split.
        max_samples (`int`, *optional*): how many rows to keep, at equal distances, since a data set may be sorted.
        config (`str`, *optional*): the data set's configuration, if it has several.
    """
    from datasets import Audio, load_from_disk

    if dataset is None:
        raise ValueError("`dataset` is missing; give a data set's name or folder")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples={max_samples}` is not at least 1")
    check_exists("data set", dataset)
    if Path(dataset, "state.json").exists():  # a single split, as `Dataset.save_to_disk` writes it
        rows = load_from_disk(dataset)
    elif Path(dataset, "dataset_dict.json").exists():
        splits = load_from_disk(dataset)
        if split not in splits:
            raise ValueError(f"the data set {dataset} has no split {split!r}; it has {', '.join(splits)}")
        rows = splits[split]
    else:
        rows = _load_split(dataset, config, split)
    for column, feature in rows.features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(column, Audio(decode=False))
    if max_samples is not None and max_samples < len(rows):
        rows = rows.select(np.linspace(0, len(rows) - 1, max_samples).round().astype(int))
    return rows


def _load_split(dataset: str, config: str | None, split: str) -> "datasets.Dataset":
    from datasets import get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(dataset, config, split=split)
    except DatasetGenerationError as error:  # its cause says why
        raise ValueError(f"the data set {dataset} can't be read: {error.__cause__ or error}") from error
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        names = ", ".join(get_dataset_split_names(dataset, config))
        raise ValueError(f"the data set {dataset} has no split {split!r}; it has {names}") from error


def find_feature(features: Mapping[str, Any], column: str) -> Any:
    """The feature of a column, or of a field of a struct. A column that does not exist is a `ValueError`."""
    if column in features:
        return features[column]
    head, dot, rest = column.partition(".")
    if not dot or not isinstance(features.get(head), dict):
        raise ValueError(f"no column {column!r}; the data set has {', '.join(features)}")
    return find_feature(features[head], rest)


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
    return np.concatenate([_are_missing(table.column(0).combine_chunks()) for table in tables])


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
