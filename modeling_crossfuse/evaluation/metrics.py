# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Metrics of texts, labels, numbers and rankings: scikit-learn, jiwer and sacrebleu behind `evaluate.Metric` classes that
need neither network nor cache.

Example:

```python
>>> from modeling_crossfuse.evaluation.metrics import *

>>> ExactMatch().compute(predictions=["red apple", "pear"], references=["red apple", "lemon"])
{'exact_match': 0.5}
>>> CharacterErrorRate().compute(predictions=["pear"], references=["pears"])
{'cer': 0.2}
>>> ChrF().compute(predictions=["red apple"], references=["red apple"])
{'chrf': 100.0}
>>> ClassMetrics().compute(predictions=["cat", "dog"], references=["cat", "dog"])
{'accuracy': 1.0, 'f1_macro': 1.0}
>>> LabelSetMetrics().compute(predictions=[["cat"], ["dog"]], references=[["cat"], ["dog", "ball"]])
{'f1_micro': 0.8, 'subset_accuracy': 0.5}
>>> NumberMetrics().compute(predictions=[[1.0], [2.0]], references=[[1.0], [3.0]])
{'mae': 0.5, 'rmse': 0.7071067811865476, 'r2': 0.5}
>>> RankingMetrics().compute(predictions=[[0.9, 0.1, 0.2], [0.3, 0.5, 0.4]], references=[0, 2])
{'recall_at_1': 0.5, 'recall_at_5': 1.0, 'recall_at_10': 1.0, 'mrr': 0.75}
>>> compute_text_metrics(["red apple", "pear"], ["red apple", "pears"])["exact_match"]
0.5
>>> compute_label_metrics(["cat", "dog"], ["cat", "cow"], "single_label_classification")["accuracy"]
0.5
```
"""

from typing import Any

import numpy as np

from ..extras import needs


try:
    import datasets
    import evaluate
    import jiwer
    import sacrebleu
    from sklearn import metrics
    from sklearn.preprocessing import MultiLabelBinarizer
except ImportError as error:
    raise needs(f"the metrics need the module {error.name}", "train") from error


class _Metric(evaluate.Metric):
    """
    Compares strings with strings, unless a subclass has other features. With a single process, what is compared stays
    in memory instead of files under `cache_dir`, so that runs at the same time can't read each other's files.
    """

    predictions = references = datasets.Value("string")

    def __init__(self, *args, keep_in_memory: bool | None = None, num_process: int = 1, **kwargs):
        if keep_in_memory is None:
            keep_in_memory = num_process == 1
        super().__init__(*args, keep_in_memory=keep_in_memory, num_process=num_process, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            # Every instance would append it to the documentation of `compute` once more.
            inputs_description="",
            features=datasets.Features({"predictions": self.predictions, "references": self.references}),
        )

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, float] | None:
        """
        The metrics by name, of predictions and as many references, unless `add_batch` was given them before. `None` on
        all but the first of several processes.

        Raises:
            ValueError: if there is nothing to compare, or not one reference for each prediction.
        """
        for name, answers in (("predictions", predictions), ("references", references)):
            if answers is not None and len(answers) == 0:
                raise ValueError(f"`{name}` is empty; expected at least one answer")
        if predictions is None and self.writer is None:
            raise ValueError("nothing to compare: give `predictions` and `references`, here or to `add_batch` before")
        return super().compute(predictions=predictions, references=references, **kwargs)


class ExactMatch(_Metric):
    """Share of predictions that equal their reference, character by character, from 0 to 1."""

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"exact_match": float(metrics.accuracy_score(references, predictions))}


class CharacterErrorRate(_Metric):
    """
    Characters to insert, delete or replace to turn the predictions into their references, divided by the number of
    characters of the references (Morris et al., 2004): 0 is perfect, and 1 can be exceeded.
    """

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"cer": float(jiwer.cer(list(references), list(predictions)))}


class ChrF(_Metric):
    """F-score of the n-grams of up to six characters that both sides share (Popović, 2015), from 0 to 100."""

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(references)]).score)}


class ClassMetrics(_Metric):
    """Accuracy, and the mean of the classes' F1 scores, of one label for each sample."""

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        f1 = metrics.f1_score(references, predictions, average="macro", zero_division=0.0)
        return {"accuracy": float(metrics.accuracy_score(references, predictions)), "f1_macro": float(f1)}


class LabelSetMetrics(_Metric):
    """F1 score over all labels, and share of samples with all labels right, of any number of labels for each."""

    predictions = references = datasets.List(datasets.Value("string"))

    def _compute(self, *, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        binarizer = MultiLabelBinarizer().fit([*predictions, *references])
        predicted, right = binarizer.transform(predictions), binarizer.transform(references)
        f1 = metrics.f1_score(right, predicted, average="micro", zero_division=0.0)
        return {"f1_micro": float(f1), "subset_accuracy": float(metrics.accuracy_score(right, predicted))}


class NumberMetrics(_Metric):
    """Mean absolute error, root of the mean squared error, and R², of a list of numbers for each sample."""

    predictions = references = datasets.List(datasets.Value("float64"))

    def _compute(self, *, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return {
            "mae": float(metrics.mean_absolute_error(references, predictions)),
            "rmse": float(metrics.root_mean_squared_error(references, predictions)),
            "r2": float(metrics.r2_score(references, predictions)),
        }


class RankingMetrics(_Metric):
    """
    Share of samples whose right candidate is the best, among the best 5 and the best 10, and mean reciprocal rank.
    The predictions are each sample's scores of all candidates, the references the places of the right ones.
    """

    predictions, references = datasets.List(datasets.Value("float32")), datasets.Value("int64")

    def _compute(self, *, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        scores, right = np.asarray(predictions), np.asarray(references)
        # Equal scores count as better ones. `top_k_accuracy_score` would order them by place: a model that gives every
        # candidate the same score would be right wherever the last candidate is.
        ranks = (scores >= scores[np.arange(len(right)), right, None]).sum(1)
        recalls = {f"recall_at_{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
        return {**recalls, "mrr": float((1 / ranks).mean())}


# By the `problem_type` of a config.
LABEL_METRICS = {
    "single_label_classification": ClassMetrics,
    "multi_label_classification": LabelSetMetrics,
    "regression": NumberMetrics,
}


def compute_text_metrics(predictions: list[str], references: list[str]) -> dict[str, float]:
    """[`ExactMatch`], [`CharacterErrorRate`] and [`ChrF`] of a model's answers and the right ones."""
    results = {}
    for metric_class in (ExactMatch, CharacterErrorRate, ChrF):
        results |= metric_class().compute(predictions=predictions, references=references)
    return results


def _as_texts(names: Any) -> str | list[str]:
    """A name, or a list of names, which a config may have as numbers."""
    return [str(name) for name in names] if isinstance(names, list) else str(names)


def compute_label_metrics(predictions: list, references: list, problem_type: str) -> dict[str, float]:
    """
    [`ClassMetrics`], [`LabelSetMetrics`] or [`NumberMetrics`] of what a classification head answered.

    Args:
        predictions, references (`list`): for each sample a name, a list of names, a number or a list of numbers, as
            [`read_logits`] gives them. A reference of None is left out, and so is its prediction.
        problem_type (`str`): as in a config of transformers.

    Raises:
        ValueError: if there is nothing to compare, or not one reference for each prediction.
    """
    if problem_type == "regression":
        predictions, references = (
            [value if isinstance(value, list) else [value] for value in values] for values in (predictions, references)
        )
    else:
        labeled = [index for index, reference in enumerate(references) if reference is not None]
        if not labeled:
            raise ValueError("`references` are all None; expected a label for some sample")
        predictions, references = (
            [_as_texts(values[index]) for index in labeled] for values in (predictions, references)
        )
    return LABEL_METRICS[problem_type]().compute(predictions=predictions, references=references)


__all__ = [
    "CharacterErrorRate",
    "ChrF",
    "ClassMetrics",
    "ExactMatch",
    "LabelSetMetrics",
    "NumberMetrics",
    "RankingMetrics",
    "compute_label_metrics",
    "compute_text_metrics",
]
