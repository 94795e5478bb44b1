# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What CrossFuse models return."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps

import torch
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


@dataclass
class CrossFuseEncoderOutput(BaseModelOutput):
    """
    What the encoders and the fusion make of the inputs.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, memory_length, d_model)`): the memory.
        hidden_states (`tuple(torch.Tensor)`, *optional*): the input of the first layer and the output of every layer,
            the modalities' built-in encoders first, in the config's order, then the fusion. An encoder's have a row
            for each sample that has the modality, and for each of its images where samples have several. Encoders of
            transformers are not among them.
        attentions (`tuple(torch.Tensor)`, *optional*): weights of every self-attention, in the same order.
        attention_mask (`torch.Tensor` of shape `(batch, memory_length)`): 1 for what the decoder may read.
        modality_ids (`torch.LongTensor` of shape `(batch, memory_length)`): the modality of each position, as its
            place in `config.modalities`; -1 where the fusion made positions that belong to no single modality.
    """

    attention_mask: torch.Tensor | None = None
    modality_ids: torch.LongTensor | None = None


@dataclass
class CrossFuseModelOutput(Seq2SeqModelOutput):
    """
    [`~transformers.modeling_outputs.Seq2SeqModelOutput`] and what only CrossFuse has.

    Args:
        pooler_output (`torch.Tensor` of shape `(batch, d_model)`): mean of `last_hidden_state` over the target's
            length, its padding left out; none with a cache.
        encoder_attention_mask (`torch.Tensor` of shape `(batch, memory_length)`): 1 for what the decoder may read.
        encoder_modality_ids (`torch.LongTensor` of shape `(batch, memory_length)`): the modality of each position.
    """

    pooler_output: torch.Tensor | None = None
    encoder_attention_mask: torch.Tensor | None = None
    encoder_modality_ids: torch.LongTensor | None = None


@dataclass
class CrossFuseSeq2SeqLMOutput(Seq2SeqLMOutput):
    """
    [`~transformers.modeling_outputs.Seq2SeqLMOutput`] with the memory's mask and the modality of its positions, as in
    [`CrossFuseModelOutput`].
    """

    encoder_attention_mask: torch.Tensor | None = None
    encoder_modality_ids: torch.LongTensor | None = None


def as_encoder_output(outputs: BaseModelOutput | dict | tuple) -> CrossFuseEncoderOutput:
    """The memory that a user gives: an output, or the tuple of one, which lacks the fields that are `None`."""
    if isinstance(outputs, CrossFuseEncoderOutput):
        return outputs
    if isinstance(outputs, dict):  # such as another `ModelOutput`
        return CrossFuseEncoderOutput(
            **{field.name: outputs.get(field.name) for field in fields(CrossFuseEncoderOutput)}
        )
    memory, *others = outputs
    recorded = (part for part in others if isinstance(part, tuple))
    mask_and_ids = zip(("attention_mask", "modality_ids"), (part for part in others if torch.is_tensor(part)))
    return CrossFuseEncoderOutput(memory, *recorded, **dict(mask_and_ids))


def selects_hidden_states(forward: Callable) -> Callable:
    """
    Lets `output_hidden_states` of a `forward` be a list of places among the hidden states that `True` would give. The
    states at other places are `None`. Negative places count from the end. Places beyond the last layer are ignored,
    since an encoder and a decoder of different depths get the same list. From 5.23 on, transformers does so for models
    that record one stack of layers.
    """

    @wraps(forward)
    def selecting(self, *args, **kwargs):
        asked = kwargs.get("output_hidden_states")
        if not asked or asked is True:
            return forward(self, *args, **kwargs)
        return_dict = kwargs.get("return_dict", self.config.return_dict)
        outputs = forward(self, *args, **{**kwargs, "output_hidden_states": True, "return_dict": True})
        outputs.hidden_states = _chosen(outputs.hidden_states, [asked] if isinstance(asked, int) else asked)
        return outputs.to_tuple() if return_dict is False else outputs

    return selecting


def _chosen(hidden_states: tuple[torch.Tensor, ...], places: list[int]) -> tuple[torch.Tensor | None, ...]:
    count = len(hidden_states)
    kept = {place % count for place in places if -count <= place < count}
    return tuple(states if place in kept else None for place, states in enumerate(hidden_states))
