# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`crossfuse PROGRAM ...`: runs one of the programs."""

import argparse
import importlib
import sys
from typing import Any

from .errors import ends_in_one_line
from .flags import Parser


# What each program does, and the extra of pyproject.toml that it needs.
PROGRAMS = {
    "train": ("train or fine-tune a model on a data set", "train"),
    "evaluate": ("measure a model's answers, also with inputs that are missing or corrupted", "train"),
    "predict": ("answer about one sample, or about every row of a data set", "train"),
    "export": ("write ONNX or torch.export graphs, or int8 weights", "export"),
    "push": ("push a saved model to the Hugging Face Hub", "train"),
    "app": ("serve a web page that asks a model, or write it as a Space", "app"),
}

EPILOG = """
programs:
{programs}

`crossfuse PROGRAM --help` has the flags and examples of each.
"""

EXIT_CODES = "\nexit codes: 0 done, 2 something is wrong (one line on standard error says what), 130 interrupted\n"


def run(argv: list[str]) -> Any:
    """Runs the program that `argv` begins with, and returns what it made, such as its answers. Errors are raised."""
    programs = "\n".join(f"  {name:<10}{does}" for name, (does, _) in PROGRAMS.items())
    parser = Parser(
        "crossfuse", "Models that fuse any mix of modalities.", EPILOG.format(programs=programs) + EXIT_CODES
    )
    parser.add_argument("program", metavar="PROGRAM", choices=PROGRAMS, help="one of those below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="of the program")
    args = parser.parse_args(argv or ["--help"])
    program = importlib.import_module(f".{args.program}", __package__)
    parser = Parser(f"crossfuse {args.program}", program.__doc__, program.EPILOG + EXIT_CODES)
    args = program.parse_args(parser, args.arguments)
    importlib.import_module("modeling_crossfuse")  # before transformers: it keeps other libraries' messages back
    return program.run(args)


def main(argv: list[str] | None = None):
    """The console command: runs a program, and ends the process with 2 and one line if something is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv and argv[0] in PROGRAMS else None
    with ends_in_one_line(f"crossfuse {name}" if name else "crossfuse", extra=PROGRAMS[name][1] if name else None):
        run(argv)
