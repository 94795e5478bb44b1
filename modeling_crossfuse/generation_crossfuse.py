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
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateNonBeamOutput
from transformers.modeling_outputs import BaseModelOutput

from .decoder import CrossFuseDecoder
from .decoding import CrossFuseCache, can_decode_tokens, decode_token, is_plain, project_rows
from .inputs import refuse_no_modality


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
            decoder_position_ids = (decoder_attention_mask.long().cumsum(-1) - 1).clamp(min=0)
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
        if not isinstance(memory, BaseModelOutput):
            return
        if memory.get("attention_mask") is not None and bool((memory.attention_mask != 0).all()):
            memory = replace(memory, attention_mask=None)  # or else each step would look for what it masks
        is_dynamic = generation_config.cache_implementation in (None, "dynamic")
        if makes_cache and is_dynamic and model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"] = CrossFuseCache()
            memory = self._share_memory(memory, generation_config)
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
        if isinstance(model_kwargs.get("encoder_outputs"), BaseModelOutput):
            # A copy, since `generate` repeats its tensors in place for beams and the user may ask it again.
            model_kwargs["encoder_outputs"] = copy.copy(model_kwargs["encoder_outputs"])
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]):
        super()._validate_model_kwargs(
            {key: value for key, value in model_kwargs.items() if key not in self.encoder_tensor_names}
        )

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs,
    ) -> GenerateNonBeamOutput | torch.LongTensor:
        """transformers' own loop, without the calls of the model where nobody sees them."""
        if synced_gpus or not self._can_decode_tokens(generation_config, model_kwargs):
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus,
                streamer,
                **model_kwargs,
            )
        logits = self._prefill(input_ids, generation_config, model_kwargs).logits[:, -1]
        decode = TokenDecoder(self, model_kwargs["past_key_values"], model_kwargs["encoder_outputs"])
        unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        has_end = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        while True:
            scores = logits_processor(input_ids, logits.float())
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            if has_end:
                tokens = torch.where(unfinished, tokens, generation_config._pad_token_tensor)
            input_ids = torch.cat([input_ids, tokens.unsqueeze(1)], dim=1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            if not unfinished.any():
                break
            logits = decode(tokens)
        if streamer is not None:
            streamer.end()
        return input_ids

    def _can_decode_tokens(self, generation_config: GenerationConfig, model_kwargs: dict[str, Any]) -> bool:
        given = {name for name, value in model_kwargs.items() if value is not None} - self.encoder_tensor_names
        return (
            self.device.type == "cpu"  # elsewhere, transformers' loop goes on while the device computes
            and not generation_config.return_dict_in_generate
            and not generation_config.is_assistant
            and given == {"encoder_outputs", "past_key_values", "use_cache"}
            and type(self).forward.__module__.startswith(__package__)  # no subclass' own
            and is_plain(self, type(self))
            and is_plain(self.model, type(self.model))
            and is_plain(self.model.decoder, CrossFuseDecoder)
            and can_decode_tokens(self.model.decoder.layers, model_kwargs["past_key_values"])
        )


class TokenDecoder:
    """
    Takes a token of each sample to the next one's logits. What steps share is made once, or for many of them.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): the model.
        past_key_values ([`CrossFuseCache`]): keys and values of the answer so far, and of the memory.
        memory ([`CrossFuseEncoderOutput`]): the memory.
    """

    positions_at_once = 64

    def __init__(self, model, past_key_values: CrossFuseCache, memory: BaseModelOutput):
        self.decoder, self.lm_head, self.past_key_values = model.model.decoder, model.lm_head, past_key_values
        states = memory.last_hidden_state
        self.memory_mask = self.decoder.expand_memory_mask(states[:, :1], states, memory.get("attention_mask"))
        self.dtype, self.start = states.dtype, past_key_values.get_seq_length()
        self.steps = 0

    def _embed_position(self):
        step = self.steps % self.positions_at_once
        if step == 0:
            positions = torch.arange(self.positions_at_once) + self.start + self.steps
            self.added, self.turns = self.decoder.embed_positions(positions.unsqueeze(0), self.dtype)
        self.steps += 1
        if self.turns is None:
            return self.added[:, step], None
        return None, tuple(turn[:, step : step + 1] for turn in self.turns)

    def __call__(self, tokens: torch.LongTensor) -> torch.Tensor:
        """Tokens `(rows,)` to logits `(rows, vocab_size)`."""
        states = self.decoder.embed_tokens(tokens)
        added, position_embeddings = self._embed_position()
        states = states if added is None else states + added
        states = decode_token(
            self.decoder.layers, states, None, self.memory_mask, position_embeddings, self.past_key_values
        )
        return project_rows(self.lm_head, self.decoder.norm(states)).contiguous()
