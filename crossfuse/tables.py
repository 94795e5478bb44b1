# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """
    Columns of text.

    Args:
        header (`Sequence[str]`): titles of the columns.
        rows (`Sequence[Sequence[str]]`): their cells.
        right (`Sequence[int]`, defaults to `()`): the columns to align at the right, as numbers are.

    Example:

    ```python
    >>> from crossfuse.tables import format_table

    >>> print(format_table(["inputs", "CER"], [["image", "0.250"]], right=[1]))
    inputs    CER
    ------  -----
    image   0.250
    ```
    """
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
