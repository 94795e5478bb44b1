# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Flash attention, by a stand-in for its kernels that runs on a CPU: transformers' code around them, which unpads the
samples or is told where they begin, is the real one.
"""

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

from modeling_crossfuse import CrossFuseForSequenceClassification

from .helpers import FUSIONS, MODALITIES, assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


FLASH = "flash_attention_on_a_cpu"


def flash_attention(query, key, value, dropout_p=0.0, softmax_scale=None, causal=False):
    """Queries `(batch, length, heads, head_dim)`; what is causal is aligned at the end."""
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    length, key_length = query.shape[2], key.shape[2]
    mask = torch.ones(length, key_length, dtype=torch.bool).tril(key_length - length) if causal else None
    output = F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout_p, scale=softmax_scale, enable_gqa=True
    )
    return output.transpose(1, 2)


def flash_attention_of_lengths(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
):
    """Queries `(positions, heads, head_dim)` of all samples, side by side."""
    lengths, key_lengths = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert (lengths.sum(), key_lengths.sum()) == (len(query), len(key))
    assert (lengths.max(), key_lengths.max()) == (max_seqlen_q, max_seqlen_k)
    samples = zip(query.split(lengths.tolist()), key.split(key_lengths.tolist()), value.split(key_lengths.tolist()))
    outputs = [
        flash_attention(*(heads.unsqueeze(0) for heads in sample), dropout_p, softmax_scale, causal)
        for sample in samples
    ]
    return torch.cat(outputs, dim=1).squeeze(0)


@pytest.fixture(autouse=True)
def flash_on_a_cpu(monkeypatch):
    utils = modeling_flash_attention_utils
    functions = (flash_attention, flash_attention_of_lengths, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    AttentionInterface.register(FLASH, flash_attention_forward)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])

# The decoder's settings: query heads that share keys, and positions that are added.
SETTINGS = [{}, {"num_key_value_heads": 1, "position_embedding_type": "sinusoidal"}]


def make_batch(config) -> dict[str, torch.Tensor]:
    """Four samples of streams of different lengths, of which three lack a modality."""
    masks = {"attention_mask": MASK, "wrist_mask": MASK.flip(0)}
    present = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 1, 0]])
    return {**tiny_inputs(config, batch_size=4), **masks, "modality_mask": present}


def make_models(fusion: str, **settings):
    """The same model twice, with the attention of PyTorch and with flash attention, and a batch."""
    config = tiny_config(*MODALITIES, fusion=fusion, **settings)
    model, flash_model = tiny_model(config), tiny_model(config)
    flash_model.set_attn_implementation(FLASH)
    return model, flash_model, make_batch(config)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("length", [3, 5, 12])
def test_logits(fusion, length, settings):
    """Of answers that are shorter than the memory, and longer; the last of them is padded at its end."""
    model, flash_model, batch = make_models(fusion, **settings)
    batch["decoder_input_ids"] = tiny_labels(4, length)
    batch["decoder_attention_mask"] = torch.ones(4, length, dtype=torch.long)
    batch["decoder_attention_mask"][3, -1] = 0
    kept = batch["decoder_attention_mask"].bool()
    assert_same(flash_model(**batch).logits[kept], model(**batch).logits[kept])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_loss_and_gradients(fusion, settings):
    model, flash_model, batch = make_models(fusion, **settings)
    batch["labels"] = tiny_labels(4, length=5).masked_fill(MASK == 0, -100)
    losses = [each(**batch, skip_logits=True).loss for each in (model, flash_model)]
    for loss in losses:
        loss.backward()
    assert_same(losses[1], losses[0])
    for expected, parameter in zip(model.parameters(), flash_model.parameters(), strict=True):
        if expected.grad is not None:
            assert_same(parameter.grad, expected.grad)


def test_labels_with_a_mask_of_the_answer():
    """The padding at the start of an answer is neither left out as its end is, nor read."""
    model, flash_model, batch = make_models("concat")
    batch["labels"] = tiny_labels(4, length=5).masked_fill(MASK == 0, -100)
    batch["labels"][:, 0] = -100
    batch["decoder_attention_mask"] = torch.tensor([[0, 1, 1, 1, 1]] * 4)
    assert_same(flash_model(**batch, skip_logits=True).loss, model(**batch, skip_logits=True).loss)


@torch.no_grad()
def test_nothing_is_padded_in_training(monkeypatch):
    """The layers' states are side by side, and stay so in the attention, which is told where the samples begin."""
    _, flash_model, batch = make_models("latent")
    batch["labels"] = tiny_labels(4, length=5).masked_fill(MASK == 0, -100)
    monkeypatch.setattr(modeling_flash_attention_utils, "_upad_input", None)
    shapes = []
    flash_model.get_decoder().layers[0].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    flash_model(**batch, skip_logits=True)
    assert shapes == [(1, MASK.sum(), 32)]


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_layers_record(fusion):
    model, flash_model, batch = make_models(fusion)
    batch["decoder_input_ids"] = tiny_labels(4)
    outputs, expected = (each(**batch, output_hidden_states=True) for each in (flash_model, model))
    assert_same(outputs.logits, expected.logits)
    for states, wanted in zip(outputs.decoder_hidden_states, expected.decoder_hidden_states, strict=True):
        assert_same(states, wanted)


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("prompt", [None, [[2, 7, 8, 9]] * 4, [[0, 2, 7, 8]] * 2 + [[2, 7, 8, 9]] * 2])
def test_generate(prompt, num_beams):
    model, flash_model, batch = make_models("joint")
    if prompt is not None:
        batch["decoder_input_ids"] = torch.tensor(prompt)
        batch["decoder_attention_mask"] = (batch["decoder_input_ids"] != 0).long()
    settings = {"num_beams": num_beams, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(flash_model.generate(**batch, **settings), model.generate(**batch, **settings))


@torch.no_grad()
def test_pooling():
    config = tiny_config(*MODALITIES, num_labels=3)
    model = tiny_model(config, CrossFuseForSequenceClassification)
    batch = make_batch(config)
    expected = model(**batch).logits
    model.set_attn_implementation(FLASH)
    assert_same(model(**batch).logits, expected)
