# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Plots of a model's answers, and of how good they are. Each function needs matplotlib (`pip install crossfuse[plot]`),
writes a PNG file, whole or not at all, into a folder that exists, and returns the file's path.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..extras import needs
from ..files import write_whole


# Okabe and Ito's colours, which colour-blind people can tell apart, without the two that mean right and wrong.
MODALITY_COLORS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442")
_NO_COLOR = "#C8C8C8"
_RIGHT, _WRONG = "#11734B", "#B3261E"
INK, QUIET = "#202124", "#5F6368"


def import_figure():
    """matplotlib's `Figure`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise needs("drawing needs matplotlib", "plot") from error
    return Figure


def plot_answers(
    samples: Sequence[dict[str, Any]], path: str | Path, title: str | None = None, columns: int = 4
) -> Path:
    """
    Draws samples in a grid: the image, the model's answer, the truth, and how much each modality contributed.

    Args:
        samples (`Sequence[dict]`): about twelve, each with `image` (a PIL image, or an array `(height, width, 3)`),
            `answer` and `truth` (`str`), and `shares`, a `dict` of modality to a fraction from 0 to 1, as
            [`Explanation.shares`] gives them. Optional: `asked` (`str`), which stands above the image.
        path, title: the PNG file, and what stands above the grid.
        columns (`int`, defaults to 4): images side by side.

    Raises:
        ValueError: if there are no samples, one lacks a key, or its shares are not fractions that add up to 1 at most.

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_crossfuse.evaluation.plots import plot_answers

    >>> sample = {"image": Image.new("RGB", (8, 8), "red"), "answer": "red", "truth": "red", "shares": {"image": 0.75}}
    >>> plot_answers([sample], "answers.png").name
    'answers.png'
    ```
    """
    _check_samples(samples)
    modalities = list(dict.fromkeys(name for sample in samples for name in sample["shares"]))
    colors = {name: MODALITY_COLORS[i % len(MODALITY_COLORS)] for i, name in enumerate(modalities)}
    columns = min(columns, len(samples))
    rows = math.ceil(len(samples) / columns)
    width, cell, head = max(2.7 * columns, 5.4), 3.5, 1.4
    height = cell * rows + head
    figure = import_figure()(figsize=(width, height), dpi=130, facecolor="white")
    grid = figure.add_gridspec(
        rows, columns, left=0.03, right=0.97, bottom=0.25 / height, top=1 - head / height, wspace=0.12, hspace=0.15
    )
    for index, sample in enumerate(samples):
        _draw_sample(figure, grid[index // columns, index % columns], sample, colors)
    _draw_head(figure, title, colors, samples, height)
    return save_figure(figure, path)


def save_figure(figure, path: str | Path) -> Path:
    """Writes a figure to a PNG file, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
    return Path(path)


def _check_samples(samples: Sequence[dict[str, Any]]):
    if len(samples) == 0:
        raise ValueError("`samples` is empty; expected at least one")
    for index, sample in enumerate(samples):
        missing = [key for key in ("image", "answer", "truth", "shares") if key not in sample]
        if missing:
            raise ValueError(f"sample {index} lacks `{missing[0]}`")
        shares = sample["shares"]
        if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1.001:
            raise ValueError(f"sample {index} has the shares {shares}; expected fractions that add up to 1 at most")


def _draw_head(figure, title: str | None, colors: dict[str, str], samples, height: float):
    """Draws the title and the legend above the grid."""
    from matplotlib.patches import Patch

    right = sum(sample["answer"] == sample["truth"] for sample in samples)
    title = title or f"{right} of {len(samples)} answers are right"
    style = {"ha": "center", "va": "center", "fontsize": 15, "fontweight": "bold", "color": INK}
    figure.text(0.5, 1 - 0.35 / height, title, **style)
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    if any(sum(sample["shares"].values()) < 0.995 for sample in samples):
        handles.append(Patch(color=_NO_COLOR, label="none"))
    figure.legend(
        handles=handles,
        title="what each modality contributed to the answer (Shapley values)",
        title_fontsize=9,
        fontsize=10,
        loc="center",
        bbox_to_anchor=(0.5, 1 - 0.85 / height),
        ncols=len(handles),
        frameon=False,
        handlelength=1.2,
        handleheight=1.0,
    )


def _draw_sample(figure, place, sample: dict[str, Any], colors: dict[str, str]):
    cell = place.subgridspec(3, 1, height_ratios=[1.9, 0.85, 0.2], hspace=0.06)
    image, words, bar = (figure.add_subplot(cell[row]) for row in range(3))
    image.imshow(sample["image"], interpolation="lanczos")
    image.set(xticks=[], yticks=[])
    image.spines[:].set_color("#DADCE0")
    if sample.get("asked"):
        image.set_title(fit_text(sample["asked"], lines=1, width=38), fontsize=9, color=QUIET, pad=5)
    words.axis("off")
    is_right = sample["answer"] == sample["truth"]
    # The sign is for those who can't tell red from green.
    answer = fit_text(f"{'✓' if is_right else '✗'} {sample['answer'] or '(nothing)'}", lines=2)
    truth = fit_text(f"truth: {sample['truth']}", lines=2, width=30)
    color = _RIGHT if is_right else _WRONG
    style = {"ha": "center", "va": "top", "linespacing": 1.1}
    words.text(0.5, 0.95, answer, fontsize=11, fontweight="bold", color=color, **style)
    words.text(0.5, 0.69 - 0.21 * answer.count("\n"), truth, fontsize=9.5, color=QUIET, **style)
    _draw_bar(bar, sample["shares"], colors)


def fit_text(text: str, lines: int, width: int = 26) -> str:
    """A text on at most so many lines, with an ellipsis if it is longer; no `$` starts a formula."""
    wrapped = textwrap.wrap(text.replace("$", r"\$"), width) or [""]
    return "\n".join(wrapped[:lines]) + ("…" if len(wrapped) > lines else "")


def _draw_bar(axes, shares: dict[str, float], colors: dict[str, str]):
    axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
    axes.axis("off")
    axes.barh(0, 1, height=0.9, color=_NO_COLOR)
    start = 0.0
    for name, share in shares.items():
        axes.barh(0, share, left=start, height=0.9, color=colors[name])
        if share >= 0.12:
            style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": readable_on(colors[name])}
            axes.text(start + share / 2, -0.03, f"{share:.0%}", **style)
        start += share


def readable_on(color: str) -> str:
    """Black or white, whichever can be read on a colour `#rrggbb`."""
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


# Okabe and Ito's colours again, and a marker for each, which tells apart lines that lie on one another.
_CURVES = tuple(zip(("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"), "os^DvXP"))


def plot_bars(values: Mapping[str, Mapping[str, float]], path: str | Path, label: str, title: str = "") -> Path:
    """
    Draws horizontal bars: a metric for each subset of the modalities, by one model or several.

    Args:
        values (`Mapping[str, Mapping[str, float]]`): model to subset to the metric. All models have the same
            subsets. Values from 0 to 1 are shown in per cent.
        path, label, title: the PNG file, the name of the metric, and what stands above the bars.

    Example:

    ```python
    >>> from modeling_crossfuse.evaluation.plots import plot_bars

    >>> plot_bars({"joint": {"image": 0.6, "image + audio": 0.9}}, "bars.png", "accuracy").name
    'bars.png'
    ```
    """
    are_shares = _are_shares(values)
    subsets = list(next(iter(values.values())))
    thickness = 0.8 / len(values)
    height = 1.2 + len(subsets) * max(0.34, 0.2 * len(values))
    figure, axes = _make_axes(height, title)
    for index, ((model, metric), (color, _)) in enumerate(zip(values.items(), itertools.cycle(_CURVES))):
        places = [place + (index - (len(values) - 1) / 2) * thickness for place in range(len(subsets))]
        bars = axes.barh(places, [metric[subset] for subset in subsets], 0.92 * thickness, color=color, label=model)
        axes.bar_label(bars, fmt="{:.1%}" if are_shares else "{:.3g}", padding=3, fontsize=8, color=QUIET)
    axes.set_yticks(range(len(subsets)), subsets)
    axes.set(ylim=(len(subsets) - 0.5, -0.5), xlabel=label)
    if are_shares:
        axes.set_xlim(0, 1.1)
    _finish(axes, axes.xaxis, len(values), are_shares)
    return save_figure(figure, path)


def plot_curves(
    curves: Mapping[str, Mapping[float, float]], path: str | Path, label: str, x_label: str, title: str = ""
) -> Path:
    """
    Draws a curve for each model: a metric over what makes the task harder.

    Args:
        curves (`Mapping[str, Mapping[float, float]]`): model to, say, the level of corruption to the metric.
            Values from 0 to 1 are shown in per cent.
        path, label, x_label, title: the PNG file, the names of both axes, and what stands above the curves.

    Example:

    ```python
    >>> from modeling_crossfuse.evaluation.plots import plot_curves

    >>> curves = {"concat": {0.0: 0.9, 0.5: 0.7}, "joint": {0.0: 0.9, 0.5: 0.8}}
    >>> plot_curves(curves, "curves.png", "accuracy", "corruption").name
    'curves.png'
    ```
    """
    are_shares = _are_shares(curves)
    figure, axes = _make_axes(4.2, title)
    _draw_curves(axes, curves, ms=6, lw=2)
    axes.set(xlabel=x_label, ylabel=label)
    if are_shares:
        axes.set_ylim(0, 1.03)
    _finish(axes, axes.yaxis, len(curves), are_shares)
    return save_figure(figure, path)


def plot_panels(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[float, float]]]], path: str | Path, title: str = ""
) -> Path:
    """
    Draws a grid of panels with curves on logarithmic axes, on which a power is a straight line.

    Args:
        panels (`Mapping[str, Mapping[str, Mapping[str, Mapping[float, float]]]]`): label of each row to label of each
            column to model to a curve of values above 0. All rows have the same columns.
        path, title: the PNG file, and what stands above the panels.

    Example:

    ```python
    >>> from modeling_crossfuse.evaluation.plots import plot_panels

    >>> growth = {"joint": {64: 1.0, 128: 4.0}, "latent": {64: 1.0, 128: 2.0}}
    >>> plot_panels({"time": {"length": growth}, "memory": {"length": growth}}, "panels.png").name
    'panels.png'
    ```
    """
    rows, columns = len(panels), len(next(iter(panels.values()), ()))
    if rows * columns == 0:
        raise ValueError("there is nothing to draw; expected at least one panel")
    size = (3.1 * columns + 0.6, 2.7 * rows + 0.9)
    figure = import_figure()(figsize=size, dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    for row, (label, by_column) in zip(grid, panels.items()):
        row[0].set_ylabel(label)
        for axes, curves in zip(row, by_column.values()):
            _draw_curves(axes, curves, ms=5, lw=1.8)
            places = list(next(iter(curves.values())))
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(places, map(str, places))
            axes.minorticks_off()
            _style(axes, axes, labelsize=9)
    for axes, x_label in zip(grid[-1], by_column):
        axes.set_xlabel(x_label)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9.5)
    return save_figure(figure, path)


def _are_shares(values: Mapping[str, Mapping[Any, float]]) -> bool:
    """Whether all values lie between 0 and 1; raises a `ValueError` if there are none."""
    if not values or not all(values.values()):
        raise ValueError("there is nothing to draw; expected at least one model with at least one value")
    return all(0 <= value <= 1 for metric in values.values() for value in metric.values())


def _make_axes(height: float, title: str):
    figure = import_figure()(figsize=(6.4, height), dpi=130, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=12, fontweight="bold", color=INK, pad=12)
    return figure, axes


def _draw_curves(axes, curves: Mapping[str, Mapping[float, float]], **style):
    for (model, points), (color, marker) in zip(curves.items(), itertools.cycle(_CURVES)):
        axes.plot(list(points), list(points.values()), color=color, marker=marker, mec="white", label=model, **style)


def _style(axes, grid_axes, labelsize: float):
    """A grid along some axes, and no frame."""
    grid_axes.grid(color="#E8EAED")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=labelsize)


def _finish(axes, metric_axis, count: int, are_shares: bool):
    """Per cents along the metric, and a legend where there are several models."""
    from matplotlib.ticker import PercentFormatter

    if are_shares:
        metric_axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _style(axes, metric_axis, labelsize=9.5)
    if count > 1:
        axes.figure.legend(loc="outside lower center", ncols=min(count, 4), frameon=False, fontsize=9.5)


__all__ = ["plot_answers", "plot_bars", "plot_curves", "plot_panels"]
