# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The group `compile` of `benchmark.py`: what torch.compile saves, and after how long."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
import torch._inductor.config as inductor
from benchmark_configs import Sizes
from benchmark_models import TASKS, Contestant, Settings, build_contestants
from benchmark_tools import alternate, milliseconds, summarize
from transformers import CompileConfig


BACKEND = "inductor"
NEW_TOKENS = 64


def measure_compile(task: str, sizes: Sizes, settings: Settings) -> dict:
    """A step of training, and a token of an answer to one sample, eager and compiled."""
    rows = {}
    for title in [title for title, entrant in TASKS[task].items() if entrant.is_ours]:
        contestant = build_contestants(task, sizes, settings, [title])[title]
        rows[f"{title}: token, batch 1"] = compile_generation(contestant, settings)
        rows[f"{title}: training step"] = compile_training(contestant, settings)
    return {"title": task, "sizes": asdict(sizes), "settings": asdict(settings), "rows": rows}


def compile_generation(contestant: Contestant, settings: Settings) -> dict:
    compile_config = CompileConfig(backend=BACKEND)
    compile_config._compile_all_devices = True  # transformers would leave CPUs out
    eager = partial(contestant.generate, 1, NEW_TOKENS)
    compiled = partial(eager, cache_implementation="static", compile_config=compile_config)
    return compare(eager, compiled, NEW_TOKENS, settings)


def compile_training(contestant: Contestant, settings: Settings) -> dict:
    compiled = replace(contestant, model=torch.compile(contestant.model, backend=BACKEND, dynamic=False))
    return compare(contestant.step, compiled.step, 1, settings)


def compare(eager: Callable, compiled: Callable, units: int, settings: Settings) -> dict:
    """Milliseconds of a unit, a step or a token, and after how many units compiling has paid for itself."""
    torch.compiler.reset()
    with inductor.patch(force_disable_caches=True):  # of other runs, which would hide what compiling takes
        first = milliseconds(compiled, settings.device)
    times = alternate({"eager": eager, "compiled": compiled}, settings.repeats, settings.device)
    eager_ms, compiled_ms = (summarize([time / units for time in taken]) for taken in times.values())
    saved = eager_ms["median"] - compiled_ms["median"]
    compiling = max(first - units * compiled_ms["median"], 0.0)
    return {
        "eager, ms": eager_ms,
        "compiled, ms": compiled_ms,
        "ratio": compiled_ms["median"] / eager_ms["median"],
        "compiling, s": compiling / 1000,
        "pays after": round(compiling / saved) if saved > 0 else "never",
    }
