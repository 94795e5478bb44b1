# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a stranger's model may not do: run code, read other files, take all memory. And models of other releases."""

import json
import pickle
import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoProcessor

from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration, CrossFuseModel
from modeling_crossfuse.configuration_crossfuse import FORMAT_VERSION
from modeling_crossfuse.training.model_card import write_model_card

from .helpers import MODALITIES, tiny_config, tiny_model
from .hub_server import TOKEN


FIXTURES = Path(__file__).resolve().parent / "fixtures"


@pytest.fixture
def folder(tmp_path):
    """A saved model with a processor, to spoil."""
    return Path(shutil.copytree(FIXTURES / "format_1", tmp_path / "model"))


def change(path: Path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@contextmanager
def within(seconds: float, megabytes: int):
    """Fails if the block takes longer, or the process grows by more."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize("model_class", [CrossFuseModel, CrossFuseForConditionalGeneration, AutoModelForSeq2SeqLM])
def test_pickled_weights_are_refused(model_class, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        OSError, match=r"no weights in safetensors, and pickled ones can run code .* convert them first"
    ):
        model_class.from_pretrained(folder)
    assert not (folder / "evil").exists()


def test_pickled_weights_by_choice(folder):
    """Whoever asks for them gets them, as in all of transformers."""
    model = CrossFuseForConditionalGeneration.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = CrossFuseForConditionalGeneration.from_pretrained(folder, use_safetensors=False)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


HUGE = {
    "width": {"d_model": 10**12},
    "layers": {"num_hidden_layers": 10**6},
    "layers of a part": {"decoder": {"vocab_size": 50, "num_hidden_layers": 10**6}},
    "labels": {"num_labels": 10**7},
    "answers": {"num_answers": 10**12},
    "vocabulary": {"modalities": {"text": {"vocab_size": 10**15}}},
    "latents": {"fusion": {"type": "latent", "num_latents": 10**15}},
    "image": {"modalities": {"image": {"image_size": 10**10, "patch_size": 1}}},
    "modalities": {"modalities": {f"m{index}": {"kind": "series", "num_channels": 1} for index in range(50_000)}},
    "encoder's width": {"modalities": {"text": {"encoder": {"model_type": "bert", "hidden_size": 10**12}}}},
    "encoder's layers": {"modalities": {"text": {"encoder": {"model_type": "bert", "num_hidden_layers": 10**9}}}},
    "group": {"contrastive_groups": {"a": ["text"] * 10**5, "b": ["text"]}},
}
WRONG = {
    "width": {"d_model": "64"},
    "modalities": {"modalities": ["text"]},
    "modality": {"modalities": {"text": 3}},
    "fusion": {"fusion": "concat"},
    "decoder": {"decoder": [1]},
    "nan": {"dropout": float("nan")},
    "name": {"modalities": {"../text": {"kind": "text"}}},
    "encoder": {"modalities": {"text": {"encoder": {"model_type": "../../etc"}}}},
    "encoder's type": {"modalities": {"text": {"encoder": {"model_type": ["bert"]}}}},
    "attribute": {"modalities": {"__class__": {"kind": "text"}}},
    "weights elsewhere": {"transformers_weights": "../../weights.safetensors"},
    "format": {"format_version": "1"},
}


@pytest.mark.parametrize(
    "settings", [*HUGE.values(), *WRONG.values()], ids=[*HUGE, *(f"wrong {key}" for key in WRONG)]
)
def test_malicious_config(settings, folder):
    change(folder / "config.json", **settings)
    for auto_class in (AutoConfig, AutoModelForSeq2SeqLM):
        with within(5, 100), pytest.raises((ValueError, StrictDataclassError)):
            auto_class.from_pretrained(folder)


@pytest.mark.parametrize("depth", [50, 500, 100_000])
def test_deep_nesting(depth, folder):
    nested = '{"a":' * depth + "1" + "}" * depth
    (folder / "config.json").write_text(f'{{"model_type": "crossfuse", "fusion": {{"options": {nested}}}}}')
    with within(5, 100), pytest.raises((ValueError, RecursionError, OSError)):
        AutoConfig.from_pretrained(folder)


def test_sizes_that_the_weights_do_not_have(folder):
    """The largest that a config may ask for are compared with the file before they are allocated."""
    change(folder / "config.json", decoder={"vocab_size": 2**25, "num_hidden_layers": 1})
    with within(10, 100), pytest.raises(ValueError, match="the files with weights have 49,784 bytes"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../outside", "a/b", "/etc", 3, None])
def test_processor_stays_in_its_folder(name, folder):
    shutil.copytree(folder, folder.parent / "outside_tokenizer")
    change(folder / "processor_config.json", modalities=[{"name": name, "kind": "text"}])
    with pytest.raises(ValueError, match="modalities"):
        AutoProcessor.from_pretrained(folder)


def test_shards_stay_in_their_folder(folder):
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    names = tiny_model(tiny_config()).state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    message = r"'../outside.safetensors'; expected files in the same folder"
    for variant in ("fp16", None):
        name = f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"
        (folder / name).write_text(json.dumps(index))
        with pytest.raises(ValueError, match=message):
            AutoModelForSeq2SeqLM.from_pretrained(folder, variant=variant)
        with pytest.raises(ValueError, match=message):
            CrossFuseForConditionalGeneration.from_pretrained(folder.parent, subfolder=folder.name, variant=variant)
        with pytest.raises(ValueError, match=message):
            CrossFuseForConditionalGeneration.from_encoders({"text": folder}, decoder={"vocab_size": 50})
        (folder / name).unlink()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_an_index_of_shards_that_can_not_be_read(text, folder):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is not the index of shards"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_no_token_in_a_card(tmp_path):
    recipe = {"learning_rate": 1e-3, "hub_token": TOKEN, "push_to_hub_token": TOKEN}
    card = write_model_card(tmp_path, tiny_model(tiny_config()), recipe=recipe).read_text()
    assert TOKEN not in card and "learning_rate" in card


def test_format_of_an_older_release():
    """A fixture that the release with format 1 wrote: the same answers, up to rounding on another machine."""
    model = AutoModelForSeq2SeqLM.from_pretrained(FIXTURES / "format_1")
    processor = AutoProcessor.from_pretrained(FIXTURES / "format_1")
    expected = json.loads((FIXTURES / "format_1" / "answer.json").read_text())
    batch = processor(
        text=["what is it?"], image=[Image.new("RGB", (8, 8), "red")], wrist=[np.ones((4, 3))], return_tensors="pt"
    )
    start = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=start).logits[0, 0]
    torch.testing.assert_close(logits[:8], torch.tensor(expected["logits"]), atol=1e-4, rtol=1e-4)
    assert model.generate(**batch, max_new_tokens=6, min_new_tokens=6)[0].tolist() == expected["tokens"]


def test_format_is_written(tmp_path):
    tiny_config(*MODALITIES).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION


def test_format_of_a_newer_release(folder):
    """It says what to upgrade, before any complaint about keys that only the newer release knows."""
    change(folder / "config.json", format_version=FORMAT_VERSION + 1, a_new_key=3)
    for auto_class in (AutoConfig, AutoModelForSeq2SeqLM):
        with pytest.raises(ValueError, match="newer one has written, upgrade: `pip install --upgrade crossfuse`"):
            auto_class.from_pretrained(folder)


def test_config_in_code_has_the_newest_format():
    assert CrossFuseConfig().format_version == FORMAT_VERSION
