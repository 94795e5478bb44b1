# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How `benchmark.py` measures (in turns, medians, memory in a process of its own) and what its tables look like."""

import contextlib
import ctypes
import gc
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch


def summarize(values: Sequence[float]) -> dict[str, float]:
    """The median, and the interquartile range as the spread."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "spread": high - low}


def synchronize(device: str):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(function: Callable[[], Any], device: str = "cpu") -> float:
    """How long a call takes, with what it started on a GPU."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return 1000 * (time.perf_counter() - started)


def alternate(functions: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Milliseconds of each function, taken in turns so that what else the machine does falls on all; once in vain."""
    times = {title: [] for title in functions}
    for turn in range(repeats + 1):
        gc.collect()
        for title, function in functions.items():
            taken = milliseconds(function, device)
            if turn > 0:
                times[title].append(taken)
    return times


def extra_memory(function: Callable[[], Any], device: str = "cpu") -> float:
    """The most megabytes, of this process (Linux) or on the GPU, that a call needs on top of what is held before."""
    before = reset_peak_memory(device)
    function()
    return max(peak_memory(device) - before, 0.0)


def reset_peak_memory(device: str) -> float:
    """Forgets the most megabytes that were held, and gives what is held now."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(AttributeError):  # only glibc keeps what was freed, and gives it back by this
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory(device)


def peak_memory(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def run_alone(function: Callable, *args: Any) -> Any:
    """What a function gives in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: dict[str, float] | float | str) -> str:
    """A cell of a table: a median with its spread, a number or a text."""
    if isinstance(value, dict):
        digits = 0 if value["median"] >= 100 else 1 if value["median"] >= 10 else 2
        return f"{value['median']:.{digits}f} ± {value['spread']:.{digits}f}"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def report_rows(results: dict) -> str:
    """A table of rows that have the same columns: summaries, whole numbers, other numbers and texts."""
    rows = results["rows"]
    header = [results["title"], *next(iter(rows.values()))]
    return table(header, [[title, *map(show, row.values())] for title, row in rows.items()])
