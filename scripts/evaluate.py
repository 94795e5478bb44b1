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
Measures how good a CrossFuse model's answers are: exact match, character error rate and chrF over a data set's split.

Each input of the model that is named in --inputs is read from a column; leave one out to see what the model makes of
the others. Pictures and speech can be made worse on purpose, in the same way in every run.
"""

import argparse
import json

from modeling_crossfuse.command_line import (
    add_generation_arguments,
    check_arguments,
    format_table,
    generation_options,
    load_model,
    run_program,
)
from modeling_crossfuse.data import load_rows, parse_mapping
from modeling_crossfuse.degradation import Degradation
from modeling_crossfuse.evaluation import check_inputs, evaluate_rows, subsets
from modeling_crossfuse.model_card import write_whole


EPILOG = """
examples:
  name the pictures of the test split:
    python scripts/evaluate.py checkpoints/emoji --dataset data/emoji --inputs image=picture --target name
  pictures alone, speech alone and both, half the picture hidden and the speech in noise as loud as itself:
    python scripts/evaluate.py checkpoints/emoji --dataset data/emoji --inputs image=picture audio=speech \\
        --target name --subsets --cover 0.5 --noise_db 0 --output results.json
  ask a question; its answers stand in a column inside a struct:
    python scripts/evaluate.py checkpoints/emoji --dataset data/emoji --inputs image=picture \\
        --question "name in French" --target names.fr

exit codes: 0 done, 2 a wrong argument, model or data set (one line on standard error says which)
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or its id on the Hub")
    parser.add_argument("--dataset", required=True, help="folder of a data set, or its id on the Hub")
    parser.add_argument("--split", default="test", help="split to evaluate on (default: test)")
    parser.add_argument(
        "--inputs", nargs="+", required=True, metavar="MODALITY=COLUMN", help="which column each modality is read from"
    )
    parser.add_argument(
        "--target", required=True, metavar="COLUMN", help="column of the right answers, such as names.fr"
    )
    parser.add_argument(
        "--subsets", action="store_true", help="evaluate every combination of the inputs, not just all"
    )
    parser.add_argument("--cover", type=float, metavar="SHARE", help="hide this share of each picture, from the right")
    parser.add_argument(
        "--noise_db", type=float, metavar="DB", help="add white noise to speech at this signal-to-noise ratio in dB"
    )
    add_generation_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="write the results to this JSON file, too")
    args = parser.parse_args(argv)
    check_arguments(args)
    if args.cover is not None and not 0 <= args.cover <= 1:
        raise ValueError(f"--cover is {args.cover}; expected a share from 0 to 1")
    return args


def evaluate_subsets(args: argparse.Namespace, model, processor, rows, inputs: dict[str, str]) -> list[dict]:
    """The metrics of all inputs together or, with --subsets, of every combination of them."""
    degrade = Degradation(cover=args.cover, noise_db=args.noise_db)
    results = []
    for names in subsets(list(inputs)) if args.subsets else [tuple(inputs)]:
        chosen = {name: inputs[name] for name in names}
        metrics = evaluate_rows(
            model,
            processor,
            rows,
            chosen,
            args.target,
            question=args.question,
            batch_size=args.batch_size,
            degrade=degrade,
            **generation_options(args),
        )
        results.append({"inputs": chosen, **metrics})
    return results


def results_table(results: list[dict]) -> str:
    """The results as text for the terminal."""
    header = ["inputs", "exact match", "CER", "chrF", "samples", "samples/s"]
    rows = [
        [
            " + ".join(result["inputs"]),
            f"{result['exact_match']:.3f}",
            f"{result['cer']:.3f}",
            f"{result['chrf']:.1f}",
            f"{result['num_samples']:,}",
            f"{result['samples_per_second']:.1f}",
        ]
        for result in results
    ]
    return format_table(header, rows, right=range(1, len(header)))


def run(argv: list[str] | None) -> list[dict]:
    args = parse_args(argv)
    inputs = parse_mapping(args.inputs)
    rows = load_rows(args.dataset, args.split, args.max_samples, args.dataset_config)
    model, processor = load_model(args.model, args.device)
    check_inputs(model.config, rows, inputs, args.target)
    results = evaluate_subsets(args, model, processor, rows, inputs)
    print(results_table(results))
    if args.output is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("inputs", "output", "device")}
        write_whole(args.output, json.dumps({**settings, "results": results}, indent=2, ensure_ascii=False) + "\n")
        print(f"written to {args.output}")
    return results


def main(argv: list[str] | None = None) -> list[dict]:
    """
    Evaluates, prints a table, and writes JSON if asked to.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `list[dict]`: for each combination of inputs, `inputs` and what [`evaluate_rows`] gives.
    """
    return run_program("evaluate.py", run, argv)


if __name__ == "__main__":
    main()
