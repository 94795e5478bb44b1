#!/usr/bin/env python
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
"""
Answers of a CrossFuse model: for one sample, given on the command line, or for every row of a data set.

One sample: --inputs image=cat.png audio=clip.ogg text="name in French". Pictures, sound and videos are files; text is
the text itself; a series is a file of numbers, .npy or .csv (one line per step). Give as many modalities as you have.

A data set: --dataset with --columns, which maps modalities to columns. Each row's answer is one line of JSON.
"""

import argparse
import json

from modeling_crossfuse.command_line import (
    add_generation_arguments,
    check_arguments,
    generation_options,
    load_model,
    read_input,
    run_program,
)
from modeling_crossfuse.data.rows import load_rows, parse_mapping
from modeling_crossfuse.evaluation.evaluation import check_inputs, predict
from modeling_crossfuse.files import write_whole


EPILOG = """
examples:
  name a picture:
    python scripts/predict.py checkpoints/emoji --inputs image=cat.png
  a picture, a sound and a question together:
    python scripts/predict.py checkpoints/emoji --inputs image=cat.png audio=clip.ogg text="name in French"
  every picture of a data set, the answers as lines of JSON in a file:
    python scripts/predict.py checkpoints/emoji --dataset data/emoji --split test --columns image=picture \\
        --question "name in French" --output answers.jsonl

exit codes: 0 done, 2 a wrong argument, file, model or data set (one line on standard error says which)
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or its id on the Hub")
    parser.add_argument("--inputs", nargs="+", metavar="MODALITY=VALUE", help="one sample: files, or the text itself")
    parser.add_argument("--dataset", help="many samples: folder of a data set, or its id on the Hub")
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="MODALITY=COLUMN",
        help="which column each modality is read from",
    )
    add_generation_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="write the rows' answers here instead of printing them")
    args = parser.parse_args(argv)
    _check_args(args)
    return args


def _check_args(args: argparse.Namespace):
    if (args.inputs is None) == (args.dataset is None):
        raise ValueError("give either --inputs, for one sample, or --dataset with --columns, for many")
    if args.dataset is not None and args.columns is None:
        raise ValueError("--dataset needs --columns, such as --columns image=picture")
    if args.inputs is not None and (args.columns or args.question or args.output):
        raise ValueError("--columns, --question and --output go with --dataset; ask a question as --inputs text=...")
    check_arguments(args)


def predict_sample(args: argparse.Namespace, model, processor) -> list[str]:
    """The answer for the sample on the command line."""
    sample = parse_mapping(args.inputs)
    for name in sample:
        if name not in model.config.modalities:
            raise ValueError(f"unknown modality {name!r}; this model takes {', '.join(model.config.modalities)}")
    row = {name: read_input(model.config.modalities[name].kind, value) for name, value in sample.items()}
    return predict(model, processor, [row], {name: name for name in row}, progress=False, **generation_options(args))


def predict_rows(args: argparse.Namespace, model, processor, rows) -> list[str]:
    """The answers for a data set's rows, written as lines of JSON."""
    columns = parse_mapping(args.columns)
    check_inputs(model.config, rows, columns)
    answers = predict(
        model,
        processor,
        rows,
        columns,
        question=args.question,
        batch_size=args.batch_size,
        **generation_options(args),
    )
    lines = "".join(
        json.dumps({"row": row, "answer": answer}, ensure_ascii=False) + "\n" for row, answer in enumerate(answers)
    )
    if args.output is None:
        print(lines, end="")
    else:
        write_whole(args.output, lines)
        print(f"{len(answers):,} answers written to {args.output}")
    return answers


def run(argv: list[str] | None) -> list[str]:
    args = parse_args(argv)
    rows = None if args.dataset is None else load_rows(args.dataset, args.split, args.max_samples, args.dataset_config)
    model, processor = load_model(args.model, args.device, args.dtype)
    if rows is not None:
        return predict_rows(args, model, processor, rows)
    answers = predict_sample(args, model, processor)
    print(answers[0])
    return answers


def main(argv: list[str] | None = None) -> list[str]:
    """
    Prints or writes a model's answers.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `list[str]`: the answers.
    """
    return run_program("predict.py", run, argv)


if __name__ == "__main__":
    main()
