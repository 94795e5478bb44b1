# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What rows are to learn: classes, lists of classes, or numbers."""

import math
import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .rows import class_names, find_feature, get_column, read_rows


if TYPE_CHECKING:
    import datasets

_LARGEST = torch.finfo(torch.float32).max


def to_python(value: Any) -> Any:
    """A label, a number, or a list of them, as Python has it."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    return [to_python(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_label(value: Any) -> Any:
    """
    The name or number of a class, or `None` where there is none: for None, NaN and -100. A column of whole numbers has
    fractions of .0 where some are missing.
    """
    value = to_python(value)
    if value is None or value == -100 or value != value:
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def column_labels(rows: "datasets.Dataset", column: str) -> list[Any]:
    """What [`read_label`] makes of each row's value, or of each part of it where the values are lists."""
    values = (to_python(get_column(row, column)) for row in read_rows(rows, [column]))
    return [[read_label(item) for item in value] if isinstance(value, list) else read_label(value) for value in values]


def label_names(rows: "datasets.Dataset", column: str) -> list[str]:
    """The names of the labels in a column: of a `ClassLabel`, or its texts or numbers, sorted, as texts."""
    names = class_names(rows, column)
    if names is not None:
        return names
    values = column_labels(rows, column)
    lists = [value for value in values if isinstance(value, list)]
    labels = {label for value in values for label in (value if isinstance(value, list) else [value])} - {None}
    repeats = any(len(set(value)) < len(value) for value in lists)
    if labels <= {0, 1} and repeats and len({len(value) for value in lists}) == 1:
        raise ValueError(
            f"the target column {column!r} has lists of {len(lists[0])} numbers that are 0 or 1, such as {lists[0]}; "
            "expected lists of the labels that a row has"
        )
    return [str(label) for label in sorted(labels)]


def problem_type_of(rows: "datasets.Dataset", column: str) -> str:
    """
    The `problem_type` that suits a column: classes for texts, booleans and whole numbers, several for lists of texts
    or whole numbers, and else a regression. Floats are classes where some are missing and the others have no fraction:
    so are the integers of a CSV file read where a cell is empty. Another column is a `ValueError`.
    """
    feature = find_feature(rows.features, column)
    inner = getattr(feature, "feature", feature)
    dtype = "" if hasattr(inner, "shape") else getattr(inner, "dtype", None) or ""  # an array has a shape
    if dtype.startswith("float"):
        return "single_label_classification" if are_integers_with_gaps(rows, column) else "regression"
    if inner is feature and dtype.startswith(("bool", "int", "uint", "string", "large_string")):
        return "single_label_classification"
    if inner is not feature and dtype.startswith(("int", "uint", "string", "large_string")):
        return "multi_label_classification"
    raise ValueError(
        f"the target column {column!r} of {feature} has no labels; expected text, classes, numbers, or lists of them"
    )


def are_integers_with_gaps(rows: "datasets.Dataset", column: str) -> bool:
    """Whether a column's numbers are floats only since some are missing: the others have no fraction."""
    values = [to_python(get_column(row, column)) for row in read_rows(rows, [column])]
    given = [value for value in values if value is not None and value == value]
    return 0 < len(given) < len(values) and all(isinstance(value, float) and value.is_integer() for value in given)


def count_numbers(rows: "datasets.Dataset", column: str) -> int:
    """How many numbers the first row that has any has in a column."""
    for row in read_rows(rows, [column]):
        value = to_python(get_column(row, column))
        if value is not None:
            return max(len(value), 1) if isinstance(value, list) else 1
    return 1


class ClassNumbers:
    """
    The numbers of classes, by what a data set has in their place: a name, or a number that is a name, or the number of
    a class itself where no name is one.

    Args:
        label2id (`dict[str | int, int]`): names to numbers, as a config has them; without any, all whole numbers from
            0 on are classes. Whole numbers as keys are those of a `ClassLabel`, as [`with_class_numbers`] adds them.
    """

    def __init__(self, label2id: dict[str | int, int]):
        self.label2id, self.count = label2id, len(set(label2id.values()) - {-100})
        self.has_numbers = any(isinstance(key, int) for key in label2id)
        self.names_are_numbers = any(str(key).removeprefix("-").isdecimal() for key in label2id)

    def find(self, label: Any) -> int | None:
        """The number of a class; `None` if there is no such class."""
        if isinstance(label, list):
            return None
        if isinstance(label, int) and self.has_numbers:
            return self.label2id.get(label)
        if isinstance(label, bool) and self.names_are_numbers:
            label = int(label)
        if str(label) in self.label2id:
            return self.label2id[str(label)]
        is_number = isinstance(label, int) and not self.names_are_numbers
        return int(label) if is_number and 0 <= label < (self.count or math.inf) else None

    def read(self, value: Any, column: str) -> int:
        """The number of a class, -100 for none. The `ValueError` for another value goes on after the row's name."""
        label = read_label(value)
        number = -100 if label is None else self.find(label)
        if number is None:
            raise ValueError(f"has {reprlib.repr(label)} in the target column {column!r}, {self.none_of()}")
        return number

    def read_list(self, values: Any, column: str) -> list[int]:
        """The numbers of a list of classes, as [`read`] does."""
        values = to_python(values)
        if not isinstance(values, list):
            raise TypeError(f"has {reprlib.repr(values)} in the target column {column!r}; expected a list of labels")
        numbers = [self.read(value, column) for value in values]
        for value, number in zip(values, numbers):
            if not 0 <= number < self.count:
                raise ValueError(f"has {value!r} in a list of the target column {column!r}, {self.none_of()}")
        return numbers

    def none_of(self) -> str:
        names = [name for name in self.label2id if isinstance(name, str)]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"which is none of the {self.count} labels" + (f" ({listed})" if listed else "")


def with_class_numbers(label2id: dict[str, int], rows: Any, column: str) -> dict[str | int, int]:
    """
    `label2id`, and what stands for the same names in a column that is a `ClassLabel`: its numbers, and -1 for none. A
    model whose labels have no names of their own ("LABEL_0") takes the numbers as they are.
    """
    names = class_names(rows, column)
    if names is None:
        return label2id
    if all(name == f"LABEL_{number}" for name, number in label2id.items()):
        return {**label2id, **{number: number for number in label2id.values()}, -1: -100}
    return {**label2id, **{number: label2id[name] for number, name in enumerate(names) if name in label2id}, -1: -100}


def read_text(value: Any, column: str) -> str:
    """A text to answer. The error for another value goes on after the row's name."""
    if not isinstance(value, str):
        raise TypeError(f"has {reprlib.repr(value)} in the target column {column!r}; expected a str")
    return value


def read_numbers(value: Any, column: str, count: int | None = None) -> float | list[float]:
    """A number, or a list of `count` numbers. The error for other values goes on after the row's name."""
    value = to_python(value)
    numbers = value if isinstance(value, list) else [value]
    are_finite = all(isinstance(number, (int, float)) and abs(number) <= _LARGEST for number in numbers)
    if not numbers or not are_finite or count not in (None, len(numbers)):
        expected = f"{count or ''} finite number{'s' * (count != 1)}".strip()
        raise ValueError(f"has {reprlib.repr(value)} in the target column {column!r}; expected {expected}")
    return [float(number) for number in numbers] if isinstance(value, list) else float(value)


def check_digits(rows: "datasets.Dataset", column: str):
    """Raises a `ValueError` for a column of numbers whose differences are lost in float32, such as Unix times."""
    numbers = np.array([read_numbers(get_column(row, column), column) for row in read_rows(rows, [column])])
    lost, spread = np.abs(numbers - numbers.astype(np.float32)).max(0), numbers.std(0)
    if ((lost > spread / 1000) & (spread > 1e-12 * np.abs(numbers).max(0))).any():
        raise ValueError(
            f"the target column {column!r} has numbers such as {numbers.flat[0].item()} whose differences are lost in "
            "float32, in which training computes; subtract an offset from them first, such as their mean"
        )
