# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How good a model's answers for the rows of a data set are."""

import functools
import itertools
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..data.labels import ClassNumbers, read_numbers, read_text, with_class_numbers
from ..data.rows import NumberedRows, get_column, row_numbers, select_columns, select_rows
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
        `num_samples` and `samples_per_second`; `num_unlabeled` where classes are missing, whose samples are left out
        of the metrics; and `num_skipped` with `on_bad_sample`.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        ValueError: as [`predict`] does, or if a row has no answer, or all rows are skipped.
    """
    if model.task not in _SCORES:
        raise ValueError(f"a {type(model).__name__} can't be evaluated; expected a model for {', '.join(_SCORES)}")
    check_inputs(model.config, rows, inputs, target)
    read, (iter_results, score), bad = _reader(model, rows, target), _SCORES[model.task], {}

    def refuse(index: int, error: Exception):
        if on_bad_sample is None:
            raise error
        bad[index] = error

    references = {}
    for index, row in enumerate(NumberedRows(select_columns(rows, [target]))):
        try:
            references[index] = read(get_column(row, target), target)
        except (TypeError, ValueError) as error:
            refuse(index, type(error)(f"{row.name} {error}"))
    start, answers = time.perf_counter(), {}
    readable = rows if not bad else _select(rows, list(references))
    results = iter_results(model, processor, readable, inputs, **kwargs) if references else ()
    for index, answer in zip(references, results):
        if isinstance(answer, Exception):
            refuse(index, answer)
        else:
            answers[index] = answer
    numbers = row_numbers(rows)
    for index in sorted(bad):
        on_bad_sample(int(numbers[index]), bad[index])
    if not answers:
        raise ValueError(f"none of the {len(rows):,} rows can be used; the first: {bad[0]}")
    references = [references[index] for index in answers]
    if all(reference is None for reference in references):
        raise ValueError(f"no row has a label in the column {target!r}")
    metrics = score(model, processor, list(answers.values()), references, **kwargs)
    seconds = time.perf_counter() - start
    counts = {
        "num_samples": len(answers),
        **({"num_unlabeled": references.count(None)} if None in references else {}),
        **({} if on_bad_sample is None else {"num_skipped": len(bad)}),
    }
    return {**metrics, **counts, "samples_per_second": round(len(answers) / seconds, 1)}


def _select(rows: Sequence[dict[str, Any]], indices: list[int]) -> Sequence[dict[str, Any]]:
    return select_rows(rows, indices) if hasattr(rows, "select") else [rows[index] for index in indices]


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


def _score_texts(model, processor, answers, references, **kwargs) -> dict[str, float]:
    from .metrics import compute_text_metrics

    return compute_text_metrics([_comparable(text) for text in answers], [_comparable(text) for text in references])


def _comparable(text: str) -> str:
    """A text as answers are: without surrounding blanks, and with accents as part of their letters."""
    return unicodedata.normalize("NFC", text.strip())


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


# By the `task` of the model's head: what gives its answers, and what compares them with the right ones.
_SCORES = {
    "generation": (iter_answers, _score_texts),
    "classification": (iter_answers, _score_labels),
    "retrieval": (_iter_queries, _score_rankings),
}

__all__ = ["evaluate_rows", "subsets"]
