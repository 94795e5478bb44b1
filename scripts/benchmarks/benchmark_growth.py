# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The group `growth` of `benchmark.py`: how time and memory of a training step grow with the size of the input."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from benchmark_configs import Sizes, crossfuse
from benchmark_models import Contestant, Settings, build, time_steps
from benchmark_tools import extra_memory, run_alone, table

from modeling_crossfuse.configuration_crossfuse import FUSION_TYPES
from modeling_crossfuse.evaluation.plots import plot_panels


CHANNELS = 8


@dataclass(frozen=True)
class Load:
    """What a step computes on: modalities of kind `series`, each of so many positions."""

    positions: int = 64
    modalities: int = 2
    batch: int = 2
    target: int = 32


# What grows, while the rest stays as it is in `Load()`: the field, and its values.
AXES = {
    "positions of a modality": ("positions", (64, 128, 256, 512, 1024)),
    "modalities": ("modalities", (1, 2, 4, 8, 16)),
    "batch": ("batch", (1, 2, 4, 8, 16, 32)),
    "tokens of the answer": ("target", (32, 64, 128, 256, 512)),
}


def measure_growth(sizes: Sizes, settings: Settings) -> dict:
    """Time and memory of a step for each fusion along each axis, and the slopes of the curves."""
    found = {"time, ms": {}, "memory, MB": {}}
    for axis, (field, values) in AXES.items():
        loads = [replace(Load(), **{field: value}) for value in values]
        times, memory = time_loads(loads, sizes, settings), measure_memory(loads, sizes, settings)
        for measure, columns in (("time, ms", times), ("memory, MB", memory)):
            found[measure][axis] = {fusion: dict(zip(values, column)) for fusion, column in columns.items()}
    slopes = {
        measure: {axis: {fusion: slope(points) for fusion, points in curves.items()} for axis, curves in axes.items()}
        for measure, axes in found.items()
    }
    return {
        "sizes": asdict(sizes),
        "settings": asdict(settings),
        "load": asdict(Load()),
        "found": found,
        "slopes": slopes,
    }


def time_loads(loads: list[Load], sizes: Sizes, settings: Settings) -> dict[str, list[float]]:
    """Milliseconds of a step, the fusions taking turns."""
    times = {fusion: [] for fusion in FUSION_TYPES}
    for load in loads:
        contestants = {fusion: make_loaded(fusion, load, sizes, settings) for fusion in FUSION_TYPES}
        for fusion, summary in time_steps(contestants, settings).items():
            times[fusion].append(summary["median"])
    return times


def measure_memory(loads: list[Load], sizes: Sizes, settings: Settings) -> dict[str, list[float]]:
    return {fusion: run_alone(load_memory, fusion, loads, sizes, settings) for fusion in FUSION_TYPES}


def load_memory(fusion: str, loads: list[Load], sizes: Sizes, settings: Settings) -> list[float]:
    """Megabytes of a step's gradients and activations; weights and what the optimizer keeps don't grow."""
    torch.set_num_threads(settings.threads)
    found = []
    for load in loads:
        contestant = make_loaded(fusion, load, sizes, settings)
        contestant.step()
        found.append(extra_memory(contestant.step, settings.device))
    return found


def make_loaded(fusion: str, load: Load, sizes: Sizes, settings: Settings) -> Contestant:
    names = [f"sensor{index}" for index in range(load.modalities)]
    modalities = {name: {"kind": "series", "num_channels": CHANNELS} for name in names}
    shape, generator = (load.batch, load.positions, CHANNELS), torch.Generator().manual_seed(0)
    inputs = {f"{name}_values": torch.randn(shape, generator=generator) for name in names}
    sizes = replace(sizes, batch=load.batch, target_tokens=load.target)
    return build(crossfuse(sizes, modalities, fusion={"type": fusion}), inputs, sizes, settings)


def slope(points: Mapping[float, float]) -> float:
    """The power of x that y grows with, over the upper half of the points: below it, what is constant hides it."""
    x, y = (np.log(list(column))[len(points) // 2 :] for column in (points.keys(), points.values()))
    return float(np.polyfit(x, y, 1)[0])


def report_growth(results: dict) -> str:
    """A row for each fusion, with the powers that time and memory grow with."""
    columns = [(measure, axis) for axis in AXES for measure in results["slopes"]]
    header = ["fusion", *(f"{measure.partition(',')[0]} / {axis}" for measure, axis in columns)]
    rows = [
        [fusion, *(f"{results['slopes'][measure][axis][fusion]:.2f}" for measure, axis in columns)]
        for fusion in FUSION_TYPES
    ]
    return table(header, rows)


def plot_growth(results: dict, path: str):
    plot_panels(results["found"], path, "What a training step takes")
