# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What makes `generate` fast: a cache that grows in place and that beams share, and a token's way through a layer."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from .layers import CrossFuseAttention, CrossFuseLayer, CrossFuseMLP, CrossFuseRMSNorm, apply_rotary, join_beams


class GrowingLayer(DynamicLayer):
    """
    A [`~transformers.cache_utils.DynamicLayer`] with room for tokens to come: a new one is written behind the others,
    of which the base class makes a copy each time. Beams change places by moving to a second room, and back.
    """

    def __init__(self):
        super().__init__()
        self._rooms: dict[str, torch.Tensor] = {}
        self._second_rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values `(batch, heads, new_length, head_dim)`, and gives all of them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # where nothing may be written in place
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._append("keys", key_states), self._append("values", value_states)
        return self.keys, self.values

    def _append(self, name: str, new: torch.Tensor) -> torch.Tensor:
        states, room = getattr(self, name), self._room_of(name)
        start = states.shape[2] if states.numel() else 0
        length = start + new.shape[2]
        if room is None or room.shape[2] < length:
            room = self._rooms[name] = new.new_empty(*new.shape[:2], max(2 * length, 16), new.shape[3])
            if start:
                room[:, :, :start] = states
        room[:, :, start:length] = new
        return room[:, :, :length]

    def _room_of(self, name: str) -> torch.Tensor | None:
        room = self._rooms.get(name)
        return room if room is not None and _begins(room, getattr(self, name)) else None

    def reorder_cache(self, beam_idx: torch.LongTensor):
        """Rows change places, of which some may be lost and others repeated."""
        rooms = {name: self._room_of(name) for name in ("keys", "values")}
        is_written = all(room is not None for room in rooms.values()) and len(beam_idx) == self.keys.shape[0]
        if not is_written or torch.is_grad_enabled():
            return super().reorder_cache(beam_idx)
        for name, room in rooms.items():
            second = self._second_rooms.get(name)
            if second is None or second.shape != room.shape:
                second = torch.empty_like(room)
            states = getattr(self, name)
            moved = second[:, :, : states.shape[2]]
            setattr(self, name, torch.index_select(states, 0, beam_idx.to(states.device), out=moved))
            self._rooms[name], self._second_rooms[name] = second, room


def _begins(room: torch.Tensor, states: torch.Tensor) -> bool:
    """Whether `states` is still the start of the room, and no copy that has, say, other rows."""
    return states.data_ptr() == room.data_ptr() and states.shape[:2] == room.shape[:2]


class CrossFuseCache(EncoderDecoderCache):
    """
    The cache that [`~CrossFuseForConditionalGeneration.generate`] makes. Beams of a sample share its memory's keys and
    values: the cross-attention cache has a row for each sample, the self-attention cache one for each beam.
    """

    def __init__(self):
        answer = DynamicCache()
        answer.layer_class_to_replicate = GrowingLayer
        super().__init__(answer, DynamicCache())

    def reorder_cache(self, beam_idx: torch.LongTensor):
        """Beams change places within their sample only, so that the memory's stay as they are."""
        self.self_attention_cache.reorder_cache(beam_idx)


def can_decode_tokens(layers: nn.ModuleList) -> bool:
    """Whether [`TokenLayer`]s can stand in for the layers: no gradient, nobody who watches."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not layers.training
        and layers[0].self_attn.config._attn_implementation == "sdpa"
        and all(_is_plain_layer(layer) for layer in layers)
    )


def _is_plain_layer(layer: nn.Module) -> bool:
    return (
        is_plain(layer, CrossFuseLayer)
        and is_plain(layer.self_attn, CrossFuseAttention)
        and is_plain(layer.cross_attn, CrossFuseAttention)
        and is_plain(layer.mlp, CrossFuseMLP)
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call does no more than the `forward` of the class: no hooks, nor a `forward` of accelerate's."""
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )


class TokenLayer:
    """
    A layer of the decoder for one token a sample, in evaluation: the same arithmetic by functions, since at small
    batches the calls of its modules take as long. A module that is more than it seems (quantised, with an adapter or
    hooks) is called.

    Args:
        layer ([`CrossFuseLayer`]): the layer, as it is now.
    """

    def __init__(self, layer: CrossFuseLayer):
        self.layer_idx = layer.self_attn.layer_idx
        self.norms = [
            inline(norm)
            for norm in (layer.input_layernorm, layer.cross_attention_layernorm, layer.post_attention_layernorm)
        ]
        self.self_attn, self.cross_attn = _TokenAttention(layer.self_attn), _TokenAttention(layer.cross_attn)
        self.gate_proj = None if layer.mlp.gate_proj is None else inline(layer.mlp.gate_proj)
        self.up_proj, self.down_proj = inline(layer.mlp.up_proj), inline(layer.mlp.down_proj)

    def __call__(
        self,
        hidden_states: torch.Tensor,
        memory_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        past_key_values: CrossFuseCache,
    ) -> torch.Tensor:
        """States `(rows, hidden_size)` to states, with the arguments of [`CrossFuseLayer`]."""
        answer = past_key_values.self_attention_cache.layers[self.layer_idx]
        memory = past_key_values.cross_attention_cache.layers[self.layer_idx]
        states = self.norms[0](hidden_states)
        query, keys, values = self.self_attn.project(states, position_embeddings)
        keys, values = answer.update(keys, values)
        hidden_states = hidden_states + self.self_attn.attend(query, keys, values)
        query = self.cross_attn.project_query(self.norms[1](hidden_states))
        if memory.keys.shape[0] != query.shape[0]:
            query = join_beams(query, memory.keys.shape[0])
        hidden_states = hidden_states + self.cross_attn.attend(query, memory.keys, memory.values, memory_mask)
        return hidden_states + self._feed_forward(self.norms[2](hidden_states))

    def _feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(F.gelu(self.up_proj(states)))
        return self.down_proj(F.silu(self.gate_proj(states)).mul_(self.up_proj(states)))


class _TokenAttention:
    def __init__(self, attention: CrossFuseAttention):
        self.head_dim, self.width, self.scaling = attention.head_dim, attention.config.hidden_size, attention.scaling
        self.is_grouped = attention.num_key_value_groups > 1
        self.q_proj, self.k_proj = inline(attention.q_proj), inline(attention.k_proj)
        self.v_proj, self.o_proj = inline(attention.v_proj), inline(attention.o_proj)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(1, (-1, self.head_dim)).unsqueeze(2)

    def project_query(self, states: torch.Tensor) -> torch.Tensor:
        return self._split_heads(self.q_proj(states))

    def project(self, states: torch.Tensor, position_embeddings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key = self.project_query(states), self._split_heads(self.k_proj(states))
        if position_embeddings is not None:
            turned = apply_rotary(torch.cat([query, key], dim=1), *position_embeddings)
            query, key = turned.split([query.shape[1], key.shape[1]], dim=1)
        return query, key, self._split_heads(self.v_proj(states))

    def attend(self, query, keys, values, mask: torch.Tensor | None = None) -> torch.Tensor:
        query = query.contiguous()  # or else PyTorch takes a slower way
        output = F.scaled_dot_product_attention(
            query, keys, values, mask, scale=self.scaling, enable_gqa=self.is_grouped
        )
        return self.o_proj(output.transpose(1, 2).reshape(-1, self.width))


def inline(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a call of a projection or a norm does to `(rows, width)`, as a function where that can be told."""
    if is_plain(module, nn.Linear) and type(module.weight) is nn.Parameter:  # not quantised
        is_cpu = module.weight.device.type == "cpu" and module.weight.dtype == torch.float32
        return partial(project_rows if is_cpu else F.linear, weight=module.weight, bias=module.bias)
    if is_plain(module, nn.LayerNorm):
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda states: torch.layer_norm(states, shape, weight, bias, eps)
    if is_plain(module, CrossFuseRMSNorm):
        return partial(torch.rms_norm, normalized_shape=module.normalized_shape, weight=module.weight, eps=module.eps)
    return lambda states: module(states.unsqueeze(1)).squeeze(1)  # as many dimensions as ever


def project_rows(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """
    `nn.functional.linear` of few rows `(rows, width)`. In float32 on a CPU, weights times columns is up to six times
    as fast as rows times weights, and a single column as a batch of products, which then run on several cores.
    """
    columns = states.T
    if columns.shape[1] == 1:
        parts = math.gcd(weight.shape[0], 8)
        product = torch.bmm(weight.reshape(parts, -1, weight.shape[1]), columns.expand(parts, -1, -1)).view(1, -1)
        return product if bias is None else product + bias
    return (weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)).T
