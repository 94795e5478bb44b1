# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Outputs of frozen encoders, computed once: training is the same, and encoders run again only after a change."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertModel

from crossfuse.main import run
from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse.data.caching import (
    TENSORS,
    CachedInputs,
    CachedInputsCollator,
    EncodedInputs,
    frozen_modalities,
)
from modeling_crossfuse.data.collator import CrossFuseDataCollator
from modeling_crossfuse.modeling_crossfuse import CrossFuseMultimodalEncoder
from modeling_crossfuse.processing_crossfuse import CrossFuseProcessor
from modeling_crossfuse.training.building import add_lora, build_model

from .helpers import assert_same, tiny_config, tiny_model
from .test_training import (
    INPUTS,
    NAMES,
    SCRIPT,
    argv_of,
    assert_equal_weights,
    log_of,
    make_dataset,
    train,
    write_data,
    write_encoders,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("caching")
    write_data(folder)
    return folder


@pytest.fixture
def encoders(tmp_path) -> dict[str, str]:
    return write_encoders(tmp_path / "encoders")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The modalities that are encoded, one entry for each time."""
    names, encode = [], CrossFuseMultimodalEncoder.encode_modality

    def recorded(self, name, *args, **kwargs):
        names.append(name)
        return encode(self, name, *args, **kwargs)

    monkeypatch.setattr(CrossFuseMultimodalEncoder, "encode_modality", recorded)
    return names


def flags_of(data: Path, encoders: dict[str, str], **others) -> dict:
    """A training of a series, a built-in encoder, beside two frozen ones, on samples that lack modalities."""
    return {
        "dataset": data / "patchy",
        "encoders": encoders,
        "freeze": ["text", "image"],
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "learning_rate": 1e-2,
        **others,
    }


# The same training


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"cache_inputs": True, "answer_classifier": True},
        pytest.param({"dataloader_num_workers": 1, "answer_classifier": True}, marks=pytest.mark.slow),
    ],
)
def test_training_is_the_same(data, encoders, tmp_path, calls, others):
    runs, encoded = [], []
    for cached in (False, True):
        calls.clear()
        flags = flags_of(data, encoders, cache_encoder_outputs=cached, **others)
        runs.append(train(data, tmp_path / str(cached), **flags))
        encoded.append({name: calls.count(name) for name in ("text", "image", "audio", "wrist")})
    assert_equal_weights(*(run.model.state_dict() for run in runs), atol=1e-5, rtol=1e-4)
    assert len(log_of(runs[0], "loss")) == 6 and len(log_of(runs[0], "eval_loss")) == 3
    for key in ("loss", "eval_loss", "eval_exact_match", "eval_chrf"):
        assert log_of(runs[0], key) == pytest.approx(log_of(runs[1], key), abs=1e-5), key
    # Both splits have the same batch of samples, which is encoded once, before the training.
    assert encoded[1]["text"] == encoded[1]["image"] == 1
    assert encoded[0]["text"] > 10 and encoded[0]["image"] > 10
    assert encoded[1]["audio"] == encoded[0]["audio"] and encoded[1]["wrist"] == encoded[0]["wrist"]
    assert len(list((tmp_path / "True" / "_encoder_outputs").iterdir())) == 1
    assert not (tmp_path / "False" / "_encoder_outputs").exists()


def test_all_modalities_may_be_frozen(data, encoders, tmp_path, calls):
    inputs = {"inputs": [name for name in INPUTS if name.startswith(("text", "image"))], "dataset": data / "data"}
    runs = []
    for cached in (False, True):
        runs.append(
            train(data, tmp_path / str(cached), **flags_of(data, encoders, **inputs, cache_encoder_outputs=cached))
        )
    assert log_of(runs[0], "loss") == pytest.approx(log_of(runs[1], "loss"), abs=1e-5)


def test_questions_are_not_cached(data, tmp_path, calls):
    """A question is drawn anew each time: its modality has no column."""
    flags = {"questions": {"in French": "names.fr"}, "inputs": INPUTS[:3], "freeze": ["text", "image"], "max_steps": 3}
    trainer = train(data, tmp_path, cache_encoder_outputs=True, question_dropout=0.3, eval_split="", **flags)
    assert calls.count("image") == 1 and calls.count("text") >= 2
    assert trainer.train_dataset.names == ["image"]


# When the file is used again


@pytest.mark.slow
def test_the_file_is_used_again(data, encoders, tmp_path, calls):
    flags = flags_of(data, encoders, cache_encoder_outputs=True, eval_split="", eval_strategy="no", max_steps=2)
    folder = tmp_path / "out" / "_encoder_outputs"

    def count(**others) -> tuple[int, int]:
        """How often texts are encoded, and the files there are afterwards."""
        calls.clear()
        train(data, tmp_path / "out", **{**flags, **others})
        return calls.count("text"), len(list(folder.iterdir()))

    assert count() == (1, 1)
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    assert count() == (0, 1)
    # What comes after the encoders changes nothing, nor do the answers.
    assert count(seed=5, max_steps=3, target="names.fr", model_overrides={"dropout": 0.1}) == (0, 1)
    assert file.stat().st_mtime_ns == written
    assert count(max_train_samples=4) == (1, 2)
    assert count(inputs=[*INPUTS[:3], "text=name"]) == (1, 3)
    assert count(freeze=["text"]) == (1, 4)
    bert = BertModel.from_pretrained(encoders["text"])
    with torch.no_grad():
        bert.encoder.layer[0].output.dense.bias[0] += 1e-3
    bert.save_pretrained(encoders["text"])
    assert count() == (1, 5)
    assert count() == (0, 5)


@pytest.fixture
def parts(data, encoders):
    """A model with two frozen encoders, and its processor."""
    flags = {"encoders": encoders, "freeze": ["text", "image"]}
    recipe, _ = parse_recipe(argv_of(data, data / "out", **flags))
    return build_model(recipe, make_dataset())


COLUMNS = {"image": "picture", "wrist": "sensors.wrist", "text": "hint"}


def test_settings_of_the_processor_count(parts, tmp_path, calls):
    model, processor = parts
    processor.tokenizer(["an answer"], padding="longest", truncation=True, max_length=3)
    processor.text_tokenizer(["a text"], padding="longest", truncation=True, max_length=3)
    for expected in (2, 0):
        EncodedInputs(make_dataset(), model, processor, COLUMNS, tmp_path)
        assert len(calls) == expected
        calls.clear()
    processor.modalities["image"]["image_mean"] = [0.4] * 3
    EncodedInputs(make_dataset(), model, processor, COLUMNS, tmp_path)
    assert len(calls) == 2
    processor.modalities["text"]["max_length"] = 3
    EncodedInputs(make_dataset(), model, processor, COLUMNS, tmp_path)
    assert len(calls) == 4 and len(list(tmp_path.glob("*.arrow"))) == 3


@pytest.mark.parametrize(
    "feature",
    [datasets.Value("string"), datasets.Image(), datasets.List(datasets.Image())],
    ids=["path", "image", "list"],
)
def test_files_count_by_what_is_in_them(parts, tmp_path, monkeypatch, calls, feature):
    """Two images of one size and one time of change, under the same relative path."""
    model, processor = parts
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()

    def encode(color: str) -> torch.Tensor:
        Image.new("RGB", (8, 8), color).save("photos/one.png")
        os.utime("photos/one.png", (0, 0))
        value = ["photos/one.png"] if isinstance(feature, datasets.List) else "photos/one.png"
        rows = datasets.Dataset.from_dict({"photo": [value]}, features=datasets.Features({"photo": feature}))
        encoded = EncodedInputs(rows, model, processor, {"image": "photo"}, tmp_path / "cache")
        return encoded[0][TENSORS]["image_hidden_states"]

    red, blue, red_again = (encode(color) for color in ("red", "blue", "red"))
    assert not torch.equal(red, blue) and torch.equal(red, red_again) and calls.count("image") == 2


def test_an_image_folder_counts_by_what_is_in_it(parts, tmp_path, calls):
    model, processor = parts
    states = []
    for color in ("red", "blue"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), color).save(tmp_path / "folder" / "one.png")
        os.utime(tmp_path / "folder" / "one.png", (0, 0))
        rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), split="train")
        encoded = EncodedInputs(rows, model, processor, {"image": "image"}, tmp_path / "cache")
        states.append(encoded[0][TENSORS]["image_hidden_states"])
    assert not torch.equal(*states)


def test_rows_of_the_same_content_share_a_file(parts, tmp_path, calls):
    model, processor = parts
    rows = make_dataset()
    for same in (rows, rows.select(range(8)), rows.map(lambda row: row, load_from_cache_file=False)):
        EncodedInputs(same, model, processor, {"image": "picture"}, tmp_path)
    assert len(calls) == 1
    EncodedInputs(rows.select([1, 0, 2]), model, processor, {"image": "picture"}, tmp_path)
    assert len(calls) == 2


def test_an_error_names_the_row(parts, tmp_path):
    model, processor = parts
    rows = make_dataset().cast_column("picture", datasets.Image(decode=False)).to_list()
    rows[5]["picture"] = {"bytes": b"no image", "path": "five.png"}
    rows = datasets.Dataset.from_list(rows, features=make_dataset().features)
    for part, name in ((None, "row 5"), ("the training data", "row 5 of the training data")):
        with pytest.raises(ValueError, match=rf"^`image` of {name} \(five.png\) is not a readable image"):
            EncodedInputs(rows, model, processor, COLUMNS, tmp_path, batch_size=3, part=part)
    with pytest.raises(ValueError, match=r"^`image` of row 5 \(five.png\) is not a readable image"):
        CachedInputs(rows, processor, COLUMNS)


def test_a_run_that_breaks_off_leaves_nothing(parts, tmp_path, monkeypatch):
    model, processor = parts
    encode = CrossFuseMultimodalEncoder.encode_modality
    calls = []

    def failing(self, name, *args, **kwargs):
        calls.append(name)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return encode(self, name, *args, **kwargs)

    monkeypatch.setattr(CrossFuseMultimodalEncoder, "encode_modality", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        EncodedInputs(make_dataset(), model, processor, COLUMNS, tmp_path / "cache", batch_size=3)
    assert not list((tmp_path / "cache").iterdir())
    encoded = EncodedInputs(make_dataset(), model, processor, COLUMNS, tmp_path / "cache", batch_size=3)
    assert len(calls) == 4 + 6 and len(encoded) == len(NAMES)


# The rows


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_rows_have_what_the_encoders_give(parts, tmp_path, batch_size):
    model, processor = parts
    rows = make_dataset(complete=False)
    encoded = EncodedInputs(rows, model, processor, COLUMNS, tmp_path, batch_size=batch_size)
    assert encoded.names == ["image", "text"] and len(encoded) == len(rows)
    collator = CrossFuseDataCollator(processor, COLUMNS, target="name")
    cached = CachedInputsCollator(processor, COLUMNS, target="name", cached=encoded.names)
    lengths = {"image": 5, "text": 0}
    for index in range(len(rows)):
        sample = encoded[index]
        assert "picture" not in sample and sample["name"] == rows[index]["name"]
        for name in lengths:
            given = f"{name}_hidden_states" in sample[TENSORS]
            assert given == (rows[index][COLUMNS[name]] is not None)
            if given and lengths[name]:
                assert sample[TENSORS][f"{name}_hidden_states"].shape == (1, lengths[name], 32)
    for chosen in (range(len(rows)), [0], [7, 3], [6]):
        batches = [cached([encoded[index] for index in chosen]), collator([rows[index] for index in chosen])]
        assert torch.equal(batches[0]["modality_mask"], batches[1]["modality_mask"])
        with torch.no_grad():
            assert_same(*(model.eval()(**batch).logits for batch in batches))
            answers = [model.generate(**batch, max_new_tokens=5) for batch in batches]
        assert torch.equal(*answers)


def test_several_images_in_one_sample(tmp_path):
    config = tiny_config("image", "text")
    model, processor = tiny_model(config), CrossFuseProcessor.from_config(config)
    model.freeze_modalities("image")
    images = [[Image.new("RGB", (8, 8), name) for name in NAMES[:count]] for count in (2, 1, 3)]
    rows = datasets.Dataset.from_dict(
        {"photos": [*images, None]}, features=datasets.Features({"photos": datasets.List(datasets.Image())})
    )
    encoded = EncodedInputs(rows, model, processor, {"image": "photos"}, tmp_path)
    lengths = [encoded[index][TENSORS].get("image_hidden_states", torch.zeros(1, 0)).shape[1] for index in range(4)]
    assert lengths == [8, 4, 12, 0]
    inputs = {"image": "photos"}
    batch = CachedInputsCollator(processor, inputs, cached=["image"])([encoded[index] for index in range(3)])
    expected = CrossFuseDataCollator(processor, inputs)([rows[index] for index in range(3)])
    start = torch.ones(3, 1, dtype=torch.long)
    with torch.no_grad():
        logits = [model(**tensors, decoder_input_ids=start).logits for tensors in (batch, expected)]
    assert_same(*logits)


def test_columns_that_others_read_stay(parts, tmp_path):
    model, processor = parts
    encoded = EncodedInputs(make_dataset(), model, processor, {"image": "picture", "text": "names.fr"}, tmp_path)
    assert "picture" not in encoded[0] and encoded[0]["names"]["fr"] == NAMES[0][::-1]
    encoded.rows = CachedInputs(encoded.rows, processor, {"wrist": "sensors.wrist"})
    sample = encoded[1]
    assert {"wrist_values", "image_hidden_states", "text_hidden_states", "modality_mask"} <= set(sample[TENSORS])
    # text, image, audio, wrist
    assert sample[TENSORS]["modality_mask"].tolist() == [[1, 1, 0, 1]]
    assert encoded[1][TENSORS]["modality_mask"].tolist() == [[1, 1, 0, 1]]


def test_weights_of_half_precision(parts, tmp_path):
    model, processor = parts
    model.to(torch.bfloat16)
    encoded = EncodedInputs(make_dataset(), model, processor, COLUMNS, tmp_path)
    states = encoded[0][TENSORS]["image_hidden_states"]
    assert states.dtype == torch.float32 and states.isfinite().all()
    batch = CachedInputsCollator(processor, COLUMNS, target="name", cached=encoded.names)([encoded[0]])
    assert model(**batch).loss.isfinite()


# What is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"freeze": ["audio"], "inputs": INPUTS[2:]},
            "`cache_encoder_outputs`: of the modalities .* none has an encoder that training leaves",
        ),
        ({"inputs": INPUTS[1:3]}, r"\(audio, wrist\) none has an encoder"),
        ({"augmentation": {"image": []}}, "`augmentation` has 'image', and `cache_encoder_outputs` encodes it once"),
        ({"inputs": ["picture=picture"]}, "picture"),
        ({"inputs": ["image=photo"]}, "photo"),
    ],
)
def test_what_is_refused(data, encoders, tmp_path, flags, message):
    flags = flags_of(data, encoders, cache_encoder_outputs=True) | flags
    with pytest.raises(ValueError, match=message):
        run(["train", *argv_of(data, tmp_path / "out", **flags)])


def test_an_encoder_with_adapters_is_not_constant(parts):
    pytest.importorskip("peft")
    model, _ = parts
    assert frozen_modalities(model, COLUMNS) == ["image", "text"]
    add_lora(model, {"target_modules": r".*encoders\.text\..*query"})
    assert frozen_modalities(model, COLUMNS) == ["image"]


@pytest.mark.slow
def test_adapters_beside_cached_outputs(data, encoders, tmp_path, calls):
    """The decoder alone has adapters: no encoder runs in training."""
    pytest.importorskip("peft")
    flags = {"encoders": encoders, "freeze": ["text", "image"], "inputs": [INPUTS[0], INPUTS[3]]}
    flags |= {"lora": {"target_modules": r".*decoder.*_proj", "modules_to_save": ["lm_head"]}, "learning_rate": 1e-2}
    runs = [train(data, tmp_path / str(cached), cache_encoder_outputs=cached, **flags) for cached in (False, True)]
    assert_equal_weights(*(run.model.state_dict() for run in runs), atol=1e-5, rtol=1e-4)
    shutil.rmtree(tmp_path / "True" / "adapter")
    calls.clear()
    train(data, tmp_path / "True", cache_encoder_outputs=True, **flags)
    assert not calls and (tmp_path / "True" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_two_processes(data, encoders, tmp_path):
    """The first encodes, the second reads its file; adapters, and the rest, train in both."""
    pytest.importorskip("peft")
    flags = flags_of(data, encoders, cache_encoder_outputs=True, per_device_train_batch_size=2, use_cpu=True)
    flags["lora"] = {"target_modules": ["q_proj"], "modules_to_save": ["wrist", "decoder"]}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(SCRIPT), *argv_of(data, tmp_path / "out", **flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "out" / "_encoder_outputs").iterdir())) == 1  # both splits have the same rows
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert adapter and all(torch.isfinite(value).all() for value in adapter.values())
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_rows_without_a_value_are_cached_as_such():
    """A list of images that are all missing, or a NaN, is no value, as None is not."""
    processor = CrossFuseProcessor.from_config(tiny_config("image", "wrist"))
    images = {"a": [[None], [Image.new("RGB", (8, 8)), None]], "b": [float("nan")] * 2}
    features = datasets.Features({"a": datasets.List(datasets.Image()), "b": datasets.Value("float64")})
    rows = CachedInputs(datasets.Dataset.from_dict(images, features=features), processor, {"image": "a", "wrist": "b"})
    assert rows[0][TENSORS] == {} and rows[1][TENSORS]["modality_mask"].tolist() == [[1, 0]]
