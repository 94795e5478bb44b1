# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The flags that several programs have, and the checks of what they are given."""

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


# What `--dtype` and a recipe's `precision` may be, besides `auto`.
DTYPES = ("float32", "bfloat16", "float16")
# What `--on_bad_sample` and a recipe's `on_bad_sample` may be.
BAD_SAMPLE_CHOICES = ("stop", "skip")


class OneLineErrors:
    """Makes an argument parser raise a `ValueError` where argparse would print all flags and end the process."""

    def error(self, message: str):
        raise ValueError(message)


class Parser(OneLineErrors, argparse.ArgumentParser):
    """The parser of a program's command line. The lines of its description and epilog stay as they are."""

    def __init__(self, name: str, description: str = "", epilog: str = "", **settings):
        super().__init__(
            prog=name,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """As argparse does it; `--batch-size` stands for `--batch_size`."""
        return super().parse_known_args(list(map(with_underscores, sys.argv[1:] if args is None else args)), namespace)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments; those that are unknown raise a `ValueError` with the nearest flags."""
        args, unknown = self.parse_known_args(argv)
        refuse_unknown(unknown, self._option_string_actions)
        return args


def with_underscores(word: str) -> str:
    """A flag by the name that it has; any other word stays as it is."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word[2:].partition("=")
    return f"--{flag.replace('-', '_')}{equals}{value}"


def refuse_unknown(arguments: Sequence[str], flags: Iterable[str]):
    """Raises a `ValueError` that names the first unknown argument, and the flags that are most like it."""
    for argument in sorted(arguments, key=lambda argument: not argument.startswith("-")):
        near = difflib.get_close_matches(argument.partition("=")[0], list(flags), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown argument {argument}{hint}")


def above_zero(text: str) -> int:
    """The type of a flag that counts something."""
    if (value := int(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def file_to_write(path: str) -> str:
    """The type of a flag for a file that is written at the end, which must not fail after all the work."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; expected a file")
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written to the folder {folder}")
    return path


def parse_mapping(pairs: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """`["image=photo", "audio=speech"]` as a `dict`. A `dict` stays as it is, and None becomes an empty one."""
    if pairs is None or isinstance(pairs, Mapping):
        return dict(pairs or {})
    mapping = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{pair!r} is not of the form modality=value, such as image=photo")
        if name in mapping:
            raise ValueError(f"the modality {name!r} is given twice")
        mapping[name] = value
    return mapping


def parse_lengths(pairs: Mapping[str, float] | Iterable[str] | None) -> dict[str, float]:
    """`["text=128", "audio=2.5"]` as a `dict` of numbers."""
    lengths = {}
    for name, value in parse_mapping(pairs).items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"`max_lengths` has {name}={value}; expected a number, such as text=128") from None
        lengths[name] = int(number) if number.is_integer() else number
    return lengths


def add_length_argument(parser: argparse.ArgumentParser):
    """How much of a sample is read."""
    parser.add_argument(
        "--max_lengths",
        nargs="+",
        metavar="MODALITY=N",
        help="read so much of a sample: tokens of a text, seconds of audio, steps of a series, as text=128 audio=20 "
        "wrist=500 (default: as the model was trained)",
    )


def add_dataset_arguments(
    parser: argparse.ArgumentParser,
    required: bool = False,
    has_target: bool = True,
    inputs: str = "which column of the data set each modality is read from",
):
    """A data set, and what its columns are. `inputs` is the help of the flag of that name."""
    parser.add_argument("--dataset", required=required, help="data set: its folder, or its id on the Hub")
    parser.add_argument("--dataset_config", metavar="NAME", help="configuration of the data set, if it has several")
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument("--inputs", nargs="+", required=required, metavar="MODALITY=COLUMN", help=inputs)
    if has_target:
        parser.add_argument(
            "--target", required=required, metavar="COLUMN", help="column of the right answers, such as names.fr"
        )
    parser.add_argument("--question", metavar="TEXT", help="ask this of every sample, through the text modality")
    parser.add_argument(
        "--batch_size", type=above_zero, default=64, metavar="N", help="samples at a time (default: 64)"
    )
    parser.add_argument(
        "--max_samples", type=above_zero, metavar="N", help="use N rows only, spaced evenly over the split"
    )


def add_bad_sample_argument(parser: argparse.ArgumentParser):
    """What to do where a row can't be read."""
    parser.add_argument(
        "--on_bad_sample",
        choices=BAD_SAMPLE_CHOICES,
        default="stop",
        help="a row that can't be read: stop, with an error that names it, or skip it and list it in "
        "bad_samples.jsonl, or <name of --output>.bad_samples.jsonl beside --output (default: stop)",
    )


def bad_samples_file(output: str | None) -> Path:
    """Where rows that are skipped are listed."""
    return Path("bad_samples.jsonl") if output is None else Path(output).with_suffix(".bad_samples.jsonl")


def add_generation_arguments(parser: argparse.ArgumentParser):
    """How answers are generated."""
    parser.add_argument(
        "--num_beams", type=above_zero, default=1, metavar="N", help="beams of the search (default: 1)"
    )
    parser.add_argument(
        "--max_new_tokens", type=above_zero, metavar="N", help="tokens of an answer (default: the model's)"
    )


def generation_options(args: argparse.Namespace) -> dict[str, int]:
    """The flags that go to `generate`."""
    length = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    return {"num_beams": args.num_beams, **length}


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
