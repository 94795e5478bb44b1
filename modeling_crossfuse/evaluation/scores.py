# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How good a model's answers for the rows of a data set are."""

import functools
import itertools
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..data.labels import ClassNumbers, read_numbers, read_text, with_class_numbers
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
        `num_samples` and `samples_per_second`; and `num_unlabeled` where classes are missing, whose samples are left
        out of the metrics.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        ValueError: as [`predict`] does, or if a row has no answer.
    """
    if model.task not in _SCORES:
        raise ValueError(f"a {type(model).__name__} can't be evaluated; expected a model for {', '.join(_SCORES)}")
    check_inputs(model.config, rows, inputs, target)
    references = _read_references(model, rows, target)
    unlabeled = {"num_unlabeled": references.count(None)} if None in references else {}
    start = time.perf_counter()
    metrics = _SCORES[model.task](model, processor, rows, inputs, references, **predict_kwargs)
    seconds = time.perf_counter() - start
    return {**metrics, "num_samples": len(rows), **unlabeled, "samples_per_second": round(len(rows) / seconds, 1)}


def _read_references(model, rows, target: str) -> list[Any]:
    """The right answers of all rows, as [`predict`] gives answers; None for a class that is missing."""
    read, references = _reader(model, rows, target), []
    for index, row in enumerate(select_columns(rows, [target])):
        try:
            references.append(read(get_column(row, target), target))
        except (TypeError, ValueError) as error:
            raise type(error)(f"row {index} {error}") from error
    if all(reference is None for reference in references):
        raise ValueError(f"no row has a label in the column {target!r}")
    return references


def _reader(model, rows, target: str) -> Callable[[Any, str], Any]:
    """What makes a right answer of a value in the column `target`, or raises an error that goes after a row's name."""
    config = model.config
    if model.task != "classification":
        return read_text
    if config.resolved_problem_type == "regression":
        return functools.partial(read_numbers, count=config.num_labels)
    label2id = {str(name): number for number, name in config.id2label.items()}
    classes = ClassNumbers(with_class_numbers(label2id, rows, target))
    if config.resolved_problem_type == "multi_label_classification":
        return lambda values, column: [config.id2label[number] for number in classes.read_list(values, column)]
    return lambda value, column: config.id2label.get(classes.read(value, column))  # -100 has no name


def _score_texts(model, processor, rows, inputs, references, **predict_kwargs) -> dict[str, float]:
    from .metrics import compute_text_metrics

    answers = predict(model, processor, rows, inputs, **predict_kwargs)
    return compute_text_metrics([_comparable(text) for text in answers], [_comparable(text) for text in references])


def _comparable(text: str) -> str:
    """A text as answers are: without surrounding blanks, and with accents as part of their letters."""
    return unicodedata.normalize("NFC", text.strip())


def _score_labels(model, processor, rows, inputs, references, **predict_kwargs) -> dict[str, float]:
    from .metrics import compute_label_metrics

    answers = predict(model, processor, rows, inputs, **predict_kwargs)
    return compute_label_metrics(answers, references, model.config.resolved_problem_type)


def _score_rankings(
    model, processor, rows, inputs, references, question=None, batch_size=64, degrade=None, progress=True, **kwargs
) -> dict[str, float]:
    from .metrics import RankingMetrics

    if question is not None:
        raise ValueError("a model for retrieval can't be asked a question; leave it out")
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
