# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The decoder once more, written out in plain PyTorch: what the fast one is compared with, and none of its code."""

import math

import torch


def normed(norm, states: torch.Tensor, config) -> torch.Tensor:
    if config.norm_type == "layernorm":
        centred = states - states.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * norm.weight + norm.bias
    return states / (states.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * norm.weight


def turned(heads: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Heads `(batch, heads, length, head_dim)`, each pair of channels by its angle."""
    half = heads.shape[-1] // 2
    angles = positions[:, None, :, None] * theta ** (-torch.arange(half, dtype=heads.dtype) / half)
    first, second = heads[..., :half], heads[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def waves(positions: torch.Tensor, width: int) -> torch.Tensor:
    angles = positions[..., None] * 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def attended(attention, config, queries, keys, mask, positions=None) -> torch.Tensor:
    """`mask` `(batch, queries, keys)` is True where a key may be read."""
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    head_dim = config.hidden_size // heads

    def split(states: torch.Tensor, projection) -> torch.Tensor:
        projected = states @ projection.weight.T
        return projected.view(*states.shape[:2], -1, head_dim).transpose(1, 2)

    query = split(queries, attention.q_proj)
    key, value = split(keys, attention.k_proj), split(keys, attention.v_proj)
    if positions is not None:
        query, key = (turned(states, positions, config.rope_theta) for states in (query, key))
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) / math.sqrt(head_dim)
    weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2) @ attention.o_proj.weight.T


def fed_forward(mlp, config, states: torch.Tensor) -> torch.Tensor:
    if config.mlp_type == "gelu":
        inner = states @ mlp.up_proj.weight.T + mlp.up_proj.bias
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return inner @ mlp.down_proj.weight.T + mlp.down_proj.bias
    gate = states @ mlp.gate_proj.weight.T
    return (gate * torch.sigmoid(gate) * (states @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


@torch.no_grad()
def plain_logits(model, memory, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Logits `(batch, length, vocab_size)`, without a cache. The model is one in float64.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): whose weights are read.
        memory ([`CrossFuseEncoderOutput`]): what its encoder gave.
        ids (`torch.LongTensor` of shape `(batch, length)`): the answers.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 0 for padding on their left.
    """
    decoder, config = model.get_decoder(), model.config.decoder
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0).double()
    places = torch.arange(ids.shape[1])
    causal = (places[None, :] <= places[:, None])[None] & (mask[:, None, :] != 0)
    causal = causal | torch.eye(ids.shape[1], dtype=torch.bool)  # padding reads itself, or it would read nothing
    read = (memory.attention_mask[:, None, :] != 0).expand(-1, ids.shape[1], -1)
    states = decoder.embed_tokens.weight[ids] * math.sqrt(config.hidden_size)
    rotary = config.position_embedding_type == "rotary"
    if not rotary:
        states = states + waves(positions, config.hidden_size)
    for layer in decoder.layers:
        before = normed(layer.input_layernorm, states, config)
        states = states + attended(layer.self_attn, config, before, before, causal, positions if rotary else None)
        before = normed(layer.cross_attention_layernorm, states, config)
        states = states + attended(layer.cross_attn, config, before, memory.last_hidden_state, read)
        states = states + fed_forward(layer.mlp, config, normed(layer.post_attention_layernorm, states, config))
    return normed(decoder.norm, states, config) @ model.lm_head.weight.T
