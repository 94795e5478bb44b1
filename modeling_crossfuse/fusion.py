# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Fusion: the streams of the present modalities become the memory that the decoder attends to."""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_crossfuse import FUSION_TYPES, CrossFuseFusionConfig
from .layers import (
    RECORDED,
    CrossFuseLatents,
    CrossFuseLayer,
    CrossFuseLayers,
    close_up,
    crop,
    make_attention_mask,
    make_norm,
)
from .packing import Packing, pack, pack_samples, unpack, unpack_samples
from .pretrained import CrossFusePreTrainedModel


# The modality id of positions that belong to no single modality.
SHARED = -1


@dataclass
class Stream:
    """
    One modality's encoded sequence.

    Args:
        modality_id (`int`): place of the modality in the config.
        hidden_states (`torch.Tensor` of shape `(batch, length, d_model)`).
        attention_mask (`torch.Tensor` of shape `(batch, length)`): 1 for what the fusion may read. All 0 in a sample
            that lacks the modality.
    """

    modality_id: int
    hidden_states: torch.Tensor
    attention_mask: torch.Tensor


@dataclass
class Memory:
    """
    What the decoder attends to.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch, memory_length, d_model)`).
        attention_mask (`torch.Tensor` of shape `(batch, memory_length)`): 1 for what the decoder may read.
        modality_ids (`torch.Tensor` of shape `(memory_length,)`): the modality each position came from, -1 for none.
    """

    hidden_states: torch.Tensor
    attention_mask: torch.Tensor
    modality_ids: torch.Tensor


def join(streams: list[Stream]) -> Memory:
    """The streams one after the other."""
    hidden_states = torch.cat([stream.hidden_states for stream in streams], dim=1)  # (batch, memory_length, d_model)
    ids = [torch.full((stream.hidden_states.shape[1],), stream.modality_id) for stream in streams]
    return Memory(
        hidden_states=hidden_states,
        attention_mask=torch.cat([stream.attention_mask for stream in streams], dim=1),
        modality_ids=torch.cat(ids).to(hidden_states.device),
    )


class CrossFuseFusion(CrossFusePreTrainedModel):
    """
    Base class of the fusions. A subclass implements `forward(streams) -> Memory`.

    Args:
        config ([`CrossFuseFusionConfig`]): its `options` are free for a fusion of your own.
        num_modalities (`int`): how many modalities the model has. `forward` gets the streams of those that at least
            one sample of the batch has.
    """

    config: CrossFuseFusionConfig
    _can_record_outputs = RECORDED

    def __init__(self, config: CrossFuseFusionConfig, num_modalities: int):
        super().__init__(config)

    @classmethod
    def for_modalities(cls, config: CrossFuseFusionConfig, names: list[str]) -> "CrossFuseFusion":
        """
        The fusion of the modalities `names`, in the config's order. A fusion with weights for each modality keeps them
        by name, so that saved weights fit another order.
        """
        return cls(config, len(names))

    def forward(self, streams: list[Stream], **kwargs) -> Memory:
        raise TypeError(f"{type(self).__name__} has to implement `forward(streams) -> Memory`")


class ConcatFusion(CrossFuseFusion):
    """The streams one after the other: the decoder's cross-attention alone fuses them."""

    def forward(self, streams: list[Stream], **kwargs) -> Memory:
        return join(streams)


class JointFusion(CrossFuseFusion):
    """Self-attention over all streams together, as single-stream models do (Su et al., 2020, *VL-BERT*)."""

    def __init__(self, config, num_modalities: int):
        super().__init__(config, num_modalities)
        self.layers = CrossFuseLayers(config, config.num_layers)

    def forward(self, streams: list[Stream], **kwargs) -> Memory:
        memory = join(streams)
        memory.hidden_states = self.layers(memory.hidden_states, memory.attention_mask, **kwargs)
        return memory


class BottleneckFusion(CrossFuseFusion):
    """
    Attention bottlenecks (Nagrani et al., 2021, *Attention Bottlenecks for Multimodal Fusion*): each modality keeps
    its own layers, and a few shared positions carry what passes between modalities. After each layer the shared
    positions are the mean of what each present modality made of them. The memory is the streams and, last, the shared
    positions.
    """

    def __init__(self, config, num_modalities: int, names: list[str] | None = None):
        super().__init__(config, num_modalities)
        self.names = names or [f"modality_{place}" for place in range(num_modalities)]
        self.latents = CrossFuseLatents(config.num_latents, config.hidden_size)
        self.layers = nn.ModuleDict(
            {
                f"{name}_layers": nn.ModuleList(CrossFuseLayer(config, idx) for idx in range(config.num_layers))
                for name in self.names
            }
        )
        self.norm = make_norm(config)

    @classmethod
    def for_modalities(cls, config: CrossFuseFusionConfig, names: list[str]) -> "BottleneckFusion":
        return cls(config, len(names), names)

    def forward(self, streams: list[Stream], skip_padding: bool = False, **kwargs) -> Memory:
        latents = self.latents(streams[0].hidden_states.shape[0]).to(streams[0].hidden_states.device)
        branches = [_Branch(self.config, stream, latents, skip_padding) for stream in streams]
        present = torch.stack([stream.attention_mask.amax(1) for stream in streams])
        shares = (present / present.sum(0).clamp(min=1)).to(latents.dtype)[:, :, None, None]
        layers = [self.layers[f"{self.names[branch.modality_id]}_layers"] for branch in branches]
        for idx in range(self.config.num_layers):
            views = [branch.run(own[idx], latents, **kwargs) for branch, own in zip(branches, layers)]
            latents = (torch.stack(views) * shares).sum(0)
        shared = Stream(SHARED, latents, streams[0].attention_mask.new_ones(latents.shape[:2]))
        memory = join([*(branch.fused_stream() for branch in branches), shared])
        memory.hidden_states = self.norm(memory.hidden_states)
        return memory


class _Branch:
    """A modality on its way through its layers of [`BottleneckFusion`], without the samples that lack it."""

    def __init__(self, config, stream: Stream, latents: torch.Tensor, skip_padding: bool):
        self.modality_id, self.attention_mask = stream.modality_id, stream.attention_mask
        self.samples = Packing.of(stream.attention_mask.amax(1, keepdim=True)) if skip_padding else None
        self.states = pack_samples(stream.hidden_states, self.samples)
        ones = stream.attention_mask.new_ones(latents.shape[:2])
        mask = pack_samples(torch.cat([stream.attention_mask, ones], dim=1), self.samples)
        self.packing = Packing.of(mask) if skip_padding else None
        self.closed = close_up(config, self.packing)
        joined = crop(self._join(latents), self.closed)
        self.mask = make_attention_mask(config, joined, joined, mask, self.closed)

    def _join(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.states, pack_samples(latents, self.samples)], dim=1)

    def run(self, layer: CrossFuseLayer, latents: torch.Tensor, **kwargs) -> torch.Tensor:
        """Takes the modality and the shared positions through a layer, and gives what becomes of these."""
        joined = pack(self._join(latents), self.packing)
        joined = unpack(layer(joined, self.mask, packing=self.closed, **kwargs), self.packing).to(latents.device)
        self.states, view = joined.split([self.states.shape[1], latents.shape[1]], dim=1)
        return unpack_samples(view, self.samples)

    def fused_stream(self) -> Stream:
        return Stream(self.modality_id, unpack_samples(self.states, self.samples), self.attention_mask)


class LatentFusion(CrossFuseFusion):
    """
    A latent array reads all streams by cross-attention (Jaegle et al., 2021, *Perceiver*): the memory has
    `num_latents` positions however long the input is.
    """

    def __init__(self, config, num_modalities: int):
        super().__init__(config, num_modalities)
        self.latents = CrossFuseLatents(config.num_latents, config.hidden_size)
        self.layers = CrossFuseLayers(config, config.num_layers, has_cross_attention=True)

    def forward(self, streams: list[Stream], **kwargs) -> Memory:
        memory = join(streams)
        latents = self.latents(memory.hidden_states.shape[0])
        ones = memory.attention_mask.new_ones(latents.shape[:2])
        latents = self.layers(latents, ones, memory.hidden_states, memory.attention_mask, **kwargs)
        return join([Stream(SHARED, latents, ones)])


FUSIONS: dict[str, type[CrossFuseFusion]] = {
    "concat": ConcatFusion,
    "joint": JointFusion,
    "bottleneck": BottleneckFusion,
    "latent": LatentFusion,
}


def register_fusion(name: str, fusion_class: type[CrossFuseFusion]):
    """
    Makes a fusion of your own available as `fusion={"type": name}`.

    Args:
        name (`str`): its name in the config.
        fusion_class (`type[CrossFuseFusion]`): a subclass of [`CrossFuseFusion`].

    Raises:
        ValueError: if the name is taken by another class.
        TypeError: if `fusion_class` is not a subclass of [`CrossFuseFusion`].

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseFusion, CrossFuseModel, Memory, register_fusion

    >>> class MeanFusion(CrossFuseFusion):
    ...     def forward(self, streams, **kwargs):
    ...         masks = [stream.attention_mask.unsqueeze(-1) for stream in streams]
    ...         total = sum((stream.hidden_states * mask).sum(1) for stream, mask in zip(streams, masks))
    ...         mean = (total / sum(mask.sum(1) for mask in masks)).unsqueeze(1)
    ...         return Memory(mean, torch.ones(mean.shape[:2]), torch.tensor([-1]))
    >>> register_fusion("mean", MeanFusion)

    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50, fusion={"type": "mean"})
    >>> CrossFuseModel(config).encoder(torch.tensor([[3, 4, 5]])).last_hidden_state.shape
    torch.Size([1, 1, 32])
    ```
    """
    if not (isinstance(fusion_class, type) and issubclass(fusion_class, CrossFuseFusion)):
        raise TypeError(f"`fusion_class={fusion_class!r}` is not a subclass of CrossFuseFusion")
    if FUSIONS.get(name, fusion_class) is not fusion_class:
        raise ValueError(f"`name={name!r}` is already the fusion {FUSIONS[name].__name__}; choose another name")
    FUSIONS[name] = fusion_class
    if name not in FUSION_TYPES:
        FUSION_TYPES.append(name)
