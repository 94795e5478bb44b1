# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Answers of a CrossFuse model: for one sample, given on the command line, or for every row of a data set.

One sample: --inputs image=cat.png audio=clip.ogg text="name in French". Images, audio and videos are files; text is
the text itself; a series is a file of numbers, .npy or .csv (one line per step, no header). Give as many modalities as
you have.

A data set: with --dataset, --inputs maps modalities to its columns. Each row's answer is one line of JSON. An error
keeps the answers of the rows before it.
"""

import argparse
import json
import sys

from .flags import (
    Parser,
    add_bad_sample_argument,
    add_dataset_arguments,
    add_device_arguments,
    add_generation_arguments,
    add_length_argument,
    bad_samples_file,
    file_to_write,
    generation_options,
    parse_lengths,
    parse_mapping,
)


EPILOG = """
examples:
  name an image:
    crossfuse predict checkpoints/emoji --inputs image=cat.png
  an image, audio and a question together:
    crossfuse predict checkpoints/emoji --inputs image=cat.png audio=clip.ogg text="name in French"
  every image of a data set, the answers as lines of JSON in a file:
    crossfuse predict checkpoints/emoji --dataset data/emoji --split test --inputs image=picture \\
        --question "name in French" --output answers.jsonl
"""


def parse_args(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or its id on the Hub")
    add_dataset_arguments(
        parser, has_target=False, inputs="one sample: files, or the text itself; with --dataset, columns of it"
    )
    parser.add_argument("--columns", dest="inputs", nargs="+", help=argparse.SUPPRESS)  # as --inputs was once called
    add_bad_sample_argument(parser)
    add_length_argument(parser)
    add_generation_arguments(parser)
    add_device_arguments(parser)
    parser.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="write the rows' answers here instead of printing them"
    )
    args = parser.parse_args(argv)
    if args.inputs is None:
        raise ValueError("--inputs is missing: give one sample, such as image=cat.png, or columns of a --dataset")
    if args.dataset is None and (args.question or args.output):
        raise ValueError("--question and --output go with --dataset; ask a question as --inputs text=...")
    args.inputs, args.max_lengths = parse_mapping(args.inputs), parse_lengths(args.max_lengths)
    return args


def predict_sample(args: argparse.Namespace, model, processor) -> list[str]:
    """The answer for the sample on the command line."""
    from modeling_crossfuse.data.rows import Row
    from modeling_crossfuse.evaluation.prediction import predict

    from .loading import read_input

    modalities, row = model.config.modalities, Row({}, "the sample")
    for name, value in args.inputs.items():
        if name not in modalities:
            raise ValueError(f"unknown modality {name!r}; this model takes {', '.join(modalities)}")
        row[name] = read_input(modalities[name].kind, value)
    answers = predict(
        model, processor, [row], {name: name for name in row}, progress=False, **generation_options(args)
    )
    print(answers[0])
    return answers


def predict_rows(args: argparse.Namespace, model, processor, rows) -> list[str | None]:
    """The answers for a data set's rows, written as lines of JSON, with None for rows that are skipped."""
    from modeling_crossfuse.data.rows import row_numbers
    from modeling_crossfuse.evaluation.prediction import check_inputs, iter_answers

    check_inputs(model.config, rows, args.inputs)
    answers = iter_answers(
        model,
        processor,
        rows,
        args.inputs,
        question=args.question,
        batch_size=args.batch_size,
        **generation_options(args),
    )
    lines = []
    try:
        for row, answer in zip(map(int, row_numbers(rows)), answers):
            lines.append(make_line(args, row, answer, len(lines)))
            if args.output is None:
                print(json.dumps(lines[-1], ensure_ascii=False), flush=True)
    finally:  # an error, or an interruption, keeps the answers before it
        write_lines(args, lines)
    if all("error" in line for line in lines):
        raise ValueError(f"none of the {len(lines):,} rows can be used; the first: {lines[0]['error']}")
    return [line["answer"] for line in lines]


def make_line(args: argparse.Namespace, row: int, answer, num_before: int) -> dict:
    """A row's line. The answer is an error if the row can't be read, which is raised unless such rows are skipped."""
    from modeling_crossfuse.data.rows import reason_of

    if not isinstance(answer, Exception):
        return {"row": row, "answer": answer}
    if args.on_bad_sample == "skip":
        return {"row": row, "answer": None, "error": reason_of(answer)}
    where = "printed" if args.output is None else f"in {args.output}"
    few = {0: "there are no answers before it", 1: f"the answer before it is {where}"}
    kept = few.get(num_before, f"the {num_before:,} answers before it are {where}")
    raise ValueError(f"{reason_of(answer)}; {kept}") from answer


def write_lines(args: argparse.Namespace, lines: list[dict]):
    """Writes the answers that there are, if they are for a file, and the list of the rows that are skipped."""
    from modeling_crossfuse.data.bad_samples import write_bad_samples
    from modeling_crossfuse.files import write_whole

    bad = [{"row": line["row"], "reason": line["error"]} for line in lines if "error" in line]
    if args.output is not None and lines:
        write_whole(args.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        answers = len(lines) - len(bad)
        print(f"{answers:,} answer{'s' * (answers != 1)} written to {args.output}")
    if args.on_bad_sample == "skip":
        file = bad_samples_file(args.output)
        write_bad_samples(file, bad)
        lists = f"; {file} lists them" if bad else ""
        print(f"{len(bad):,} of {len(lines):,} rows skipped{lists}", file=sys.stderr)


def run(args: argparse.Namespace) -> list[str]:
    """Prints or writes a model's answers, and returns them."""
    from modeling_crossfuse.data.rows import load_rows

    from .loading import load_model

    if args.dataset is not None:
        rows = load_rows(args.dataset, args.split, args.max_samples, args.dataset_config)
    model, processor = load_model(args.model, args.device, args.dtype)
    processor.set_max_lengths(args.max_lengths)
    if args.dataset is None:
        return predict_sample(args, model, processor)
    return predict_rows(args, model, processor, rows)
