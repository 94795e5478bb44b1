# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Training: recipes, `scripts/train.py` from data set to saved model, resuming, and what the Trainer adds."""

import io
import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    BertConfig,
    BertModel,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from crossfuse.main import main, run
from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseProcessor
from modeling_crossfuse.data.caching import CachedInputs, CachedInputsCollator
from modeling_crossfuse.data.collator import CrossFuseDataCollator
from modeling_crossfuse.training import train_tokenizer
from modeling_crossfuse.training.building import add_lora, build_model, number_labels, recipe_texts
from modeling_crossfuse.training.trainer import CrossFuseTrainer, batch_length

from .helpers import assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
NAMES = ["red", "green", "blue", "grey", "white", "navy", "pink", "gold"]
INPUTS = ["image=picture", "audio=speech", "wrist=sensors.wrist", "text=hint"]
FEATURES = datasets.Features(
    {
        "picture": datasets.Image(),
        "speech": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "sensors": {
            "wrist": datasets.List(datasets.List(datasets.Value("float32"))),
            "note": datasets.Value("string"),
        },
        "hint": datasets.Value("large_string"),
        "name": datasets.Value("string"),
        "names": {"fr": datasets.Value("large_string"), "count": datasets.Value("int32")},
    }
)


def make_clip(seed: int) -> bytes:
    """A tenth of a second of audio at 16 kHz, as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.random.default_rng(seed).standard_normal(1600) * 3000).astype("<i2").tobytes())
    return buffer.getvalue()


def make_rows(complete: bool = True) -> list[dict]:
    """A row for each name. Unless `complete`, each lacks something; the last two have one modality."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "picture": Image.new("RGB", (8, 8), name),
            "speech": {"bytes": make_clip(index), "path": None},
            "sensors": {"wrist": (generator.normal(size=(3 + index % 3, 3)) * 5 + 7).tolist(), "note": "still"},
            "hint": f"starts with {name[0]}",
            "name": name,
            "names": {"fr": name[::-1], "count": index},
        }
        for index, name in enumerate(NAMES)
    ]
    if not complete:
        for index, row in enumerate(rows):
            row[("picture", "speech", "sensors", "hint")[index % 4]] = None
        rows[-2] |= {"picture": Image.new("RGB", (8, 8), "pink"), "speech": None, "sensors": None, "hint": None}
        rows[-1] |= {"picture": None, "speech": None, "sensors": None, "hint": "starts with g"}
    return rows


def make_dataset(complete: bool = True) -> datasets.Dataset:
    return datasets.Dataset.from_list(make_rows(complete), features=FEATURES)


def write_data(folder: Path):
    """Two data sets, one of which has missing modalities, and a config."""
    for name, complete in (("data", True), ("patchy", False)):
        (folder / name).mkdir()
        for split in ("train", "validation"):
            make_dataset(complete).to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
    config = tiny_config("text", "image", "audio", "wrist", decoder={"vocab_size": 280}, initializer_range=0.05)
    config.save_pretrained(folder / "config")


def write_encoders(folder: Path) -> dict[str, str]:
    """A BERT for texts and a ViT for images, saved with what processes their inputs; their folders."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    bert = BertModel(BertConfig(vocab_size=300, **sizes, initializer_range=0.2))
    bert.save_pretrained(folder / "bert")
    texts = [f"starts with {name[0]}" for name in NAMES]
    train_tokenizer(texts, vocab_size=270).save_pretrained(folder / "bert")
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes, initializer_range=0.2)).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    return {"text": str(folder / "bert"), "image": str(folder / "vit")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, str]:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


def argv_of(folder: Path, output_dir: Path, **others) -> list[str]:
    """The command line of a short training; `others` are further flags, or replace these."""
    flags = {
        "model": folder / "config",
        "dataset": folder / "data",
        "inputs": INPUTS,
        "target": "name",
        "vocab_size": 280,
        "max_target_length": 8,
        "output_dir": output_dir,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "precision": "float32",  # on every machine
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **others,
    }
    argv = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else str(value)]
        argv += [f"--{name}", *values]
    return argv


def train(folder: Path, output_dir: Path, **flags) -> CrossFuseTrainer:
    """Runs the program in this process; the Trainer that it used."""
    trainers = []

    class Recorded(CrossFuseTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_crossfuse.training.trainer.CrossFuseTrainer", Recorded)
        assert run(["train", *argv_of(folder, output_dir, **flags)]) == str(output_dir)
    return trainers[0]


def assert_equal_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **{"rtol": 0, "atol": 0, **tolerance}, msg=name)


def log_of(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# Recipes


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_recipe_and_command_line(tmp_path):
    path = write(
        tmp_path / "recipe.yaml",
        "dataset: here\ninputs: {image: photo}\nquestions: {what: answer, who: person.name}\nlearning_rate: 1e-3\n"
        "learning_rates: {lm_head: 2e-4}\naugmentation: {audio: {gain_db: 3e0}}\noutput_dir: out\nbf16: true\n"
        "seed: 3\n",
    )
    recipe, arguments = parse_recipe([path])
    assert (recipe.dataset, recipe.inputs) == ("here", {"image": "photo"})
    assert recipe.questions == {"what": "answer", "who": "person.name"}
    assert recipe.learning_rates == {"lm_head": 2e-4} and recipe.augmentation == {"audio": {"gain_db": 3.0}}
    assert (arguments.learning_rate, arguments.seed, arguments.bf16, arguments.output_dir) == (1e-3, 3, True, "out")
    argv = [path, "--inputs", "image=a", "text=b.c", "--learning_rate", "5e-4", "--questions", '{"why": "reason"}']
    recipe, arguments = parse_recipe(argv)
    assert recipe.inputs == {"image": "a", "text": "b.c"} and recipe.questions == {"why": "reason"}
    assert (arguments.learning_rate, arguments.seed) == (5e-4, 3)


def test_encoders_and_adapters_in_recipes(tmp_path):
    path = write(
        tmp_path / "recipe.yaml",
        "encoders: {image: me/vit, wrist: {kind: series, num_channels: 3}}\nfreeze: [image]\noutput_dir: out\n"
        "lora: {r: 8, target_modules: [q_proj, v_proj]}\ncache_encoder_outputs: true\n",
    )
    recipe, _ = parse_recipe([path])
    assert recipe.encoders == {"image": "me/vit", "wrist": {"kind": "series", "num_channels": 3}}
    assert recipe.freeze == ["image"] and recipe.cache_encoder_outputs
    assert recipe.lora == {"r": 8, "target_modules": ["q_proj", "v_proj"]}
    argv = [path, "--encoders", '{"audio": "me/ast"}', "--freeze", "audio", "image", "--lora", '{"r": 2}']
    recipe, _ = parse_recipe(argv)
    assert (recipe.encoders, recipe.freeze, recipe.lora) == ({"audio": "me/ast"}, ["audio", "image"], {"r": 2})
    recipe, _ = parse_recipe(["--output_dir", "out"])
    assert (recipe.encoders, recipe.freeze, recipe.lora) == (None, [], None)


def test_without_a_recipe():
    recipe, arguments = parse_recipe(["--output_dir", "out", "--model_overrides", '{"decoder": {"dropout": 0.1}}'])
    assert recipe.model_overrides == {"decoder": {"dropout": 0.1}} and recipe.inputs == {}
    assert recipe.model == "configuration/tiny" and recipe.eval_split == "validation" and arguments.output_dir == "out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "has the key `learning_rat`, which is no flag. Did you mean `learning_rate`?"),
        ("xyzzy: 1", "has the key `xyzzy`, which is no flag.$"),
        ("- a\n- b", "is not a mapping"),
        ("", "is not a mapping"),
        ("a: [1", "is not YAML"),
        ("questions: what", "is not JSON"),
        ("questions: '[1]'", "is not a JSON object"),
        ("inputs: [photo]", "'photo' is not of the form modality=value"),
    ],
)
def test_recipes_that_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        parse_recipe([write(tmp_path / "recipe.yaml", text)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--inputs", "photo"], "'photo' is not of the form modality=value"),
        (["--inputs", "=photo"], "'=photo' is not of the form modality=value"),
        (["--questions", "{what"], "is not JSON"),
        (["--learn_rate", "1"], "--learn_rate"),
        (["--remove_unused_columns", "true"], "would remove the columns"),
    ],
)
def test_command_lines_that_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--output_dir", "out", *argv])


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"train_split": "training"}, ValueError, "has no split 'training'; it has train, validation"),
        ({"eval_split": "dev"}, ValueError, "has no split 'dev'"),
        ({"model": "/nowhere/model"}, OSError, "nowhere"),
        ({"inputs": ["picture=picture"]}, ValueError, "`picture` is not a modality of the processor"),
        ({"inputs": ["image=photo"]}, ValueError, "photo"),
        ({"augmentation": {"smell": {}}}, ValueError, "names the modality 'smell'"),
        ({"resume_from_checkpoint": "last"}, ValueError, "there is no checkpoint in"),
        ({"learning_rates": {"decoder.layer": 1e-3, "nose": 1e-3}}, ValueError, "'nose'"),
        ({"model_overrides": {"d_modle": 3}}, ValueError, "d_modle"),
        ({"model_overrides": {"d_model": 30}}, ValueError, "`model_overrides` make no config: .*d_model=30"),
        ({"max_lengths": ["image=3"]}, ValueError, "`max_lengths` has 'image', whose kind 'image' has no length"),
        ({"max_lengths": ["text=0"]}, ValueError, "has `max_length=0`; expected an integer"),
    ],
)
def test_what_the_script_refuses(folder, tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        run(["train", *argv_of(folder, tmp_path, **flags)])


def test_going_on_without_an_output_folder(folder, tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint in .*new$"):
        run(["train", *argv_of(folder, tmp_path / "new", resume_from_checkpoint="last")])


@pytest.mark.parametrize("flags", [{"label_smoothing_factor": 0.1}, {"predict_with_generate": False}])
def test_flags_that_change_what_the_trainer_computes(folder, tmp_path, flags):
    trainer = train(folder, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2, **flags)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses and all(np.isfinite(losses))
    has_answers = any("eval_exact_match" in entry for entry in trainer.state.log_history)
    assert has_answers == flags.get("predict_with_generate", True)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        parse_recipe([str(tmp_path / "none.yaml")])
    argv = ["--output_dir", str(tmp_path), "--target", "name"]
    with pytest.raises(ValueError, match="`dataset` is missing"):
        run(["train", *argv])
    with pytest.raises(OSError, match="nothing_here"):
        run(["train", *argv, "--dataset", str(tmp_path / "nothing_here")])


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["train", "--help"])
    output = capsys.readouterr().out
    assert stopped.value.code == 0
    # The examples keep their lines, and each flag has a word of help.
    assert "\n    crossfuse train emoji --learning_rate 5e-4\n" in output
    assert "accelerate launch" in output and "Columns of the modalities" in output


# What is learnt from the rows


def test_tokenizer_texts(folder):
    recipe, _ = parse_recipe(argv_of(folder, "out", questions={"in French": "names.fr", "note": "sensors.note"}))
    texts = list(recipe_texts(recipe, make_dataset()))
    assert texts[:2] == ["in French", "note"]
    assert {*NAMES, *(name[::-1] for name in NAMES), "starts with r", "still"} <= set(texts)


@pytest.mark.parametrize(("dropout", "times"), [(0.0, 1), (0.5, 2), (0.8, 8), (1.0, 200)])
def test_the_target_comes_as_often_as_it_is_asked_for(folder, dropout, times):
    questions = {"in French": "names.fr", "note": "sensors.note"}
    argv = argv_of(folder, "out", questions=questions, question_dropout=dropout)
    recipe, _ = parse_recipe(argv)
    texts = list(recipe_texts(recipe, make_dataset()))
    assert texts.count(NAMES[0]) == times and texts.count(NAMES[0][::-1]) == 1


def test_a_column_whose_name_has_a_dot(folder):
    recipe, _ = parse_recipe(argv_of(folder, "out", inputs=["image=picture"], target="name.en"))
    texts = list(recipe_texts(recipe, make_dataset().rename_column("name", "name.en")))
    assert texts == NAMES


def test_json_data_and_text_alone(tmp_path, folder):
    (tmp_path / "data").mkdir()
    rows = [{"say": f"{name} please", "name": name} for name in NAMES]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = {"dataset": tmp_path / "data", "inputs": ["text=say"], "eval_split": "", "max_steps": 1}
    for cached in (False, True):
        trainer = train(folder, tmp_path / "out", cache_inputs=cached, **flags)
        assert np.isfinite(log_of(trainer, "loss")).all() and not log_of(trainer, "eval_loss")


# From a data set to a saved model


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return train(folder, tmp_path_factory.mktemp("trained"), max_steps=40, learning_rate=1e-2)


def test_loss_falls(trained):
    losses = log_of(trained, "loss")
    assert len(losses) == 40 and np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])
    assert log_of(trained, "eval_exact_match")[-1] >= 0


def test_nothing_that_is_saved_is_a_pickle(trained):
    names = [path.name for path in Path(trained.args.output_dir).iterdir()]
    assert "model.safetensors" in names and not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]


def test_output_reloads(trained, folder):
    output = Path(trained.args.output_dir)
    expected = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    assert expected <= {path.name for path in output.iterdir()}
    assert "exact" in (output / "README.md").read_text().lower()
    assert not list(output.rglob("*model*.bin"))
    processor = AutoProcessor.from_pretrained(output)
    model = AutoModelForSeq2SeqLM.from_pretrained(output).eval()
    assert_equal_weights(model.state_dict(), trained.model.state_dict())
    collator = CrossFuseDataCollator(processor, {"image": "picture", "audio": "speech", "wrist": "sensors.wrist"})
    batch, before = collator(make_rows()), trained.eval_collator(make_rows())
    assert torch.equal(batch["wrist_values"], before["wrist_values"])
    answers = [part.eval().generate(**batch, max_new_tokens=6) for part in (model, trained.model)]
    assert torch.equal(*answers)
    assert len(processor.batch_decode(answers[0], skip_special_tokens=True)) == len(NAMES)
    assert model.generation_config.max_length == 8


def test_pushing_what_was_trained(folder, tmp_path, hub):
    """With the card of the run and the code, in the last commit at the latest."""
    train(folder, tmp_path / "fused", max_steps=1, push_to_hub=True, hub_model_id="me/fused")
    files = hub.repositories["me/fused"].files()
    assert {"config.json", "model.safetensors", "processor_config.json", "modeling_crossfuse.py"} <= files.keys()
    card = ModelCard(files["README.md"].decode())
    assert {result.metric_type for result in card.data.eval_results} >= {"exact_match"}
    assert "| `learning_rate` |" in card.text and "| time of training |" in card.text
    assert 'from_pretrained("me/fused")' in card.text
    assert files["README.md"] == (tmp_path / "fused" / "README.md").read_bytes()


def test_series_are_normalised(trained):
    values = np.concatenate([row["sensors"]["wrist"] for row in make_rows()])
    settings = AutoProcessor.from_pretrained(trained.args.output_dir).modalities["wrist"]
    np.testing.assert_allclose(settings["mean"], values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(settings["std"], values.std(0), rtol=1e-5)


def test_fine_tuning_starts_from_what_was_saved(trained, folder, tmp_path):
    flags = {"model": trained.args.output_dir, "max_steps": 1, "vocab_size": 9999}
    tuned = train(folder, tmp_path, learning_rate=0, weight_decay=0, **flags)
    assert_equal_weights(tuned.model.state_dict(), trained.model.state_dict())
    assert tuned.processing_class.tokenizer.get_vocab() == trained.processing_class.tokenizer.get_vocab()


def test_an_override_of_the_config(folder, tmp_path):
    overrides = {"label_smoothing": 0.1, "decoder": {"dropout": 0.1}}
    train(folder, tmp_path, model_overrides=overrides, max_steps=1, eval_split="")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["label_smoothing"] == 0.1 and saved["decoder"]["dropout"] == 0.1


def test_a_modality_more(trained, folder, tmp_path):
    """It begins at random, with a processor of its own; the others keep what they learned."""
    motion = {"kind": "series", "num_channels": 3}
    flags = {"model": trained.args.output_dir, "model_overrides": {"modalities": {"motion": motion}}}
    inputs = ["image=picture", "wrist=sensors.wrist", "motion=sensors.wrist"]
    more = train(folder, tmp_path, learning_rate=0, weight_decay=0, max_steps=1, inputs=inputs, **flags)
    names = list(trained.model.config.modalities)
    assert list(more.model.config.modalities) == list(more.processing_class.modalities) == [*names, "motion"]
    weights = more.model.state_dict()
    assert_equal_weights({name: weights[name] for name in trained.model.state_dict()}, trained.model.state_dict())
    settings = more.processing_class.modalities
    assert settings["motion"]["mean"] == pytest.approx(settings["wrist"]["mean"])


# Inputs in memory


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("questions", [None, {"in French": "names.fr", "note": "sensors.note"}])
def test_cached_inputs_give_the_same_batches(folder, complete, questions):
    inputs = {"image": "picture", "audio": "speech", "wrist": "sensors.wrist"}
    inputs |= {} if questions else {"text": "hint"}
    rows = make_dataset(complete)
    if questions:  # a row with text alone has nothing left
        rows = rows.select(range(7))
    recipe, _ = parse_recipe(argv_of(folder, "out"))
    _, processor = build_model(recipe, make_dataset())
    settings = {"inputs": inputs, "target": "name", "questions": questions, "question_dropout": 0.3, "seed": 5}
    settings |= {} if questions else {"question_dropout": 0.0}
    cached = CachedInputs(rows, processor, inputs)
    assert len(cached) == len(rows)
    collators = CrossFuseDataCollator(processor, **settings), CachedInputsCollator(processor, **settings)
    names = tiny_config("text", "image", "audio", "wrist").modalities
    for chosen in (range(len(rows)), [0, 1, 2], [5, 6]):
        expected = collators[0]([rows[index] for index in chosen])
        batch = collators[1]([cached[index] for index in chosen])
        assert set(batch) == set(expected)
        assert all(batch[key].shape == expected[key].shape for key in batch if key != "image_mask")
        assert torch.equal(batch["modality_mask"], expected["modality_mask"])
        assert torch.equal(batch["labels"], expected["labels"])
        for name in names:
            if names.value_name(name) not in batch:
                continue
            values, masks = (
                [part[key] for part in (batch, expected)] for key in (names.value_name(name), names.mask_name(name))
            )
            assert torch.equal(*masks), name
            kept = masks[0].bool()
            if name == "audio":
                values = [value.transpose(1, 2) for value in values]
            if name == "image":
                kept = kept[:, 0]
            assert torch.equal(values[0][kept], values[1][kept]), name


def test_cached_inputs_train_the_same(folder, tmp_path):
    flags = {"dataset": folder / "patchy", "max_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    runs = [train(folder, tmp_path / str(cached), cache_inputs=cached, **flags) for cached in (False, True)]
    assert_equal_weights(*(run.model.state_dict() for run in runs), atol=1e-5, rtol=1e-4)
    for key in ("loss", "eval_loss", "eval_exact_match", "eval_chrf"):
        values = [log_of(run, key) for run in runs]
        assert values[0] and values[0] == pytest.approx(values[1], abs=1e-3), key


# Encoders of transformers, and freezing


def recipe_of(folder: Path, **flags):
    return parse_recipe(argv_of(folder, "out", **flags))[0]


def test_a_model_of_encoders(folder, encoders):
    wrist = {"kind": "series", "num_channels": 3, "patch_length": 2}
    added = {"ankle": wrist, "note": {"kind": "text", "num_hidden_layers": 2}}
    flags = {"encoders": {**encoders, **added}, "inputs": [*INPUTS, "ankle=sensors.wrist", "note=sensors.note"]}
    overrides = {"decoder": {"dropout": 0.1}, "fusion": {"type": "latent"}, "label_smoothing": 0.2}
    recipe = recipe_of(folder, freeze=["text", "ankle"], model_overrides=overrides, answer_classifier=True, **flags)
    model, processor = build_model(recipe, make_dataset(), number_labels(recipe, make_dataset()))
    parts = model.config.modalities
    assert list(parts) == ["text", "image", "audio", "wrist", "ankle", "note"] == list(processor.modalities)
    assert (parts["text"].architecture, parts["image"].architecture) == ("BertModel", "ViTModel")
    assert parts["audio"].num_mel_bins == 6 and parts["ankle"].patch_length == 2
    assert [name for name in parts if parts[name].frozen] == ["text", "ankle"]
    assert model.config.decoder.dropout == 0.1 and model.config.fusion.type == "latent"
    assert (model.config.d_model, model.config.num_answers, model.config.label_smoothing) == (32, 8, 0.2)
    # Texts keep their encoder's tokens, and answers have some of their own.
    assert parts["text"].vocab_size == 300 and model.config.vocab_size == len(processor.tokenizer) != 270
    assert len(processor.text_tokenizer) <= 270
    assert parts["note"].vocab_size == len(processor.tokenizer) and not hasattr(processor, "note_tokenizer")
    bert = BertModel.from_pretrained(encoders["text"], add_pooling_layer=False)
    assert_equal_weights(model.get_encoder().encoders["text"].model.state_dict(), bert.state_dict())
    assert all(processor.modalities[name]["mean"] for name in ("wrist", "ankle"))


def test_a_config_with_a_wrapped_encoder(folder, encoders, tmp_path):
    recipe = recipe_of(folder, encoders=encoders)
    build_model(recipe, make_dataset())[0].config.save_pretrained(tmp_path)
    model, processor = build_model(recipe_of(folder, model=tmp_path), make_dataset())
    assert model.config.modalities["image"].architecture == "ViTModel"
    assert model.config.modalities["text"].vocab_size == 300
    collator = CrossFuseDataCollator(processor, {"image": "picture", "text": "hint"}, target="name")
    assert model(**collator(make_rows())).loss.isfinite()


def test_training_a_model_of_encoders(folder, encoders, tmp_path):
    before = BertModel.from_pretrained(encoders["text"]).state_dict()
    flags = {"dataset": folder / "patchy", "encoders": encoders, "learning_rate": 1e-2, "weight_decay": 0.1}
    train(folder, tmp_path, freeze=["text"], attn_implementation="eager", **flags)
    model, processor = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    text, image = (model.get_encoder().encoders[name].model for name in ("text", "image"))
    assert_equal_weights(text.state_dict(), {key: before[key] for key in text.state_dict()})
    assert not torch.equal(image.layernorm.weight, ViTModel.from_pretrained(encoders["image"]).layernorm.weight)
    assert processor(text="starts with r", return_tensors="pt")["input_ids"].max() < 300


def test_freezing_what_was_trained_before(trained, folder, tmp_path):
    flags = {"model": trained.args.output_dir, "max_steps": 2, "freeze": "image", "eval_split": ""}
    tuned = train(folder, tmp_path, **flags)
    for name, weight in tuned.model.state_dict().items():
        frozen = name.startswith("model.encoder.encoders.image.")
        assert torch.equal(weight, trained.model.state_dict()[name]) or not frozen, name
    assert json.loads((tmp_path / "config.json").read_text())["modalities"]["image"]["frozen"]
    # It stays frozen, as the config says.
    again = build_model(recipe_of(folder, model=tmp_path), make_dataset())[0]
    assert not any(parameter.requires_grad for parameter in again.get_encoder().encoders["image"].parameters())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"freeze": ["nose"]}, "'nose' is no modality of this model"),
        ({"encoders": {"image": {"kind": "image", "patch_sise": 4}}}, "patch_sise"),
        ({"encoders": "[]"}, "`encoders='\\[\\]'` is not a JSON object"),
        ({"lora": {"target_modules": ["q_proj"], "rank": 3}}, "rank"),
        ({"lora": {"target_modules": ["nose"]}}, "nose"),
        ({"lora": {"target_modules": ["q_proj"]}, "answer_classifier": True}, "`answer_classifier` is new"),
    ],
)
def test_encoders_and_adapters_that_are_refused(folder, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(["train", *argv_of(folder, tmp_path, **flags)])


def test_encoders_for_a_model_that_has_weights(trained, folder, encoders):
    with pytest.raises(ValueError, match=r"`encoders` make a new model, and `model=.*` has weights already"):
        build_model(recipe_of(folder, model=trained.args.output_dir, encoders=encoders), make_dataset())


# LoRA

LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": True}


def wrapped_model(fusion: str = "joint") -> CrossFuseForConditionalGeneration:
    """A text encoder of transformers, frozen, and a built-in one for images; the same weights on every call."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    settings = {"d_model": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "initializer_range": 0.2}
    return CrossFuseForConditionalGeneration.from_encoders(
        {"text": BertConfig(vocab_size=40, **sizes), "image": {"image_size": 8, "patch_size": 4}},
        decoder={"vocab_size": 50},
        fusion={"type": fusion, "num_layers": 1},
        freeze=("text",),
        **settings,
    ).eval()


@pytest.mark.parametrize(
    ("names", "places", "task_type"),
    [
        (["q_proj", "k_proj", "v_proj", "o_proj"], ["encoders.image", "encoder.fusion", "decoder"], "SEQ_2_SEQ_LM"),
        (["gate_proj", "up_proj", "down_proj"], ["encoders.image", "encoder.fusion", "decoder"], None),
        (["query", "value"], ["encoders.text"], "SEQ_2_SEQ_LM"),
        ("all-linear", ["encoders.text", "encoders.image", "encoder.fusion", "decoder"], None),
        (r".*decoder\..*cross_attn\.(q|v)_proj", ["decoder"], None),
    ],
)
def test_adapters_train_alone(tmp_path, names, places, task_type):
    peft = pytest.importorskip("peft")
    model = wrapped_model()
    inputs, labels = tiny_inputs(model.config), tiny_labels()
    settings = {"r": 4, "target_modules": names, "task_type": task_type}
    with_lora = add_lora(model, settings)
    before = {name: parameter.clone() for name, parameter in with_lora.named_parameters()}
    trained = {name for name, parameter in with_lora.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    assert all(any(f".{place}." in name for name in trained) for place in places)
    assert all(any(f".{place}." in name for place in places) for name in trained)
    optimizer = torch.optim.SGD([p for p in with_lora.parameters() if p.requires_grad], lr=1.0)
    with_lora.train()
    for _ in range(3):
        optimizer.zero_grad()
        with_lora(**inputs, labels=labels).loss.backward()
        optimizer.step()
    assert {name for name, p in with_lora.named_parameters() if p.grad is not None} == trained
    changed = {name for name, parameter in with_lora.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trained
    # On a fresh base, bit for bit
    with_lora.eval().save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(wrapped_model(), tmp_path / "adapter").eval()
    logits = with_lora(**inputs, labels=labels).logits
    assert not torch.equal(logits, wrapped_model()(**inputs, labels=labels).logits)
    assert torch.equal(loaded(**inputs, labels=labels).logits, logits)
    answers = with_lora.generate(**inputs, max_new_tokens=5)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=5), answers)
    # In the weights themselves
    merged = with_lora.merge_and_unload()
    assert merged is model
    assert_same(merged(**inputs, labels=labels).logits, logits)
    merged.save_pretrained(tmp_path / "merged")
    plain = CrossFuseForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert set(plain.state_dict()) == set(wrapped_model().state_dict())
    assert plain.config.modalities["text"].frozen
    assert_same(plain(**inputs, labels=labels).logits, logits)
    assert torch.equal(plain.generate(**inputs, max_new_tokens=5), answers)


@pytest.mark.parametrize("whole", [["lm_head"], ["decoder", "lm_head"], ["modality_embeddings", "image"]])
def test_modules_that_train_as_a_whole(tmp_path, whole):
    """Tied embeddings among them: what is merged is no longer tied, and is loaded as it was saved."""
    peft = pytest.importorskip("peft")
    model = wrapped_model()
    inputs, labels = tiny_inputs(model.config), tiny_labels()
    with_lora = add_lora(model, {"r": 4, "target_modules": ["q_proj"], "modules_to_save": whole})
    with torch.no_grad():
        for parameter in with_lora.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    logits = with_lora.eval()(**inputs, labels=labels).logits
    with_lora.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(wrapped_model(), tmp_path / "adapter").eval()
    assert torch.equal(loaded(**inputs, labels=labels).logits, logits)
    with_lora.merge_and_unload().save_pretrained(tmp_path / "merged")
    plain = CrossFuseForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert_same(plain(**inputs, labels=labels).logits, logits)


def test_learning_rates_of_adapters(tmp_path):
    pytest.importorskip("peft")
    rates = {"image": 3e-3, "text": 4e-3, "decoder": 2e-3, "encoder.encoders.image.layers": 5e-3}
    trainer = make_trainer(tmp_path, learning_rates=rates, model=add_lora(wrapped_model(), {**LORA, "r": 2}))
    groups = trainer.create_optimizer().param_groups
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            fitting = [rate for part, rate in (("encoders.image", 5e-3), (".decoder", 2e-3)) if part in name]
            assert found.pop(id(parameter)) == (fitting or [1e-2])[0], name
    assert not found


@pytest.mark.parametrize("ema_decay", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_training_adapters(trained, folder, tmp_path, ema_decay):
    """With checkpoints, from which it goes on; the output is a plain model, and an adapter for the old one."""
    peft = pytest.importorskip("peft")
    base = trained.args.output_dir
    flags = {"model": base, "lora": LORA, "target": "names.fr", "learning_rate": 3e-2, "max_steps": 4}
    flags |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    flags |= {} if ema_decay is None else {"ema_decay": ema_decay}
    whole = train(folder, tmp_path / "whole", **flags)
    assert len(log_of(whole, "eval_exact_match")) == 3
    assert not (tmp_path / "whole" / "checkpoint-2" / "model.safetensors").exists()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = train(folder, tmp_path / "resumed", resume_from_checkpoint=checkpoint, **flags)
    assert log_of(resumed, "loss")[-2:] == log_of(whole, "loss")[-2:]
    assert_equal_weights(*(load_file(tmp_path / run / "model.safetensors") for run in ("resumed", "whole")))
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "whole").eval()
    old = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    with_lora = peft.PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), tmp_path / "whole/adapter")
    batch = whole.eval_collator(make_rows())
    logits = [part.eval()(**batch).logits for part in (model, with_lora, old)]
    assert_same(logits[0], logits[1], atol=1e-4)
    assert (logits[0] - logits[2]).abs().max() > 1e-2
    assert type(whole.model) is CrossFuseForConditionalGeneration
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "q_proj" in card and "names.fr" in card


def test_adapters_with_the_label_smoothing_of_the_trainer(trained, folder, tmp_path):
    pytest.importorskip("peft")
    flags = {"model": trained.args.output_dir, "label_smoothing_factor": 0.1, "predict_with_generate": False}
    trainer = train(folder, tmp_path, lora={**LORA, "task_type": "SEQ_2_SEQ_LM"}, max_steps=2, **flags)
    assert np.isfinite([*log_of(trainer, "loss"), *log_of(trainer, "eval_loss")]).all()


def test_the_best_adapter_is_saved(trained, folder, tmp_path):
    pytest.importorskip("peft")
    flags = {"model": trained.args.output_dir, "lora": LORA, "load_best_model_at_end": True, "max_steps": 2}
    flags |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    # Steps this large make everything worse: the first is the best.
    trainer = train(folder, tmp_path, learning_rate=3.0, lr_scheduler_type="constant", **flags)
    losses = log_of(trainer, "eval_loss")
    assert losses[-1] == pytest.approx(min(losses[:-1]), abs=1e-5) and min(losses[:-1]) < losses[-2]


def test_an_answer_classifier_with_adapters(folder, encoders, tmp_path):
    """New parts train as a whole beside the adapters; the classifier is no part of what is saved."""
    pytest.importorskip("peft")
    parts = ["fusion", "decoder", "lm_head", "modality_embeddings", "audio", "wrist", "answer_head"]
    lora = {**LORA, "target_modules": ["query", "value"], "modules_to_save": parts}
    flags = {"encoders": encoders, "freeze": ["text", "image"], "lora": lora, "answer_classifier": True}
    trainer = train(folder, tmp_path, learning_rate=1e-2, max_steps=20, learning_rates={"text": 1e-3}, **flags)
    losses = log_of(trainer, "loss")
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    names = {name for file in tmp_path.rglob("*.safetensors") for name in load_file(file)}
    assert names and not any("answer_head" in name for name in names)
    assert_equal_weights(
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path).state_dict(), trainer.model.state_dict(), atol=1e-7
    )


def test_lora_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"`lora` needs peft; install it with: pip install .crossfuse\[peft\]"):
        add_lora(wrapped_model(), LORA)


# Going on from a checkpoint


def test_resuming_changes_nothing(folder, tmp_path):
    flags = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "ema_decay": 0.5, "eval_split": ""}
    flags |= {
        "learning_rate": 3e-3,
        "model_overrides": {"dropout": 0.2, "modalities": {"image": {"modality_dropout": 0.5}}},
    }
    whole = train(folder, tmp_path / "whole", **flags)
    checkpoint = tmp_path / "whole" / "checkpoint-3"  # in the middle of an epoch
    resumed = train(folder, tmp_path / "resumed", resume_from_checkpoint=checkpoint, **flags)
    assert resumed.state.global_step == 5 and not (tmp_path / "resumed" / "checkpoint-3").exists()
    assert_equal_weights(resumed.model.state_dict(), whole.model.state_dict())
    for file in ("model.safetensors", "checkpoint-5/model.safetensors", "checkpoint-5/averages.safetensors"):
        assert_equal_weights(*(load_file(tmp_path / run / file) for run in ("resumed", "whole")))
    # The newest one of the output folder
    again = train(folder, tmp_path / "whole", resume_from_checkpoint="last", **{**flags, "max_steps": 6})
    assert again.state.global_step == 6 and len(log_of(again, "loss")) == 6


@pytest.mark.slow
def test_resuming_draws_the_same_questions_and_augmentation(folder, tmp_path):
    """At the start of an epoch, with workers, whose seeds follow from the Trainer's random state."""
    flags = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dataloader_num_workers": 1, "eval_split": ""}
    flags |= {"inputs": INPUTS[:3], "questions": {"in French": "names.fr", "note": "sensors.note"}}
    flags |= {"question_dropout": 0.5, "augmentation": {"audio": {}, "image": [{"RandomAffine": {"degrees": 15}}]}}
    whole = train(folder, tmp_path / "whole", **flags)
    resumed = train(folder, tmp_path / "resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2", **flags)
    assert_equal_weights(resumed.model.state_dict(), whole.model.state_dict())
    assert log_of(resumed, "loss") == log_of(whole, "loss")


# The Trainer's additions


class Samples(torch.utils.data.Dataset):
    """Samples of `tiny_inputs` with labels of different lengths."""

    def __init__(self, config, size: int):
        inputs = tiny_inputs(config, batch_size=size)
        labels = tiny_labels(batch_size=size, length=6)
        labels[torch.arange(6)[None] >= 1 + torch.arange(size)[:, None] % 6] = -100
        self.rows = [
            {**{key: value[row] for key, value in inputs.items()}, "labels": labels[row]} for row in range(size)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def make_trainer(
    tmp_path, config=None, size=4, callbacks=(), learning_rates=None, ema_decay=None, model=None, **arguments
):
    config = model.config if model is not None else config or tiny_config("text")
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    samples = Samples(config, size)
    return CrossFuseTrainer(
        model=tiny_model(config) if model is None else model,
        args=Seq2SeqTrainingArguments(str(tmp_path), **{**defaults, **arguments}),
        train_dataset=samples,
        eval_dataset=samples,
        callbacks=list(callbacks),
        learning_rates=learning_rates,
        ema_decay=ema_decay,
    )


def test_samples_of_one_length_share_a_batch(tmp_path):
    trainer = make_trainer(
        tmp_path, size=600, per_device_train_batch_size=10, train_sampling_strategy="group_by_length"
    )
    padding = [(batch["labels"] == -100).sum(1) for batch in trainer.get_train_dataloader()]
    assert sorted(torch.cat(padding).tolist()) == sorted([0, 1, 2, 3, 4, 5] * 100)
    assert sum(rows.unique().numel() for rows in padding) < 2 * 60, "batches are to be of about one length"


def test_lengths_of_a_column_are_taken(tmp_path):
    trainer = make_trainer(tmp_path, train_sampling_strategy="group_by_length")
    trainer.train_dataset = datasets.Dataset.from_dict({"length": [5, 1, 3], "name": ["a", "b", "c"]})
    assert list(trainer._get_train_sampler().lengths) == [5, 1, 3]


def test_length_of_a_batch():
    batch = {
        "input_ids": torch.ones(2, 4),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
        "modality_mask": torch.ones(2, 1),
        "labels": torch.tensor([[5, 6, -100], [5, -100, -100]]),
    }
    assert batch_length(batch) == 4 + 3


def test_learning_rates_of_parts(tmp_path):
    rates = {"encoder": "2e-3", "encoder.encoders.image.stem": 3e-3, "lm_head": 4e-3}
    config = tiny_config(
        "text", "image", tie_word_embeddings=False, decoder={"vocab_size": 50, "norm_type": "layernorm"}
    )
    trainer = make_trainer(tmp_path, config, learning_rates=rates, weight_decay=0.1, lr_scheduler_type="linear")
    optimizer = trainer.create_optimizer()
    settings = {
        id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trainer.model.parameters()))
    for name, parameter in trainer.model.named_parameters():
        rate = 1e-2
        if name.startswith("model.encoder."):
            rate = 3e-3 if name.startswith("model.encoder.encoders.image.stem") else 2e-3
        elif name.startswith("lm_head"):
            rate = 4e-3
        # Of everything, only norms and biases are vectors.
        assert settings[id(parameter)] == (rate, 0.1 if parameter.dim() > 1 else 0.0), name
    trainer.create_scheduler(num_training_steps=10, optimizer=optimizer)
    for _ in range(5):
        trainer.lr_scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2 / 2, 2e-3 / 2, 3e-3 / 2, 4e-3 / 2}


def test_the_name_of_a_modality_stands_for_its_encoder(tmp_path):
    left, right = ({"kind": "image", "image_size": 8, "patch_size": 4} for _ in range(2))
    config = tiny_config(modalities={"left": left, "left_eye": right, "lm_head": {"kind": "text", "vocab_size": 40}})
    trainer = make_trainer(tmp_path, config, learning_rates={"left": 2e-3, "lm_head": 3e-3})
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {"model.encoder.encoders.left.": 2e-3, "model.encoder.encoders.lm_head.": 3e-3}
    for name, parameter in trainer.model.named_parameters():
        fitting = [rate for start, rate in expected.items() if name.startswith(start)]
        assert rates[id(parameter)] == (fitting or [1e-2])[0], name


def test_frozen_parameters_are_left_out(tmp_path):
    trainer = make_trainer(tmp_path, learning_rates={"decoder": 1e-3})
    trainer.model.model.encoder.requires_grad_(False)
    frozen = {id(p) for p in trainer.model.model.encoder.parameters()}
    assert not frozen & {id(p) for group in trainer.create_optimizer().param_groups for p in group["params"]}


def test_an_unknown_part(tmp_path):
    with pytest.raises(ValueError, match="nose', with which no parameter's name starts"):
        make_trainer(tmp_path, learning_rates={"encoder.encoders.nose": 1e-3}).create_optimizer()


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({key: value.clone() for key, value in model.state_dict().items()})

    def average(self, decay: float) -> dict[str, torch.Tensor]:
        average = self.steps[0]
        for weights in self.steps[1:]:
            average = {key: decay * average[key] + (1 - decay) * value for key, value in weights.items()}
        return average


@pytest.mark.parametrize("accumulation", [1, 2])
def test_averages_are_evaluated_and_saved(tmp_path, accumulation):
    weights = Weights()
    arguments = {"callbacks": [weights], "ema_decay": 0.6, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tmp_path, max_steps=4, **arguments)
    trainer.train()
    average, own = weights.average(0.6), weights.steps[-1]
    assert not torch.equal(average["lm_head.weight"], own["lm_head.weight"])
    seen = []
    trainer.model.register_forward_pre_hook(lambda model, args: seen.append(model.lm_head.weight.clone()))
    evaluated = trainer.evaluate()["eval_loss"]
    assert_same(seen[0], average["lm_head.weight"])
    assert_equal_weights(trainer.model.state_dict(), own)
    trainer.save_model()
    assert_equal_weights(trainer.model.state_dict(), own)
    saved = type(trainer.model).from_pretrained(tmp_path)
    assert_equal_weights(saved.state_dict(), average, atol=1e-6)
    trainer.model.load_state_dict(average)
    trainer.averages = None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated, abs=1e-5)


def test_averages_come_back_if_evaluation_fails(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.6)
    trainer.train()
    own = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), trainer.averaged_weights():
        assert not torch.equal(trainer.model.lm_head.weight, own["lm_head.weight"])
        raise RuntimeError("stop")
    assert_equal_weights(trainer.model.state_dict(), own)


def test_the_best_averages_are_saved(tmp_path):
    arguments = {"ema_decay": 0.5, "load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    # Steps this large make everything worse: the first is the best.
    trainer = make_trainer(tmp_path, max_steps=3, learning_rate=5.0, eval_steps=1, save_steps=1, **arguments)
    trainer.train()
    losses = log_of(trainer, "eval_loss")
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_no_averages_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.5)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_collator_of_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    training = trainer.data_collator

    def evaluation(rows):
        return training(rows)

    trainer.eval_collator = evaluation
    assert trainer.get_train_dataloader().collate_fn is training
    assert trainer.get_eval_dataloader().collate_fn is evaluation
    assert trainer.get_test_dataloader(trainer.eval_dataset).collate_fn is evaluation
    assert trainer.data_collator is training


def test_the_trainer_names_rows(tmp_path):
    trainer = make_trainer(tmp_path, train_sampling_strategy="group_by_length")
    rows = datasets.Dataset.from_list([*make_rows(), {**make_rows()[0], "name": None}], features=FEATURES)
    processor = CrossFuseProcessor.from_config(tiny_config("wrist"), tokenizer=train_tokenizer(NAMES, 270))
    trainer.data_collator = trainer.eval_collator = CrossFuseDataCollator(
        processor, {"wrist": "sensors.wrist"}, target="name"
    )
    trainer.train_dataset = rows.add_column("length", list(range(9)))  # without it, lengths are measured
    trainer.eval_dataset = {"clean": rows.select(range(8)), "noisy": rows}
    with pytest.raises(TypeError, match=r"^row 8 of the training data has None in the target"):
        list(trainer.get_train_dataloader())
    for loader, part in [
        (trainer.get_eval_dataloader("noisy"), "the evaluation data 'noisy'"),
        (trainer.get_eval_dataloader(rows), "the evaluation data"),
        (trainer.get_test_dataloader(rows), "the test data"),
    ]:
        with pytest.raises(TypeError, match=f"^row 8 of {part} has None"):
            list(loader)
    assert isinstance(trainer.train_dataset, datasets.Dataset)
    assert isinstance(trainer.eval_dataset["noisy"], datasets.Dataset)


# Rows that can't be read


@pytest.fixture(scope="module")
def damaged(folder) -> Path:
    """Rows of which some have an image, audio, a series, a target or nothing that can be used."""
    (folder / "damaged").mkdir()
    for split, size in (("train", 12), ("validation", 8)):
        rows = [{**row, "speech": None} for row in (make_rows() * 2)[:size]]
        rows[3]["picture"] = {"bytes": b"no image", "path": "photos/three.png"}
        rows[5]["speech"] = {"bytes": b"RIFF", "path": "five.wav"}
        if split == "train":
            rows[6]["sensors"] = {"wrist": [[1.0, 2.0]], "note": "still"}
            rows[8]["name"] = None
            rows[9] |= {"picture": None, "speech": None, "sensors": None, "hint": None}
        damaged = datasets.Dataset.from_list(rows, features=FEATURES)
        damaged.to_parquet(folder / "damaged" / f"{split}-00000-of-00001.parquet")
    return folder / "damaged"


@pytest.mark.parametrize("others", [{}, {"cache_inputs": True, "dataloader_num_workers": 1}])
def test_bad_samples_are_skipped(folder, damaged, tmp_path, others):
    trainer = train(folder, tmp_path, dataset=damaged, on_bad_sample="skip", eval_strategy="steps", **others)
    assert len(trainer.train_dataset) == 7 and len(trainer.eval_dataset) == 6
    lines = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    found = {(line["split"], line["row"]): line["reason"] for line in lines}
    assert list(found) == [*(("train", row) for row in (3, 5, 6, 8, 9)), ("validation", 3), ("validation", 5)]
    assert found["train", 3].startswith("`image` of row 3 (photos/three.png) is not a readable image")
    assert found["train", 5].startswith("`audio` of row 5 (five.wav) is not a readable audio file")
    assert found["train", 6] == "`wrist` of row 6 has shape (1, 2); expected `(steps, 3)`"
    assert "has None in the target column 'name'" in found["train", 8]
    assert "has None in all columns of inputs" in found["train", 9]
    # The statistics of the series are those of the rows that can be read.
    assert trainer.processing_class.modalities["wrist"]["std"] != [1.0] * 3


@pytest.mark.parametrize(
    "others, message",
    [
        ({}, "`wrist` of row 6 of the training data has shape"),
        ({"inputs": INPUTS[:1]}, r"row 8 of the split 'train' has None in the target column"),
        (
            {"inputs": [*INPUTS[:1], "text=names.fr"], "target": "names.fr", "dataloader_num_workers": 1},
            r"`image` of row 3 of the training data \(photos/three.png\) is not a readable image",
        ),
        (
            {"inputs": [*INPUTS[:1], "text=names.fr"], "target": "names.fr", "cache_inputs": True},
            r"`image` of row 3 of the training data \(photos/three.png\) is not a readable image",
        ),
        (
            {
                "inputs": ["audio=speech", "text=names.fr"],
                "target": "names.fr",
                "max_train_samples": 4,
                "eval_strategy": "steps",
            },
            r"`audio` of row 5 of the evaluation data \(five.wav\) is not a readable audio file",
        ),
    ],
)
def test_training_names_the_row(folder, damaged, tmp_path, others, message, capsys):
    with pytest.raises(SystemExit):
        main(["train", *argv_of(folder, tmp_path / "out", dataset=damaged, **others)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error) and error.startswith("crossfuse train: error:"), error


def test_gradient_accumulation_equals_a_big_batch(tmp_path):
    runs = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        arguments = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        config = tiny_config("text", "wrist", label_smoothing=0.1)
        trainer = make_trainer(
            tmp_path, config, max_steps=1, optim="sgd", max_grad_norm=0.0, logging_steps=1, **arguments
        )
        before = trainer.model.lm_head.weight.clone()
        trainer.train()
        assert (trainer.model.lm_head.weight - before).abs().max() > 1e-5
        runs.append(trainer)
    for again in runs[1:]:
        assert_equal_weights(again.model.state_dict(), runs[0].model.state_dict(), atol=1e-6, rtol=1e-4)
        assert log_of(again, "loss") == pytest.approx(log_of(runs[0], "loss"), abs=1e-3)


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("find_unused", [False, True])
def test_two_processes(folder, tmp_path, find_unused):
    """
    Each process meets batches that lack modalities that the other's have. `accelerate launch --cpu` starts only one
    process unless it has MPI: this starts what it starts on several GPUs.
    """
    argv = argv_of(
        folder,
        tmp_path,
        dataset=folder / "patchy",
        per_device_train_batch_size=1,
        per_device_eval_batch_size=2,
        ddp_find_unused_parameters=find_unused,
        use_cpu=True,
        ema_decay=0.5,
        answer_classifier=True,
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(SCRIPT), *argv], capture_output=True, text=True, timeout=1200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    # Four steps of one sample in each process are one epoch.
    assert "'epoch': '1'" in done.stdout
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert (tmp_path / "README.md").exists()


def test_lengths_in_a_recipe(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("max_lengths: {text: 3, audio: 2.5}\n")
    recipe, _ = parse_recipe([str(tmp_path / "recipe.yaml"), "--output_dir", "out"])
    assert recipe.max_lengths == {"text": 3, "audio": 2.5}
    train(folder, tmp_path / "out", max_lengths=["text=3"], max_steps=1, eval_split="")
    processor = CrossFuseProcessor.from_pretrained(tmp_path / "out")
    assert processor.modalities["text"]["max_length"] == 3 and processor.tokenizer.split_special_tokens
