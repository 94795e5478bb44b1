# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The example that this project began with: a text-only model, its encoder and decoder called one after the other."""

import torch

from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration, CrossFuseModel

from .helpers import assert_same


SRC = torch.tensor([[30, 20, 1, 12], [31, 21, 2, 13], [32, 22, 3, 14]])
TGT = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])


def seed_config() -> CrossFuseConfig:
    return CrossFuseConfig(
        src_vocab_size=10_000,
        tgt_vocab_size=20_000,
        d_model=256,
        num_hidden_layers=2,
        position_embedding_type="sinusoidal",
    )


def test_encoder_then_decoder():
    model = CrossFuseForConditionalGeneration(seed_config()).eval()
    with torch.no_grad():
        memory = model.model.encoder(SRC).last_hidden_state
        decoded = model.model.decoder(TGT, memory).last_hidden_state
        logits = model.lm_head(decoded)
    assert memory.shape == decoded.shape == (3, 4, 256)
    assert logits.shape == (3, 4, 20_000)
    with torch.no_grad():
        outputs = model(input_ids=SRC, decoder_input_ids=TGT)
    assert_same(outputs.logits, logits)


def test_pooled_output_is_the_mean_over_the_target_length():
    model = CrossFuseModel(seed_config()).eval()
    with torch.no_grad():
        outputs = model(input_ids=SRC, decoder_input_ids=TGT)
    assert outputs.pooler_output.shape == (3, 256)
    assert_same(outputs.pooler_output, outputs.last_hidden_state.mean(1))


def test_it_trains():
    model = CrossFuseForConditionalGeneration(seed_config())
    model(input_ids=SRC, labels=TGT).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
