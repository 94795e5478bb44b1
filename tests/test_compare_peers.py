# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The comparison with transformers' VisionEncoderDecoderModel: that it is fair, and what it writes."""

import contextlib
import itertools
import json

import datasets
import pytest
import torch
import yaml
from PIL import Image

from .helpers import tiny_config
from .test_scripts import NAMES, assert_refused, load_script


compare_peers = load_script("compare_peers")
PEERS = ("vit_bert", "vit_gpt2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """A recipe with a model of two modalities and pictures in one color each."""
    folder = tmp_path_factory.mktemp("compare_peers")
    tiny_config("text", "image", label_smoothing=0.1).save_pretrained(folder / "model")
    rows = {"picture": [Image.new("RGB", (8, 8), name) for name in NAMES], "name": NAMES}
    data = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    settings = {
        "model": str(folder / "model"),
        "dataset": str(folder / "data"),
        "inputs": {"image": "picture"},
        "target": "name",
        "questions": {"and in French": "names.fr"},
        "max_target_length": 8,
        "vocab_size": 280,
        "augmentation": {"image": [{"RandomHorizontalFlip": {"p": 0.5}}]},
        "learning_rate": 2e-3,
        "learning_rates": {"decoder": 3e-3, "encoder.encoders.audio": 1e-3},
        "answer_classifier": True,
        "weight_decay": 0.05,
        "per_device_train_batch_size": 4,
        "bf16": True,
        "attn_implementation": "eager",
        "output_dir": str(folder / "output"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "recipe.yaml")


def make_argv(recipe: str, *more: str) -> list[str]:
    small = ["--patch_size", "4", "--encoder_layers", "1", "--decoder_layers", "1", "--minutes", "0.005"]
    return ["--recipe", recipe, *small, *more]


@pytest.fixture(scope="module")
def args(recipe):
    return compare_peers.parse_args(make_argv(recipe))


@pytest.fixture(scope="module")
def task(args):
    return compare_peers.Task(args)


def train(name, task, args, steps: int, learning_rate: float = 1e-2):
    """A model after some steps: the clock ticks once for each."""
    model = compare_peers.build_model(name, task, args)
    optimizer = compare_peers.make_optimizer(model, task.arguments, learning_rate, {})
    assert compare_peers.train(model, task, optimizer, steps, 0.1, itertools.count().__next__) == steps - 1
    return model


def test_every_model_gets_one_row_in_table_and_file(recipe, tmp_path, capsys):
    output = tmp_path / "peers.json"
    results = compare_peers.main(make_argv(recipe, "--output", str(output)))
    written = json.loads(output.read_text())
    assert written["results"] == results and written["learning_rates_tried"] == []
    assert [result["model"] for result in results] == ["crossfuse", *PEERS]
    assert all(result["steps"] > 0 and 0 <= result["exact_match"] <= 1 for result in results)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| CrossFuse", "| ViT + BERT", "| ViT + GPT-2"]


def test_the_learning_rate_with_the_lowest_loss_is_taken(recipe, tmp_path):
    output = tmp_path / "peers.json"
    argv = ["--models", "vit_gpt2", "--learning_rates", "vit_gpt2=1e-9,1e-2", "--search_minutes", "0.02"]
    results = compare_peers.main(make_argv(recipe, *argv, "--output", str(output)))
    tried = json.loads(output.read_text())["learning_rates_tried"]
    assert [run["learning_rate"] for run in tried] == [1e-9, 1e-2]
    assert {run["split"] for run in tried} == {"validation"} and results[0]["split"] == "test"
    assert results[0]["learning_rate"] == 1e-2


@pytest.mark.parametrize("name", PEERS)
def test_peers_are_as_large_as_crossfuse(name, task, args):
    ours, peer = (compare_peers.build_model(each, task, args).num_parameters() for each in ("crossfuse", name))
    assert peer == pytest.approx(ours, rel=0.03)


@pytest.mark.parametrize("name", PEERS)
def test_peers_have_the_loss_that_transformers_gives_them(name, task, args):
    model = compare_peers.build_model(name, task, args).eval()
    batch = next(task.training_batches())
    expected = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
    torch.testing.assert_close(compare_peers.compute_loss(model, batch, task.config), expected)


def test_every_model_sees_the_same_pictures(task):
    streams = []
    for _ in range(2):
        torch.manual_seed(0)
        streams.append(list(itertools.islice(task.training_batches(), 3)))
    for first, second in zip(*streams):
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])


@pytest.mark.parametrize("name", compare_peers.ENTRANTS)
def test_every_model_learns(name, task, args):
    metrics = compare_peers.evaluate(train(name, task, args, steps=80), task, "test")
    assert metrics["exact_match"] == 1.0 and metrics["loss"] < 1.0


@pytest.mark.parametrize("name", compare_peers.ENTRANTS)
def test_parts_have_their_own_learning_rates(name, task, args):
    model = compare_peers.build_model(name, task, args)
    optimizer = compare_peers.make_optimizer(model, task.arguments, 1e-3, {"decoder": 2e-3, "encoder": 3e-3})
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    expected = {"decoder": 2e-3, "encoder": 3e-3}
    for parameter_name, parameter in model.named_parameters():
        part = parameter_name.removeprefix("model.").split(".")[0]
        assert rates[id(parameter)] == expected.get(part, 1e-3)
    for group in optimizer.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.05}


def test_rates_of_the_recipe_and_of_the_command_line(recipe, task, args):
    assert task.learning_rates("crossfuse", args) == [2e-3]
    assert task.part_learning_rates("crossfuse", args) == {"decoder": 3e-3}
    given = ["--learning_rates", "vit_bert=1e-4", "--part_learning_rates", "vit_bert:decoder=1e-5"]
    given = compare_peers.parse_args(make_argv(recipe, *given))
    assert task.learning_rates("vit_bert", given) == [1e-4]
    assert task.part_learning_rates("vit_bert", given) == {"decoder": 1e-5}
    assert task.learning_rates("crossfuse", given) == [2e-3]


@pytest.mark.parametrize(
    ("share", "warmup", "factor"),
    [(0, 0, 1), (0, 0.1, 0), (0.05, 0.1, 0.5), (0.1, 0.1, 1), (0.55, 0.1, 0.5), (1, 0, 0)],
)
def test_schedule(share, warmup, factor):
    assert compare_peers.schedule(share, warmup) == pytest.approx(factor)


def test_the_ratio_of_a_model_that_has_none_right():
    row = {"parameters": 1, "learning_rate": 1e-3, "steps": 1, "minutes": 1.0}
    matches = {"crossfuse": 0.3, "vit_bert": 0.0, "vit_gpt2": 0.2}
    table = compare_peers.results_table(
        [{"model": name, "exact_match": match, **row} for name, match in matches.items()]
    )
    assert [line.split("|")[-2].strip() for line in table.splitlines()[2:]] == ["1.00", "none right", "1.50"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--minutes", "0"], "--minutes is 0.0; expected more than 0"),
        (["--warmup", "1"], "--warmup is 1.0"),
        (["--clock", "cpu"], "needs --threads 1"),
        (["--learning_rates", "vit=1e-3"], "has 'vit=1e-3'; expected MODEL=RATE with a MODEL of crossfuse, vit_bert"),
        (["--learning_rates", "vit_bert"], "has 'vit_bert'; expected MODEL=RATE"),
        (["--learning_rates", "vit_bert=fast"], "'fast' is no learning rate"),
        (["--learning_rates", "vit_bert=1e-3,0"], "'0' is no learning rate"),
        (["--part_learning_rates", "vit_bert=1e-3"], "has 'vit_bert=1e-3'; expected MODEL:PART=RATE"),
        (["--split", "nowhere"], "nowhere"),
        (["--output", "/nowhere/peers.json"], "there is no folder /nowhere"),
        (["--recipe", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--encoder_layers", "40"], "give it fewer layers"),
    ],
)
def test_refuses(recipe, argv, message, capsys):
    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_peers, "train", lambda *_: 1)
        patch.setattr("modeling_crossfuse.data.caching.tqdm", lambda rows, **_: contextlib.nullcontext(rows))
        assert_refused(capsys, compare_peers.main, make_argv(recipe, *argv), message)
