# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Metrics of generated text, as `evaluate.Metric` classes that need neither the network nor a shared cache."""

import importlib
import os
import sys
from types import ModuleType


def _import_evaluate() -> ModuleType:
    """
    The library `evaluate`. Python puts a script's folder first on its path, where a script named `evaluate.py`, such
    as ours, would be imported in its place.
    """
    path = list(sys.path)
    sys.path[:] = [folder for folder in path if not os.path.isfile(os.path.join(folder, "evaluate.py"))]
    if not hasattr(sys.modules.get("evaluate"), "__path__"):
        sys.modules.pop("evaluate", None)
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path[:] = path


try:
    evaluate = _import_evaluate()
    import datasets
    import jiwer
    import sacrebleu
    from sklearn.metrics import accuracy_score
except ImportError as error:
    raise ImportError(f"the metrics need `pip install crossfuse[train]` ({error})") from error


class _TextMetric(evaluate.Metric):
    """
    Compares strings with strings. What is compared stays in memory, unless several processes must share it, so that
    runs at the same time can't read each other's cache files.
    """

    description: str

    def __init__(self, *args, keep_in_memory: bool | None = None, num_process: int = 1, **kwargs):
        if keep_in_memory is None:
            keep_in_memory = num_process == 1
        super().__init__(*args, keep_in_memory=keep_in_memory, num_process=num_process, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            # Every instance would append it to the documentation of `compute` once more.
            inputs_description="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, float] | None:
        """
        Args:
            predictions (`list[str]`, *optional*): the answers of a model, unless they were given to `add_batch`.
            references (`list[str]`, *optional*): the right answers, one for each prediction.

        Returns:
            `dict[str, float]`: the metric's name and value. `None` on all but the first of several processes.

        Raises:
            ValueError: if there is nothing to compare, or not one reference for each prediction.
        """
        for name, texts in (("predictions", predictions), ("references", references)):
            if texts is not None and len(texts) == 0:
                raise ValueError(f"`{name}` is empty; expected at least one string")
        if predictions is None and self.writer is None:
            raise ValueError("nothing to compare: give `predictions` and `references`, here or to `add_batch` before")
        return super().compute(predictions=predictions, references=references, **kwargs)


class ExactMatch(_TextMetric):
    """
    Share of predictions that equal their reference, character by character, from 0 to 1.

    Args:
        keep_in_memory (`bool`, *optional*): whether to keep what is compared in memory rather than in files under
            `cache_dir`. Defaults to `True` for a single process.
        kwargs: as [`evaluate.Metric`] takes them.

    Example:

    ```python
    >>> from modeling_crossfuse.metrics import ExactMatch

    >>> ExactMatch().compute(predictions=["red apple", "pear"], references=["red apple", "lemon"])
    {'exact_match': 0.5}
    ```
    """

    description = "Share of predictions that equal their reference."

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"exact_match": float(accuracy_score(references, predictions))}


class CharacterErrorRate(_TextMetric):
    """
    Characters to insert, delete or replace to turn the predictions into their references, divided by the number of
    characters of the references: 0 is perfect, and 1 can be exceeded.

    Args:
        keep_in_memory (`bool`, *optional*): as in [`ExactMatch`].
        kwargs: as [`evaluate.Metric`] takes them.

    Example:

    ```python
    >>> from modeling_crossfuse.metrics import CharacterErrorRate

    >>> CharacterErrorRate().compute(predictions=["pear"], references=["pears"])
    {'cer': 0.2}
    ```
    """

    description = "Edits per character of the references (Morris et al., 2004)."

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"cer": float(jiwer.cer(list(references), list(predictions)))}


class ChrF(_TextMetric):
    """
    chrF (Popović, 2015): F-score of the n-grams of up to six characters that predictions and references share, from 0
    to 100.

    Args:
        keep_in_memory (`bool`, *optional*): as in [`ExactMatch`].
        kwargs: as [`evaluate.Metric`] takes them.

    Example:

    ```python
    >>> from modeling_crossfuse.metrics import ChrF

    >>> ChrF().compute(predictions=["red apple"], references=["red apple"])
    {'chrf': 100.0}
    ```
    """

    description = "F-score of the character n-grams that predictions and references share (Popović, 2015)."

    def _compute(self, *, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"chrf": float(sacrebleu.corpus_chrf(list(predictions), [list(references)]).score)}


TEXT_METRICS = (ExactMatch, CharacterErrorRate, ChrF)


def compute_text_metrics(predictions: list[str], references: list[str]) -> dict[str, float]:
    """
    [`ExactMatch`], [`CharacterErrorRate`] and [`ChrF`] of the same strings.

    Args:
        predictions (`list[str]`): the answers of a model.
        references (`list[str]`): the right answers, one for each prediction.

    Returns:
        `dict[str, float]`: `exact_match` and `cer` as fractions, `chrf` from 0 to 100.

    Raises:
        ValueError: if there is nothing to compare, or not one reference for each prediction.

    Example:

    ```python
    >>> from modeling_crossfuse.metrics import compute_text_metrics

    >>> compute_text_metrics(["red apple", "pear"], ["red apple", "pears"])["exact_match"]
    0.5
    ```
    """
    results = {}
    for metric_class in TEXT_METRICS:
        results |= metric_class().compute(predictions=predictions, references=references)
    return results


__all__ = ["CharacterErrorRate", "ChrF", "ExactMatch", "compute_text_metrics"]
