# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Adapters of peft: scaled embeddings, new heads, and encoders that have adapters already."""

import logging

import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from modeling_crossfuse import (
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
)
from modeling_crossfuse.training.building import add_lora

from .helpers import assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


peft = pytest.importorskip("peft")

TOKENS = list(range(3, 40))
ADAPTERS = {
    "LoRA": {"target_modules": ["embed_tokens"], "init_lora_weights": True},
    "DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "tokens of the decoder": {"target_modules": ["q_proj"], "trainable_token_indices": TOKENS},
    "tokens of a text": {"target_modules": ["q_proj"], "trainable_token_indices": {"stem.embed_tokens": TOKENS}},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "modalities": {"target_modules": ["text_embedding", "image_embedding"]},
}
# What LoRA adds to tied embeddings, merging adds to the output layer, too, as peft warns.
TIED = [name for name in ADAPTERS if "RA" not in name]


def train(model, seed: int = 0):
    """Random weights in the place of those that train."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    ("adapters", "tied"), [*((name, False) for name in ADAPTERS), *((name, True) for name in TIED)]
)
def test_adapters_of_scaled_embeddings(adapters, tied):
    """Untrained ones change nothing, and merging changes nothing."""
    model = tiny_model(tiny_config("text", "image", tie_word_embeddings=tied))
    inputs = {**tiny_inputs(model.config), "labels": tiny_labels()}
    with torch.no_grad():
        before = model(**inputs).logits
        adapted = peft.get_peft_model(model, peft.LoraConfig(**ADAPTERS[adapters])).eval()
        assert torch.equal(adapted(**inputs).logits, before)
        trained = train(adapted)(**inputs).logits
        assert (trained - before).abs().max() > 1e-2
        assert_same(adapted.merge_and_unload()(**inputs).logits, trained)


def test_the_scale_outlives_resizing():
    model = tiny_model(tiny_config(tie_word_embeddings=False))
    model.resize_token_embeddings(60)
    assert model.get_input_embeddings().embed_scale == 32**0.5
    inputs = {**tiny_inputs(model.config), "labels": tiny_labels()}
    before = model(**inputs).logits
    config = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 4, 59])
    assert torch.equal(peft.get_peft_model(model, config).eval()(**inputs).logits, before)


HEADS = {
    "classes": (CrossFuseForSequenceClassification, "SEQ_CLS", None),
    "classes without a task": (CrossFuseForSequenceClassification, None, ["classifier"]),
    "tokens": (CrossFuseForTokenClassification, "TOKEN_CLS", None),
    "embeddings": (CrossFuseForRetrieval, "FEATURE_EXTRACTION", ["pooling", "projection"]),
}


@pytest.fixture
def warnings_of(monkeypatch, caplog):
    """What transformers' loggers have warned of."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_crossfuse"), "propagate", True)
    transformers_logging.set_verbosity_warning()
    return lambda: [record.getMessage() for record in caplog.records if "don't train" in record.getMessage()]


@pytest.mark.parametrize("head", HEADS)
def test_a_new_head_is_saved_with_the_adapters(head, tmp_path, warnings_of):
    """Its random weights are others when the model is loaded again."""
    model_class, task_type, parts = HEADS[head]
    tiny_model(tiny_config("text", "image")).save_pretrained(tmp_path / "base")

    def load(seed: int):
        torch.manual_seed(seed)
        return model_class.from_pretrained(tmp_path / "base", num_labels=3)

    config = peft.LoraConfig(task_type=task_type, target_modules=["q_proj", "v_proj"], modules_to_save=parts)
    adapted = train(peft.get_peft_model(load(1), config).train())
    assert not warnings_of()
    adapted.save_pretrained(tmp_path / "adapters")
    loaded = peft.PeftModel.from_pretrained(load(2), tmp_path / "adapters").eval()
    inputs = tiny_inputs(adapted.config)
    assert_same(loaded(**inputs).logits, adapted(**inputs).logits)


@pytest.mark.parametrize("head", ["classes without a task", "embeddings"])
def test_new_parts_that_adapters_leave_out(head, tmp_path, warnings_of):
    """They are named before training, unless a file has them."""
    model_class, task_type, parts = HEADS[head]
    config = peft.LoraConfig(task_type=task_type, target_modules=["q_proj"])
    model = tiny_model(tiny_config("text", "image", num_labels=3), model_class)
    with pytest.raises(ValueError, match=r"head of .* is new .*; add \['" + "', '".join(parts) + r"'\] to the `modu"):
        add_lora(model, {"target_modules": ["q_proj"], "task_type": task_type})
    peft.get_peft_model(model, config).train()
    assert f"modules_to_save={parts}" in warnings_of()[0]
    tiny_model(tiny_config("text", "image", num_labels=3), model_class).save_pretrained(tmp_path)
    known = len(warnings_of())
    peft.get_peft_model(model_class.from_pretrained(tmp_path), config).train()
    assert len(warnings_of()) == known


@pytest.mark.parametrize("model_class", [CrossFuseForSequenceClassification, CrossFuseForTokenClassification])
def test_a_classifier_of_other_labels_is_new(model_class, tmp_path):
    tiny_model(tiny_config("text", "image", num_labels=3), model_class).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.new_head_parts() == ["classifier"]


def test_an_encoder_with_adapters():
    """Loaded from its config, it would lack them, and have other names of weights."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    bert = BertModel(BertConfig(vocab_size=40, **sizes))
    adapted = peft.get_peft_model(bert, peft.LoraConfig(target_modules=["query"]))
    settings = {"decoder": {"vocab_size": 50}, "d_model": 32, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=r"`encoders\['text'\]`.* has layers with adapters of peft; merge them first"):
        CrossFuseForConditionalGeneration.from_encoders({"text": bert}, **settings)
    CrossFuseForConditionalGeneration.from_encoders({"text": adapted.merge_and_unload()}, **settings)


def prompted(vocab_size: int, modalities: tuple[str, ...]):
    """A model with prompt tuning, and its inputs: peft takes token embeddings of the size of the decoder's."""
    model = tiny_model(tiny_config(*modalities))
    model.resize_token_embeddings(vocab_size)
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    inputs = {**tiny_inputs(model.config), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    return peft.get_peft_model(model, config), inputs


@pytest.mark.parametrize("modalities", [("text",), ("image", "text")])
def test_prompt_tuning(modalities):
    adapted, inputs = prompted(40, modalities)
    loss = adapted(**inputs, labels=tiny_labels(vocab_size=40)).loss
    loss.backward()
    assert adapted.prompt_encoder.default.embedding.weight.grad.abs().max() > 0
    answers = adapted.eval().generate(**inputs, max_new_tokens=3, min_new_tokens=3, num_beams=2)
    assert answers.shape == (2, 4)


@pytest.mark.parametrize("vocab_size", [30, 50])
def test_prompt_tuning_of_two_vocabularies(vocab_size):
    """The token embeddings would be the answers'."""
    adapted, inputs = prompted(vocab_size, ("text",))
    inputs["input_ids"] = inputs["input_ids"].clamp(max=29)
    message = r"`inputs_embeds` has token embeddings of the decoder, .* {0} tokens; .* 'text', which has 40"
    for use in (lambda: adapted(**inputs, labels=tiny_labels(vocab_size=30)), lambda: adapted.generate(**inputs)):
        with pytest.raises(ValueError, match=message.format(vocab_size)):
            use()


def test_prompt_tuning_of_a_classifier():
    """Its config says that there are no answers, of whose vocabulary peft would look for token embeddings."""
    model = tiny_model(tiny_config("text", "image", is_encoder_decoder=False), CrossFuseForSequenceClassification)
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    inputs = {**tiny_inputs(model.config), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    adapted(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    assert adapted.prompt_encoder.default.embedding.weight.grad.abs().max() > 0
