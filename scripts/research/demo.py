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
The demo: trains a model on the emoji data set, evaluates it on an artist and voices that it never met, and shows what
it answers, and from which modality. Any further argument goes to `crossfuse train`, such as --max_steps 100.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from crossfuse.errors import ends_in_one_line
from crossfuse.flags import Parser
from crossfuse.loading import load_model, silence_transformers
from crossfuse.recipe import RecipeArguments
from crossfuse.tables import format_table
from crossfuse.train import card_settings
from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse.data.rows import get_column, load_rows
from modeling_crossfuse.evaluation.plots import plot_answers
from modeling_crossfuse.evaluation.prediction import text_modality
from modeling_crossfuse.evaluation.scores import evaluate_rows, subsets
from modeling_crossfuse.explanation.explanation import explain
from modeling_crossfuse.media_image import load_images
from modeling_crossfuse.training.model_card import write_model_card


EPILOG = """
examples:
  all of it:
    python scripts/demo.py
  without training again:
    python scripts/demo.py --skip_training
  in a minute, to see that everything works:
    python scripts/demo.py --output_dir outputs/try --num_samples 100 --max_steps 20
"""


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser("demo.py", __doc__, EPILOG)
    parser.add_argument(
        "--recipe", default="configuration/recipes/emoji_demo.yaml", help="what to train (default: %(default)s)"
    )
    parser.add_argument(
        "--output_dir", default="outputs/emoji-demo", help="folder for model and answers.png (default: %(default)s)"
    )
    parser.add_argument("--split", default="test", help="split to evaluate on and to show (default: test)")
    parser.add_argument("--num_samples", type=int, metavar="N", help="evaluate on N samples only (default: all)")
    parser.add_argument(
        "--num_processes",
        type=int,
        default=default_processes(),
        metavar="N",
        help="processes that train side by side, each on batches of its own (default: %(default)s)",
    )
    parser.add_argument("--skip_training", action="store_true", help="show the model that is in the folder")
    return parser.parse_known_args(argv)


def say(stage: int, text: str, expected: str):
    print(f"\n[{stage}/4] {text}; {expected}", flush=True)


def train(argv: list[str], num_processes: int) -> float:
    """Runs `crossfuse train` in so many processes; returns how long it took, in seconds."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    started = time.monotonic()
    trained = subprocess.run([sys.executable, "-m", *launcher, "-m", "crossfuse", "train", *argv])
    if trained.returncode:
        raise SystemExit(trained.returncode)  # what went wrong stands above
    return time.monotonic() - started


def training_time(recipe: RecipeArguments) -> str:
    """How long training is to take, as the recipe says."""
    if recipe.max_minutes is None:
        return "the bar below says how long it takes"
    return f"{recipe.max_minutes:g} minutes at most, and about a minute to start and end"


def steps_trained(folder: str) -> int:
    return TrainerState.load_from_json(str(Path(folder, TRAINER_STATE_NAME))).global_step


def default_processes() -> int:
    """One on a GPU; otherwise two, as the recipe's batch is meant for, if there are as many cores."""
    return 1 if torch.accelerator.is_available() else min(2, os.cpu_count() or 1)


def evaluate_each(model, processor, rows, recipe: RecipeArguments) -> dict[str, dict[str, float]]:
    """The metrics of every combination of the recipe's inputs, by the names of their columns."""
    results = {}
    for names in subsets(list(recipe.inputs)):
        chosen = {name: recipe.inputs[name] for name in names}
        results[" + ".join(chosen.values())] = evaluate_rows(model, processor, rows, chosen, recipe.target)
    return results


def results_table(results: dict[str, dict[str, float]]) -> str:
    rows = [
        [given, f"{values['exact_match']:.1%}", f"{values['cer']:.3f}", f"{values['chrf']:.1f}"]
        for given, values in results.items()
    ]
    return format_table(["given", "exact match", "CER", "chrF"], rows, right=(1, 2, 3))


def ask(model, processor, row: dict, inputs: dict[str, str], question: str | None) -> dict:
    """The model's answer about one row, and how much each modality contributed."""
    sample = {name: [get_column(row, column)] for name, column in inputs.items()}
    labels = dict(inputs)
    if question is not None:
        asked = text_modality(model.config)
        sample[asked], labels[asked] = [question], "question"
    explanation = explain(model, processor(**sample, return_tensors="pt"), max_positions=0)[0]
    shares = explanation.shares()
    return {
        "answer": processor.decode(explanation.targets, skip_special_tokens=True).strip(),
        "asked": " + ".join([*inputs.values(), *([f"“{question}”"] if question else [])]),
        "shares": {label: shares[name] for name, label in labels.items()},
    }


def ask_some(model, processor, rows, recipe: RecipeArguments, count: int = 12) -> list[dict]:
    """Answers about rows from all over the split: to all inputs or the image alone, every fourth with a question."""
    image = next((name for name in recipe.inputs if model.config.modalities[name].kind == "image"), None)
    if image is None:
        raise ValueError("the demo shows images, but the recipe has no input of kind image")
    questions = list(recipe.questions or {})
    samples = []
    for index in range(min(count, len(rows))):
        row = rows[(2 * index + 1) * len(rows) // (2 * count)]
        question = questions[index // 4 % len(questions)] if questions and index % 4 == 3 else None
        inputs = {image: recipe.inputs[image]} if index % 4 in (1, 2) else recipe.inputs
        truth = get_column(row, recipe.target if question is None else recipe.questions[question])
        answer = ask(model, processor, row, inputs, question)
        [picture] = load_images([("the image", get_column(row, recipe.inputs[image]))], num_channels=3)
        samples.append({**answer, "truth": truth, "image": picture})
    return samples


def answers_table(samples: list[dict]) -> str:
    rows = [
        [
            sample["asked"],
            sample["answer"] or "(nothing)",
            sample["truth"],
            "✓" if sample["answer"] == sample["truth"] else "✗",
            ", ".join(f"{name} {share:.0%}" for name, share in sample["shares"].items()),
        ]
        for sample in samples
    ]
    return format_table(["given", "answer", "truth", "", "contributions"], rows)


def run(argv: list[str] | None) -> list[dict]:
    args, others = parse_args(argv)
    if args.num_processes < 1:
        raise ValueError(f"--num_processes is {args.num_processes}; expected at least 1")
    if args.skip_training and not Path(args.output_dir).is_dir():
        raise ValueError(f"--skip_training: there is no model in {args.output_dir}")
    train_argv = [args.recipe, "--output_dir", args.output_dir, *others]
    recipe, arguments = parse_recipe(train_argv)
    duration = None
    if args.skip_training:
        say(1, "Training is skipped", f"the model is the one in {args.output_dir}")
    else:
        say(1, f"Training {recipe.model} as {args.recipe} says", training_time(recipe))
        duration = train(train_argv, args.num_processes)
        print(f"trained, start and end included, in {duration / 60:.1f} minutes")

    say(2, f"Evaluating on the split {args.split!r} of {recipe.dataset}", "less than a minute for the emoji")
    model, processor = load_model(args.output_dir)
    rows = load_rows(recipe.dataset, args.split, args.num_samples, recipe.dataset_config)
    results = evaluate_each(model, processor, rows, recipe)
    print(results_table(results))
    if duration is not None:
        # The card that training wrote speaks of the validation split.
        write_model_card(
            args.output_dir,
            model,
            processor,
            dataset=recipe.dataset,
            split=args.split,
            metrics=results,
            recipe=card_settings(recipe, arguments, args.num_processes, steps_trained(args.output_dir)),
            duration=duration,
        )

    say(3, "Asking about single samples, and what each answer came from", "some seconds")
    samples = ask_some(model, processor, rows, recipe)
    print(answers_table(samples))

    say(4, "Drawing the answers", "some seconds")
    drawing = plot_answers(samples, Path(args.output_dir, "answers.png"))
    print(f"the model, its processor and its card (README.md) are in {args.output_dir}\nthe answers are in {drawing}")
    return samples


def main(argv: list[str] | None = None) -> list[dict]:
    """
    Trains, evaluates, asks and draws.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `list[dict]`: the samples that are drawn, as [`plot_answers`] takes them.
    """
    silence_transformers()
    with ends_in_one_line("demo.py"):
        return run(argv)


if __name__ == "__main__":
    main()
