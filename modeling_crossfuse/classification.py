# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Heads that label: a whole sample with classes or numbers, or each position of one of its streams."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .arguments import PASSED, refuse_beside_memory, refuse_unknown, takes_modalities
from .configuration_crossfuse import CrossFuseConfig
from .inputs import as_classes
from .layers import CrossFuseAttentionPooling
from .modeling_crossfuse import CrossFuseEncoderModel, CrossFusePreTrainedEncoderModel, mean_cross_entropy
from .outputs import CrossFuseEncoderOutput, as_encoder_output


@dataclass
class CrossFuseSequenceClassifierOutput(SequenceClassifierOutput):
    """
    [`~transformers.modeling_outputs.SequenceClassifierOutput`] and what only CrossFuse has.

    Args:
        cross_attentions (`tuple(torch.Tensor)`, *optional*): with `output_attentions`, the weights
            `(batch, heads, 1, memory_length)` by which the pooling read the memory.
        encoder_attention_mask (`torch.Tensor` of shape `(batch, memory_length)`): 1 for what it may read.
        encoder_modality_ids (`torch.LongTensor` of shape `(batch, memory_length)`): the modality of each position.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_attention_mask: torch.Tensor | None = None
    encoder_modality_ids: torch.LongTensor | None = None


class CrossFuseClassificationHead(nn.Module):
    """
    Attention pooling and a linear layer. They are one module, `classifier`, since this is what adapters for
    `task_type="SEQ_CLS"` train and save as a whole.
    """

    def __init__(self, config: CrossFuseConfig):
        super().__init__()
        self.pooling = CrossFuseAttentionPooling(config.fusion)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.d_model, config.num_labels)

    def forward(
        self, memory: torch.Tensor, memory_mask: torch.Tensor | None, output_attentions: bool | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Memory `(batch, memory_length, d_model)` to logits `(batch, num_labels)`, and the weights of the pooling."""
        pooled, weights = self.pooling(memory, memory_mask, output_attentions=output_attentions)
        return self.out_proj(self.dropout(pooled)), weights


class CrossFuseForSequenceClassification(CrossFusePreTrainedEncoderModel):
    """
    CrossFuse with a classification or regression head: attention pooling over the memory, and a linear layer. There is
    no decoder.

    Args:
        config ([`CrossFuseConfig`]): the config. As everywhere in transformers, `num_labels` or `id2label` say how
            many outputs there are, and `problem_type` is `"regression"`, `"single_label_classification"` or
            `"multi_label_classification"`; without it, the first labels tell.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForSequenceClassification

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"image": {"image_size": 16, "patch_size": 8}, "wrist": {"kind": "series", "num_channels": 6}},
    ...     id2label={0: "rest", 1: "walk", 2: "run"},
    ... )
    >>> model = CrossFuseForSequenceClassification(config)
    >>> # the second sample has no image
    >>> outputs = model(
    ...     pixel_values=torch.zeros(2, 3, 16, 16),
    ...     wrist_values=torch.zeros(2, 5, 6),
    ...     modality_mask=torch.tensor([[1, 1], [0, 1]]),
    ...     labels=torch.tensor([1, 2]),
    ... )
    >>> outputs.logits.shape, outputs.loss.shape
    (torch.Size([2, 3]), torch.Size([]))
    ```
    """

    task = "classification"
    auto_classes = (
        "AutoModelForSequenceClassification",
        "AutoModelForImageClassification",
        "AutoModelForVideoClassification",
        "AutoModelForAudioClassification",
    )
    renamed_since_format_1 = {
        r"^pooling\.": "classifier.pooling.",
        r"^classifier\.(weight|bias)$": r"classifier.out_proj.\1",
    }

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.model = CrossFuseEncoderModel(config)
        self.num_labels = config.num_labels
        self.classifier = CrossFuseClassificationHead(config)
        self.post_init()

    @takes_modalities
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        encoder_outputs: CrossFuseEncoderOutput | tuple | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFuseSequenceClassifierOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): values of the modality `text`, if there is one.
            encoder_outputs ([`CrossFuseEncoderOutput`]): a memory from before, instead of the modalities.
            labels (`torch.LongTensor` of shape `(batch,)`, or `torch.Tensor` of shape `(batch,)` or
                `(batch, num_labels)`): classes, -100 for none; numbers, for a regression; or 1 for each of several
                labels that a sample has, 0 for the others.
            kwargs: the other inputs of [`CrossFuseMultimodalEncoder`].

        Raises:
            ValueError: as [`CrossFuseMultimodalEncoder`] does, for a modality beside `encoder_outputs`, or if the
                labels don't fit `problem_type`.
        """
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        kwargs["return_dict"] = True  # of the parts; `unwrap_model` of accelerate may leave the caller's here
        if labels is not None:
            several = labels.dim() == 2 and labels.shape[1] == self.num_labels  # labels, or numbers
            labels = labels.float() if several else as_classes(labels)
            _check_labels(labels, self.config)
        if encoder_outputs is None:
            encoder_outputs = self.model(input_ids=input_ids, **kwargs)
        else:
            refuse_beside_memory({"input_ids": input_ids, **kwargs}, self.known_arguments - PASSED)
        encoder_outputs = as_encoder_output(encoder_outputs)
        output_attentions = kwargs.get("output_attentions", self.config.output_attentions)
        logits, weights = self.classifier(
            encoder_outputs.last_hidden_state, encoder_outputs.attention_mask, output_attentions
        )
        return CrossFuseSequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits.float(), labels),
            logits=logits,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
            cross_attentions=(weights,) if output_attentions and weights is not None else None,
            encoder_attention_mask=encoder_outputs.attention_mask,
            encoder_modality_ids=encoder_outputs.modality_ids,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.shape[0] != logits.shape[0]:
            raise ValueError(
                f"`labels` are for {labels.shape[0]} samples; expected {logits.shape[0]}, as many as the inputs"
            )
        self.config.problem_type = _problem_type(labels, self.config)
        if self.config.problem_type == "single_label_classification":
            return mean_cross_entropy(logits, labels, self.config.label_smoothing if self.training else 0.0)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


def _problem_type(labels: torch.Tensor, config: CrossFuseConfig) -> str:
    """The problem type of labels: the config's, or else the one that transformers' loss function takes them for."""
    if config.problem_type is not None or config.num_labels == 1:
        return config.resolved_problem_type
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def _check_labels(labels: torch.Tensor, config: CrossFuseConfig):
    """Raises a `ValueError` for labels whose shape, dtype or values do not fit `problem_type`."""
    problem_type = _problem_type(labels, config)
    if problem_type == "single_label_classification":
        _check_classes(labels, config.num_labels, dims=1)
        return
    allowed = [(config.num_labels,)] + [()] * (problem_type == "regression" and config.num_labels == 1)
    if not labels.is_floating_point() or tuple(labels.shape[1:]) not in allowed:
        raise ValueError(
            f"`labels` have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected floating point numbers of "
            f"shape (batch, {config.num_labels}) for `problem_type={problem_type!r}`"
        )
    if torch.compiler.is_compiling() or labels.is_meta:
        return
    is_regression = problem_type == "regression"
    wrong = ~labels.isfinite() if is_regression else ~((labels >= 0) & (labels <= 1))
    if wrong.any():
        expected = "finite numbers" if is_regression else "1 for the labels that a sample has, and 0 for the others"
        raise ValueError(f"`labels` have the value {labels[wrong][0].item()}; expected {expected}")


def _check_classes(labels: torch.LongTensor, num_labels: int, dims: int):
    if labels.dim() != dims or labels.is_floating_point():
        raise ValueError(
            f"`labels` have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected integers in {dims} "
            f"dimension{'s' * (dims > 1)}"
        )
    if torch.compiler.is_compiling() or labels.is_meta:
        return
    wrong = (labels != -100) & ((labels < 0) | (labels >= num_labels))
    if wrong.any():
        raise ValueError(
            f"`labels` have the class {labels[wrong][0].item()}; expected at least 0 and below "
            f"`num_labels={num_labels}`, or -100 for none"
        )


@dataclass
class CrossFuseTokenClassifierOutput(TokenClassifierOutput):
    """
    [`~transformers.modeling_outputs.TokenClassifierOutput`] and what only CrossFuse has.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, positions)`): 1 for the positions that a sample has; 0 for
            padding, and for all of a sample that lacks the labelled modality.
    """

    attention_mask: torch.Tensor | None = None


class CrossFuseForTokenClassification(CrossFusePreTrainedEncoderModel):
    """
    CrossFuse with a classifier of each position of one stream: the tokens of a text, the steps of a series. The other
    modalities are its context.

    Args:
        config ([`CrossFuseConfig`]): the config; `labeled_modality` says whose positions get labels. Texts and series
            of built-in encoders have a position for each token and step; of other kinds there are as many as the
            encoder makes, such as patches. Not with fusion `latent`, whose memory has no positions of a modality.

    Raises:
        ValueError: if there is no such modality, or the fusion is `latent`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForTokenClassification

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"image": {"image_size": 16, "patch_size": 8}, "wrist": {"kind": "series", "num_channels": 6}},
    ...     fusion={"type": "joint", "num_layers": 1},
    ...     id2label={0: "nothing", 1: "step", 2: "fall"},
    ... )
    >>> model = CrossFuseForTokenClassification(config)
    >>> model(pixel_values=torch.zeros(2, 3, 16, 16), wrist_values=torch.zeros(2, 5, 6)).logits.shape
    torch.Size([2, 5, 3])
    ```
    """

    task = "token_classification"
    auto_classes = ("AutoModelForTokenClassification",)

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.model = CrossFuseEncoderModel(config)
        # By default it goes by the order of the modalities, which a later config may change.
        config.labeled_modality = self.labeled_modality = _labeled_modality(config)
        self.modality_id = list(config.modalities).index(self.labeled_modality)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    @takes_modalities
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFuseTokenClassifierOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): values of the modality `text`, if there is one.
            labels (`torch.LongTensor` of shape `(batch, positions)`): the class of each position of the labelled
                stream, -100 for none.
            kwargs: the other inputs of [`CrossFuseMultimodalEncoder`].

        Raises:
            ValueError: as [`CrossFuseMultimodalEncoder`] does, if no sample has the labelled modality, or the labels
                have another shape than its stream.
        """
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        kwargs["return_dict"] = True  # of the parts; `unwrap_model` of accelerate may leave the caller's here
        outputs = self.model(input_ids=input_ids, **kwargs)
        places = (outputs.modality_ids[0] == self.modality_id).nonzero().squeeze(1)
        if len(places) == 0:
            raise ValueError(
                f"no sample has the modality {self.labeled_modality!r}, whose positions are to be labelled"
            )
        states = outputs.last_hidden_state[:, places].to(self.classifier.weight.dtype)
        logits = self.classifier(self.dropout(states))
        mask = outputs.attention_mask[:, places]
        return CrossFuseTokenClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels, mask),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            attention_mask=mask,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.LongTensor, mask: torch.Tensor) -> torch.Tensor:
        labels = as_classes(labels)
        _check_classes(labels, self.config.num_labels, dims=2)
        if labels.shape != mask.shape:
            raise ValueError(f"`labels` have shape {tuple(labels.shape)}; expected {tuple(mask.shape)}, as the stream")
        labels = labels.masked_fill(mask == 0, -100)  # padding, and samples that lack the modality
        smoothing = self.config.label_smoothing if self.training else 0.0
        return mean_cross_entropy(logits.flatten(0, 1), labels.flatten(), smoothing)


def _labeled_modality(config: CrossFuseConfig) -> str:
    if config.fusion.type == "latent":
        raise ValueError(
            "`fusion='latent'` leaves no positions of a modality to label; expected 'concat', 'joint' or 'bottleneck'"
        )
    if config.labeled_modality is not None:
        return config.labeled_modality
    for kind in ("text", "series"):
        for name in config.modalities.names_of_kind(kind):
            return name
    raise ValueError(
        "`labeled_modality` is missing, and no modality is of kind text or series; expected one of "
        f"{', '.join(config.modalities)}"
    )


__all__ = ["CrossFuseForSequenceClassification", "CrossFuseForTokenClassification"]
