# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Generation: how `generate` differs from that of other models of transformers."""

import copy
import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .arguments import refuse_beside_memory
from .decoder_cache import CACHE, is_shareable, make_cache, takes_cache
from .inputs import read_inputs, read_present, refuse_no_modality
from .outputs import as_encoder_output


# Options that go by the tokens of the encoder's texts: the value that is as good as none, and what does it.
_READING_TEXTS = {
    "encoder_no_repeat_ngram_size": (0, EncoderNoRepeatNGramLogitsProcessor),
    "encoder_repetition_penalty": (1.0, EncoderRepetitionPenaltyLogitsProcessor),
}

# Options that no model of CrossFuse has, what is as good as none, and why.
_NO_UNCONDITIONAL = "it compares with answers to no input, which this model does not give"
_NO_ENCODER = "it is for language models without an encoder"
_REFUSED = {
    "guidance_scale": (1, _NO_UNCONDITIONAL),
    "negative_prompt_ids": (None, _NO_UNCONDITIONAL),
    "negative_prompt_attention_mask": (None, _NO_UNCONDITIONAL),
    "assistant_early_exit": (None, _NO_ENCODER),
    "token_healing": (False, _NO_ENCODER),
}


class CrossFuseGenerationMixin(GenerationMixin):
    """
    Generation of a [`CrossFuseForConditionalGeneration`]: modalities in any number, encoded once, and a memory that
    beams share. The loops are transformers' own.

    ```
    generate: modalities --> encoder --> memory --> transformers' generate, for each token:
                                                        prepare_inputs_for_generation --> forward
    ```
    """

    beams_share_memory = True

    @torch.no_grad()
    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs
    ) -> ModelOutput | torch.LongTensor:
        """
        [`~transformers.GenerationMixin.generate`], for any modalities.

        Args:
            inputs (`torch.Tensor`, *optional*): values of the model's main input: `input_ids` where it has a modality
                `text`, or else the values of its first modality.
            generation_config ([`~transformers.GenerationConfig`], *optional*): as transformers takes it.
            kwargs: tensors of the modalities, named as `config.modalities.tensor_names` says, or `encoder_outputs`
                from before; and what transformers' `generate` takes. `encoder_no_repeat_ngram_size` and
                `encoder_repetition_penalty` go by the tokens of all texts, whose vocabulary has to be the decoder's.

        Raises:
            ValueError: without a modality and without `encoder_outputs`, with both unless an assistant reads the
                modalities, or as [`CrossFuseMultimodalEncoder`] does; for `guidance_scale`, `negative_prompt_ids`,
                `assistant_early_exit` and `token_healing`, and where options need the tokens of texts and there are
                none to read.
        """
        self._refuse_options(generation_config, kwargs)
        kwargs.pop("labels", None)  # Trainer passes them; they are no input of the encoder
        if inputs is not None:
            if kwargs.get(self.main_input_name) is not None:
                raise ValueError(f"`inputs` and `{self.main_input_name}` are both given; expected one of them")
            kwargs[self.main_input_name] = inputs
        tensors = {name: kwargs.pop(name) for name in self.encoder_tensor_names & kwargs.keys()}
        if tensors.get("inputs_embeds") is not None:
            self.model.refuse_embeddings_of_answers(tensors["inputs_embeds"])
        generation_config = self._read_texts(tensors, generation_config, kwargs)
        assistant = kwargs.get("assistant_model")
        if kwargs.get("encoder_outputs") is None:
            kwargs["encoder_outputs"] = self._encode(tensors, generation_config, kwargs)
        elif assistant is None:
            refuse_beside_memory(tensors, self.encoder_tensor_names)
        # A copy, since transformers repeats its tensors in place for beams and the user may ask it again.
        memory = kwargs["encoder_outputs"] = copy.copy(as_encoder_output(kwargs["encoder_outputs"]))
        if isinstance(assistant, CrossFuseGenerationMixin):
            kwargs["assistant_model"] = _with_memory(assistant, assistant.get_encoder()(**tensors, return_dict=True))
        elif assistant is not None:
            kwargs |= tensors  # which its own encoder may read
        # What prompt tuning of peft puts in the place of this method does not take it.
        takes_samples = "num_samples" in inspect.signature(self.prepare_inputs_for_generation).parameters
        if takes_samples and kwargs.get("cache") is None and kwargs.get("past_key_values") is None:
            kwargs["num_samples"] = memory.last_hidden_state.shape[0]
        outputs = super().generate(generation_config=generation_config, **kwargs)
        if isinstance(outputs, ModelOutput) and is_shareable(outputs.get(CACHE)):
            answer, shared = outputs[CACHE].self_attention_cache, outputs[CACHE].cross_attention_cache
            shared.unshare(answer.layers[0].keys.shape[0])
        return outputs

    def _encode(self, tensors: dict[str, torch.Tensor], generation_config, kwargs: dict[str, Any]) -> BaseModelOutput:
        if not any(tensors.get(name) is not None for name in self.config.modalities.tensor_names):
            refuse_no_modality(self.config.modalities)
        recorded = {}
        for flag in ("output_attentions", "output_hidden_states"):
            recorded[flag] = self._option(flag, generation_config, kwargs) or False
        return self.get_encoder()(**tensors, **recorded, return_dict=True)

    def _option(self, name: str, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> Any:
        """What `generate` takes for an option: its argument, or else the config that is given, or the model's."""
        asked = (
            kwargs.get(name),
            *(getattr(config, name, None) for config in (generation_config, self.generation_config)),
        )
        return next((value for value in asked if value is not None), None)

    def _refuse_options(self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]):
        for name, (harmless, reason) in _REFUSED.items():
            value = self._option(name, generation_config, kwargs)
            if value is not None and (torch.is_tensor(value) or value != harmless):
                raise ValueError(f"`{name}` is no option of this model: {reason}")

    def _read_texts(
        self, tensors: dict[str, torch.Tensor], generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> GenerationConfig | None:
        """
        Adds the processors of options that go by the tokens of texts, since transformers' `generate` has the memory
        alone. Returns the config, with these options off.
        """
        asked = {name: self._option(name, generation_config, kwargs) for name in _READING_TEXTS}
        asked = {name: value for name, value in asked.items() if value not in (None, _READING_TEXTS[name][0])}
        if not asked:
            return generation_config
        texts = self._tokens_of_texts(next(iter(asked)), tensors, kwargs)
        for name, value in asked.items():
            off, processor = _READING_TEXTS[name]
            own = _OfEachSample([[processor(value, tokens[None]) for tokens in sample] for sample in texts])
            kwargs["logits_processor"] = LogitsProcessorList([own, *(kwargs.get("logits_processor") or ())])
            kwargs.pop(name, None)
            if generation_config is None:
                kwargs[name] = off
            else:
                generation_config = copy.deepcopy(generation_config)
                setattr(generation_config, name, off)
        return generation_config

    def _tokens_of_texts(
        self, option: str, tensors: dict[str, torch.Tensor], kwargs: dict[str, Any]
    ) -> list[list[torch.LongTensor]]:
        """The tokens of the texts that each sample has, for an option that compares them with those of the answer."""
        modalities = self.config.modalities
        names = modalities.names_of_kind("text")
        if not names or any(modalities[name].vocab_size != self.config.vocab_size for name in names):
            raise ValueError(
                f"`{option}` compares tokens of the answer with those of texts; expected a model whose modalities of "
                "kind 'text' have the vocabulary of the decoder"
            )
        if kwargs.get("encoder_outputs") is not None:
            raise ValueError(f"`{option}` reads the tokens of texts, which `encoder_outputs` do not have")
        inputs = read_inputs(tensors, modalities)
        present = read_present(inputs, tensors.get("modality_mask"), modalities)  # (batch, num_modalities)
        ends = self.config.eos_token_id  # which end texts, too: an answer may end as one of them
        ends = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
        ends = torch.tensor(ends, dtype=torch.long, device=present.device)
        texts = [[] for _ in present]
        for name in [name for name in names if name in inputs]:
            values, mask, _, _, given = inputs[name]
            if values.is_floating_point():
                raise ValueError(f"`{option}` reads the tokens of texts, which `{given}` do not have")
            kept = mask.bool() & present[:, [list(modalities).index(name)]] & ~torch.isin(values, ends)
            for sample, tokens, row in zip(texts, values, kept):
                sample.append(tokens[row])
        return texts

    @takes_cache
    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        cache: EncoderDecoderCache | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        num_samples: int | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict[str, Any]:
        """
        What `generate` hands to `forward` at each step: the memory, never again the modalities.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): the answers so far.
            cache ([`~transformers.EncoderDecoderCache`], *optional*): what `generate` or the user made.
            encoder_outputs ([`CrossFuseEncoderOutput`]): the memory, repeated for each row.
            num_samples (`int`, *optional*): how many samples the rows are answers to, if `generate` made the cache.
            decoder_attention_mask (`torch.Tensor` of shape `(rows, length)`): 0 for padding of a prompt.
            decoder_position_ids (`torch.LongTensor` of shape `(rows, length)`): counted from the mask by default.
            is_first_iteration (`bool`, defaults to `False`): whether the answer begins here.
            kwargs: what else `generate` keeps from step to step.
        """
        if is_first_iteration and num_samples is not None and _is_replaceable(cache):
            cache = make_cache(self.config.decoder)
            if self.beams_share_memory and is_shareable(cache):
                encoder_outputs = _first_rows(encoder_outputs, num_samples)
        kwargs = {
            key: value for key, value in kwargs.items() if value is not None and key not in self.encoder_tensor_names
        }
        if decoder_position_ids is None and decoder_attention_mask is not None:
            # A static cache gets its mask in four dimensions, from which the decoder can't count positions.
            decoder_position_ids = ((decoder_attention_mask != 0).long().cumsum(-1) - 1).clamp(min=0)
        if decoder_attention_mask is not None:
            kwargs |= {"decoder_attention_mask": decoder_attention_mask, "decoder_position_ids": decoder_position_ids}
        elif cache is not None and kwargs.get("next_sequence_length") is None:
            # Going on from a cache of the user's: without a mask, `generate` does not tell old tokens from new ones.
            new = input_ids.shape[1] - cache.get_seq_length()
            if new > 0:  # or else the old ones are not here
                kwargs["next_sequence_length"] = new
        kwargs |= {CACHE: cache, "encoder_outputs": encoder_outputs, "is_first_iteration": is_first_iteration}
        return super().prepare_inputs_for_generation(input_ids, **kwargs)


class _OfEachSample(LogitsProcessor):
    """Processors of the scores of each sample, whose beams are next to each other."""

    def __init__(self, processors: list[list[LogitsProcessor]]):
        self.processors = [LogitsProcessorList(own) for own in processors]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        rows = scores.shape[0] // len(self.processors)
        samples = zip(self.processors, input_ids.split(rows), scores.split(rows))
        return torch.cat([processors(*sample) for processors, *sample in samples])


class _Remembered(nn.Module):
    """An encoder that has read its inputs already."""

    def __init__(self, memory: BaseModelOutput):
        super().__init__()
        self.memory = memory

    def forward(self, **kwargs) -> BaseModelOutput:
        return copy.copy(self.memory)


def _with_memory(assistant: CrossFuseGenerationMixin, memory: BaseModelOutput) -> CrossFuseGenerationMixin:
    """The same assistant with its memory. transformers would hand its encoder one tensor, not all modalities."""
    assistant = copy.copy(assistant)
    assistant.get_encoder = lambda modality=None: _Remembered(memory)
    return assistant


def _is_replaceable(cache: EncoderDecoderCache | None) -> bool:
    """Whether it is an empty cache as `generate` makes it by default, which one of ours may replace."""
    parts = () if cache is None else (cache.self_attention_cache, cache.cross_attention_cache)
    is_default = bool(parts) and all(type(part) is DynamicCache and not part.offloading for part in parts)
    return is_default and cache.get_seq_length() == 0


def _first_rows(memory: BaseModelOutput, num_samples: int) -> BaseModelOutput:
    """The memory of each sample once, whereas `generate` has repeated it for each beam and returned sequence."""
    repeats = memory.last_hidden_state.shape[0] // num_samples
    mask = memory.get("attention_mask")
    return replace(
        memory,
        last_hidden_state=memory.last_hidden_state[::repeats],
        attention_mask=None if mask is None else mask[::repeats],
    )


__all__ = ["CrossFuseGenerationMixin"]
