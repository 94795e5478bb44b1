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
"""What `generate` does otherwise than for other models of transformers."""

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .decoding import CrossFuseCache, TokenLayer, can_decode_tokens, inline, is_plain
from .inputs import refuse_no_modality
from .packing import Packing, pack, unpack


class CrossFuseGenerationMixin(GenerationMixin):
    """
    Generation of a [`CrossFuseForConditionalGeneration`]: modalities in any number, a memory that beams share, and
    steps that take a token through the decoder without calling its modules.
    """

    def prepare_inputs_for_generation(
        self, input_ids, decoder_attention_mask=None, decoder_position_ids=None, **kwargs
    ):
        """What `generate` hands to `forward` at each step: the memory, never again the modalities."""
        kwargs = {key: value for key, value in kwargs.items() if key not in self.encoder_tensor_names}
        if decoder_position_ids is None and decoder_attention_mask is not None:
            # A static cache gets its mask in four dimensions, from which the decoder can't count positions.
            decoder_position_ids = ((decoder_attention_mask != 0).long().cumsum(-1) - 1).clamp(min=0)
        if decoder_attention_mask is not None:
            kwargs |= {"decoder_attention_mask": decoder_attention_mask, "decoder_position_ids": decoder_position_ids}
        elif kwargs.get("past_key_values") is not None and kwargs.get("next_sequence_length") is None:
            # Going on from a cache of the user's: without a mask, `generate` does not tell old tokens from new ones.
            kwargs["next_sequence_length"] = input_ids.shape[1] - kwargs["past_key_values"].get_seq_length()
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict[str, Any], *args, **kwargs):
        makes_cache = model_kwargs.get("past_key_values") is None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        memory = model_kwargs["encoder_outputs"]
        is_dynamic = generation_config.cache_implementation in (None, "dynamic")
        if makes_cache and is_dynamic and model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"] = CrossFuseCache()
            memory = self._share_memory(memory, generation_config)
            if not generation_config.return_dict_in_generate:  # or else its places show in weights and in the cache
                memory = close_gaps(memory)
        if memory.get("attention_mask") is not None and bool((memory.attention_mask != 0).all()):
            memory = replace(memory, attention_mask=None)  # or else each step would look for what it masks
        model_kwargs["encoder_outputs"] = memory

    def _share_memory(self, memory: BaseModelOutput, generation_config: GenerationConfig) -> BaseModelOutput:
        """The memory of each sample once, whereas `generate` has repeated it for each beam and returned sequence."""
        repeats = max(generation_config.num_beams, generation_config.num_return_sequences)
        if repeats == 1 or self.config.decoder._attn_implementation not in ("eager", "sdpa"):
            return memory
        mask = memory.get("attention_mask")
        return replace(
            memory,
            last_hidden_state=memory.last_hidden_state[::repeats],
            attention_mask=None if mask is None else mask[::repeats],
        )

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        model_kwargs.pop("labels", None)  # Trainer passes them; they are no input of the encoder
        # A modality's tensors have the user's name and any of them may be absent: the first one given stands for all
        # where `generate` asks for the batch size. `input_ids` before all: left over, they would become the decoder's.
        if inputs is None and model_kwargs.get("encoder_outputs") is None:
            for name in sorted(self.config.modalities.tensor_names, key=lambda name: name != "input_ids"):
                if model_kwargs.get(name) is not None:
                    return model_kwargs.pop(name), name, model_kwargs
            refuse_no_modality(self.config.modalities)
        if model_kwargs.get("encoder_outputs") is not None:
            # A copy, since `generate` repeats its tensors in place for beams and the user may ask it again.
            model_kwargs["encoder_outputs"] = copy.copy(model_kwargs["encoder_outputs"])
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]):
        super()._validate_model_kwargs(
            {key: value for key, value in model_kwargs.items() if key not in self.encoder_tensor_names}
        )

    def _sample(self, *args, **kwargs):
        return GenerationMixin._sample(self._for_tokens(**kwargs), *args, **kwargs)

    def _beam_search(self, *args, **kwargs):
        return GenerationMixin._beam_search(self._for_tokens(**kwargs), *args, **kwargs)

    def _for_tokens(self, generation_config: GenerationConfig, past_key_values: Cache | None = None, **kwargs):
        """What transformers' loops call for each token: a [`TokenModel`] where it gives the same, or this model."""
        can_decode = (
            isinstance(past_key_values, CrossFuseCache)  # of which exported models know nothing
            and not generation_config.is_assistant
            and not generation_config.output_attentions
            and not generation_config.output_hidden_states
            and kwargs.get("decoder_attention_mask") is None
            and kwargs.get("decoder_position_ids") is None
            and type(self).forward.__module__.startswith(__package__)  # no subclass' own
            and all(is_plain(part, type(part)) for part in (self, self.model, self.model.decoder))
            and can_decode_tokens(self.model.decoder.layers)
        )
        return TokenModel(self) if can_decode else self


def close_gaps(memory: BaseModelOutput) -> BaseModelOutput:
    """What the decoder reads of the memory, each sample's at its start, and only as long as the longest."""
    packing = Packing.of(memory.get("attention_mask"))
    if packing is None:
        return memory
    states = unpack(pack(memory.last_hidden_state, packing), packing.without_gaps)
    return replace(memory, last_hidden_state=states, attention_mask=packing.without_gaps.mask)


class TokenModel:
    """
    Stands in for the model in transformers' loops: after the first step, it takes the last token of each sample
    through the decoder's [`TokenLayer`]s, and makes what they share once, or for many steps. All else is the model's.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): the model.
    """

    positions_at_once = 64

    def __init__(self, model: CrossFuseGenerationMixin):
        self.model, self.decoder = model, model.model.decoder
        self.layers = [TokenLayer(layer) for layer in self.decoder.layers]
        self.norm, self.lm_head = inline(self.decoder.norm), inline(model.lm_head)
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, past_key_values: CrossFuseCache, encoder_outputs: BaseModelOutput, **kwargs
    ) -> dict[str, Any]:
        if self.steps == 0:
            self._prepare_memory(**encoder_outputs)
        return {"tokens": input_ids[:, -1], "past_key_values": past_key_values}

    def _prepare_memory(self, last_hidden_state: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        self.memory_mask = self.decoder.expand_memory_mask(last_hidden_state[:, :1], last_hidden_state, attention_mask)

    def _embed_positions(self, start: int, device: torch.device):
        """What is added to the states of the next token, or else what turns its queries and keys."""
        step = self.steps % self.positions_at_once
        if step == 0:
            positions = torch.arange(start, start + self.positions_at_once, device=device).unsqueeze(0)
            self.added, self.turns = self.decoder.embed_positions(positions, self.decoder.dtype)
        self.steps += 1
        if self.turns is None:
            return self.added[:, step], None
        return None, tuple(turn[:, step : step + 1] for turn in self.turns)

    def __call__(self, tokens: torch.LongTensor, past_key_values: CrossFuseCache, **kwargs) -> Seq2SeqLMOutput:
        """Tokens `(rows,)` to logits `(rows, 1, vocab_size)`."""
        states = self.decoder.embed_tokens(tokens)
        added, position_embeddings = self._embed_positions(past_key_values.get_seq_length(), tokens.device)
        states = states if added is None else states + added
        for layer in self.layers:
            states = layer(states, self.memory_mask, position_embeddings, past_key_values)
        logits = self.lm_head(self.norm(states)).unsqueeze(1)
        return Seq2SeqLMOutput(logits=logits, past_key_values=past_key_values)
