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

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from .layers import CrossFuseAttention, CrossFuseLayer, CrossFuseMLP, apply_rotary, join_beams


class GrowingLayer(DynamicLayer):
    """
    A [`~transformers.cache_utils.DynamicLayer`] with room for tokens to come: a new one is written behind the others,
    of which the base class makes a copy each time.
    """

    def __init__(self):
        super().__init__()
        self._rooms: dict[str, torch.Tensor] = {}

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
        states, room = getattr(self, name), self._rooms.get(name)
        start = states.shape[2] if states.numel() else 0
        length = start + new.shape[2]
        if room is None or not _begins(room, states) or room.shape[2] < length:
            room = self._rooms[name] = new.new_empty(*new.shape[:2], max(2 * length, 16), new.shape[3])
            if start:
                room[:, :, :start] = states
        room[:, :, start:length] = new
        return room[:, :, :length]


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


def can_decode_token(layers: nn.ModuleList, inputs_embeds: torch.Tensor, past_key_values: Cache | None) -> bool:
    """Whether `decode_token` can stand in for the layers: one token a sample, no gradient, nobody who watches."""
    return (
        inputs_embeds.shape[1] == 1
        and isinstance(past_key_values, CrossFuseCache)
        and past_key_values.is_updated.get(0, False)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not layers.training
        and layers[0].self_attn.config._attn_implementation == "sdpa"
        and not any(
            _is_watched(part) for layer in layers for part in (layer, layer.self_attn, layer.cross_attn, layer.mlp)
        )
    )


def _is_watched(module: nn.Module) -> bool:
    """Whether a call does more than the `forward` of its class: hooks, or a `forward` of its own, as of accelerate."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def decode_token(
    layer: CrossFuseLayer,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    memory_mask: torch.Tensor | None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
    past_key_values: CrossFuseCache,
) -> torch.Tensor:
    """
    What the layer makes of one token a sample `(batch, 1, hidden_size)` in evaluation, by functions in place of
    modules: at small batches, calling the modules takes as long as the arithmetic.
    """
    attention, states = layer.self_attn, layer.input_layernorm(hidden_states)
    query, key, value = (
        _heads(attention, _linear(projection, states))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if position_embeddings is not None:
        query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)
    key, value = past_key_values.self_attention_cache.layers[attention.layer_idx].update(key, value)
    hidden_states = hidden_states + _attend(attention, query, key, value, attention_mask)
    attention, states = layer.cross_attn, layer.cross_attention_layernorm(hidden_states)
    memory = past_key_values.cross_attention_cache.layers[attention.layer_idx]
    query = _heads(attention, _linear(attention.q_proj, states))
    hidden_states = hidden_states + _attend(attention, query, memory.keys, memory.values, memory_mask)
    return hidden_states + _feed_forward(layer.mlp, layer.post_attention_layernorm(hidden_states))


def _linear(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    if type(module) is nn.Linear and not _is_watched(module):
        return F.linear(states, module.weight, module.bias)
    return module(states)  # quantised, an adapter, ...


def _heads(attention: CrossFuseAttention, states: torch.Tensor) -> torch.Tensor:
    return states.view(states.shape[0], 1, -1, attention.head_dim).transpose(1, 2)


def _attend(attention: CrossFuseAttention, query, key, value, mask: torch.Tensor | None) -> torch.Tensor:
    batch, heads, _, head_dim = query.shape
    if key.shape[0] != batch:
        query = join_beams(query, key.shape[0])
    output = F.scaled_dot_product_attention(
        query, key, value, mask, scale=attention.scaling, enable_gqa=attention.num_key_value_groups > 1
    )
    return _linear(attention.o_proj, output.transpose(1, 2).reshape(batch, 1, heads * head_dim))


def _feed_forward(mlp: CrossFuseMLP, states: torch.Tensor) -> torch.Tensor:
    if mlp.gate_proj is None:
        return _linear(mlp.down_proj, F.gelu(_linear(mlp.up_proj, states)))
    return _linear(mlp.down_proj, F.silu(_linear(mlp.gate_proj, states)).mul_(_linear(mlp.up_proj, states)))
