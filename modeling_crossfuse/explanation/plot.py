# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A plot of what each modality, and each position of it, contributed to an answer."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.plots import INK, MODALITY_COLORS, QUIET, fit_text, import_figure, readable_on, save_figure
from ..media import load_series, plain
from ..media_audio import load_audio
from ..media_image import images_of, load_images
from ..media_video import load_frames
from .explanation import Explanation, PositionValues, positions_per_second


# Blue to red, which colour-blind people can tell apart; white is nothing.
_HEAT = "RdBu_r"
# All of Okabe and Ito's colours: here none of them means right or wrong.
_COLORS = (*MODALITY_COLORS, "#009E73", "#D55E00", "#7F7F7F")
# In inches: the figure's width, where its left column begins and how wide it is, the room above and below the columns
# and above a panel, the height of a bar, and that of a panel.
_WIDTH, _LEFT, _COLUMN = 11.0, 0.55, 4.7
_HEAD, _FOOT, _TITLE, _ROW = 0.75, 1.05, 0.5, 0.3
_HEIGHTS = {"image": 2.28, "video": 1.2, "audio": 1.1, "series": 1.3}
# In points: the size and the width of a word's letters, the room between two words, and the height of a line.
_FONT_SIZE, _LETTER, _SPACE, _LINE = 11, 6.7, 12, 25


def plot_explanation(
    explanation: Explanation, sample: dict[str, Any], processor, path: str | Path, title: str | None = None
) -> Path:
    """
    Draws what an answer came from: a heat map over each image, coloured words, shaded audio and series, and a bar of
    each modality's contribution to the whole answer and to each of its tokens, or classes.

    Red added to the score and blue took from it, on one scale for all modalities. The colours grow with the square
    root of the values, so that small ones show, too.

    Args:
        explanation ([`Explanation`]): of one sample, as [`explain`] gives it. Without positions, only bars are drawn.
        sample (`dict[str, Any]`): modality to the raw value that the processor was given. The plot assumes that the
            processor resized images without cropping them.
        processor ([`CrossFuseProcessor`]): the model's.
        path (`str` or `Path`): the PNG file, written whole or not at all, which is returned. Its folder must exist.
        title (`str`, *optional*): the answer by default.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `sample` lacks a modality whose positions are explained, or a value can't be read.

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForSequenceClassification, CrossFuseProcessor
    >>> from modeling_crossfuse import explain, plot_explanation

    >>> modalities = {"image": {"image_size": 16, "patch_size": 8}, "wrist": {"kind": "series", "num_channels": 2}}
    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, modalities=modalities, num_labels=2)
    >>> model, processor = CrossFuseForSequenceClassification(config), CrossFuseProcessor.from_config(config)
    >>> sample = {"image": Image.new("RGB", (20, 20), "red"), "wrist": np.array([[0.5, 0.1], [0.2, 0.4]])}
    >>> explanation = explain(model, processor(**sample, return_tensors="pt"), max_positions=4)[0]
    >>> plot_explanation(explanation, sample, processor, "explanation.png").name
    'explanation.png'
    ```
    """
    # Hidden states and embeddings can't be drawn.
    drawn = [name for name, at in explanation.positions.items() if "length" not in at.edges or at.tokens is not None]
    missing = [name for name in drawn if sample.get(name) is None]
    if missing:
        raise ValueError(f"`sample` lacks {missing[0]!r}, whose positions are explained")
    colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(explanation.modalities)}
    heights = {name: _panel_height(name, explanation.positions[name], processor) for name in drawn}
    bars = _ROW * (len(explanation.targets) + 2)
    height = _HEAD + max(_TITLE + bars, sum(heights.values()) + _TITLE * len(drawn)) + (_FOOT if drawn else _FOOT / 2)
    figure = import_figure()(figsize=(_WIDTH, height), dpi=130, facecolor="white")
    _draw_head(figure, explanation, title or _answer(explanation, processor))
    # Beside the panels, if there are any.
    left, right = (_LEFT + _COLUMN + 1.7, 10.2) if drawn else (2.5, 9.0)
    place = (left / _WIDTH, (height - _HEAD - _TITLE - bars) / height, (right - left) / _WIDTH, bars / height)
    _draw_bars(figure.add_axes(place), explanation, processor, colors)
    if drawn:
        _draw_panels(figure, explanation, sample, processor, heights, colors)
    return save_figure(figure, path)


def _draw_panels(figure, explanation, sample, processor, heights: dict[str, float], colors: dict[str, str]):
    """Draws the modalities, one below the other, in these heights in inches, and the colour bar."""
    heat, total = _heat(explanation), figure.get_figheight()
    _draw_color_bar(figure, heat)
    top = total - _HEAD
    for name, height in heights.items():
        positions = explanation.positions[name]
        label = f"{name}  {positions.answer_values.sum():+.2f}"
        style = {"y": (top - _TITLE + 0.08) / total, "fontsize": 11, "fontweight": "bold", "va": "bottom"}
        figure.text(_LEFT / _WIDTH, s="■", color=colors[name], **style)
        figure.text((_LEFT + 0.2) / _WIDTH, s=label, color=INK, **style)
        top -= _TITLE + height
        place = (_LEFT / _WIDTH, top / total, _COLUMN / _WIDTH, height / total)
        _DRAW[processor.modalities[name]["kind"]](figure, place, name, positions, plain(sample[name]), processor, heat)


def _panel_height(name: str, positions: PositionValues, processor) -> float:
    kind = processor.modalities[name]["kind"]
    return _HEIGHTS[kind] if kind in _HEIGHTS else len(_lines(name, positions, processor)) * _LINE / 72


def _answer(explanation: Explanation, processor) -> str:
    if explanation.labels:
        return ", ".join(explanation.labels)
    return processor.tokenizer.decode(explanation.targets, skip_special_tokens=True).strip() or "(nothing)"


def _heat(explanation: Explanation):
    """The map from values to colours, with zero in the middle."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import FuncNorm

    def root(x):
        return np.sign(x) * np.sqrt(np.abs(x))

    def square(x):
        return x * np.abs(x)

    largest = max(positions.answer_values.abs().max().item() for positions in explanation.positions.values())
    largest = max(largest, 1e-6)
    return ScalarMappable(FuncNorm((root, square), -largest, largest), _HEAT)


def _draw_head(figure, explanation: Explanation, title: str):
    style = {"ha": "center", "va": "center"}
    height = figure.get_figheight()
    title = fit_text(title, lines=1, width=80)
    figure.text(0.5, 1 - 0.3 / height, title, fontsize=15, fontweight="bold", color=INK, **style)
    kind = "score" if explanation.labels else "geometric mean of the tokens' probabilities"
    scores = f"{kind}: {explanation.answer_score:.2f}, without any modality {explanation.answer_baseline:.2f}"
    figure.text(0.5, 1 - 0.6 / height, scores, fontsize=10, color=QUIET, **style)


def _draw_color_bar(figure, heat):
    height = figure.get_figheight()
    axes = figure.add_axes((_LEFT / _WIDTH, 0.48 / height, _COLUMN / _WIDTH, 0.1 / height))
    bar = figure.colorbar(
        heat, cax=axes, orientation="horizontal", format=lambda value, _: f"{value:+.2g}" if value else "0"
    )
    largest = heat.norm.vmax
    bar.set_ticks([-largest, -largest / 4, 0, largest / 4, largest])
    bar.set_label("what each position added to the score of the whole answer", fontsize=9, color=QUIET, labelpad=2)
    axes.tick_params(labelsize=8.5, colors=QUIET)
    bar.outline.set_visible(False)


def _draw_bars(axes, explanation: Explanation, processor, colors: dict[str, str]):
    """Draws a row for the whole answer and one for each target: helpful values to the right, others to the left."""
    names = explanation.labels or [processor.tokenizer.decode([token]).strip() for token in explanation.targets]
    rows = torch.cat([explanation.answer_values[None], explanation.modality_values])
    places = np.array([0.0, *range(2, len(rows) + 1)])  # with a gap after the whole answer
    for sign in (1, -1):
        start = np.zeros(len(rows))
        for name, values in zip(explanation.modalities, rows.T.numpy()):
            values = np.where(values * sign > 0, values, 0.0)
            label = name if sign > 0 and (rows[:, explanation.modalities.index(name)] != 0).any() else None
            axes.barh(places, values, left=start, height=0.72, color=colors[name], label=label)
            start += values
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(ylim=(places[-1] + 0.6, -0.6), yticks=places)
    axes.set_yticklabels(["whole answer", *(fit_text(name, lines=1, width=18) for name in names)], fontsize=10)
    axes.get_yticklabels()[0].set_fontweight("bold")
    style = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "color": INK}
    for row, score in zip(places, [explanation.answer_score, *explanation.scores.tolist()]):
        axes.text(1.13, row, f"{score:.2f}", fontsize=9.5, **style)
    axes.text(1.13, -1, "score", fontsize=9, **style | {"color": QUIET})
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    axes.set_xlabel("Shapley values: what each modality added to the score", fontsize=9, color=QUIET)
    axes.locator_params(axis="x", nbins=5)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, fontsize=10, handlelength=1.2)


def _lines(name: str, positions: PositionValues, processor) -> list[list[tuple[float, str, float]]]:
    """The tokens, or groups of tokens, of a text on lines: where each begins, in points, and what it added."""
    tokenizer, lines, x = processor.sub_processor(name, "tokenizer"), [[]], 0.0
    for (begin, end), value in zip(pairwise(positions.edges["length"]), positions.answer_values.tolist()):
        text = tokenizer.decode(positions.tokens[begin:end]).strip()
        if lines[-1] and x + _LETTER * len(text) > 72 * _COLUMN:
            lines.append([])
            x = 0.0
        lines[-1].append((x, text, value))
        x += _LETTER * len(text) + _SPACE
    return lines


def _draw_text(figure, place, name, positions, value, processor, heat):
    from matplotlib.colors import to_hex

    lines = _lines(name, positions, processor)
    axes = figure.add_axes(place, xlim=(0, 72 * _COLUMN), ylim=(len(lines), 0))
    axes.axis("off")
    for row, line in enumerate(lines):
        for x, text, added in line:
            color = to_hex(heat.to_rgba(added))
            box = {"facecolor": color, "edgecolor": "#DADCE0", "linewidth": 0.5, "boxstyle": "round,pad=0.25"}
            style = {"fontsize": _FONT_SIZE, "family": "monospace", "va": "center", "color": readable_on(color)}
            axes.text(x + _SPACE / 3, row + 0.5, text.replace("$", r"\$"), bbox=box, **style)


def _draw_images(figure, place, name, positions, value, processor, heat):
    if processor.modalities[name]["kind"] == "video":
        edges = positions.edges["frames"]
        frames = load_frames(name, value, edges[-1])
        images = [(name, frames[min((begin + end) // 2, len(frames) - 1)]) for begin, end in pairwise(edges)]
    else:
        images = images_of(name, value)
    images = _load_images(images, processor.modalities[name])
    added = list(positions.answer_values.numpy())
    if len(images) == 1:  # there is room to show it without the heat map, too
        images, added = images * 2, [None, *added]
    left, bottom, width, height = place
    each = min(1.05 * height * figure.get_figheight() / _WIDTH, width / len(images))
    for index, (image, values) in enumerate(zip(images, added)):
        axes = figure.add_axes((left + index * each, bottom, each / 1.05, height), xticks=[], yticks=[], anchor="W")
        _draw_image(axes, image, positions.edges, values, heat)


def _load_images(images: list[tuple[str, Any]], settings: dict[str, Any]) -> list[np.ndarray]:
    """The images of one sample as arrays `(height, width, 3)` from 0 to 1."""
    layout = settings.get("input_data_format")
    return list(map(_to_rgb, load_images(images, settings.get("num_channels", 3), input_data_format=layout)))


def _to_rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    pixels = np.moveaxis(image, 0, -1) if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))
    pixels = pixels if pixels.shape[-1] == 3 else pixels.mean(-1, keepdims=True).repeat(3, axis=-1)
    return (pixels / 255).clip(0, 1)


def _draw_image(axes, image: np.ndarray, edges: dict[str, list[int]], added: np.ndarray | None, heat):
    height, width = edges["height"][-1], edges["width"][-1]
    style = {"extent": (0, width, height, 0), "aspect": image.shape[0] / height * width / image.shape[1]}
    axes.spines[:].set_color("#DADCE0")
    if added is None:
        axes.imshow(image, interpolation="lanczos", **style)
        return
    pale = 0.5 + 0.5 * image.mean(-1)  # grey, so that all colours are those of the heat map
    axes.imshow(pale, cmap="gray", vmin=0, vmax=1, interpolation="lanczos", **style)
    colors = heat.to_rgba(added)
    colors[..., 3] = 0.8 * np.sqrt(2 * np.abs(heat.norm(added) - 0.5))  # transparent where nothing was added
    axes.pcolormesh(edges["width"], edges["height"], colors)


def _draw_audio(figure, place, name, positions, value, processor, heat):
    audio, rate = load_audio(name, value)
    rate = rate or processor.sub_processor(name, "feature_extractor").sampling_rate
    edges = next(iter(positions.edges.values()))
    seconds = len(audio) / rate
    per_second = positions_per_second(name, positions, processor) or edges[-1] / seconds
    axes = figure.add_axes(place)
    _shade(axes, [edge / per_second for edge in edges], positions, heat)
    axes.plot(np.arange(len(audio)) / rate, audio, color=INK, linewidth=0.5)
    axes.set(xlim=(0, seconds), yticks=[])
    axes.xaxis.set_major_formatter("{x:g} s")


def _draw_series(figure, place, name, positions, value, processor, heat):
    edges = positions.edges["steps"]
    steps = load_series(name, value, processor.modalities[name].get("num_channels", 1))[: edges[-1]]
    axes = figure.add_axes(place)
    _shade(axes, [edge - 0.5 for edge in edges], positions, heat)
    axes.plot(steps, color=INK, linewidth=0.8, marker="." if len(steps) < 30 else None)
    axes.set(xlim=(-0.5, edges[-1] - 0.5))


def _shade(axes, edges: list[float], positions: PositionValues, heat):
    for (begin, end), added in zip(pairwise(edges), positions.answer_values.tolist()):
        axes.axvspan(begin, end, color=heat.to_rgba(added), linewidth=0)
    axes.tick_params(labelsize=8, colors=QUIET)
    axes.spines[:].set_color("#DADCE0")


_DRAW = {
    "text": _draw_text,
    "image": _draw_images,
    "video": _draw_images,
    "audio": _draw_audio,
    "series": _draw_series,
}

__all__ = ["plot_explanation"]
