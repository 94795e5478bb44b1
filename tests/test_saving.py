# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: equal bits, shards, the Auto classes, base model and head, and nothing but safetensors."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
)
from transformers.utils import logging as transformers_logging

from modeling_crossfuse import (
    CrossFuseConfig,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseModel,
    CrossFuseProcessor,
)

from .helpers import FUSIONS, MODALITIES, assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


def assert_equal_states(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        assert torch.equal(actual[name], expected[name]), name


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs, labels=tiny_labels()).logits


def names_in_files(folder) -> list[str]:
    names = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names += file.keys()
    return names


SETTINGS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "other layers": {"norm_type": "layernorm", "mlp_type": "gelu", "position_embedding_type": "sinusoidal"},
    "other widths": {"modalities": {name: {**part, "hidden_size": 16} for name, part in MODALITIES.items()}},
    "convolutions": {"modalities": {"image": {**MODALITIES["image"], "stem_type": "conv"}}},
    "answer classifier": {"num_answers": 7},
}


@pytest.mark.parametrize(
    ("settings", "fusion"),
    [*(("tied", fusion) for fusion in FUSIONS), *((name, "joint") for name in list(SETTINGS)[1:])],
)
def test_bits_and_answers_are_the_same_after_loading(settings, fusion, tmp_path):
    config = tiny_config(*MODALITIES, fusion=fusion, **SETTINGS[settings])
    model, inputs = tiny_model(config), tiny_inputs(config)
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path)
    assert_equal_states(loaded, model)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight) == tied
    buffers, expected = dict(loaded.named_buffers()), dict(model.named_buffers())
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_of_other_dtypes(dtype, tmp_path):
    model = tiny_model(tiny_config(*MODALITIES)).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    assert_equal_states(loaded, model)


def test_an_encoder_of_another_dtype(tmp_path):
    """The rest of the model is not loaded as the encoder."""
    model = tiny_model(tiny_config("image", "text"))
    model.get_encoder().encoders["image"].to(torch.bfloat16)
    assert model.dtype == model.get_encoder().dtype == torch.float32
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path)
    assert_equal_states(loaded, model.float())


def test_every_weight_comes_from_the_file(tmp_path):
    """A weight that the file lacks, or that the model lacks, would be reported."""
    tiny_model(tiny_config(*MODALITIES, fusion="bottleneck")).save_pretrained(tmp_path)
    _, report = CrossFuseForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_loading_leaves_the_random_state_alone(tmp_path):
    """Nothing is initialised at random that the file then overwrites, so nothing can be forgotten either."""
    tiny_model(tiny_config(*MODALITIES, fusion="latent")).save_pretrained(tmp_path)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(CrossFuseForConditionalGeneration.from_pretrained(tmp_path))
    assert_equal_states(*states)


def test_shards(tmp_path):
    model = tiny_model(tiny_config(*MODALITIES))
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_equal_states(CrossFuseForConditionalGeneration.from_pretrained(tmp_path), model)


def test_variants(tmp_path):
    """A variant may be all that there is; without being asked for, it is named."""
    model = tiny_model(tiny_config())
    for size in ("5GB", "20KB"):
        folder = tmp_path / size
        model.save_pretrained(folder, variant="fp16", max_shard_size=size)
        loaded = CrossFuseForConditionalGeneration.from_pretrained(folder, variant="fp16")
        assert_equal_states(loaded, model)
        with pytest.raises(OSError, match=r"has no `model.safetensors`; load it by .*\(..., variant='fp16'\)`"):
            CrossFuseForConditionalGeneration.from_pretrained(folder)


def test_only_safetensors_are_written(tmp_path):
    tiny_model(tiny_config(*MODALITIES)).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_written_once(tied, tmp_path):
    tiny_model(tiny_config(tie_word_embeddings=tied)).save_pretrained(tmp_path)
    names = names_in_files(tmp_path)
    assert "model.decoder.embed_tokens.weight" in names
    assert ("lm_head.weight" in names) == (not tied)


def test_head_after_resizing(tmp_path):
    model = tiny_model(tiny_config())
    model.resize_token_embeddings(61)
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 61
    assert_equal_states(loaded, model)


def test_base_model_from_the_heads_file(tmp_path):
    model = tiny_model(tiny_config(*MODALITIES))
    model.save_pretrained(tmp_path)
    base, report = CrossFuseModel.from_pretrained(tmp_path, output_loading_info=True)
    assert_equal_states(base, model.model)
    assert not report["missing_keys"]


@pytest.mark.parametrize("tied", [True, False])
def test_head_from_the_base_models_file(tied, tmp_path):
    base = tiny_model(tiny_config(*MODALITIES, tie_word_embeddings=tied), CrossFuseModel)
    base.save_pretrained(tmp_path)
    model, report = CrossFuseForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert_equal_states(model.model, base)
    # Only an untied output layer is new.
    assert set(report["missing_keys"]) == (set() if tied else {"lm_head.weight"})


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, CrossFuseModel),
        (AutoModelForSeq2SeqLM, CrossFuseForConditionalGeneration),
        (AutoModelForMultimodalLM, CrossFuseForConditionalGeneration),
        (AutoModelForImageTextToText, CrossFuseForConditionalGeneration),
    ],
)
def test_auto_classes(auto_class, model_class, tmp_path):
    config = tiny_config("text", "image")
    model = tiny_model(config)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    assert_equal_states(loaded, model.model if model_class is CrossFuseModel else model)
    assert type(auto_class.from_config(config)) is model_class
    assert type(AutoConfig.from_pretrained(tmp_path)) is CrossFuseConfig


def test_the_file_names_its_class_and_type(tmp_path):
    tiny_model(tiny_config()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["CrossFuseForConditionalGeneration"]
    assert written["model_type"] == "crossfuse"


def test_generation_config_is_kept(tmp_path):
    model = tiny_model(tiny_config())
    model.generation_config.max_new_tokens = 7
    model.generation_config.num_beams = 2
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (loaded.max_new_tokens, loaded.num_beams) == (7, 2)


def test_saving_twice_writes_the_same_bytes(tmp_path):
    model = tiny_model(tiny_config(*MODALITIES))
    model.save_pretrained(tmp_path / "first")
    CrossFuseForConditionalGeneration.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_file_of_another_model_is_refused(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tiny_model(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        CrossFuseForConditionalGeneration.from_pretrained(tmp_path, config=tiny_config(decoder={"vocab_size": 51}))
    assert "model.decoder.embed_tokens.weight" in caplog.text


def test_a_loaded_model_trains_on(tmp_path):
    config = tiny_config("text", "wrist", fusion="joint")
    model, inputs = tiny_model(config), tiny_inputs(config)
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path)
    losses = []
    for trained in (model, loaded):
        trained.train()
        loss = trained(**inputs, labels=tiny_labels()).loss
        loss.backward()
        losses.append(loss.detach())
    assert_same(*losses)
    gradients = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name


# Modalities by name


def to_format_1(folder):
    """Rewrites saved weights as releases with format 1 had them: modalities by their places."""
    names = json.loads((folder / "config.json").read_text())["modalities"]["names"]
    weights = load_file(folder / "model.safetensors")
    rows = [next(key for key in weights if key.endswith(f".{name}_embedding.weight")) for name in names]
    embeddings = torch.cat([weights.pop(row) for row in rows])
    weights[re.sub(r"\.\w+_embedding\.", ".", rows[0])] = embeddings
    for key in list(weights):
        old = re.sub(r"fusion\.layers\.(?!layers)(\w+)_layers", lambda m: f"fusion.layers.{names.index(m[1])}", key)
        old = old.replace("classifier.pooling", "pooling").replace("classifier.out_proj", "classifier")
        weights[old] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


HEADS = [
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseForRetrieval,
]


@pytest.mark.parametrize("old", [False, True], ids=["format 2", "format 1"])
@pytest.mark.parametrize(
    ("model_class", "fusion"),
    [
        (model_class, fusion)
        for model_class in HEADS
        for fusion in FUSIONS
        if fusion != "latent" or model_class is not CrossFuseForTokenClassification  # there are no positions to label
    ],
)
def test_modalities_in_another_order(model_class, fusion, old, tmp_path):
    """The same answers, with a modality more, too; what is new or left out is reported."""
    settings = {"fusion": fusion, "num_labels": 3}
    model = tiny_model(tiny_config("wrist", "text", "image", **settings), model_class)
    inputs, expected = tiny_inputs(model.config), model(**tiny_inputs(model.config)).logits
    model.save_pretrained(tmp_path)
    if old:
        to_format_1(tmp_path)

    def load(*names):
        config = tiny_config(*names, **settings)
        return model_class.from_pretrained(tmp_path, config=config, output_loading_info=True)

    other, report = load("text", "image", "wrist")
    assert_same(other(**inputs).logits, expected)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    more, report = load("image", "video", "text", "wrist")
    assert_same(more(**inputs).logits, expected)
    assert report["missing_keys"] and all("video" in name for name in report["missing_keys"])
    fewer, report = load("image", "text")
    assert not report["missing_keys"] and all("wrist" in name for name in report["unexpected_keys"])
    alone = {name: value for name, value in inputs.items() if name != "wrist_values"}
    assert_same(fewer(**alone).logits, model(**alone).logits)


@pytest.mark.parametrize("model_class", HEADS)
def test_format_1_becomes_format_2(model_class, tmp_path):
    config = tiny_config("wrist", "text", fusion="bottleneck", num_labels=3)
    model = tiny_model(config, model_class)
    for folder in (tmp_path / "1", tmp_path / "2"):
        model.save_pretrained(folder)
    to_format_1(tmp_path / "1")
    loaded, report = model_class.from_pretrained(tmp_path / "1", output_loading_info=True)
    assert_equal_states(loaded, model)
    assert not any(report.values())
    loaded.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert sorted(names_in_files(tmp_path / "again")) == sorted(names_in_files(tmp_path / "2"))
    assert_equal_states(model_class.from_pretrained(tmp_path / "again"), model)
    with pytest.raises(
        ValueError, match="these weights have format 1"
    ):  # Trainer would leave out what has other names
        model.load_state_dict(load_file(tmp_path / "1" / "model.safetensors"), strict=False)


def test_the_labelled_modality_is_saved_by_name(tmp_path):
    """By default it is the first text, of which there may be another in another order."""
    modalities = {"question": {"kind": "text", "vocab_size": 40}, "text": {"vocab_size": 40}}
    model = tiny_model(tiny_config(modalities=modalities), CrossFuseForTokenClassification)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["modalities"]["names"].reverse()
    other = CrossFuseForTokenClassification.from_pretrained(tmp_path, config=CrossFuseConfig(**settings))
    inputs = tiny_inputs(model.config)
    assert_same(other(**inputs).logits, model(**inputs).logits)


def test_an_order_that_the_saved_processor_has_not(tmp_path, caplog, monkeypatch):
    """`modality_mask` goes by the order of the config, and so of the processor."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_crossfuse"), "propagate", True)
    transformers_logging.set_verbosity_warning()
    model = tiny_model(tiny_config("wrist", "image"))
    model.save_pretrained(tmp_path)
    CrossFuseProcessor.from_config(model.config).save_pretrained(tmp_path)
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert "fit_modalities" not in caplog.text
    config = tiny_config("image", "video", "wrist")
    other = CrossFuseForConditionalGeneration.from_pretrained(tmp_path, config=config)
    assert "was saved with the modalities wrist, image, and `config` has image, video, wrist" in caplog.text
    processor = CrossFuseProcessor.from_pretrained(tmp_path)
    samples = {"wrist": [np.ones((4, 3)), None], "image": [None, Image.new("RGB", (8, 8), "red")]}
    start = {"decoder_input_ids": torch.tensor([[1], [1]])}
    expected = model(**processor(**samples, return_tensors="pt"), **start).logits
    batch = processor.fit_modalities(other.config)(**samples, return_tensors="pt")
    assert batch["modality_mask"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert_same(other(**batch, **start).logits, expected)
