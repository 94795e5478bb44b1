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
Measures what CrossFuse costs, in time and memory: beside its peers of transformers, and beside itself.

Contestants take turns in one process, so that what else the machine does falls on all; memory is that of a process of
its own. Tables have medians and, where there is a ±, the interquartile range.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from benchmark_compile import measure_compile
from benchmark_configs import Sizes
from benchmark_frozen import measure_frozen, measure_quantized, report_variants
from benchmark_growth import measure_growth, plot_growth, report_growth
from benchmark_models import TASKS, Settings
from benchmark_peers import LARGE, measure_loading, measure_peers, plot_peers, report_peers
from benchmark_selves import measure_latent, measure_missing, measure_reuse
from benchmark_tools import report_rows

from crossfuse.errors import ends_in_one_line
from crossfuse.flags import Parser, above_zero, file_to_write
from crossfuse.loading import silence_transformers
from modeling_crossfuse.evaluation.plots import import_figure
from modeling_crossfuse.files import write_whole


EPILOG = """
examples:
  CrossFuse beside its peers at captions, on two threads:
    python scripts/benchmark.py peers --task captioning --output peers.json --plot peers.png
  the same on a GPU:
    python scripts/benchmark.py peers --device cuda --dtype bfloat16 --attn_implementation flash_attention_2
  what freezing the encoders saves, and caching what they give, on one thread:
    python scripts/benchmark.py frozen --threads 1
  what int8 weights of frozen encoders save, and what they change:
    python scripts/benchmark.py quantized --threads 1 --output quantized.json
"""


@dataclass(frozen=True)
class Group:
    """
    What can be measured.

    Args:
        help (`str`): what that is, in a line.
        measure (`Callable`): the command line and settings to results, which JSON can hold.
        report (`Callable`): results to Markdown.
        plot (`Callable`, *optional*): draws results to a file.
        has_tasks (`bool`): whether there is a choice of tasks.
    """

    help: str
    measure: Callable[[argparse.Namespace, Settings], dict]
    report: Callable[[dict], str]
    plot: Callable[[dict, str], object] | None = None
    has_tasks: bool = False


GROUPS = {
    "peers": Group(
        "CrossFuse beside models of transformers, at the same work",
        lambda args, settings: measure_peers(args.task, Sizes(), settings),
        report_peers,
        plot_peers,
        has_tasks=True,
    ),
    "loading": Group(
        "from_pretrained of models of 100 million parameters",
        lambda args, settings: measure_loading(args.task, LARGE, settings),
        report_peers,
        plot_peers,
        has_tasks=True,
    ),
    "compile": Group(
        "what torch.compile saves in training and in answering, and after how long",
        lambda args, settings: measure_compile(args.task, Sizes(), settings),
        report_rows,
        has_tasks=True,
    ),
    "missing": Group(
        "a training step where half of the modality values are missing",
        lambda args, settings: measure_missing(Sizes(), settings),
        report_rows,
    ),
    "latent": Group(
        "a token's time with 16 times as much input, for each fusion",
        lambda args, settings: measure_latent(Sizes(), settings),
        report_rows,
    ),
    "reuse": Group(
        "another question, and another answer, about the same image",
        lambda args, settings: measure_reuse(Sizes(), settings),
        report_rows,
    ),
    "growth": Group(
        "how a training step grows with length, modalities, batch and answer, for each fusion",
        lambda args, settings: measure_growth(Sizes(), settings),
        report_growth,
        plot_growth,
    ),
    "frozen": Group(
        "what it saves to freeze encoders, and to cache what they give",
        lambda args, settings: measure_frozen(settings),
        report_variants,
    ),
    "quantized": Group(
        "what int8 weights of frozen encoders save, and change",
        lambda args, settings: measure_quantized(settings),
        report_variants,
    ),
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    groups = "\n".join(f"  {name:<12}{group.help}" for name, group in GROUPS.items())
    parser = Parser("benchmark.py", __doc__, f"groups:\n{groups}\n{EPILOG}")
    default = Settings()
    parser.add_argument("group", choices=list(GROUPS), metavar="group", help="what to compare, see below")
    parser.add_argument("--task", choices=list(TASKS), help="of peers, loading and compile (default: captioning)")
    parser.add_argument("--device", default=default.device, help="cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default=default.dtype, help="of the weights (default: float32)"
    )
    parser.add_argument("--attn_implementation", metavar="NAME", help="such as sdpa (default: the model's own choice)")
    parser.add_argument(
        "--threads", type=above_zero, default=default.threads, metavar="N", help="threads (default: 2)"
    )
    parser.add_argument("--repeats", type=above_zero, default=default.repeats, metavar="N", help="turns (default: 5)")
    parser.add_argument(
        "--steps", type=above_zero, default=default.steps, metavar="N", help="training steps in each turn (default: 5)"
    )
    parser.add_argument("--output", type=file_to_write, metavar="FILE", help="write the results there, as JSON")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE", help="draw them there, as a PNG")
    args = parser.parse_args(argv)
    check_device(args.device)
    check_plot(args)
    if args.task is not None and not GROUPS[args.group].has_tasks:
        groups = ", ".join(name for name, group in GROUPS.items() if group.has_tasks)
        raise ValueError(f"--task: the group {args.group} has no tasks; expected one of {groups}")
    args.task = args.task or "captioning"
    return args


def check_device(device: str):
    """Raises a `ValueError` unless the machine has the device."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device is {device!r}, which this machine does not have; expected cpu or cuda") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {device!r}; expected cpu or cuda")


def check_plot(args: argparse.Namespace):
    """Before any measuring: raises an error if there is nothing to draw with, on, or at all."""
    if args.plot is None:
        return
    if GROUPS[args.group].plot is None:
        drawn = ", ".join(name for name, group in GROUPS.items() if group.plot is not None)
        raise ValueError(f"--plot: the group {args.group} has no plot; expected one of {drawn}")
    import_figure()


def run(argv: list[str] | None) -> dict:
    args = parse_args(argv)
    group = GROUPS[args.group]
    settings = Settings(args.device, args.dtype, args.attn_implementation, args.threads, args.repeats, args.steps)
    torch.set_num_threads(settings.threads)
    results = group.measure(args, settings)
    print(group.report(results))
    if args.output is not None:
        write_whole(args.output, json.dumps(results, indent=2) + "\n")
    if args.plot is not None:
        group.plot(results, args.plot)
    return results


def main(argv: list[str] | None = None) -> dict:
    """
    Measures a group, prints a table, and writes JSON and a plot if asked to.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `dict`: the results.
    """
    silence_transformers()
    with ends_in_one_line("benchmark.py"):
        return run(argv)


if __name__ == "__main__":
    main()
