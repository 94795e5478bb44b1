# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The card of a saved model."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_crossfuse import CrossFuseProcessor
from modeling_crossfuse.files import write_whole
from modeling_crossfuse.training import model_card, train_tokenizer
from modeling_crossfuse.training.model_card import write_model_card

from .helpers import tiny_config, tiny_model


METRICS = {"exact_match": 0.5, "cer": 0.25, "chrf": 61.23, "loss": 1.5, "runtime": 3.0}


def make_card(folder, *modalities, **settings) -> ModelCard:
    model = tiny_model(tiny_config(*(modalities or ("text", "image"))))
    return ModelCard.load(write_model_card(folder, model, **settings))


def test_metadata(tmp_path):
    card = make_card(tmp_path, dataset="me/pets", split="test", metrics=METRICS, model_id="me/fusion", language=["en"])
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "image-text-to-text")
    assert data.datasets == ["me/pets"] and {"crossfuse", "multimodal", "image", "text"} <= set(data.tags)
    assert data.model_name == "fusion"
    results = {result.metric_type: result for result in data.eval_results}
    assert {key: result.metric_value for key, result in results.items()} == {
        "exact_match": 0.5,
        "cer": 0.25,
        "chrf": 61.23,
    }
    assert results["cer"].dataset_type == "me/pets" and results["cer"].dataset_split == "test"


@pytest.mark.parametrize(
    ("modalities", "task"),
    [
        (["image"], "image-to-text"),
        (["text", "image", "audio"], "image-text-to-text"),
        (["text", "video"], "video-text-to-text"),
        (["audio"], "automatic-speech-recognition"),
        (["audio", "wrist"], "audio-text-to-text"),
        (["text"], "text-generation"),
        (["wrist"], None),
    ],
)
def test_task(tmp_path, modalities, task):
    assert make_card(tmp_path, *modalities).data.pipeline_tag == task


def test_sections(tmp_path):
    recipe = {"learning_rate": 1e-3, "questions": {"a|b": "c"}, "eval_steps": None}
    text = make_card(
        tmp_path, "image", "wrist", dataset="me/pets", split="test", metrics=METRICS, recipe=recipe, duration=3725
    ).text
    assert "| `image` | image | `pixel_values` | (batch, 3, 8, 8) |" in text
    assert "| `wrist` | series | `wrist_values` | (batch, steps, 3) |" in text
    assert "| 0.500 | 0.250 | 61.2 | 1.500 |" in text
    assert "| `learning_rate` | 0.001 |" in text and "eval_steps" not in text
    assert r'| `questions` | `{"a\|b": "c"}` |' in text
    assert "| time of training | 1:02:05 h |" in text
    assert "{{" not in text and "{%" not in text


def test_several_evaluations(tmp_path):
    card = make_card(tmp_path, metrics={"image": METRICS, "image + audio": {"exact_match": 0.75}})
    assert "| given | exact match | CER | chrF | loss |" in card.text
    assert "| image + audio | 0.750 |  |  |  |" in card.text
    names = [result.metric_name for result in card.data.eval_results]
    assert names[-1] == "exact match (image + audio)" and len(names) == 4


def test_a_folder_is_not_taken_for_an_id(tmp_path):
    (tmp_path / "data").mkdir()
    card = make_card(tmp_path, dataset=str(tmp_path / "data"), metrics=METRICS)
    assert card.data.datasets is None and str(tmp_path / "data") in card.text


def test_nothing_but_a_model(tmp_path):
    text = make_card(tmp_path).text
    assert "The model was not evaluated." in text and "None" not in text.replace("`None`", "")


def test_tables_are_whole(tmp_path):
    text = make_card(tmp_path, "image", "audio", metrics={"a": METRICS, "b": METRICS}, recipe={"x": 1}).text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = table.replace(r"\|", "").splitlines()
        assert set(lines[1]) <= set("|-: ") and len({line.count("|") for line in lines}) == 1, table


@pytest.mark.parametrize("modalities", [["image", "text", "audio", "wrist"], ["wrist"], ["text"], ["image", "video"]])
def test_the_example_runs(tmp_path, modalities, capsys):
    tokenizer = train_tokenizer(["what is it?"], vocab_size=270)
    config = tiny_config(*modalities, decoder={"vocab_size": len(tokenizer)})
    if "text" in modalities:
        config.modalities["text"].vocab_size = len(tokenizer)
    model, processor = tiny_model(config), CrossFuseProcessor.from_config(config, tokenizer=tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    text = write_model_card(tmp_path, model, processor).read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("['")


def test_the_head_is_yaml(tmp_path):
    text = write_model_card(tmp_path, tiny_model(tiny_config()), metrics=METRICS, dataset="a: b").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"


def test_wrong_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_model_card(tmp_path / "no", tiny_model(tiny_config()))


def test_template_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "__file__", str(tmp_path / "package" / "model_card.py"))
    monkeypatch.setattr(model_card.metadata, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match=r"model_card\.md, is neither"):
        write_model_card(tmp_path, tiny_model(tiny_config()))
    assert not (tmp_path / "README.md").exists()


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_whole(path, "before")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "after")
    assert path.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["file.txt"]
