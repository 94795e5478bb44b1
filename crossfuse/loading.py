# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the command-line programs share: flags, loading a model, tables for the terminal, errors on one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import logging

from .classification import CrossFuseForSequenceClassification
from .data.rows import check_exists
from .modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseForSpeechSeq2Seq
from .retrieval import CrossFuseForRetrieval
from .training.precision import DTYPES, loading_dtype


# The models that the programs can ask.
HEADS = {
    head.__name__: head
    for head in (
        CrossFuseForConditionalGeneration,
        CrossFuseForRetrieval,
        CrossFuseForSequenceClassification,
        CrossFuseForSpeechSeq2Seq,
    )
}


def load_model(name_or_path: str, device: str | None = None, dtype: str = "auto"):
    """
    A saved model and its processor.

    Args:
        name_or_path (`str`): a folder, or an id on the Hub.
        device (`str`, *optional*): defaults to a GPU where there is one.
        dtype (`str`, defaults to `"auto"`): `"float32"`, `"bfloat16"`, `"float16"`, or what
            [`loading_dtype`] chooses.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        OSError, ValueError: if they can't be loaded; the message says why.
    """
    check_exists("model", name_or_path)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)  # it may be the name of a device that this machine has not
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"`device={device!r}` is no device: {one_line(error)}") from error
    config = load_config(name_or_path)
    chosen = loading_dtype(config.dtype, place) if dtype == "auto" else getattr(torch, dtype)
    model = _model_class(config).from_pretrained(name_or_path, dtype=chosen)
    processor = AutoProcessor.from_pretrained(name_or_path)
    return model.eval().to(place), processor


def load_config(name_or_path: str) -> PreTrainedConfig:
    """
    The config of a saved model.

    Args:
        name_or_path (`str`): a folder, or an id on the Hub.

    Raises:
        OSError: if it is neither; the message names it, which transformers' own may not.
    """
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except OSError as error:
        raise OSError(
            f"the model {name_or_path!r} is no folder here, nor to be had from the Hub: {one_line(error)}"
        ) from error


def _model_class(config) -> type:
    """The class that a saved model is of, if it has a head."""
    name = (config.architectures or [None])[0]
    if name not in HEADS:
        raise ValueError(f"the model is a {name or config.model_type}; expected one of {', '.join(HEADS)}")
    return HEADS[name]


def one_line(error: Exception) -> str:
    """What an error says, on one line: the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def read_input(kind: str, value: str) -> Any:
    """
    One modality's value, as the processor takes it.

    Args:
        kind (`str`): the modality's kind.
        value (`str`): text itself, or the path of a file: a picture, sound or video, numbers (`.npy`), or a series
            (`.npy`, or `.csv` with one line per step).

    Raises:
        ValueError: if there is no such file, or it holds no numbers.
    """
    if kind == "text":
        return value
    path = Path(value)
    if not path.is_file():
        raise ValueError(f"there is no file {value}")
    if kind != "series" and path.suffix != ".npy":
        return value  # the processor opens it
    if path.suffix not in (".npy", ".csv"):
        raise ValueError(f"{value} is no series: expected a .npy or .csv file")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{value} is not a table of numbers: {one_line(error)}") from error


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


def add_generation_arguments(parser: argparse.ArgumentParser):
    """What every program has that answers about samples."""
    parser.add_argument("--dataset_config", metavar="NAME", help="configuration of the data set, if it has several")
    parser.add_argument("--question", metavar="TEXT", help="ask this of every sample, through the text modality")
    parser.add_argument("--num_beams", type=int, default=1, metavar="N", help="beams of the search (default: 1)")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="tokens of an answer (default: the model's)")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="samples at a time (default: 64)")
    parser.add_argument("--max_samples", type=int, metavar="N", help="use N rows only, spaced evenly over the split")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser):
    """Where a program computes, and in what."""
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU where there is one)")
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="what to compute in (default: auto, which is what the model was saved for, or float32 where that has 16 "
        "bits and the processor computes it slower)",
    )


# Those of its flags that are numbers above 0.
GENERATION_NUMBERS = ("num_beams", "max_new_tokens", "batch_size", "max_samples")


def check_arguments(args: argparse.Namespace, above_zero: Sequence[str] = GENERATION_NUMBERS):
    """
    Refuses numbers that have to be above 0 and are not, and an `--output` that can't be written.

    Raises:
        ValueError: if there is one; the message names the flag.
    """
    check_numbers(args, above_zero)
    check_file("output", args.output)


def check_numbers(args: argparse.Namespace, above_zero: Sequence[str]):
    """Raises a `ValueError` that names the flag if a number is not above 0."""
    for name in above_zero:
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} is {value}; expected more than 0")


def check_file(flag: str, path: str | Path | None):
    """Raises a `ValueError`, before any work, unless a file can be written there."""
    if path is None:
        return
    if Path(path).is_dir():
        raise ValueError(f"--{flag}: {path} is a folder; expected a file")
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"--{flag}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--{flag}: nothing can be written to the folder {folder}")


def generation_options(args: argparse.Namespace) -> dict[str, int]:
    """The flags that go to `generate`."""
    length = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    return {"num_beams": args.num_beams, **length}


def run_program(name: str, run: Callable[[list[str] | None], Any], argv: list[str] | None) -> Any:
    """
    Runs a program; what is wrong with its arguments, model or data becomes one line on standard error.

    Args:
        name (`str`): the program's name.
        run (`Callable`): takes the command line, without the program's name.
        argv (`list[str]`, *optional*): the command line; that of the process by default.

    Raises:
        SystemExit: with code 2, if the arguments, the model or the data are wrong; with 130, if it was interrupted.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading the weights
    try:
        return run(argv)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from error


__all__ = [
    "add_device_arguments",
    "add_generation_arguments",
    "check_arguments",
    "check_file",
    "check_numbers",
    "format_table",
    "generation_options",
    "load_config",
    "load_model",
    "one_line",
    "read_input",
    "run_program",
]
