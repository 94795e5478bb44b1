# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How good a model's answers for the rows of a data set are."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ..data.rows import get_column, select_columns
from .prediction import check_inputs, embed, predict, text_modality


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every non-empty subset, such as `("image",)`, `("audio",)` and `("image", "audio")`: the small ones first."""
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


def evaluate_rows(
    model, processor, rows: Sequence[dict[str, Any]], inputs: dict[str, str], target: str, **predict_kwargs
) -> dict[str, float]:
    """
    How good a model's answers are.

    Args:
        model: one that generates, or has a head for classification or retrieval.
        processor, rows, inputs: as in [`predict`].
        target (`str`): the column of the right answers; dots lead into structs. For [`CrossFuseForRetrieval`], the
            values for the modality of kind `text`: each sample has to find its own among the distinct ones of all
            rows.
        predict_kwargs: the other arguments of [`predict`].

    Returns:
        `dict[str, float]`: the metrics of [`compute_text_metrics`], [`compute_label_metrics`] or [`RankingMetrics`],
        `num_samples` and `samples_per_second`.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        ValueError: as [`predict`] does, or if a row has no answer.
    """
    if model.task not in _SCORES:
        raise ValueError(f"a {type(model).__name__} can't be evaluated; expected a model for {', '.join(_SCORES)}")
    check_inputs(model.config, rows, inputs, target)
    references = [get_column(row, target) for row in select_columns(rows, [target])]
    start = time.perf_counter()
    metrics = _SCORES[model.task](model, processor, rows, inputs, references, **predict_kwargs)
    seconds = time.perf_counter() - start
    return {**metrics, "num_samples": len(rows), "samples_per_second": round(len(rows) / seconds, 1)}


def _check_texts(references: list[Any]):
    for index, reference in enumerate(references):
        if not isinstance(reference, str):
            raise ValueError(f"row {index} has {reference!r} in the column of the right answers; expected a text")


def _score_texts(model, processor, rows, inputs, references, **predict_kwargs) -> dict[str, float]:
    from .metrics import compute_text_metrics

    _check_texts(references)
    return compute_text_metrics(predict(model, processor, rows, inputs, **predict_kwargs), references)


def _score_labels(model, processor, rows, inputs, references, **predict_kwargs) -> dict[str, float]:
    from .metrics import compute_label_metrics

    answers = predict(model, processor, rows, inputs, **predict_kwargs)
    problem_type = model.config.resolved_problem_type
    if problem_type != "regression":
        references = [_label_name(row, label, model.config.id2label) for row, label in enumerate(references)]
    return compute_label_metrics(answers, references, problem_type)


def _label_name(row: int, label: Any, id2label: dict[int, str]) -> Any:
    """The name of a label, which a data set may have as its number."""
    if isinstance(label, list):
        return [_label_name(row, single, id2label) for single in label]
    name = id2label.get(label) if isinstance(label, int) else label
    if name not in id2label.values():
        raise ValueError(
            f"row {row} has {label!r} in the column of the right answers, which is none of the model's "
            f"{len(id2label)} labels"
        )
    return name


def _score_rankings(
    model, processor, rows, inputs, references, question=None, batch_size=64, degrade=None, progress=True, **kwargs
) -> dict[str, float]:
    from .metrics import RankingMetrics

    if question is not None:
        raise ValueError("a model for retrieval can't be asked a question; leave it out")
    _check_texts(references)
    name = text_modality(model.config)
    if name in inputs:
        raise ValueError(f"the candidates are values of the modality {name!r}; leave it out of the inputs")
    candidates = sorted(set(references))
    settings = {"batch_size": batch_size, "progress": progress}
    queries = embed(model, processor, rows, inputs, degrade=degrade, **settings)
    embeds = embed(model, processor, [{name: text} for text in candidates], {name: name}, **settings)
    places = {text: place for place, text in enumerate(candidates)}
    similarities = (queries @ embeds.t()).tolist()
    return RankingMetrics().compute(predictions=similarities, references=[places[text] for text in references])


# By the `task` of the model's head.
_SCORES = {"generation": _score_texts, "classification": _score_labels, "retrieval": _score_rankings}

__all__ = ["evaluate_rows", "subsets"]
