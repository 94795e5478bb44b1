# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The decoder: causal self-attention over the answer, cross-attention to the memory, and their caches."""

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .arguments import PASSED, refuse_unknown
from .configuration_crossfuse import CrossFuseDecoderConfig
from .decoder_cache import CACHE, has_memory, is_shareable, make_cache, takes_cache
from .layers import (
    RECORDED,
    CrossFuseAttention,
    CrossFuseLayer,
    CrossFuseRotaryEmbedding,
    CrossFuseTokenEmbedding,
    as_bias,
    close_up,
    make_attention_mask,
    make_norm,
    sinusoidal_positions,
)
from .outputs import selects_hidden_states
from .packing import Packing, pack, pack_positions, unpack
from .pretrained import CrossFusePreTrainedModel


class CrossFuseDecoder(CrossFusePreTrainedModel):
    """
    Transformer decoder over the memory.

    Args:
        config ([`CrossFuseDecoderConfig`]): the `decoder` of a [`CrossFuseConfig`].
    """

    config: CrossFuseDecoderConfig
    _can_record_outputs = {
        **RECORDED,
        "cross_attentions": OutputRecorder(CrossFuseAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: CrossFuseDecoderConfig):
        super().__init__(config)
        self.embed_tokens = CrossFuseTokenEmbedding(config.vocab_size, config.hidden_size)
        rotary = config.position_embedding_type == "rotary"
        self.rotary_emb = CrossFuseRotaryEmbedding(config, axes=1) if rotary else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            CrossFuseLayer(config, idx, is_causal=True, has_cross_attention=True)
            for idx in range(config.num_hidden_layers)
        )
        self.norm = make_norm(config)
        self.post_init()

    def embed_positions(
        self, position_ids: torch.LongTensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, torch.Tensor] | None]:
        """What is added to the states of positions `(batch, length)`, or else what turns their queries and keys."""
        positions = position_ids.unsqueeze(-1)
        if self.rotary_emb is not None:
            return None, self.rotary_emb(positions, dtype)
        return sinusoidal_positions(positions, self.config.hidden_size).to(dtype), None

    def _mask_answer(
        self,
        inputs_embeds: torch.Tensor,
        mask: torch.Tensor | None,
        cache: EncoderDecoderCache | None,
        position_ids: torch.LongTensor,
    ) -> torch.Tensor | None:
        """The answer's mask `(batch, past + target_length)` as attention takes it: each token sees those before it."""
        if mask is None and inputs_embeds.shape[1] == 1 and is_shareable(cache):
            return None  # a single token sees all that has grown
        return create_causal_mask(self.config, inputs_embeds, mask, cache, position_ids)

    def _mask_memory(
        self,
        inputs_embeds: torch.Tensor,
        memory: torch.Tensor | None,
        mask: torch.Tensor | None,
        packing: Packing | None,
        cache: EncoderDecoderCache | None,
    ) -> torch.Tensor | None:
        """The memory's mask `(rows, memory_length)` as attention takes it. A cache that beams share keeps it."""
        if memory is None or not is_shareable(cache):
            return make_attention_mask(self.config, inputs_embeds, memory, mask, packing)
        shared = cache.cross_attention_cache
        if not has_memory(cache):
            queries = inputs_embeds[: memory.shape[0], :1]  # all beams of a sample, and all tokens, read the same
            mask = make_attention_mask(self.config, queries, memory, mask, packing, may_be_none=False)
            shared.mask = as_bias(mask, inputs_embeds.dtype)
        return shared.mask

    @selects_hidden_states
    @merge_with_config_defaults
    @capture_outputs
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        needed_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, target_length)`): tokens of the answer so far.
            encoder_hidden_states (`torch.Tensor` of shape `(batch, memory_length, d_model)`): the memory.
            encoder_attention_mask (`torch.Tensor` of shape `(batch, memory_length)`): 1 for what may be read.
            attention_mask (`torch.Tensor` of shape `(batch, past + target_length)`): 0 for padding of the answer.
            position_ids (`torch.LongTensor` of shape `(batch, target_length)`): counted from the mask by default.
            cache ([`~transformers.EncoderDecoderCache`]): keys and values of earlier steps and of the memory. Up to
                transformers 5.23 its name is `past_key_values`.
            inputs_embeds (`torch.Tensor` of shape `(batch, target_length, d_model)`): instead of `input_ids`.
            needed_mask (`torch.Tensor` of shape `(batch, target_length)`): 1 for positions that are read, here or by
                a later position. The others, the end of shorter answers, are not computed and give zeros.
            output_hidden_states (`bool` or `list[int]`, *optional*): whether to give the input of the first layer and
                what each layer makes, or of which of these places; the others are `None` then. Negative places count
                from the end. Places beyond the last layer are ignored.
            kwargs: what transformers hands to any model.

        Raises:
            ValueError: for an unknown argument, or unless exactly one of `input_ids` and `inputs_embeds` is given, the
                memory has as many samples, and `attention_mask` covers the tokens of the cache, too.
            TypeError: if `cache` is a cache for a decoder alone.
        """
        refuse_unknown(kwargs, PASSED, type(self).forward)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of `decoder_input_ids` and `decoder_inputs_embeds`")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, target_length, d_model)
        else:
            inputs_embeds = inputs_embeds.to(self.embed_tokens.weight.dtype)
        _check_cache(cache)
        _check_shapes(inputs_embeds, encoder_hidden_states, attention_mask, cache)
        if use_cache and cache is None:
            cache = make_cache(self.config)
        if encoder_hidden_states is not None and not has_memory(cache):  # or else nothing but its shape is read
            encoder_hidden_states = encoder_hidden_states.to(inputs_embeds.dtype)
        if position_ids is None:
            position_ids = _next_positions(inputs_embeds, attention_mask, cache)
        causal_mask = self._mask_answer(inputs_embeds, attention_mask, cache, position_ids)
        memory_packing = None if has_memory(cache) else Packing.of(encoder_attention_mask)
        # With a cache of another kind, the masks of later tokens come from outside, with all places of the memory.
        closes_up = cache is None or is_shareable(cache)
        memory_closed = close_up(self.config, memory_packing) if closes_up else memory_packing
        encoder_attention_mask = self._mask_memory(
            inputs_embeds, encoder_hidden_states, encoder_attention_mask, memory_closed, cache
        )
        added, position_embeddings = self.embed_positions(position_ids, inputs_embeds.dtype)
        hidden_states = self.dropout(inputs_embeds if added is None else inputs_embeds + added)
        packing = Packing.of(needed_mask)
        hidden_states = pack(hidden_states, packing)
        encoder_hidden_states = pack(encoder_hidden_states, memory_packing)
        position_embeddings = pack_positions(position_embeddings, packing)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                causal_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                position_embeddings=position_embeddings,
                cache=cache,
                packing=packing,
                memory_packing=memory_closed,
                **kwargs,
            )
        hidden_states = unpack(hidden_states, packing)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), **{CACHE: cache if use_cache else None}
        )


def _check_cache(cache):
    if cache is not None and not isinstance(cache, EncoderDecoderCache):
        raise TypeError(
            f"`{CACHE}` is a {type(cache).__name__}; expected an EncoderDecoderCache, which keeps the keys and values "
            "of the memory beside those of the answer"
        )


def _check_shapes(inputs_embeds, encoder_hidden_states, attention_mask, cache):
    """The answer has as many samples as the memory, and its mask, unless `generate` made it, covers all its tokens."""
    batch, length = inputs_embeds.shape[:2]
    rows = batch if encoder_hidden_states is None else encoder_hidden_states.shape[0]
    are_beams = is_shareable(cache) and batch % rows == 0
    if rows != batch and not are_beams:
        raise ValueError(f"the decoder's input has {batch} samples and the memory has {rows}; expected as many")
    if attention_mask is None or attention_mask.dim() == 4 or torch.compiler.is_compiling():
        return
    length += cache.get_seq_length() if cache is not None else 0
    if attention_mask.shape != (batch, length):
        raise ValueError(
            f"`decoder_attention_mask` has shape {tuple(attention_mask.shape)}; expected {(batch, int(length))}, with "
            "the tokens of the cache"
        )


def _next_positions(inputs_embeds, attention_mask, cache) -> torch.LongTensor:
    """Positions of the new tokens: counted over the mask where there is one, so that left padding shifts nothing."""
    length = inputs_embeds.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        return ((attention_mask != 0).long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    past_length = cache.get_seq_length() if cache is not None else 0
    return (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)
