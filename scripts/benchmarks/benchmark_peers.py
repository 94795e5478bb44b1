# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The groups `peers` and `loading` of `benchmark.py`: CrossFuse beside models of transformers, at the same work."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from benchmark_configs import Sizes
from benchmark_models import (
    DIFFERENCES,
    TASKS,
    Contestant,
    Settings,
    build_contestants,
    time_steps,
    train_steps,
)
from benchmark_tools import alternate, extra_memory, run_alone, show, summarize, table
from transformers import PreTrainedModel

from modeling_crossfuse.evaluation.plots import plot_bars


STEP, MEMORY, LOADING = "training step, ms", "training step, MB", "from_pretrained, ms"
NEW_TOKENS = 64
# Measure to batch and beams: as much as the reference batch of 16 allows.
GENERATION = {
    "greedy, batch 1, tokens/s": (1, 1),
    "greedy, batch 16, tokens/s": (16, 1),
    "4 beams, batch 4, tokens/s": (4, 4),
}
MEMORY_RUNS = 3  # processes for each contestant, at most: they hardly differ
LARGE = Sizes(width=640, layers=8, heads=10, vocab_size=16_000, image_size=224, patch_size=16)


def measure_peers(task: str, sizes: Sizes, settings: Settings) -> dict:
    """Time, speed and memory of all contestants of a task, and what CrossFuse's are to the best peer's."""
    contestants = build_contestants(task, sizes, settings)
    measures = {STEP: time_steps(contestants, settings)}
    for measure, (batch, beams) in GENERATION.items():
        measures[measure] = measure_generation(contestants, min(batch, sizes.batch), beams, settings)
    measures[MEMORY] = measure_memory(task, sizes, settings)
    return {**describe(contestants, sizes, settings), "task": task, "measures": measures, **compare(task, measures)}


def measure_loading(task: str, sizes: Sizes, settings: Settings) -> dict:
    """How long `from_pretrained` takes."""
    contestants = build_contestants(task, sizes, settings)
    with tempfile.TemporaryDirectory() as folder:
        functions = {}
        for title, contestant in contestants.items():
            contestant.model.save_pretrained(Path(folder) / title)
            functions[title] = partial(load, TASKS[task][title].model_class, Path(folder) / title, settings)
        times = alternate(functions, settings.repeats, settings.device)
    measures = {LOADING: {title: summarize(taken) for title, taken in times.items()}}
    return {**describe(contestants, sizes, settings), "task": task, "measures": measures, **compare(task, measures)}


def load(model_class: type[PreTrainedModel], folder: Path, settings: Settings) -> PreTrainedModel:
    return model_class.from_pretrained(folder, dtype=getattr(torch, settings.dtype)).to(settings.device)


def measure_generation(
    contestants: dict[str, Contestant], batch: int, beams: int, settings: Settings
) -> dict[str, dict[str, float]]:
    functions = {title: partial(each.generate, batch, NEW_TOKENS, beams) for title, each in contestants.items()}
    times = alternate(functions, settings.repeats, settings.device)
    return {title: summarize([1000 * batch * NEW_TOKENS / time for time in taken]) for title, taken in times.items()}


def measure_memory(task: str, sizes: Sizes, settings: Settings) -> dict[str, dict[str, float]]:
    runs = range(min(settings.repeats, MEMORY_RUNS))
    # A GPU's allocator counts each tensor; what a process takes depends on what it took before.
    measure = partial(run_alone, step_memory) if torch.device(settings.device).type == "cpu" else step_memory
    return {title: summarize([measure(task, title, sizes, settings) for _ in runs]) for title in TASKS[task]}


def step_memory(task: str, title: str, sizes: Sizes, settings: Settings) -> float:
    """The most megabytes that training needs on top of the finished model."""
    torch.set_num_threads(settings.threads)
    contestant = build_contestants(task, sizes, settings, [title])[title]
    return extra_memory(partial(train_steps, contestant, settings.steps), settings.device)


def describe(contestants: dict[str, Contestant], sizes: Sizes, settings: Settings) -> dict:
    models = {title: contestant.model for title, contestant in contestants.items()}
    return {
        "sizes": asdict(sizes),
        "settings": asdict(settings),
        "parameters": {title: model.num_parameters(only_trainable=True) for title, model in models.items()},
        "attention": {title: model.config._attn_implementation for title, model in models.items()},
    }


def is_speed(measure: str) -> bool:
    """Whether more is better."""
    return measure.endswith("/s")


def compare(task: str, measures: dict[str, dict]) -> dict:
    """Each contestant's median as a multiple of the best peer's."""
    peers = [title for title, entrant in TASKS[task].items() if not entrant.is_ours]
    ratios, best = {}, {}
    for measure, summaries in measures.items():
        medians = {title: summary["median"] for title, summary in summaries.items()}
        choose: Callable = max if is_speed(measure) else min
        best[measure] = choose(peers, key=medians.get)
        ratios[measure] = {title: median / medians[best[measure]] for title, median in medians.items()}
    return {"best_peer": best, "ratios": ratios}


def report_peers(results: dict) -> str:
    """The measures as a table, and below it what the contestants do not have in common."""
    task, titles = results["task"], list(results["parameters"])
    ours = [title for title in titles if TASKS[task][title].is_ours]
    header = [task, *titles, *(f"{title} / best peer" for title in ours)]
    rows = [["parameters", *(f"{count:,}" for count in results["parameters"].values()), *[""] * len(ours)]]
    for measure, summaries in results["measures"].items():
        ratios = [f"{results['ratios'][measure][title]:.2f}" for title in ours]
        rows.append([measure, *(show(summaries[title]) for title in titles), *ratios])
    rows.append(["attention", *results["attention"].values(), *[""] * len(ours)])
    notes = ["Medians ± interquartile range. What is not the same:", *(f"- {text}" for text in DIFFERENCES[task])]
    return "\n".join([table(header, rows), "", *notes])


def plot_peers(results: dict, path: str):
    """Bars: what each contestant takes, as a multiple of the best peer."""
    ratios = {
        measure.rpartition(", ")[0] + (" memory" if measure == MEMORY else ""): {
            title: round(1 / ratio if is_speed(measure) else ratio, 2) for title, ratio in found.items()
        }
        for measure, found in results["ratios"].items()
    }
    bars = {title: {measure: found[title] for measure, found in ratios.items()} for title in results["parameters"]}
    plot_bars(bars, path, "time or memory, best peer = 1", results["task"])
