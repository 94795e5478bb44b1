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
"""What makes decoding fast: a cache that grows in place and that beams share, and a token's way through a layer."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from .layers import CrossFuseAttention, CrossFuseLayer, CrossFuseMLP, apply_rotary, join_beams


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
        if None in rooms.values() or len(beam_idx) != self.keys.shape[0] or torch.is_grad_enabled():
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


def can_decode_tokens(layers: nn.ModuleList, past_key_values: Cache | None) -> bool:
    """Whether `decode_token` can stand in for the layers: a cache it knows, no gradient, nobody who watches."""
    return (
        isinstance(past_key_values, CrossFuseCache)
        and not torch.is_grad_enabled()
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


def decode_token(
    layers: nn.ModuleList,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    memory_mask: torch.Tensor | None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
    past_key_values: CrossFuseCache,
) -> torch.Tensor:
    """
    What the layers make of one token a sample `(rows, hidden_size)` in evaluation, by functions in place of modules:
    at small batches, calling the modules takes as long as the arithmetic.
    """
    for layer in layers:
        attended = _attend_to_answer(layer, hidden_states, attention_mask, position_embeddings, past_key_values)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + _attend_to_memory(layer, hidden_states, memory_mask, past_key_values)
        hidden_states = hidden_states + _feed_forward(layer.mlp, layer.post_attention_layernorm(hidden_states))
    return hidden_states


def project_rows(projection: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """
    A projection of few rows `(rows, width)`. In float32 on a CPU, weights times columns is up to six times as fast as
    `nn.Linear`'s rows times weights, and a single column as a batch of products, which then run on several cores.
    """
    weight, bias = projection.weight, projection.bias
    if not is_plain(projection, nn.Linear) or type(weight) is not nn.Parameter:  # quantised, an adapter, ...
        return projection(states)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return F.linear(states, weight, bias)
    columns = states.T
    if columns.shape[1] == 1:
        parts = math.gcd(weight.shape[0], 8)
        product = torch.bmm(weight.reshape(parts, -1, weight.shape[1]), columns.expand(parts, -1, -1)).view(1, -1)
        return product if bias is None else product + bias
    return (weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)).T


def _attend_to_answer(layer, hidden_states, attention_mask, position_embeddings, past_key_values) -> torch.Tensor:
    attention, states = layer.self_attn, layer.input_layernorm(hidden_states)
    query, key, value = (
        _project_heads(attention, projection, states)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if position_embeddings is not None:
        query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)
    key, value = past_key_values.self_attention_cache.layers[attention.layer_idx].update(key, value)
    return _attend(attention, query, key, value, attention_mask)


def _attend_to_memory(layer, hidden_states, memory_mask, past_key_values) -> torch.Tensor:
    attention, memory = layer.cross_attn, past_key_values.cross_attention_cache.layers[layer.cross_attn.layer_idx]
    query = _project_heads(attention, attention.q_proj, layer.cross_attention_layernorm(hidden_states))
    if memory.keys.shape[0] != query.shape[0]:
        query = join_beams(query, memory.keys.shape[0])
    return _attend(attention, query, memory.keys, memory.values, memory_mask)


def _project_heads(attention: CrossFuseAttention, projection: nn.Module, states: torch.Tensor) -> torch.Tensor:
    return project_rows(projection, states).unflatten(1, (-1, attention.head_dim)).unsqueeze(2)


def _attend(attention: CrossFuseAttention, query, key, value, mask: torch.Tensor | None) -> torch.Tensor:
    query = query.contiguous()  # or else PyTorch takes a slower way
    output = F.scaled_dot_product_attention(
        query, key, value, mask, scale=attention.scaling, enable_gqa=attention.num_key_value_groups > 1
    )
    return project_rows(attention.o_proj, output.transpose(1, 2).reshape(-1, attention.o_proj.in_features))


def _feed_forward(mlp: CrossFuseMLP, states: torch.Tensor) -> torch.Tensor:
    if mlp.gate_proj is None:
        return project_rows(mlp.down_proj, F.gelu(project_rows(mlp.up_proj, states)))
    gate = F.silu(project_rows(mlp.gate_proj, states))
    return project_rows(mlp.down_proj, gate.mul_(project_rows(mlp.up_proj, states)))
