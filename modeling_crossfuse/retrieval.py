# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Retrieval: any subset of modalities as one vector, trained so that vectors of what belongs together are near."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .arguments import refuse_unknown, takes_modalities
from .configuration_crossfuse import CrossFuseConfig
from .inputs import as_classes, read_inputs, read_present
from .layers import CrossFuseAttentionPooling
from .modeling_crossfuse import CrossFuseEncoderModel, CrossFusePreTrainedEncoderModel


# Where the papers of the losses start: the logarithm of the scale, and the bias.
_LOGIT_STARTS = {"softmax": (math.log(1 / 0.07), 0.0), "sigmoid": (math.log(10.0), -10.0)}
# Above it, training gets unstable (Radford et al., 2021).
_LARGEST_LOGIT_SCALE = math.log(100.0)


@dataclass
class CrossFuseRetrievalOutput(ModelOutput):
    """
    What [`CrossFuseForRetrieval`] makes of a batch.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): the contrastive loss.
        logits (`torch.Tensor` of shape `(first_batch, second_batch)`): how well each sample of the first of
            `config.contrastive_groups` goes with each of the second: scaled cosines.
        first_embeds (`torch.Tensor` of shape `(first_batch, projection_dim)`): vectors of length 1; zeros where a
            sample has no modality of the group.
        second_embeds (`torch.Tensor` of shape `(second_batch, projection_dim)`): the same of the second group.
        logits_per_image, logits_per_text (`torch.Tensor`, *optional*): `logits`, a row for each sample of the group
            with images or of the other, as CLIP has them. Only where one group has images and the other has none.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    first_embeds: torch.Tensor | None = None
    second_embeds: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None


class CrossFuseForRetrieval(CrossFusePreTrainedEncoderModel):
    """
    CrossFuse as an embedding model: attention pooling over the memory, and a projection, turn whatever modalities a
    sample has into one vector of length 1. There is no decoder.

    It is trained to tell which samples of two groups of modalities belong together, by the symmetric cross entropy of
    CLIP (Radford et al., 2021) or the sigmoid loss of SigLIP (Zhai et al., 2023). Under distributed training, each
    process compares its samples with those of all.

    Args:
        config ([`CrossFuseConfig`]): the config; `contrastive_groups`, `contrastive_loss` and `projection_dim` are for
            this model.

    Raises:
        ValueError: if there are no `contrastive_groups`, and not some modalities of kind `text` and some of others.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForRetrieval

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"text": {"vocab_size": 50}, "image": {"image_size": 16, "patch_size": 8}},
    ... )
    >>> model = CrossFuseForRetrieval(config).eval()
    >>> # zero-shot classification: 2 images, 3 names
    >>> outputs = model(
    ...     pixel_values=torch.zeros(2, 3, 16, 16), input_ids=torch.tensor([[3, 4], [5, 6], [7, 8]]), return_loss=False
    ... )
    >>> outputs.logits.softmax(dim=1).shape
    torch.Size([2, 3])
    >>> model.get_image_features(pixel_values=torch.zeros(2, 3, 16, 16)).pooler_output.shape
    torch.Size([2, 32])
    ```
    """

    task = "retrieval"
    auto_classes = ("AutoModelForZeroShotImageClassification",)

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.model = CrossFuseEncoderModel(config)
        self.groups = contrastive_groups(config)
        self.pooling = CrossFuseAttentionPooling(config.fusion)
        self.projection = nn.Linear(config.d_model, config.projection_dim or config.d_model, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if config.contrastive_loss == "sigmoid" else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CrossFuseForRetrieval):
            scale, bias = _LOGIT_STARTS[self.config.contrastive_loss]
            init.constant_(module.logit_scale, scale)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, bias)

    @can_return_tuple
    def get_fused_features(self, input_ids: torch.LongTensor | None = None, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        One vector for each sample, of all modalities that are given.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): values of the modality `text`, if there is one.
            kwargs: the other inputs of [`CrossFuseMultimodalEncoder`].

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output`
            `(batch, projection_dim)`, of length 1, and the memory as `last_hidden_state`.
        """
        outputs = self.model(input_ids=input_ids, **{**kwargs, "return_dict": True})
        pooled, _ = self.pooling(outputs.last_hidden_state, outputs.attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=nn.functional.normalize(self.projection(pooled), dim=-1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def get_text_features(self, input_ids: torch.LongTensor | None = None, **kwargs) -> BaseModelOutputWithPooling:
        """[`get_fused_features`] of the modalities of kind `text` alone; what is given of others is left out."""
        return self._features_of_kind("text", {"input_ids": input_ids, **kwargs})

    def get_image_features(self, pixel_values: torch.Tensor | None = None, **kwargs) -> BaseModelOutputWithPooling:
        """[`get_fused_features`] of the modalities of kind `image` alone; what is given of others is left out."""
        return self._features_of_kind("image", {"pixel_values": pixel_values, **kwargs})

    def get_video_features(self, **kwargs) -> BaseModelOutputWithPooling:
        """[`get_fused_features`] of the modalities of kind `video` alone; what is given of others is left out."""
        return self._features_of_kind("video", kwargs)

    def get_audio_features(self, **kwargs) -> BaseModelOutputWithPooling:
        """[`get_fused_features`] of the modalities of kind `audio` alone; what is given of others is left out."""
        return self._features_of_kind("audio", kwargs)

    def _features_of_kind(self, kind: str, tensors: dict[str, Any]) -> BaseModelOutputWithPooling:
        names = self.config.modalities.names_of_kind(kind)
        return self.get_fused_features(**self._without_others(names, tensors))

    def _without_others(self, names: list[str], tensors: dict[str, Any]) -> dict[str, Any]:
        """What is given, less the tensors and columns of the modalities that are not named."""
        modalities, mask = self.config.modalities, tensors.get("modality_mask")
        others = [name for name in modalities if name not in names]
        dropped = {tensor for name in others for tensor in modalities.tensor_names_of(name)}
        tensors = {key: value for key, value in tensors.items() if key not in dropped}
        if mask is not None and mask.shape[-1] == len(modalities):
            columns = torch.tensor([list(modalities).index(name) for name in others], device=mask.device)
            tensors["modality_mask"] = mask.index_fill(-1, columns.long(), 0)
        return tensors

    @takes_modalities
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        item_ids: torch.LongTensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFuseRetrievalOutput:
        r"""
        Compares the samples of both groups. A batch to train on has as many of one as of the other, and samples at the
        same place belong together; those that lack a group count in neither.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): values of the modality `text`, if there is one.
            item_ids (`torch.LongTensor` of shape `(batch,)`, *optional*): numbers of what the samples are about;
                samples with the same number belong together, too. All are different by default, and so are those with
                -100.
            return_loss (`bool`, defaults to `True`): whether to compute the loss. In evaluation mode there is none
                where the groups have different numbers of samples, as in zero-shot classification.
            kwargs: the other inputs of [`CrossFuseMultimodalEncoder`].

        Raises:
            ValueError: as [`CrossFuseMultimodalEncoder`] does, or if a group is not given, or, in
                training and with `return_loss`, the groups have different numbers of samples.
        """
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        tensors = {"input_ids": input_ids, **kwargs, "return_dict": True}
        (first, has_first), (second, has_second) = self._embed(0, tensors), self._embed(1, tensors)
        loss = None
        if return_loss and self.training and len(first) != len(second):
            raise ValueError(
                f"{self._described(0)} has {len(first)} samples and {self._described(1)} {len(second)}; expected "
                "as many, or `return_loss=False`"
            )
        if return_loss and len(first) == len(second):
            if item_ids is not None and item_ids.shape != has_first.shape:
                raise ValueError(f"`item_ids` have shape {tuple(item_ids.shape)}; expected {tuple(has_first.shape)}")
            loss = self._loss(first, second, has_first & has_second, item_ids)
        logits = self.compare(first, second)
        per_image = {}
        with_images = [any(self.config.modalities[name].kind == "image" for name in group) for group in self.groups]
        if sum(with_images) == 1:
            turned = [logits, logits.t()] if with_images[0] else [logits.t(), logits]
            per_image = dict(zip(("logits_per_image", "logits_per_text"), turned))
        return CrossFuseRetrievalOutput(
            loss=loss, logits=logits, first_embeds=first, second_embeds=second, **per_image
        )

    def _embed(self, group: int, tensors: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of a group, `(batch, projection_dim)`, and which samples have them, `(batch,)`."""
        modalities = self.config.modalities
        tensors = self._without_others(self.groups[group], tensors)
        given = {name: tensors.get(name) for name in modalities.tensor_names}
        if all(value is None for value in given.values()):
            raise ValueError(f"{self._described(group)} is not given; with one group only, use `get_fused_features`")
        rows = read_present(read_inputs(given, modalities), tensors.get("modality_mask"), modalities).any(1)
        if rows.all():
            return self.get_fused_features(**tensors).pooler_output, rows
        if not rows.any():
            raise ValueError(f"no sample has a modality of {self._described(group)}")
        of_samples = [*modalities.tensor_names, "modality_mask"]
        tensors = {
            key: value[rows] if key in of_samples and value is not None else value for key, value in tensors.items()
        }
        embeds = self.get_fused_features(**tensors).pooler_output
        return embeds.new_zeros(len(rows), embeds.shape[1]).index_copy(0, rows.nonzero().squeeze(1), embeds), rows

    def _described(self, group: int) -> str:
        return f"the group of {', '.join(self.groups[group])}"

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Logits `(first_batch, second_batch)`, the scaled cosines, of vectors that [`get_fused_features`] gives."""
        logits = first @ second.t() * self.logit_scale.clamp(max=_LARGEST_LOGIT_SCALE).exp()
        return logits if self.logit_bias is None else logits + self.logit_bias

    def _loss(
        self, first: torch.Tensor, second: torch.Tensor, paired: torch.Tensor, item_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """The contrastive loss of this process's pairs among those of all, as its share of the mean over all pairs."""
        first, second = first[paired], second[paired]
        sizes, rank = _sizes(first) if self.training else ([len(first)], 0)
        all_first, all_second = _gather(first, sizes), _gather(second, sizes)
        if item_ids is None:
            all_items = torch.arange(sum(sizes), device=first.device)
        else:
            all_items = _gather(as_classes(item_ids)[paired], sizes)
            alone = -101 - torch.arange(len(all_items), device=all_items.device)
            all_items = torch.where(all_items == -100, alone, all_items)
        items = all_items.split(sizes)[rank]
        belong = (items[:, None] == all_items[None]).float()
        forth, back = self.compare(first, all_second).float(), self.compare(second, all_first).float()
        if self.config.contrastive_loss == "sigmoid":
            total = -nn.functional.logsigmoid((2 * belong - 1) * forth).sum()
        else:
            targets = belong / belong.sum(1, keepdim=True)
            total = sum(nn.functional.cross_entropy(logits, targets, reduction="sum") for logits in (forth, back)) / 2
        # The processes' gradients are averaged: what is left is the gradient of the mean over all pairs.
        return total * len(sizes) / max(sum(sizes), 1)


def _sizes(embeds: torch.Tensor) -> tuple[list[int], int]:
    """How many samples each process has, and which of them this one is."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [len(embeds)], 0
    sizes = [torch.zeros(1, dtype=torch.long, device=embeds.device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, torch.tensor([len(embeds)], device=embeds.device))
    return [int(size) for size in sizes], torch.distributed.get_rank()


def _gather(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The tensors of all processes, one after the other; gradients flow back to each."""
    if len(sizes) == 1:
        return tensor
    from torch.distributed.nn.functional import all_gather

    padding = tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])
    gathered = all_gather(torch.cat([tensor, padding]))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes)])


def contrastive_groups(config: CrossFuseConfig) -> list[list[str]]:
    """The modalities of the two groups that a [`CrossFuseForRetrieval`] compares."""
    if config.contrastive_groups is not None:
        return list(config.contrastive_groups.values())
    texts = config.modalities.names_of_kind("text")
    others = [name for name in config.modalities if name not in texts]
    if not texts or not others:
        raise ValueError(
            "`contrastive_groups` is missing, and can't be text and all else; expected two groups of "
            f"{', '.join(config.modalities)}"
        )
    return [others, texts]


__all__ = ["CrossFuseForRetrieval"]
