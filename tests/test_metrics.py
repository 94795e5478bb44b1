# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Exact match, character error rate and chrF."""

import pytest

from modeling_crossfuse.evaluation.metrics import CharacterErrorRate, ChrF, ExactMatch, compute_text_metrics


@pytest.mark.parametrize(
    ("metric_class", "predictions", "references", "expected"),
    [
        (ExactMatch, ["a", "b", "c", ""], ["a", "x", "c", "d"], {"exact_match": 0.5}),
        (ExactMatch, ["Apple"], ["apple"], {"exact_match": 0.0}),
        (CharacterErrorRate, ["abcd", "x"], ["abce", "x"], {"cer": 0.2}),
        (CharacterErrorRate, ["aaaa"], ["b"], {"cer": 4.0}),
        (CharacterErrorRate, [""], ["ab"], {"cer": 1.0}),
        (ChrF, ["red apple"], ["red apple"], {"chrf": 100.0}),
        (ChrF, ["xyz"], ["red apple"], {"chrf": 0.0}),
    ],
)
def test_values(metric_class, predictions, references, expected):
    assert metric_class().compute(predictions=predictions, references=references) == pytest.approx(expected)


def test_all_three_at_once():
    results = compute_text_metrics(["roter Apfel", "苹果"], ["roter Apfel", "红苹果"])
    assert results == pytest.approx({"exact_match": 0.5, "cer": 1 / 14, "chrf": results["chrf"]})
    assert 0 < results["chrf"] < 100


def test_batches_add_up():
    metric = ExactMatch()
    metric.add_batch(predictions=["a"], references=["a"])
    metric.add_batch(predictions=["b"], references=["c"])
    assert metric.compute() == {"exact_match": 0.5}
    assert metric.compute(predictions=["a"], references=["a"]) == {"exact_match": 1.0}


def test_two_at_once_do_not_mix():
    first, second = ExactMatch(), ExactMatch()
    first.add_batch(predictions=["a"], references=["a"])
    second.add_batch(predictions=["a"], references=["b"])
    assert first.compute() == {"exact_match": 1.0}
    assert second.compute() == {"exact_match": 0.0}


def test_nothing_is_written(tmp_path):
    metric = ChrF(cache_dir=str(tmp_path))
    metric.compute(predictions=["a"], references=["a"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "`predictions` is empty"),
        (["a"], ["a", "b"], "Mismatch in the number of predictions"),
        ([3], ["a"], "expected format"),
    ],
)
def test_wrong_inputs(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        compute_text_metrics(predictions, references)


def test_nothing_given():
    with pytest.raises(ValueError, match="nothing to compare"):
        ExactMatch().compute()
