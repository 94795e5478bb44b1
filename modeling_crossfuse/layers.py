# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Positions, attention, feed-forward, and the one Transformer layer that every part of CrossFuse is made of."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.output_capturing import OutputRecorder

from .packing import Packing, flash_bounds, pack, pack_positions, unpack


def sinusoidal_positions(position_ids: torch.Tensor, dim: int) -> torch.Tensor:
    """
    Sinusoidal positions (Vaswani et al., 2017, *Attention Is All You Need*), one group of channels per axis.

    Args:
        position_ids (`torch.Tensor` of shape `(..., axes)`): coordinates along each axis.
        dim (`int`): number of channels.

    Returns:
        `torch.Tensor` of shape `(..., dim)`, float32. Channels that do not divide among the axes are zero.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse.layers import sinusoidal_positions

    >>> sinusoidal_positions(torch.arange(2)[:, None], 4)
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.8415, 0.0100, 0.5403, 0.9999]])
    ```
    """
    axes = position_ids.shape[-1]
    per_axis = dim // (2 * axes)
    exponents = torch.arange(per_axis, device=position_ids.device, dtype=torch.float32) / max(per_axis, 1)
    angles = position_ids[..., None].float() * torch.exp(-math.log(10_000.0) * exponents)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return nn.functional.pad(waves, (0, dim - waves.shape[-1])) if waves.shape[-1] < dim else waves


class CrossFuseRotaryEmbedding(nn.Module):
    """
    Rotary positions (Su et al., 2021, *RoFormer*) in one or more dimensions: each axis turns its own share of the
    channel pairs of a head. Pairs that do not divide among the axes are not turned.

    Args:
        config: the part's config; the size of a head and `rope_parameters` are read.
        axes (`int`): 1 for sequences, 2 for images, 3 for videos.
    """

    inv_freq: torch.Tensor

    def __init__(self, config, axes: int):
        super().__init__()
        self.axes, self.rope_theta = axes, config.rope_theta
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.register_buffer("inv_freq", self.compute_inv_freq(), persistent=False)

    def compute_inv_freq(self) -> torch.Tensor:
        per_axis = self.head_dim // (2 * self.axes)
        exponents = torch.arange(per_axis, dtype=torch.float32) / max(per_axis, 1)
        return 1.0 / self.rope_theta**exponents

    @torch.no_grad()
    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `position_ids` `(batch, length, axes)` to cosines and sines `(batch, length, head_dim)`. The first half of the
        sines is negated: a head turns by its cosines, and by its sines with each channel that lies half a head away.
        """
        angles = (position_ids[..., None].float() * self.inv_freq.float()).flatten(-2)
        angles = nn.functional.pad(angles, (0, self.head_dim // 2 - angles.shape[-1]))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


class CrossFuseTokenEmbedding(nn.Embedding):
    """Token embedding times the square root of its width (Vaswani et al., 2017): tokens start at about unit size."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.embed_scale = embedding_dim**0.5  # adapters of PEFT multiply their rows by what has this name

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        try:
            return super().forward(input_ids) * self.embed_scale
        except IndexError as error:
            lowest, highest = input_ids.min().item(), input_ids.max().item()
            raise ValueError(
                f"tokens from {lowest} to {highest} are given; expected at least 0 and below {self.num_embeddings}, "
                "the size of the vocabulary"
            ) from error


class CrossFuseLatents(nn.Embedding):
    """Learned states that all samples share. They are the result of a call, which fetches offloaded weights."""

    def forward(self, batch: int) -> torch.Tensor:
        """`(batch, num_embeddings, embedding_dim)`"""
        return self.weight.expand(batch, -1, -1)


class CrossFuseLinear(nn.Linear):
    """
    `nn.Linear` for a large weight, which multiplies few rows as columns: in float32 on a CPU, weights times columns
    reads memory up to six times as fast as rows times weights. A single column is a batch of products, so that the
    cores share the work.
    """

    most_rows = 32

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States `(..., in_features)` to `(..., out_features)`."""
        weight, bias = self.weight, self.bias
        # The weight has to be a plain one of float32 on a CPU, neither quantised nor distributed. The number of rows
        # comes last: a graph that asked for it would be for a few rows alone.
        takes_columns = (
            not torch.is_grad_enabled()
            and weight.is_cpu
            and weight.dtype == states.dtype == torch.float32
            and type(weight) is nn.Parameter
            and not torch.compiler.is_compiling()
            and 0 < states.numel() <= self.most_rows * self.in_features
        )
        if not takes_columns:
            return nn.functional.linear(states, weight, bias)
        rows = states.numel() // self.in_features
        columns = states.reshape(rows, -1).T
        if rows == 1:
            parts = math.gcd(self.out_features, 8)
            columns, weight = columns.expand(parts, -1, -1), weight.view(parts, -1, self.in_features)
            bias = None if bias is None else bias.view(parts, -1, 1)
            product = torch.bmm(weight, columns) if bias is None else torch.baddbmm(bias, weight, columns)
        else:
            product = torch.mm(weight, columns) if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
            product = product.T
        return product.view(*states.shape[:-1], -1)


# Weights of this size and above are faster by a [`CrossFuseLinear`].
LARGE_WEIGHT = 2**16


def linear_class(in_features: int, out_features: int) -> type[nn.Linear]:
    """The faster class of linear layers for a size."""
    return CrossFuseLinear if in_features * out_features >= LARGE_WEIGHT else nn.Linear


def make_linear(in_features: int, out_features: int, bias: bool = False) -> nn.Linear:
    """A linear layer, without a bias unless told otherwise."""
    return linear_class(in_features, out_features)(in_features, out_features, bias=bias)


class CrossFuseRMSNorm(nn.RMSNorm):
    """RMS norm (Zhang & Sennrich, 2019) whose weight follows the input's dtype: under autocast the two differ."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(hidden_states.dtype)
        return nn.functional.rms_norm(hidden_states, self.normalized_shape, weight, self.eps)


def make_norm(config) -> nn.Module:
    """The norm that the config asks for."""
    norm_class = CrossFuseRMSNorm if config.norm_type == "rmsnorm" else nn.LayerNorm
    return norm_class(config.hidden_size, eps=config.norm_eps)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain PyTorch: the reference for the other implementations, and the one that returns weights."""
    if module.num_key_value_groups > 1:  # to repeat once is to copy
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    output = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class CrossFuseAttention(nn.Module):
    """
    Multi-head attention with grouped keys and values (Ainslie et al., 2023, *GQA*), to itself or to
    `key_value_states`.

    The keys and values of cross-attention are computed once and then read from the cache.
    """

    def __init__(self, config, layer_idx: int, is_causal: bool = False):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling, self.dropout = self.head_dim**-0.5, config.attention_dropout
        width, key_value_width = config.hidden_size, config.num_key_value_heads * self.head_dim
        self.q_proj = make_linear(width, width)
        self.k_proj = make_linear(width, key_value_width)
        self.v_proj = make_linear(width, key_value_width)
        self.o_proj = make_linear(width, width)

    def _project(
        self,
        projection: nn.Module,
        states: torch.Tensor,
        packing: Packing | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Heads `(batch, heads, length, head_dim)` of the states; padded, with a packing."""
        heads = projection(states).view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)
        if position_embeddings is not None:
            cos, sin = position_embeddings
            heads = heads * cos.unsqueeze(1) + heads.roll(self.head_dim // 2, -1) * sin.unsqueeze(1)
        return heads if packing is None else unpack(heads.transpose(1, 2), packing).transpose(1, 2)

    def keys_values(
        self,
        states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        packing: Packing | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(batch, key_value_heads, length, head_dim)` of states `(batch, length, hidden_size)`."""
        keys = self._project(self.k_proj, states, packing, position_embeddings)
        return keys, self._project(self.v_proj, states, packing)

    def _cached_memory(
        self, states: torch.Tensor, packing: Packing | None, cache: EncoderDecoderCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory's keys and values, computed for the first token of an answer alone."""
        memory = cache.cross_attention_cache
        if cache.is_updated.get(self.layer_idx, False):
            return memory.layers[self.layer_idx].keys, memory.layers[self.layer_idx].values
        cache.is_updated[self.layer_idx] = True
        return memory.update(*self.keys_values(states, packing=packing), self.layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: EncoderDecoderCache | None = None,
        packing: Packing | None = None,
        key_value_packing: Packing | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        is_cross_attention = key_value_states is not None
        if not is_cross_attention:
            key_value_states, key_value_packing = hidden_states, packing
        implementation = self.config._attn_implementation
        # Flash attention takes samples side by side; other implementations, and caches, take them padded.
        side_by_side = is_flash_attention_requested(requested_attention_implementation=implementation) and (
            is_cross_attention or (cache is None and attention_mask is None)
        )
        query_padding = None if side_by_side else packing
        key_padding = None if side_by_side and cache is None else key_value_packing
        queries = self._project(self.q_proj, hidden_states, query_padding, position_embeddings)
        if is_cross_attention and cache is not None:
            keys, values = self._cached_memory(key_value_states, key_padding, cache)
        else:
            keys, values = self.keys_values(key_value_states, position_embeddings, key_padding)
            if cache is not None:
                keys, values = cache.self_attention_cache.update(keys, values, self.layer_idx)
        if side_by_side:
            if key_value_packing is None and attention_mask is not None:
                key_value_packing = key_padding = Packing(attention_mask)
            keys, values = (pack(heads.transpose(1, 2), key_padding).transpose(1, 2) for heads in (keys, values))
            attention_mask = None
            kwargs.update(flash_bounds(queries, packing, keys, key_value_packing))
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        batch, rows = queries.shape[0], keys.shape[0]
        are_beams = rows != batch and not side_by_side
        if are_beams:  # those of a sample are queries of the same memory
            queries = join_beams(queries, rows)
        if queries.stride(-1) != 1:  # columns: PyTorch's fused attention wants rows
            queries = queries.contiguous()
        output, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=self.is_causal,
            **kwargs,
        )
        if are_beams and weights is not None:
            weights = weights.unflatten(2, (batch // rows, -1)).transpose(1, 2).flatten(0, 1)
        output = output.reshape(batch, -1, self.o_proj.in_features)
        return self.o_proj(output if query_padding is None else pack(output, query_padding)), weights


def join_beams(queries: torch.Tensor, rows: int) -> torch.Tensor:
    """Queries `(rows * beams, heads, length, head_dim)` as `(rows, heads, beams * length, head_dim)`."""
    return queries.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)


class CrossFuseMLP(nn.Module):
    """Feed-forward: SwiGLU (Shazeer, 2020, *GLU Variants Improve Transformer*) or GELU."""

    def __init__(self, config):
        super().__init__()
        gated = config.mlp_type == "swiglu"
        self.gate_proj = make_linear(config.hidden_size, config.intermediate_size) if gated else None
        self.up_proj = make_linear(config.hidden_size, config.intermediate_size, bias=not gated)
        self.down_proj = make_linear(config.intermediate_size, config.hidden_size, bias=not gated)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(nn.functional.gelu(self.up_proj(hidden_states)))
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class CrossFuseLayer(GradientCheckpointingLayer):
    """
    The one Transformer layer: pre-norm self-attention, cross-attention where `has_cross_attention`, feed-forward.

    Encoders and the fusions use it without a cache, the decoder with one.
    """

    def __init__(self, config, layer_idx: int, is_causal: bool = False, has_cross_attention: bool = False):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = CrossFuseAttention(config, layer_idx, is_causal)
        if has_cross_attention:
            self.cross_attention_layernorm = make_norm(config)
            self.cross_attn = CrossFuseAttention(config, layer_idx)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = CrossFuseMLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.residual_std = config.initializer_range / math.sqrt(2 * (layer_idx + 1))

    def residual_projections(self) -> list[nn.Linear]:
        """The layers whose outputs are added to the residual stream."""
        attentions = [module for module in self.children() if isinstance(module, CrossFuseAttention)]
        return [*(attention.o_proj for attention in attentions), self.mlp.down_proj]

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: EncoderDecoderCache | None = None,
        packing: Packing | None = None,
        memory_packing: Packing | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            cache=cache,
            packing=packing,
            **kwargs,
        )
        hidden_states = self._add(hidden_states, attended)
        if encoder_hidden_states is not None:
            attended, _ = self.cross_attn(
                self.cross_attention_layernorm(hidden_states),
                attention_mask=encoder_attention_mask,
                key_value_states=encoder_hidden_states,
                cache=cache,
                packing=packing,
                key_value_packing=memory_packing,
                **kwargs,
            )
            hidden_states = self._add(hidden_states, attended)
        return self._add(hidden_states, self.mlp(self.post_attention_layernorm(hidden_states)))

    def _add(self, hidden_states: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return hidden_states + (self.dropout(update) if self.training else update)


def close_up(config, packing: Packing | None) -> Packing | None:
    """
    The packing by which attention pads its input. With SDPA, which returns no weights, the positions of a sample move
    together, and the batch is only as long as its longest sample.
    """
    if packing is None or config._attn_implementation != "sdpa":
        return packing
    return packing.without_gaps


def make_attention_mask(
    config,
    queries: torch.Tensor,
    keys: torch.Tensor,
    mask: torch.Tensor | None,
    packing: Packing | None,
    may_be_none: bool = True,
) -> torch.Tensor | None:
    """
    The mask `(batch, length)` of states `keys`, or that of their packing, as the attention implementation takes it for
    states `queries`. To flash attention, a packing says it all. A mask that keeps everything `may_be_none`.
    """
    if packing is not None and is_flash_attention_requested(config):
        return None
    if packing is not None:
        mask, keys = packing.mask, crop(keys, packing)
    return create_bidirectional_mask(
        config, queries, mask, encoder_hidden_states=keys, allow_is_bidirectional_skip=may_be_none
    )


def as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of any kind as what attention adds to its scores, which PyTorch would make of booleans at each call."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def crop(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """States `(batch, length, ...)` of the packing's length, for what reads nothing but their shape."""
    return states if packing is None else states[:, : packing.mask.shape[1]]


class CrossFuseLayers(nn.Module):
    """
    A stack of bidirectional layers and a last norm, as the encoders and the fusions use it.

    Args:
        config: the part's config.
        num_layers (`int`): how many layers.
        has_cross_attention (`bool`): whether each layer also attends to `encoder_hidden_states`.
    """

    def __init__(self, config, num_layers: int, has_cross_attention: bool = False):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            CrossFuseLayer(config, idx, has_cross_attention=has_cross_attention) for idx in range(num_layers)
        )
        self.norm = make_norm(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        skip_padding: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        """
        `hidden_states` `(batch, length, hidden_size)` with a mask `(batch, length)` to the same shape. With
        `skip_padding`, padding gives zeros, and what the layers record of hidden states is without it.
        """
        packing = memory_packing = None
        if skip_padding:
            packing, memory_packing = Packing.of(attention_mask), Packing.of(encoder_attention_mask)
        closed, memory_closed = close_up(self.config, packing), close_up(self.config, memory_packing)
        queries = crop(hidden_states, closed)
        mask = make_attention_mask(self.config, queries, queries, attention_mask, closed)
        if encoder_hidden_states is not None:
            encoder_attention_mask = make_attention_mask(
                self.config, queries, encoder_hidden_states, encoder_attention_mask, memory_closed
            )
            encoder_hidden_states = pack(encoder_hidden_states, memory_packing)
        hidden_states = pack(hidden_states, packing)
        position_embeddings = pack_positions(position_embeddings, packing)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,
                encoder_attention_mask,
                position_embeddings=position_embeddings,
                packing=closed,
                memory_packing=memory_closed,
                **kwargs,
            )
        return unpack(self.norm(hidden_states), packing)


class CrossFuseAttentionPooling(nn.Module):
    """
    A learned query that attends to a sequence, and a feed-forward (Lee et al., 2019, *Set Transformer*; Zhai et al.,
    2022, *Scaling Vision Transformers*).

    Args:
        config: the config of a part as wide as the sequence.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.query = CrossFuseLatents(1, config.hidden_size)
        self.memory_layernorm = make_norm(config)
        self.cross_attn = CrossFuseAttention(config, layer_idx=0)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = CrossFuseMLP(config)
        self.norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, memory: torch.Tensor, memory_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        `memory` `(batch, length, hidden_size)` with its mask `(batch, length)` to `(batch, hidden_size)`, and the
        weights of the attention `(batch, heads, 1, length)` where the implementation gives them.
        """
        query = self.query(memory.shape[0])
        memory = memory.to(query.dtype)
        mask = create_bidirectional_mask(self.config, query, memory_mask, encoder_hidden_states=memory)
        pooled, weights = self.cross_attn(query, mask, key_value_states=self.memory_layernorm(memory), **kwargs)
        pooled = pooled + self.dropout(self.mlp(self.post_attention_layernorm(pooled)))
        return self.norm(pooled).squeeze(1), weights


# What the encoders and the fusion record. The multimodal encoder collects it: recorders of one name can't nest.
RECORDED = {
    "hidden_states": CrossFuseLayer,
    "attentions": OutputRecorder(CrossFuseAttention, index=1, layer_name="self_attn"),
}
