# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Measures how good the answers of one or several models are over a data set's split, and how that changes where
modalities are missing or corrupted.

Each input of the model that is named in --inputs is read from a column; leave one out to see what the model makes of
the others, or let --missing all try every combination. --corruption makes all inputs worse, in the same way in every
run. A level from 0, nothing, to 1, nothing left, is for images and videos the share of the width that is hidden, for
text the share of the characters, and for audio and series the share of the amplitude that is noise: 0.5 is 0 dB.
"""

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

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
from .tables import format_table


EPILOG = """
examples:
  name the images of the test split:
    crossfuse evaluate checkpoints/emoji --dataset data/emoji --inputs image=picture --target name
  from images alone, from speech alone and from both:
    crossfuse evaluate checkpoints/emoji --dataset data/emoji --inputs image=picture audio=speech \\
        --target name --missing all
  two models under growing corruption; the curves are drawn in results.png:
    crossfuse evaluate outputs/concat outputs/joint --dataset data/emoji --inputs image=picture audio=speech \\
        --target name --corruption 0 0.25 0.5 0.75 1 --output results.json
  ask a question; its answers stand in a column inside a struct:
    crossfuse evaluate checkpoints/emoji --dataset data/emoji --inputs image=picture \\
        --question "name in French" --target names.fr
"""


def level(text: str) -> float:
    """The type of a level of corruption."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return float(text)


def parse_args(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("models", metavar="MODEL", nargs="+", help="folders of saved models, or their ids on the Hub")
    add_dataset_arguments(parser, required=True)
    parser.add_argument(
        "--missing",
        choices=("none", "all"),
        default="none",
        help="which inputs to leave out: none, or every combination of them, one after the other (default: none)",
    )
    parser.add_argument(
        "--corruption",
        nargs="+",
        type=level,
        default=[0.0],
        metavar="LEVEL",
        help="make the inputs worse, to one level from 0 to 1 after the other (default: 0)",
    )
    add_bad_sample_argument(parser)
    add_length_argument(parser)
    add_generation_arguments(parser)
    add_device_arguments(parser)
    parser.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="write the results to this JSON file, too, and draw them beside it",
    )
    args = parser.parse_args(argv)
    repeated = [name for name, count in Counter(args.models).items() if count > 1]
    if repeated:
        raise ValueError(f"the model {repeated[0]} is given twice")
    args.inputs, args.max_lengths = parse_mapping(args.inputs), parse_lengths(args.max_lengths)
    return args


def evaluate_model(args: argparse.Namespace, name: str, rows, bad: dict[int, Exception]) -> list[dict]:
    """
    The metrics of a model at each level of corruption, of all inputs together or of every combination of them. `bad`
    gets the numbers of the rows that are skipped, and their errors.
    """
    from modeling_crossfuse.evaluation.degradation import Degradation
    from modeling_crossfuse.evaluation.prediction import check_inputs
    from modeling_crossfuse.evaluation.scores import evaluate_rows, subsets

    from .loading import load_model

    inputs = args.inputs
    model, processor = load_model(name, args.device, args.dtype)
    processor.set_max_lengths(args.max_lengths)
    check_inputs(model.config, rows, inputs, args.target)
    settings = {
        name: {"do_rescale": getattr(processor.sub_processor(name, "image_processor"), "do_rescale", True), **own}
        for name, own in processor.modalities.items()
    }
    combinations = list(subsets(list(inputs))) if args.missing == "all" else [tuple(inputs)]
    answerable = {names: rows_with(names, rows, inputs, processor, args.question) for names in combinations}
    results = []
    for level, names in itertools.product(args.corruption, combinations):
        chosen = {name: inputs[name] for name in names}
        metrics = evaluate_rows(
            model,
            processor,
            answerable[names],
            chosen,
            args.target,
            on_bad_sample=bad.setdefault if args.on_bad_sample == "skip" else None,
            question=args.question,
            batch_size=args.batch_size,
            degrade=Degradation(settings, level),
            **generation_options(args),
        )
        results.append({"model": name, "corruption": level, "inputs": chosen, **metrics})
    return results


def rows_with(names: tuple[str, ...], rows, inputs: dict[str, str], processor, question: str | None):
    """The rows that have any of the modalities `names`, which some lack: all of them where a question is asked."""
    from modeling_crossfuse.data.rows import get_column, select_columns, select_rows

    if question is not None or len(names) == len(inputs):
        return rows
    columns = [inputs[name] for name in names]
    kept = [
        index
        for index, row in enumerate(select_columns(rows, columns))
        if not all(processor.is_missing(name, get_column(row, column)) for name, column in zip(names, columns))
    ]
    if not kept:
        raise ValueError(f"no row has {' or '.join(names)}, so --missing all can't be answered")
    return select_rows(rows, kept)


def results_table(results: list[dict]) -> str:
    """The results as text for the terminal; what all of them share is left out."""
    from modeling_crossfuse.evaluation.metric_names import METRICS

    described = [
        {"model": result["model"], "corruption": f"{result['corruption']:g}", "inputs": " + ".join(result["inputs"])}
        for result in results
    ]
    varying = [key for key in described[0] if key == "inputs" or len({row[key] for row in described}) > 1]
    columns = {name: METRICS[name] for name in results[0] if name in METRICS}
    counts = ["num_samples", *(["num_skipped"] if any(result.get("num_skipped") for result in results) else [])]
    titles = [title for title, _ in columns.values()]
    header = [*varying, *titles, *(count.removeprefix("num_") for count in counts), "samples/s"]
    rows = [
        [
            *(row[key] for key in varying),
            *(f"{result[name]:.{digits}f}" for name, (_, digits) in columns.items()),
            *(f"{result[count]:,}" for count in counts),
            f"{result['samples_per_second']:.1f}",
        ]
        for row, result in zip(described, results)
    ]
    return format_table(header, rows, right=range(len(varying), len(header)))


def short_names(models: list[str]) -> dict[str, str]:
    """The last part of each model's path or id, unless two have the same."""
    models = list(dict.fromkeys(models))
    names = [Path(model).name for model in models]
    return dict(zip(models, names if len(set(names)) == len(names) else models))


def draw(results: list[dict], output: Path) -> list[Path]:
    """
    Draws beside the JSON file `output` what there is several of: the metric of each combination of inputs, at the
    lowest level of corruption, as bars; the metric of all inputs at each level as curves.
    """
    from modeling_crossfuse.evaluation.metric_names import METRICS
    from modeling_crossfuse.evaluation.plots import plot_bars, plot_curves

    metric = next(name for name in results[0] if name in METRICS)
    label = METRICS[metric][0]
    combinations = {tuple(result["inputs"]) for result in results}
    levels = sorted({result["corruption"] for result in results})
    names = short_names([result["model"] for result in results])
    bars, curves = {}, {}
    for result in results:
        value, given, name = result[metric], tuple(result["inputs"]), names[result["model"]]
        if result["corruption"] == levels[0]:
            bars.setdefault(name, {})[" + ".join(given)] = value
        if given == max(combinations, key=len):
            curves.setdefault(name, {})[result["corruption"]] = value
    drawn = []
    if len(combinations) > 1:
        title = "Inputs given" + (f", at level {levels[0]:g} of corruption" if levels[0] else "")
        drawn.append(plot_bars(bars, output.with_name(f"{output.stem}-missing.png"), label, title))
    if len(levels) > 1:
        path = output.with_name(f"{output.stem}-corruption.png")
        drawn.append(plot_curves(curves, path, label, "level of corruption", "All inputs given, and corrupted"))
    return drawn


def run(args: argparse.Namespace) -> list[dict]:
    """
    Evaluates, prints a table, and writes JSON and plots if asked to. Returns the model, level of corruption, inputs
    and metrics of each evaluation.
    """
    from modeling_crossfuse.data.bad_samples import write_bad_samples
    from modeling_crossfuse.data.rows import load_rows, reason_of
    from modeling_crossfuse.files import write_whole

    rows = load_rows(args.dataset, args.split, args.max_samples, args.dataset_config)
    results, bad = [], {}
    for name in args.models:
        results += evaluate_model(args, name, rows, bad)
        if results[-1].keys() != results[0].keys():
            raise ValueError(f"{name} has another head than {args.models[0]}; their answers can't be compared")
    print(results_table(results))
    if args.on_bad_sample == "skip":
        file = bad_samples_file(args.output)
        write_bad_samples(file, [{"row": row, "reason": reason_of(bad[row])} for row in sorted(bad)])
        print(f"{len(bad):,} of {len(rows):,} rows skipped" + (f"; {file} lists them" if bad else ""))
    if unlabeled := results[0].get("num_unlabeled"):
        print(f"{unlabeled:,} of the {len(rows):,} rows have no label in {args.target!r}; the metrics leave them out")
    if args.output is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("inputs", "output", "device")}
        write_whole(args.output, json.dumps({**settings, "results": results}, indent=2, ensure_ascii=False) + "\n")
        for path in [args.output, *draw(results, Path(args.output))]:
            print(f"written to {path}")
    return results
