# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How much of the decoder's attention each modality got."""

import contextlib

import torch
from transformers import PreTrainedModel

from .prediction import evaluation_mode, to_device


@torch.inference_mode()
def modality_shares(model, inputs: dict[str, torch.Tensor], generated_ids: torch.LongTensor) -> torch.Tensor:
    """
    How much of the decoder's cross-attention went to each modality while it answered.

    It is the attention weight, summed over a modality's positions in the memory and averaged over layers, heads and
    the answer's tokens. That says where the decoder *read*, not what *caused* the answer: a modality with many
    positions draws weight even if it tells little, and after `joint` or `bottleneck` fusion a position also carries
    what it took from other modalities. What an answer depends on, [`explain`] tells.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): run in evaluation mode with eager attention, which is the one
            that gives its weights; its own mode and attention are put back afterwards.
        inputs (`dict[str, torch.Tensor]`): a batch as the processor makes it.
        generated_ids (`torch.LongTensor` of shape `(batch, length)`): what `generate` answered, the start token
            included. What comes after the end token is left out.

    Returns:
        `torch.Tensor` of shape `(batch, num_modalities)`: shares from 0 to 1 in the config's order. They add up to 1,
        less the share of positions that belong to no single modality: some for fusion `bottleneck`, all for
        `latent`.

    Raises:
        ValueError: if `generated_ids` has nothing after the start token.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration
    >>> from modeling_crossfuse.evaluation.attention import modality_shares

    >>> modalities = {"text": {"vocab_size": 50}, "wrist": {"kind": "series", "num_channels": 2}}
    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, modalities=modalities, decoder={"vocab_size": 60})
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "wrist_values": torch.zeros(1, 5, 2)}
    >>> shares = modality_shares(model, inputs, model.generate(**inputs, max_new_tokens=4))
    >>> shares.shape, round(shares.sum().item(), 3)
    (torch.Size([1, 2]), 1.0)
    ```
    """
    if generated_ids.shape[1] < 2:
        raise ValueError(
            f"`generated_ids` has shape {tuple(generated_ids.shape)}; expected an answer after the start token"
        )
    inputs = {**to_device(inputs, model), "decoder_input_ids": generated_ids[:, :-1]}
    with evaluation_mode(model), eager_attention(model):
        outputs = model(**inputs, output_attentions=True, use_cache=False)
    shares = attention_shares(outputs, len(model.config.modalities))
    kept = answer_mask(generated_ids[:, 1:], model).unsqueeze(-1)
    return (shares * kept).sum(1) / kept.sum(1).clamp(min=1)


def attention_shares(outputs, num_modalities: int) -> torch.Tensor:
    """The part of each query's cross-attention that each modality got, `(batch, queries, num_modalities)`."""
    # (batch, queries, memory_length)
    weights = torch.stack(outputs.cross_attentions).float().mean(dim=(0, 2))
    # In bfloat16, the softmax's rounded weights can add up to a little more than 1.
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    is_of = torch.nn.functional.one_hot(outputs.encoder_modality_ids + 1, num_modalities + 1)[..., 1:]
    return (weights @ is_of.to(weights.dtype)).clamp(max=1.0)


def answer_mask(ids: torch.LongTensor, model) -> torch.Tensor:
    """1 for the tokens `(batch, length)` of an answer up to its end token, the end token included."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return torch.ones_like(ids)
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device)).long()
    return ((is_end.cumsum(1) - is_end) == 0).long()


@contextlib.contextmanager
def eager_attention(model):
    """The model with the attention that gives its weights; afterwards each part has its own again."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    implementations = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        # To set a config's attention sets that of its parts, too: the whole comes first, its parts after it.
        for config, implementation in zip(configs, implementations):
            config._attn_implementation = implementation


__all__ = ["modality_shares"]
