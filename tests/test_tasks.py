# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Classification, regression and retrieval by the programs: train, evaluate, predict, and the card."""

import json

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from crossfuse.main import run
from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse import (
    CrossFuseDataCollator,
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseProcessor,
)
from modeling_crossfuse.data.labels import label_names, problem_type_of
from modeling_crossfuse.training.building import build_model, number_labels

from .helpers import tiny_config


COLOURS = ["blue", "green", "red"]
FEATURES = datasets.Features(
    {
        "wrist": datasets.List(datasets.List(datasets.Value("float32"))),
        "ankle": datasets.List(datasets.List(datasets.Value("float32"))),
        "name": datasets.Value("string"),
        "info": {"colour": datasets.Value("string")},
        "class": datasets.ClassLabel(names=["red", "green", "blue"]),
        "number": datasets.Value("int64"),
        "tags": datasets.List(datasets.Value("string")),
        "size": datasets.Value("float32"),
        "sizes": datasets.List(datasets.Value("float32")),
    }
)


def make_rows(count: int = 24) -> datasets.Dataset:
    """Rows whose two series say what their label is."""
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        label = index % 3
        signal = np.eye(3)[label] * 4 + generator.normal(size=(3 + index % 2, 3)) * 0.3
        rows.append(
            {
                "wrist": signal,
                "ankle": signal[:, :2],
                "name": COLOURS[label],
                "info": {"colour": COLOURS[label]},
                "class": 2 - label,
                "number": label,
                "tags": COLOURS[:label],
                "size": float(label),
                "sizes": [float(label), -1.0],
            }
        )
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        make_rows().to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    modalities = {
        "text": {"vocab_size": 280},
        "wrist": {"kind": "series", "num_channels": 3},
        "ankle": {"kind": "series", "num_channels": 2},
    }
    tiny_config(modalities=modalities, decoder={"vocab_size": 280}, initializer_range=0.05).save_pretrained(
        folder / "config"
    )
    return folder


def argv_of(folder, output_dir, task, target, *more) -> list[str]:
    settings = {
        "task": task,
        "model": folder / "config",
        "dataset": folder / "data",
        "target": target,
        "output_dir": output_dir,
        "max_steps": 30,
        "learning_rate": 6e-3,
        "per_device_train_batch_size": 8,
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "vocab_size": 280,
        "disable_tqdm": True,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    return [*flags, "--inputs", "wrist=wrist", "ankle=ankle", *more]


WITHOUT_TEXT = ("--model_overrides", json.dumps({"modalities": {"text": None}}))


def evaluate(folder, model, target, *inputs, **flags):
    argv = [str(model), "--dataset", str(folder / "data"), "--target", target, "--inputs", *inputs]
    return run(["evaluate", *argv, *(str(part) for item in flags.items() for part in item)])


@pytest.mark.parametrize(
    ("target", "problem_type", "metric"),
    [
        pytest.param("name", "single_label_classification", "accuracy", marks=pytest.mark.slow),  # as the next
        ("info.colour", "single_label_classification", "accuracy"),
        ("class", "single_label_classification", "accuracy"),
        ("number", "single_label_classification", "accuracy"),
        ("tags", "multi_label_classification", "f1_micro"),
        ("size", "regression", "r2"),
        ("sizes", "regression", "rmse"),
    ],
)
def test_classification_learns(folder, tmp_path, target, problem_type, metric):
    output = tmp_path / "out"
    argv = argv_of(folder, output, "classification", target, *WITHOUT_TEXT, "--eval_strategy", "steps")
    assert run(["train", *argv, "--eval_steps", "30"]) == str(output)
    config = AutoConfig.from_pretrained(output)
    assert config.architectures == ["CrossFuseForSequenceClassification"] and config.problem_type == problem_type
    assert list(config.modalities) == ["wrist", "ankle"]
    results = evaluate(folder, output, target, "wrist=wrist", "ankle=ankle")
    assert results[0][metric] > 0.9 if metric != "rmse" else results[0][metric] < 0.3
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSequenceClassification" in card and "decoder" not in card
    signal = np.eye(3)[[1] * 4] * 4
    np.save(tmp_path / "wrist.npy", signal)
    np.save(tmp_path / "ankle.npy", signal[:, :2])
    files = [f"{name}={tmp_path / name}.npy" for name in ("wrist", "ankle")]
    answers = run(["predict", str(output), "--inputs", *files])
    expected = {
        "name": "green",
        "info.colour": "green",
        "class": "green",
        "number": "1",
        "tags": ["blue"],
        "size": pytest.approx(1, abs=0.5),
        "sizes": pytest.approx([1, -1], abs=0.5),
    }
    assert answers == [expected[target]]


def test_numbers_as_a_regression(folder, tmp_path):
    overrides = json.dumps({"problem_type": "regression", "modalities": {"text": None}})
    argv = argv_of(folder, tmp_path, "classification", "number", "--model_overrides", overrides)
    recipe, _ = parse_recipe(argv)
    assert number_labels(recipe, make_rows()) is None
    model, _ = build_model(recipe, make_rows())
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"


def test_fine_tuning_keeps_the_numbers_of_labels(folder, tmp_path):
    argv = argv_of(folder, tmp_path / "out", "classification", "name", *WITHOUT_TEXT, "--max_steps", "1")
    run(["train", *argv])
    recipe, _ = parse_recipe([*argv, "--model", str(tmp_path / "out"), "--model_overrides", "{}"])
    some = make_rows().filter(lambda row: row["name"] != "blue")
    model, _ = build_model(recipe, some, number_labels(recipe, some))
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_retrieval_learns(folder, tmp_path, loss, capsys):
    argv = argv_of(folder, tmp_path, "retrieval", "name", "text=name")
    overrides = json.dumps({"contrastive_loss": loss, "projection_dim": 16})
    assert run(["train", *argv, "--model_overrides", overrides]) == str(tmp_path)
    results = evaluate(folder, tmp_path, "name", "wrist=wrist", "ankle=ankle")
    assert results[0]["recall_at_1"] == 1.0 and results[0]["mrr"] == 1.0
    assert "recall@1" in capsys.readouterr().out
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "(batch, 16)" in card and "get_fused_features" in card
    with pytest.raises(ValueError, match="the candidates are values of the modality 'text'"):
        evaluate(folder, tmp_path, "name", "text=name")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "guessing"], "guessing"),
        (["--questions", '{"which": "name"}'], "`questions` and `answer_classifier` are for `task=generation`"),
        (["--target", "wrist"], "has no labels"),
        (["--model_overrides", '{"d_model": "x"}'], "`model_overrides` make no config: Field 'd_model' expected int"),
        (["--target", "colour"], "the split 'train' has no column 'colour'; a row has wrist"),
        (["--inputs", "wrist=arm"], "the split 'train' has no column 'arm'; a row has wrist"),
        (["--inputs", "wrist=wrist.left"], "the split 'train' has no column 'wrist.left'; 'wrist' is list"),
    ],
)
def test_what_is_refused(folder, tmp_path, argv, message, capsys):
    full = [*argv_of(folder, tmp_path, "classification", "name"), *argv]
    with pytest.raises((ValueError, SystemExit)) as error:
        run(["train", *full])
    assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "target", "message"),
    [
        ({"id2label": {0: "blue", 1: "green"}}, "name", "row 2 has 'red' .* none of the 2 labels"),
        ({"id2label": {0: "blue", 1: "green"}}, "number", "row 2 has 2 .* none of the 2 labels"),
    ],
)
def test_evaluation_refuses_labels_of_others(folder, tmp_path, settings, target, message):
    save_classifier(tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        evaluate(folder, tmp_path, target, "wrist=wrist")


def test_evaluates_whole_numbers_as_a_regression(folder, tmp_path):
    save_classifier(tmp_path, num_labels=1)
    assert evaluate(folder, tmp_path, "number", "wrist=wrist")[0]["mae"] > 0


def save_classifier(path, **settings):
    config = tiny_config("wrist", **settings)
    CrossFuseForSequenceClassification(config).save_pretrained(path)
    CrossFuseProcessor.from_config(config).save_pretrained(path)


def test_evaluate_and_predict_refuse_a_model_without_a_head(folder, tmp_path):
    config = tiny_config("wrist")
    CrossFuseForConditionalGeneration(config).model.save_pretrained(tmp_path)
    CrossFuseProcessor.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the model is a CrossFuseModel; expected one of"):
        evaluate(folder, tmp_path, "name", "wrist=wrist")


def collator(**settings):
    return CrossFuseDataCollator(CrossFuseProcessor.from_config(tiny_config("wrist")), {"wrist": "wrist"}, **settings)


def test_labels_of_batches():
    rows = [{**row, "wrist": np.ones((2, 3))} for row in make_rows(3)]
    label2id = {"blue": 0, "green": 1, "red": 2}

    def labels(target, problem_type):
        return collator(target=target, problem_type=problem_type, label2id=label2id)(rows)["labels"]

    assert labels("name", "single_label_classification").tolist() == [0, 1, 2]
    assert labels("class", "single_label_classification").tolist() == [2, 1, 0]
    assert labels("tags", "multi_label_classification").tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert torch.equal(labels("size", "regression"), torch.tensor([0.0, 1.0, 2.0]))
    assert labels("sizes", "regression").shape == (3, 2)
    rows[1]["name"] = None
    assert labels("name", "single_label_classification").tolist() == [0, -100, 2]
    assert "labels" not in (batch := collator(target="name", problem_type="retrieval", label2id=label2id)(rows))
    assert batch["item_ids"].tolist() == [0, -100, 2]
    unseen = collator(target="name", problem_type="retrieval", label2id={"blue": 0})(rows[::2] + rows[2:])["item_ids"]
    assert unseen[0] == 0 and unseen[1] == unseen[2] > 0


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        (
            {"problem_type": "ranking", "target": "name"},
            None,
            "`problem_type='ranking'`; expected one of single_label",
        ),
        ({"problem_type": "regression"}, None, "needs `target`"),
        ({"problem_type": "regression", "target": "name", "answer_ids": {"red": 0}}, None, "don't go with"),
        ({"problem_type": "single_label_classification", "target": "name"}, {"name": "pink"}, "none of the 0 labels"),
        ({"problem_type": "multi_label_classification", "target": "name"}, {"name": "pink"}, "expected a list"),
        ({"problem_type": "regression", "target": "name"}, {"name": "pink"}, "has 'pink' .* expected finite numbers"),
        (
            {"problem_type": "regression", "target": "name"},
            {"name": float("nan")},
            "row 0 of the batch has nan .* finite",
        ),
    ],
)
def test_labels_that_are_refused(settings, row, message):
    with pytest.raises((TypeError, ValueError), match=message):
        collator(**settings)([{"wrist": np.ones((2, 3)), **(row or {})}])


def test_label_names_and_problem_types():
    rows = make_rows(6)
    assert label_names(rows, "name") == label_names(rows, "info.colour") == COLOURS
    assert label_names(rows, "class") == ["red", "green", "blue"]
    assert label_names(rows, "number") == ["0", "1", "2"]
    assert label_names(rows, "tags") == ["blue", "green"]
    with pytest.raises(ValueError, match="has no labels; expected text, classes, numbers"):
        problem_type_of(rows, "wrist")
