# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Padding: what leaves it out gives the answers, losses and gradients of what computes it."""

import pytest
import torch
from torch import nn

from modeling_crossfuse import packing
from modeling_crossfuse.packing import Packing, pack, unpack

from .helpers import (
    FUSIONS,
    assert_same,
    checkpoint_activations,
    count_calls,
    tiny_config,
    tiny_inputs,
    tiny_labels,
    tiny_model,
)


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])


def make_batch(config) -> dict[str, torch.Tensor]:
    """Streams and answers of different lengths, and samples that lack a modality."""
    labels = tiny_labels(4, length=5).masked_fill(MASK == 0, -100)
    masks = {"attention_mask": MASK, "wrist_mask": MASK.flip(0)}
    present = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return {**tiny_inputs(config, batch_size=4), **masks, "modality_mask": present, "labels": labels}


def make_model(fusion: str, **settings):
    config = tiny_config("text", "audio", "wrist", fusion=fusion, **settings)
    return tiny_model(config), make_batch(config)


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch, skip_logits=True).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [{}, {"num_key_value_heads": 1, "position_embedding_type": "sinusoidal"}])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_loss_and_gradients(fusion, settings, monkeypatch):
    model, batch = make_model(fusion, **settings)
    rows = count_tokens(model)
    loss, gradients = loss_and_gradients(model, batch)
    packed = sum(rows)
    rows.clear()
    monkeypatch.setattr(packing, "_WORTHWHILE", 2)  # never
    expected_loss, expected_gradients = loss_and_gradients(model, batch)
    assert packed < 0.8 * sum(rows)
    assert_same(loss, expected_loss)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_same(gradient, expected_gradients[name])


def count_tokens(model) -> list[int]:
    """A list that grows by the positions of every feed-forward."""
    tokens = []
    for name, module in model.named_modules():
        if name.endswith(".mlp"):
            module.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[:2].numel()))
    return tokens


@pytest.mark.parametrize("fusion", FUSIONS)
def test_memory(fusion, monkeypatch):
    model, batch = make_model(fusion)
    labels = batch.pop("labels")
    outputs = model(**batch, decoder_input_ids=labels.clamp(min=0))
    monkeypatch.setattr(packing, "_WORTHWHILE", 2)
    expected = model(**batch, decoder_input_ids=labels.clamp(min=0))
    assert_same(outputs.logits, expected.logits)
    kept = expected.encoder_attention_mask == 1
    assert_same(outputs.encoder_last_hidden_state[kept], expected.encoder_last_hidden_state[kept])


EITHER = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]])


@pytest.mark.parametrize(
    "fusion, keys",
    [
        ("concat", [(2, 5), (2, 5), (4, 5)]),
        ("joint", [(2, 5), (2, 5), (4, 5), (4, 5)]),
        ("bottleneck", [(2, 5), (2, 5), (2, 8), (2, 8), (4, 8)]),
        ("latent", [(2, 5), (2, 5), (4, 3), (4, 5), (4, 3)]),
    ],
)
def test_attention_sees_no_modality_that_is_missing(fusion, keys, monkeypatch):
    """Samples have either modality, of 5 positions: none reads 10. The fusions have 3 shared positions."""
    config = tiny_config("text", "wrist", fusion=fusion)
    seen, attend = [], nn.functional.scaled_dot_product_attention

    def watch(query, key, *args, **kwargs):
        seen.append((key.shape[0], key.shape[2]))
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    tiny_model(config)(**tiny_inputs(config, 4), modality_mask=EITHER, labels=tiny_labels(4, length=2))
    assert [(batch, length) for batch, length in seen if length != 2] == keys


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations(attention, monkeypatch):
    model, batch = make_model("joint")
    model.set_attn_implementation(attention)
    loss = model(**batch, skip_logits=True).loss
    monkeypatch.setattr(packing, "_WORTHWHILE", 2)
    assert_same(loss, model(**batch, skip_logits=True).loss)


def test_labels_that_begin_late_read_what_stands_before():
    """A position without a label of its own is left out only if no later one has a label."""
    model, batch = make_model("concat")
    batch["labels"][:, :1] = -100
    batch["labels"][1] = torch.tensor([-100, -100, 7, -100, -100])
    assert_same(model(**batch, skip_logits=True).loss, model(**batch).loss)


def test_what_layers_record_is_padded():
    model, batch = make_model("joint")
    outputs = model(**batch, output_hidden_states=True, skip_logits=True)
    assert all(states.shape[:2] == (4, 5) for states in outputs.decoder_hidden_states)
    assert all(states.dim() == 3 and states.shape[0] <= 4 for states in outputs.encoder_hidden_states)
    assert outputs.encoder_hidden_states[-1].shape[0] == 4


def test_gradient_checkpointing():
    model, batch = make_model("joint")
    loss, gradients = loss_and_gradients(model, batch)
    model.train()
    checkpoint_activations(model)
    again, same = loss_and_gradients(model, batch)
    assert_same(again, loss)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_same(same[name], gradient)


def test_little_padding_is_computed():
    mask = torch.ones(4, 8)
    mask[0, -3:] = 0
    assert Packing.of(mask) is None and Packing.of(None) is None
    mask[0, -4:] = 0
    states = torch.randn(4, 8, 3)
    packed = pack(states, Packing.of(mask))
    assert packed.shape == (1, 28, 3)
    assert torch.equal(unpack(packed, Packing.of(mask)), states * mask.unsqueeze(2))


def test_calls_of_encoders_stay_the_same():
    model, batch = make_model("concat")
    rows = count_calls(model.get_encoder().encoders["audio"].layers)
    model(**batch, skip_logits=True)
    assert rows == [3]
