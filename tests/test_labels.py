# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Labels in the forms that data sets have them in, what is no label, and the rows that training can't use."""

import json
import logging
from datetime import datetime
from decimal import Decimal

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, List, Value
from transformers import AutoConfig, AutoModelForSequenceClassification

from crossfuse.main import run
from modeling_crossfuse import (
    CrossFuseDataCollator,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseProcessor,
)
from modeling_crossfuse.data.labels import check_digits, label_names, problem_type_of, with_class_numbers
from modeling_crossfuse.data.rows import NumberedRows
from modeling_crossfuse.evaluation.metrics import compute_label_metrics
from modeling_crossfuse.evaluation.scores import evaluate_rows
from modeling_crossfuse.training import train_tokenizer

from .helpers import tiny_config, tiny_inputs, tiny_labels, tiny_model


SINGLE, SEVERAL, NUMBERS = "single_label_classification", "multi_label_classification", "regression"


@pytest.fixture(scope="module")
def processor():
    return CrossFuseProcessor.from_config(tiny_config("text", "wrist"), tokenizer=train_tokenizer(["a b"], 280))


@pytest.fixture(scope="module")
def label(processor):
    def read(values, problem_type, **settings):
        collator = CrossFuseDataCollator(processor, {"wrist": "w"}, target="y", problem_type=problem_type, **settings)
        return collator([{"w": np.ones((2, 3)), "y": value} for value in values])["labels"]

    return read


def column(values, feature) -> datasets.Dataset:
    feature = Value(feature) if isinstance(feature, str) else feature
    return datasets.Dataset.from_dict({"y": values}, features=Features({"y": feature}))


# What a column has


@pytest.mark.parametrize(
    ("values", "feature", "problem_type", "names"),
    [
        ([100000, 100001, 100000], "int64", SINGLE, ["100000", "100001"]),
        ([10, 9, -1], "int8", SINGLE, ["-1", "9", "10"]),
        ([3, 250, 3], "uint8", SINGLE, ["3", "250"]),
        ([True, False], "bool", SINGLE, ["False", "True"]),
        (["b", None, "a"], "string", SINGLE, ["a", "b"]),
        ([3.0, None, 1.0], "float64", SINGLE, ["1", "3"]),
        ([3.0, float("nan"), 1.0], "float32", SINGLE, ["1", "3"]),
        ([3.0, -100.0, 1.0], "float64", NUMBERS, None),
        ([3.0, 1.0], "float64", NUMBERS, None),
        ([3.5, None, 1.0], "float64", NUMBERS, None),
        ([1, None, -100], ClassLabel(names=["2", "1"]), SINGLE, ["2", "1"]),
        ([[100000], [], [7, 100000]], List(Value("int32")), SEVERAL, ["7", "100000"]),
        ([["b"], ["a", "b"]], List(Value("string")), SEVERAL, ["a", "b"]),
        ([[1], [0, 1]], List(ClassLabel(names=["x", "w"])), SEVERAL, ["x", "w"]),
        ([[1.0, 2.0]], List(Value("float64")), NUMBERS, None),
    ],
)
def test_what_a_column_has(values, feature, problem_type, names):
    rows = column([None if value == -100 else value for value in values] if names else values, feature)
    assert problem_type_of(rows, "y") == problem_type
    if names:
        assert label_names(rows, "y") == names


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([datetime(2026, 1, 1)], "timestamp[s]"),
        ([Decimal("1.50")], "decimal128(4, 2)"),
        ([[True, False]], List(Value("bool"))),
        ([[[1.0]]], datasets.Array2D((1, 1), "float32")),
        ([None], "null"),
    ],
)
def test_columns_without_labels(values, feature):
    with pytest.raises(ValueError, match=r"the target column 'y' of .* has no labels"):
        problem_type_of(column(values, feature), "y")


def test_rows_of_zeros_and_ones_are_no_lists_of_labels():
    with pytest.raises(ValueError, match=r"such as \[1, 0, 1\]; expected lists of the labels that a row has"):
        label_names(column([[1, 0, 1], [0, 0, 0]], List(Value("int64"))), "y")
    assert label_names(column([[1, 1], [0, 1, 0]], List(Value("int64"))), "y") == ["0", "1"]


# Labels of a batch

COLOURS = {"blue": 0, "green": 1, "red": 2}


@pytest.mark.parametrize(
    ("values", "label2id", "expected"),
    [
        ([np.int64(1), np.uint8(2), torch.tensor(0), torch.tensor(2, dtype=torch.int32)], COLOURS, [1, 2, 0, 2]),
        ([np.array(1), 2.0, np.float32(0), np.str_("red")], COLOURS, [1, 2, 0, 2]),
        ([None, float("nan"), np.nan, torch.tensor(-100), -100.0], COLOURS, [-100] * 5),
        ([True, np.False_, torch.tensor(True)], {"False": 0, "True": 1}, [1, 0, 1]),
        ([1, np.int32(0), True], {"no": 0, "yes": 1}, [1, 0, 1]),
        ([True, 0], {"0": 0, "1": 1}, [1, 0]),
        ([100001, 100000.0, "100001"], {"100000": 0, "100001": 1}, [1, 0, 1]),
        ([1, 3, np.int64(2)], {"1": 0, "2": 1, "3": 2}, [0, 2, 1]),
        ([5, 0], None, [5, 0]),
    ],
)
def test_classes_of_any_library(label, values, label2id, expected):
    assert label(values, SINGLE, label2id=label2id).tolist() == expected


def test_lists_of_labels_of_any_library(label):
    values = [np.array([0, 2]), torch.tensor([1]), ("blue", np.int64(1)), []]
    expected = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert label(values, SEVERAL, label2id=COLOURS).tolist() == expected


def test_numbers_of_any_library(label):
    assert label([np.float64(1.5), torch.tensor(2), 3, True], NUMBERS).tolist() == [1.5, 2, 3, 1]
    assert label([np.array([1, 2]), torch.tensor([3.0, 4.0])], NUMBERS).tolist() == [[1, 2], [3, 4]]


def test_a_row_may_come_twice_in_a_batch(processor):
    rows = NumberedRows([{"w": np.ones((2, 3)), "y": 1, "say": "a b"}])  # all know that they are row 0
    for settings in ({"target": "y", "problem_type": NUMBERS}, {"target": "say"}):
        batch = CrossFuseDataCollator(processor, {"wrist": "w"}, **settings)([rows[0], rows[0]])
        assert len(batch["labels"]) == len(batch["wrist_values"]) == 2


@pytest.mark.parametrize("library", ["numpy", "torch", None])
def test_rows_of_with_format(processor, library):
    rows = datasets.Dataset.from_dict({"w": [[[1.0, 2.0, 3.0]]] * 3, "y": [1, 0, 1], "t": [[0], [1, 0], []]})
    rows = rows.with_format(library)
    for target, problem_type, expected in (("y", SINGLE, [1, 0, 1]), ("t", SEVERAL, [[1, 0], [1, 1], [0, 0]])):
        collator = CrossFuseDataCollator(
            processor, {"wrist": "w"}, target=target, problem_type=problem_type, label2id={"a": 0, "b": 1}
        )
        assert collator([rows[row] for row in range(3)])["labels"].tolist() == expected


@pytest.mark.parametrize(
    ("values", "problem_type", "message"),
    [
        (["blue", "pink"], SINGLE, r"row 1 of the batch has 'pink' in .* 'y', which is none of the 3 labels \(blue, "),
        ([0, 3], SINGLE, "row 1 of the batch has 3 in the target column 'y', which is none of the 3 labels"),
        ([7.5], SINGLE, "row 0 of the batch has 7.5 in"),
        ([-1], SINGLE, "row 0 of the batch has -1 in"),
        ([[1]], SINGLE, r"row 0 of the batch has \[1\] in"),
        ([["red"], None], SEVERAL, "row 1 of the batch has None in .*; expected a list"),
        ([["red", None]], SEVERAL, "row 0 of the batch has None in a list of the target column 'y'"),
        ([["red", 3]], SEVERAL, "row 0 of the batch has 3 in"),
        ([1.0, "two"], NUMBERS, "row 1 of the batch has 'two' in the target column 'y'; expected finite numbers"),
        ([1.0, None], NUMBERS, "row 1 of the batch has None in"),
        ([float("inf")], NUMBERS, "row 0 of the batch has inf in"),
        ([10**400], NUMBERS, "row 0 of the batch has 1000"),
        ([[]], NUMBERS, r"row 0 of the batch has \[\] in"),
        ([[1.0, 2.0], [1.0]], NUMBERS, "row 1 of the batch has 1 number in .* 'y'; row 0 of the batch has 2"),
    ],
)
def test_what_is_no_label(label, values, problem_type, message):
    with pytest.raises((TypeError, ValueError), match=message):
        label(values, problem_type, label2id=COLOURS)


def test_the_numbers_of_a_class_label_stand_for_its_names(label):
    rows = column([0, 1, 2, -1], ClassLabel(names=["2", "1", "other"]))
    assert with_class_numbers({"1": 0, "2": 1}, rows, "y") == {"1": 0, "2": 1, 0: 1, 1: 0, -1: -100}
    assert with_class_numbers({"LABEL_0": 0}, rows, "y") == {"LABEL_0": 0, 0: 0, -1: -100}
    label2id = with_class_numbers({"1": 0, "2": 1}, rows, "y")
    assert label([0, 1, -1, "1"], SINGLE, label2id=label2id).tolist() == [1, 0, -100, 0]
    with pytest.raises(ValueError, match="has 2 in the target column 'y', which is none of the 2 labels"):
        label([2], SINGLE, label2id=label2id)


def test_numbers_whose_digits_float32_loses(label):
    for values in ([1.7e9 + 0.5 * step for step in range(20)], [2**24, 2**24 + 1], [1e6, 1e6 + 1e-3]):
        with pytest.raises(ValueError, match=r"lost in float32.* subtract an offset"):
            check_digits(column([float(value) for value in values], "float64"), "y")
    for values in ([0.1, 0.1], [1e9, -1e9, 3.0], [1.7e9, 1.7e9], [0.3, 0.1 + 0.2], list(np.random.rand(1000))):
        check_digits(column(values, "float64"), "y")


# Labels of a model


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_labels_of_any_integer_dtype(dtype):
    config = tiny_config("text", "wrist", num_labels=3, num_answers=2)
    inputs = tiny_inputs(config)
    items = torch.tensor([0, 1])
    of_heads = {
        CrossFuseForSequenceClassification: {"labels": items},
        CrossFuseForTokenClassification: {"labels": tiny_labels(2, 5) % 3},
        CrossFuseForConditionalGeneration: {"labels": tiny_labels(), "answer_ids": items},
        CrossFuseForRetrieval: {"item_ids": items},
    }
    for head, labels in of_heads.items():
        model = tiny_model(config, head).train()
        losses = []
        for given in (labels, {name: value.to(dtype) for name, value in labels.items()}):
            torch.manual_seed(0)
            losses.append(model(**inputs, **given).loss)
        assert torch.equal(*losses)


def test_boolean_labels():
    several = torch.tensor([[True, False, True], [False, False, True]])
    for labels, settings in (
        (several, {"num_labels": 3}),
        (several[:, :1], {"num_labels": 1, "problem_type": SEVERAL}),
    ):
        model = tiny_model(tiny_config("wrist", **settings), CrossFuseForSequenceClassification)
        inputs = tiny_inputs(model.config)
        assert torch.equal(model(**inputs, labels=labels).loss, model(**inputs, labels=labels.float()).loss)
    model = tiny_model(tiny_config("wrist", num_labels=2), CrossFuseForSequenceClassification)
    inputs, labels = tiny_inputs(model.config), torch.tensor([True, False])
    assert torch.equal(model(**inputs, labels=labels).loss, model(**inputs, labels=labels.long()).loss)


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        ([[1.0, -100.0, 0.0]], SEVERAL, "the value -100.0; expected 1 for the labels that a sample has"),
        ([[1.0, float("nan"), 0.0]], NUMBERS, "the value nan; expected finite numbers"),
    ],
)
def test_a_model_refuses_values_that_are_no_labels(labels, problem_type, message):
    config = tiny_config("wrist", num_labels=3, problem_type=problem_type)
    with pytest.raises(ValueError, match=message):
        tiny_model(config, CrossFuseForSequenceClassification)(**tiny_inputs(config, 1), labels=torch.tensor(labels))


def test_items_without_a_number_belong_to_nothing_else():
    model = tiny_model(tiny_config("text", "wrist"), CrossFuseForRetrieval)
    inputs = tiny_inputs(model.config, 3)
    unknown, alone = torch.tensor([7, -100, -100]), torch.tensor([7, 8, 9])
    assert torch.equal(model(**inputs, item_ids=unknown).loss, model(**inputs, item_ids=alone).loss)


# Metrics


def test_metrics_leave_out_what_has_no_label():
    assert compute_label_metrics(["a", "b", "a"], ["a", None, "b"], SINGLE)["accuracy"] == 0.5
    assert compute_label_metrics([1, 2], [1, None], SINGLE)["accuracy"] == 1.0
    with pytest.raises(ValueError, match="all None"):
        compute_label_metrics(["a"], [None], SINGLE)


def test_evaluation_reads_labels_as_training_does():
    config = tiny_config("wrist", id2label={0: "1", 1: "2"}, problem_type=SINGLE)
    model, processor = tiny_model(config, CrossFuseForSequenceClassification), CrossFuseProcessor.from_config(config)
    for values in ([1.0, None, 2.0], [1.0, float("nan"), 2.0], ["1", None, "2"]):
        rows = datasets.Dataset.from_dict({"w": [[[1.0, 2.0, 3.0]]] * 3, "y": values})
        results = evaluate_rows(model, processor, rows, {"wrist": "w"}, "y", progress=False)
        assert results["num_unlabeled"] == 1 and results["accuracy"] == 0.5
    named = rows.remove_columns("y").add_column("y", [0, 0, 0]).cast_column("y", ClassLabel(names=["2", "1"]))
    turned = rows.remove_columns("y").add_column("y", [2, 2, 2])
    answers = [evaluate_rows(model, processor, given, {"wrist": "w"}, "y")["accuracy"] for given in (named, turned)]
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="row 1 has 3 in the target column 'y', which is none"):
        evaluate_rows(model, processor, rows.remove_columns("y").add_column("y", [1, 3, 2]), {"wrist": "w"}, "y")
    with pytest.raises(ValueError, match="no row has a label in the column 'y'"):
        evaluate_rows(model, processor, [{"w": np.ones((2, 3)), "y": None}], {"wrist": "w"}, "y")


# The rows that training can't use


def test_bad_rows(processor):
    features = {
        "image": datasets.Image(),
        "images": List(datasets.Image()),
        "info": {"say": Value("string"), "w": List(List(Value("float32")))},
        "y": Value("string"),
        "q": Value("string"),
    }
    broken, series = {"bytes": b"not an image", "path": None}, [[1.0, 2.0, 3.0]]
    rows = datasets.Dataset.from_list(
        [
            {"image": broken, "images": None, "info": None, "y": "a", "q": None},
            {"image": None, "images": [None, None], "info": {"say": None, "w": None}, "y": "a", "q": "b"},
            {"image": None, "images": [None, broken], "info": None, "y": None, "q": "b"},
            {"image": None, "images": [], "info": {"say": None, "w": series}, "y": "a", "q": None},
        ],
        features=Features(features),
    )
    modalities = {"text": {}, "image": {}, "more": {"kind": "image"}, "wrist": {"kind": "series", "num_channels": 3}}
    processor = CrossFuseProcessor(tokenizer=processor.tokenizer, modalities=modalities)
    inputs = {"image": "image", "more": "images", "wrist": "info.w"}

    def find(some=rows, **settings):
        return CrossFuseDataCollator(processor, inputs, **settings).find_bad_rows(some)

    nothing = "has None in all columns of inputs (image, images, info.w); expected a value in any"
    assert find() == {1: nothing}
    assert find(rows.select([])) == {}
    no_text = "has None in the target column 'y'; expected a str"
    assert find(target="y") == {1: nothing, 2: no_text}
    assert find(rows.select([3, 1, 2]), target="y") == {1: nothing, 2: no_text}
    assert find(target="y", questions={"what": "q"}) == {}
    assert find(target="y", questions={"what": "q"}, question_dropout=0.5) == {1: nothing, 2: no_text}
    unanswered = "answers none of the questions, and there is no `target`"
    assert find(questions={"what": "q"}) == {0: unanswered, 3: unanswered}
    unknown = "has 'a' in the target column 'y', which is none of the 1 labels (b)"
    assert find(target="y", problem_type=SINGLE, label2id={"b": 0}) == {0: unknown, 1: unknown, 3: unknown}


# crossfuse train


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    tiny_config("text", decoder={"vocab_size": 280}).save_pretrained(folder)
    return folder


def train(folder, config, training, validation, *more, task="classification") -> str:
    (folder / "data").mkdir()
    for split, labels in {"train": training, "validation": validation}.items():
        lines = [f"text {row},{label}" for row, label in enumerate(labels)]
        (folder / "data" / f"{split}.csv").write_text("\n".join(["x,y", *lines, ""]))
    flags = f"--task {task} --model {config} --dataset {folder / 'data'} --inputs text=x --target y"
    trainer = f"--output_dir {folder / 'out'} --max_steps 2 --save_strategy no --report_to none --vocab_size 280"
    return run(["train", *flags.split(), *trainer.split(), "--disable_tqdm", "true", *more])


def evaluate(folder):
    flags = f"--dataset {folder / 'data'} --split validation --inputs text=x --target y"
    return run(["evaluate", str(folder / "out"), *flags.split()])[0]


def test_a_column_of_integers_with_a_gap(tmp_path, config, caplog, capsys):
    caplog.set_level(logging.INFO, "crossfuse")
    output = train(tmp_path, config, [100001, "", 100000, 100001], [100000, "", ""])
    assert AutoConfig.from_pretrained(output).id2label == {0: "100000", 1: "100001"}
    assert 'to learn them as numbers, say --model_overrides \'{"problem_type": "regression"}\'' in caplog.text
    assert "2 of the 3 rows of the split 'validation' have no label in 'y'" in caplog.text
    assert evaluate(tmp_path)["num_unlabeled"] == 2
    assert "2 of the 3 rows have no label in 'y'; the metrics leave them out" in capsys.readouterr().out


def test_a_split_without_labels_has_no_metrics(tmp_path, config, caplog):
    output = train(tmp_path, config, [True, False], ["", ""], "--eval_strategy", "steps", "--eval_steps", "1")
    assert AutoConfig.from_pretrained(output).id2label == {0: "False", 1: "True"}


AS_NUMBERS = ("--model_overrides", json.dumps({"problem_type": NUMBERS}))


@pytest.mark.parametrize(
    ("training", "validation", "more", "message"),
    [
        (
            ["a", "b"],
            ["a", "c"],
            {},
            "row 1 of the split 'validation' has 'c' .* which is none of the 2",
        ),
        (
            [1, "", 2],
            [1, 2, 3],
            {"more": AS_NUMBERS},
            "row 1 of the split 'train' has None .* 1 finite number",
        ),
        (["a", "b"], ["a", "b"], {"more": AS_NUMBERS}, r"row 0 of the split 'train' has 'a' .* \(2 of its 2 rows"),
        ([1.5, 2], [1.0, ""], {}, "row 1 of the split 'validation' has None"),
        ([1, 1], [1, 1], {}, "has the label '1' alone; expected at least two"),
        ([1700000000.5, 1700000001], [1.5], {}, "differences are lost in float32"),
        (["a", "b"], ["a", ""], {"task": "generation"}, "row 1 of the split 'validation' has None .* expected a str"),
        ([1, 2], [1, 2], {"task": "generation"}, "row 0 of the split 'train' has 1 .* expected a str"),
        (["", ""], ["", ""], {}, "row 0 of the split 'train' has None"),
    ],
)
def test_bad_rows_are_found_before_training(tmp_path, config, training, validation, more, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, config, training, validation, *more.pop("more", ()), **more)
    assert not list((tmp_path / "out").glob("*"))


def test_fine_tuning_on_other_labels(tmp_path, config):
    labels = {"first": ["a", "b", "c"], "fewer": ["c", "b"], "others": ["a", "d"]}
    for name, values in labels.items():
        (tmp_path / name).mkdir()
        more = () if name == "first" else ("--model", str(tmp_path / "first" / "out"))
        train(tmp_path / name, config, values, values, *more)
    known = {name: AutoConfig.from_pretrained(tmp_path / name / "out").id2label for name in labels}
    assert known == {"first": (abc := {0: "a", 1: "b", 2: "c"}), "fewer": abc, "others": {0: "a", 1: "d"}}


def test_fine_tuning_a_classifier_without_names(tmp_path, config):
    unnamed = tiny_config("text", decoder={"vocab_size": 280}, num_labels=3)
    unnamed.modalities["text"].vocab_size = 280
    tiny_model(unnamed, CrossFuseForSequenceClassification).save_pretrained(tmp_path / "model")
    tokenizer = train_tokenizer(["a b"], 280)
    CrossFuseProcessor.from_config(unnamed, tokenizer=tokenizer).save_pretrained(tmp_path / "model")
    output = train(tmp_path, config, [2, 1, 2], [1, 2], "--model", str(tmp_path / "model"))
    saved = AutoConfig.from_pretrained(output)
    assert saved.num_labels == 3 and saved.problem_type == SINGLE


def test_the_model_is_saved_before_its_evaluation_fails(tmp_path, config, monkeypatch):
    def fail(*args):
        raise ValueError("no metrics today")

    monkeypatch.setattr("modeling_crossfuse.evaluation.metrics.compute_label_metrics", fail)
    more = (
        "--ema_decay",
        "0.5",
        "--lora",
        '{"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["classifier"]}',
    )
    with pytest.raises(ValueError, match="no metrics today"):
        train(tmp_path, config, ["a", "b"], ["a", "b"], *more)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.id2label == {0: "a", 1: "b"}
    assert CrossFuseProcessor.from_pretrained(tmp_path / "out") and (tmp_path / "out" / "README.md").exists()
    with pytest.raises(ValueError, match="no metrics today"):
        (tmp_path / "more").mkdir()
        train(tmp_path / "more", config, ["a", "b"], ["a", "b"], "--eval_strategy", "steps", "--eval_steps", "1")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "more" / "out" / "stopped-at-step-1")


def test_the_model_is_saved_after_ctrl_c(tmp_path, config, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_crossfuse.training.trainer.CrossFuseTrainer.evaluate", interrupt)
    more = ("--eval_strategy", "steps", "--eval_steps", "1", "--disable_tqdm", "false")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, ["a", "b"], ["a", "b"], *more)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "stopped-at-step-1")
    assert capsys.readouterr().err.endswith("\n")  # the progress bar has ended its line
