# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How good a model's answers for the rows of a data set are."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..data.rows import READING_ERRORS, NumberedRows, get_column, row_numbers, select_columns, select_rows
from .prediction import check_inputs, embed, iter_answers, iter_vectors, text_modality


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every non-empty subset, such as `("image",)`, `("audio",)` and `("image", "audio")`: the small ones first."""
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


def evaluate_rows(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    target: str,
    on_bad_sample: Callable[[int, Exception], None] | None = None,
    **kwargs,
) -> dict[str, float]:
    """
    How good a model's answers are.

    Args:
        model: one that generates, or has a head for classification or retrieval.
        processor, rows, inputs: as in [`iter_answers`].
        target (`str`): the column of the right answers; dots lead into structs. For [`CrossFuseForRetrieval`], the
            values for the modality of kind `text`: each sample has to find its own among the distinct ones of all
            rows.
        on_bad_sample (`Callable[[int, Exception], None]`, *optional*): called with the number and error of each row
            that can't be read or has no right answer; the metrics are those of the others. By default, the first such
            error is raised.
        kwargs: the other arguments of [`iter_answers`].

    Returns:
        `dict[str, float]`: the metrics of [`compute_text_metrics`], [`compute_label_metrics`] or [`RankingMetrics`],
        `num_samples`, `num_skipped` with `on_bad_sample`, and `samples_per_second`.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        ValueError: as [`predict`] does, or if a row has no answer, or all rows are skipped.
    """
    if model.task not in _SCORES:
        raise ValueError(f"a {type(model).__name__} can't be evaluated; expected a model for {', '.join(_SCORES)}")
    check_inputs(model.config, rows, inputs, target)
    read_reference, iter_results, score = _SCORES[model.task]
    good, bad = {}, {}
    for index, row in enumerate(NumberedRows(select_columns(rows, [target]))):
        try:
            good[index] = read_reference(model.config, row.name, get_column(row, target))
        except READING_ERRORS as error:
            if on_bad_sample is None:
                raise
            bad[index] = error
    start, results = time.perf_counter(), {}
    readable = rows if not bad else _select(rows, list(good))
    for index, result in zip(list(good), iter_results(model, processor, readable, inputs, **kwargs)):
        if isinstance(result, Exception):
            if on_bad_sample is None:
                raise result
            bad[index] = result
        else:
            results[index] = result
    numbers = row_numbers(rows)
    for index in sorted(bad):
        on_bad_sample(int(numbers[index]), bad[index])
    if not results:
        raise ValueError(f"none of the {len(rows):,} rows can be used; the first: {bad[0]}")
    metrics = score(model, processor, list(results.values()), [good[index] for index in results], **kwargs)
    seconds = time.perf_counter() - start
    counts = {"num_samples": len(results)} | ({} if on_bad_sample is None else {"num_skipped": len(bad)})
    return {**metrics, **counts, "samples_per_second": round(len(results) / seconds, 1)}


def _select(rows: Sequence[dict[str, Any]], indices: list[int]) -> Sequence[dict[str, Any]]:
    return select_rows(rows, indices) if hasattr(rows, "select") else [rows[index] for index in indices]


def _read_text(config, name: str, reference: Any) -> str:
    if not isinstance(reference, str):
        raise ValueError(f"{name} has {reference!r} in the column of the right answers; expected a text")
    return reference


def _score_texts(model, processor, answers, references, **kwargs) -> dict[str, float]:
    from .metrics import compute_text_metrics

    return compute_text_metrics(answers, references)


def _read_label(config, name: str, label: Any) -> Any:
    """A number, or the name of a label, which a data set may have as its number."""
    if config.resolved_problem_type == "regression":
        return label
    if isinstance(label, list):
        return [_read_label(config, name, single) for single in label]
    known = config.id2label.get(label) if isinstance(label, int) else label
    if known not in config.id2label.values():
        raise ValueError(
            f"{name} has {label!r} in the column of the right answers, which is none of the model's "
            f"{len(config.id2label)} labels"
        )
    return known


def _score_labels(model, processor, answers, references, **kwargs) -> dict[str, float]:
    from .metrics import compute_label_metrics

    return compute_label_metrics(answers, references, model.config.resolved_problem_type)


def _iter_queries(model, processor, rows, inputs, question=None, **kwargs) -> Iterator[Any]:
    if question is not None:
        raise ValueError("a model for retrieval can't be asked a question; leave it out")
    if (name := text_modality(model.config)) in inputs:
        raise ValueError(f"the candidates are values of the modality {name!r}; leave it out of the inputs")
    settings = {key: value for key, value in kwargs.items() if key in ("batch_size", "degrade", "progress")}
    return iter_vectors(model, processor, rows, inputs, **settings)


def _score_rankings(model, processor, queries, references, batch_size=64, progress=True, **kwargs) -> dict[str, float]:
    from .metrics import RankingMetrics

    name, candidates = text_modality(model.config), sorted(set(references))
    rows = [{name: text} for text in candidates]
    embeds = embed(model, processor, rows, {name: name}, batch_size=batch_size, progress=progress)
    places = {text: place for place, text in enumerate(candidates)}
    similarities = (torch.stack(queries) @ embeds.t()).tolist()
    return RankingMetrics().compute(predictions=similarities, references=[places[text] for text in references])


# By the `task` of the model's head: what reads a right answer, what gives the model's, and what compares them.
_SCORES = {
    "generation": (_read_text, iter_answers, _score_texts),
    "classification": (_read_label, iter_answers, _score_labels),
    "retrieval": (_read_text, _iter_queries, _score_rankings),
}

__all__ = ["evaluate_rows", "subsets"]
