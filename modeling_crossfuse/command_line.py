# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the command-line programs share: loading a model, tables for the terminal, errors on one line."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForSeq2SeqLM, AutoProcessor

from .data import check_exists


def load_model(name_or_path: str, device: str | None = None):
    """
    A saved model and its processor.

    Args:
        name_or_path (`str`): a folder, or an id on the Hub.
        device (`str`, *optional*): defaults to a GPU where there is one.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        OSError, ValueError: if they can't be loaded; the message says why.
    """
    check_exists("model", name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(name_or_path)
    processor = AutoProcessor.from_pretrained(name_or_path)
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


def one_line(error: Exception) -> str:
    """What an error says, on one line: the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """
    Columns of text for the terminal.

    Args:
        header (`Sequence[str]`): titles of the columns.
        rows (`Sequence[Sequence[str]]`): their cells.
        right (`Sequence[int]`, defaults to `()`): the columns to align at the right, as numbers are.

    Example:

    ```python
    >>> from modeling_crossfuse.command_line import format_table

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


__all__ = ["format_table", "load_model", "one_line"]
