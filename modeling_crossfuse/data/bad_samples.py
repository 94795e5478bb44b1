# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Samples that can't be read: which they are, and a file that lists them."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..files import write_whole
from .rows import (
    READING_ERRORS,
    NumberedRows,
    get_column,
    reason_of,
    row_numbers,
    select_columns,
    select_rows,
    undecoded,
)


def encode_readable(encode: Callable[[list[int]], Any], indices: list[int]) -> tuple[Any, dict[int, Exception]]:
    """
    What `encode` makes of those rows of a batch that can be read, `None` if there are none, and the errors of the
    others. Rows that can be read by themselves, but not as a batch, are an error.
    """
    try:
        return encode(indices), {}
    except READING_ERRORS:
        errors = {index: error for index in indices if (error := _error_of(encode, [index])) is not None}
        if not errors:
            raise
    readable = [index for index in indices if index not in errors]
    return encode(readable) if readable else None, errors


def _error_of(function: Callable, *args) -> Exception | None:
    try:
        function(*args)
    except READING_ERRORS as error:
        return error
    return None


def find_unreadable(
    rows: datasets.Dataset, processor, inputs: dict[str, str], num_workers: int = 0, progress: bool = True
) -> dict[int, str]:
    """
    The indices of the rows that a processor can't read, and why.

    Args:
        rows (`datasets.Dataset`): the rows.
        processor ([`CrossFuseProcessor`]): reads them, one after the other.
        inputs (`dict[str, str]`): name of each modality to its column.
        num_workers (`int`, defaults to 0): processes that read.
        progress (`bool`, defaults to `True`): whether to show a progress bar.
    """
    samples = NumberedRows(undecoded(select_columns(rows, inputs.values())))
    read = functools.partial(_read_row, samples, processor, inputs)
    loader = DataLoader(
        range(len(rows)), batch_size=32, num_workers=num_workers, collate_fn=functools.partial(_reasons, read)
    )
    bad = {}
    with tqdm(total=len(rows), desc="reading all rows", unit=" rows", disable=not progress) as bar:
        for found, count in loader:
            bad |= found
            bar.update(count)
    return bad


def _reasons(read: Callable[[int], Any], indices: list[int]) -> tuple[dict[int, str], int]:
    errors = {index: _error_of(read, index) for index in indices}
    return {index: reason_of(error) for index, error in errors.items() if error is not None}, len(indices)


def _read_row(samples: NumberedRows, processor, inputs: dict[str, str], index: int):
    row = samples[index]
    values = {name: get_column(row, column) for name, column in inputs.items()}
    given = {name: [value] for name, value in values.items() if not processor.is_missing(name, value)}
    if given:
        processor(**given, sample_names=[row.name], return_tensors="pt")


def write_bad_samples(path: str | Path, lines: Iterable[dict[str, Any]]):
    """Writes lines of JSON, or removes those of an earlier run if there are none."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if text:
        write_whole(path, text)
    else:
        Path(path).unlink(missing_ok=True)


def read_bad_samples(path: str | Path) -> list[dict[str, Any]]:
    """What [`write_bad_samples`] wrote."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def skip_bad_samples(
    splits: Sequence[tuple[str, datasets.Dataset, Any]],
    path: str | Path,
    is_first: bool = True,
    num_workers: int = 0,
    progress: bool = True,
) -> list[datasets.Dataset]:
    """
    The rows of each split without those that can't be used, which a file lists.

    Args:
        splits (sequence of `tuple`): name and rows of each split, and its [`CrossFuseDataCollator`].
        path (`str` or `Path`): a file of JSON lines, with the split, the number of the row and the reason.
        is_first (`bool`, defaults to `True`): whether this process finds and lists them. Others come after it and read
            the file, so that all have the same rows.
        num_workers, progress: as in [`find_unreadable`].

    Raises:
        ValueError: if no row of a split can be used.
    """
    if is_first:
        found = []
        for split, rows, collator in splits:
            numbers = row_numbers(rows)
            bad = find_unreadable(rows, collator.processor, collator.inputs, num_workers, progress)
            bad |= collator.find_bad_rows(rows)
            found += [{"split": split, "row": int(numbers[index]), "reason": bad[index]} for index in sorted(bad)]
        write_bad_samples(path, found)
    listed = read_bad_samples(path)
    return [_without(rows, split, [line for line in listed if line["split"] == split]) for split, rows, _ in splits]


def _without(rows: datasets.Dataset, split: str, bad: list[dict[str, Any]]) -> datasets.Dataset:
    numbers = {line["row"] for line in bad}
    kept = [index for index, number in enumerate(row_numbers(rows)) if number not in numbers]
    if not kept:
        raise ValueError(
            f"none of the {len(rows):,} rows of the split {split!r} can be used; the first: {bad[0]['reason']}"
        )
    return select_rows(rows, kept) if bad else rows
