# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""CrossFuse models: the encoders and their fusion, with and without a decoder, and the model that generates text."""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .arguments import (
    PASSED,
    encoder_tensor_names,
    known_arguments,
    name_own_tensors,
    refuse_beside_memory,
    refuse_unknown,
    takes_modalities,
)
from .composition import EncodersMixin
from .configuration_crossfuse import CrossFuseConfig
from .decoder import CrossFuseDecoder
from .decoder_cache import CACHE, takes_cache
from .generation_crossfuse import CrossFuseGenerationMixin
from .inputs import as_classes, check_labels
from .layers import linear_class, make_linear, make_norm
from .multimodal_encoder import CrossFuseMultimodalEncoder, is_distributed, records_layers, touch
from .outputs import (
    CrossFuseEncoderOutput,
    CrossFuseModelOutput,
    CrossFuseSeq2SeqLMOutput,
    as_encoder_output,
)
from .pretrained import CrossFusePreTrainedModel


def masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of `(batch, length, width)` over the positions that the mask `(batch, length)` keeps."""
    if mask is None or mask.dim() != 2:
        return hidden_states.mean(1)
    weights = mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)
    return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def mean_cross_entropy(
    logits: torch.Tensor,
    labels: torch.LongTensor,
    label_smoothing: float = 0.0,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Cross entropy of `logits` `(count, classes)`, the mean over `num_items`: by default the labels that are not -100.
    Where there are none it is 0, not NaN. transformers' loss functions have no label smoothing.
    """
    total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
    return total / ((labels != -100).sum().clamp(min=1) if num_items is None else num_items)


def main_input_name(model: CrossFusePreTrainedModel, config: CrossFuseConfig) -> str:
    """The argument that transformers takes for the input of a model: that of its class, or else the first."""
    names = config.modalities.tensor_names
    return model.main_input_name if model.main_input_name in names else names[0]


class CrossFuseModel(EncodersMixin, CrossFusePreTrainedModel):
    """
    CrossFuse without a head: encoders, fusion and decoder.

    Args:
        config ([`CrossFuseConfig`]): the config.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseModel

    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50, tgt_vocab_size=60)
    >>> model = CrossFuseModel(config).eval()
    >>> outputs = model(input_ids=torch.tensor([[3, 4, 5]]), decoder_input_ids=torch.tensor([[1, 7]]))
    >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
    (torch.Size([1, 2, 32]), torch.Size([1, 32]))
    ```
    """

    auto_classes = ("AutoModel",)

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.encoder = CrossFuseMultimodalEncoder(config)
        self.decoder = CrossFuseDecoder(config.decoder)
        self.decoder.shares_vocabulary = True
        self.encoder_tensor_names = encoder_tensor_names(config)
        self.known_arguments = known_arguments(config)
        name_own_tensors(type(self).forward, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        self.decoder.embed_tokens = value

    @takes_modalities
    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        decoder_needed_mask: torch.Tensor | None = None,
        encoder_outputs: CrossFuseEncoderOutput | tuple | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFuseModelOutput:
        r"""
        Args:
            input_ids, inputs_embeds (of shape `(batch, length)`, `(batch, length, hidden_size)`): the modality `text`.
            attention_mask (`torch.Tensor` of shape `(batch, length)`): its mask.
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)` or
                `(batch, images, channels, height, width)`): the modality `image`.
            image_mask (`torch.Tensor` of shape `(batch, images)`): its mask.
            pixel_values_videos (`torch.Tensor` of shape `(batch, frames, channels, height, width)`): the modality
                `video`.
            video_mask (`torch.Tensor` of shape `(batch, frames)`): its mask.
            input_features (`torch.Tensor` of shape `(batch, num_mel_bins, frames)`): the modality `audio`.
            feature_attention_mask (`torch.Tensor` of shape `(batch, frames)`): its mask.
            modality_mask (`torch.Tensor` of shape `(batch, num_modalities)`): 1 where a sample has a modality.
            decoder_input_ids (`torch.LongTensor` of shape `(batch, target_length)`): tokens of the answer, shifted
                right. Defaults to one token a sample, `config.decoder_start_token_id`.
            decoder_needed_mask (`torch.Tensor` of shape `(batch, target_length)`): 1 for positions of the answer that
                are read, here or by a later position. The others are not computed.
            encoder_outputs ([`CrossFuseEncoderOutput`]): a memory from before, instead of the modalities.
            output_hidden_states (`bool` or `list[int]`, *optional*): as [`CrossFuseMultimodalEncoder`] and
                [`CrossFuseDecoder`] take it: places that are asked for are those of each, as in every encoder-decoder
                of transformers.
            kwargs: tensors of the other modalities, named as `config.modalities.tensor_names` says.

        Raises:
            ValueError: as [`CrossFuseMultimodalEncoder`] does, or for a modality beside `encoder_outputs`.
        """
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        kwargs["return_dict"] = True  # of the parts; `unwrap_model` of accelerate may leave the caller's here
        if encoder_outputs is None:
            if kwargs.get("inputs_embeds") is not None and kwargs["inputs_embeds"].requires_grad:
                self.refuse_embeddings_of_answers(kwargs["inputs_embeds"])
            encoder_outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        else:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
            refuse_beside_memory(given, self.encoder_tensor_names)
        encoder_outputs = as_encoder_output(encoder_outputs)  # the memory (batch, memory_length, d_model), its mask
        if decoder_input_ids is None and decoder_inputs_embeds is None and cache is None:
            decoder_input_ids = self._start_tokens(encoder_outputs.last_hidden_state)
        decoder_outputs = self.decoder(  # (batch, target_length, d_model)
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            inputs_embeds=decoder_inputs_embeds,
            needed_mask=decoder_needed_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=encoder_outputs.attention_mask,
            cache=cache,
            use_cache=use_cache,
            **{key: value for key, value in kwargs.items() if key in PASSED},
        )
        pooled = None
        if cache is None:  # or else the start of the answer is not here
            pooled = masked_mean(decoder_outputs.last_hidden_state, decoder_attention_mask)
        return CrossFuseModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            **{CACHE: decoder_outputs.get(CACHE)},
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            pooler_output=pooled,
            encoder_attention_mask=encoder_outputs.attention_mask,
            encoder_modality_ids=encoder_outputs.modality_ids,
        )

    @torch.no_grad()
    def refuse_embeddings_of_answers(self, inputs_embeds: torch.Tensor):
        """
        Raises a `ValueError` if `inputs_embeds` `(batch, length, hidden_size)` has tokens of the decoder's vocabulary,
        and the modality `text` has another. Prompt tuning of peft looks for token embeddings by the decoder's size.
        """
        if "text" not in self.config.modalities.names_of_kind("text") or torch.compiler.is_compiling():
            return
        size, expected = self.config.vocab_size, self.config.modalities["text"].vocab_size
        if size == expected or inputs_embeds.shape[-1] != self.config.d_model:
            return
        table = self.decoder.embed_tokens(torch.arange(size, device=inputs_embeds.device))  # (vocab_size, d_model)
        if (table == inputs_embeds[0, -1]).all(-1).any():
            raise ValueError(
                f"`inputs_embeds` has token embeddings of the decoder, whose vocabulary has {size} tokens; expected "
                f"those of the modality 'text', which has {expected}. Prompt tuning of peft needs both to be as large"
            )

    def _start_tokens(self, memory: torch.Tensor) -> torch.LongTensor:
        """The token that every answer starts with, `(batch, 1)`."""
        token = self.config.decoder_start_token_id
        if token is None:
            raise ValueError(
                "neither `decoder_input_ids` nor `decoder_inputs_embeds` is given, and "
                "`config.decoder_start_token_id`, with which answers begin, is None"
            )
        return torch.full((len(memory), 1), token, device=memory.device)


class CrossFusePreTrainedEncoderModel(EncodersMixin, CrossFusePreTrainedModel):
    """Base class of the models without a decoder."""

    # What a checkpoint of a model with a decoder has beside.
    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"lm_head\.", r"answer_head\."]
    # The losses are means over the batch: Trainer divides what it accumulates by the number of batches.
    accepts_loss_kwargs = False

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.known_arguments = known_arguments(config)
        self.main_input_name = main_input_name(self, config)
        name_own_tensors(type(self).forward, config)

    def save_pretrained(self, save_directory, *args, **kwargs):
        # Trainer gives the config the special tokens of its tokenizer; the decoder that is not built may lack them.
        self.config.forget_unknown_tokens()
        return super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.get_encoder().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.get_encoder().set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resizes the vocabulary of the first text encoder."""
        embeddings = self.get_encoder().resize_token_embeddings(*args, **kwargs)
        self.vocab_size = embeddings.weight.shape[0]  # where transformers' own models have it, too
        return embeddings


class CrossFuseEncoderModel(CrossFusePreTrainedEncoderModel):
    """
    CrossFuse without a decoder: encoders and fusion, for heads that read the memory themselves.

    Args:
        config ([`CrossFuseConfig`]): the config; its `decoder` is not built.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseEncoderModel

    >>> model = CrossFuseEncoderModel(CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50))
    >>> model(torch.tensor([[3, 4, 5]])).last_hidden_state.shape
    torch.Size([1, 3, 32])
    ```
    """

    auto_classes = ("AutoModel",)

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.encoder = CrossFuseMultimodalEncoder(config)
        self.post_init()

    @takes_modalities
    @can_return_tuple
    def forward(
        self, input_ids: torch.LongTensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> CrossFuseEncoderOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): values of the modality `text`, if there is one.
            kwargs: the other inputs of [`CrossFuseMultimodalEncoder`].
        """
        return self.encoder(input_ids=input_ids, **{**kwargs, "return_dict": True})


def shift_tokens_right(labels: torch.Tensor, pad_token_id: int, decoder_start_token_id: int) -> torch.Tensor:
    """Labels `(batch, length)` as the decoder's input: one step later, with padding in place of -100."""
    shifted = torch.cat([labels.new_full((labels.shape[0], 1), decoder_start_token_id), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, pad_token_id)


class CrossFuseAnswerHead(nn.Module):
    """
    An auxiliary classifier of the answers that training knows, on the mean of the memory. It is for training only:
    [`~CrossFuseForConditionalGeneration.drop_answer_head`] removes it.
    """

    def __init__(self, config: CrossFuseConfig):
        super().__init__()
        self.norm = make_norm(config.decoder)
        self.out_proj = nn.Linear(config.d_model, config.num_answers)

    def forward(self, memory: torch.Tensor, memory_mask: torch.Tensor | None) -> torch.Tensor:
        """Memory `(batch, memory_length, d_model)` to logits `(batch, num_answers)`."""
        pooled = masked_mean(memory, memory_mask).to(self.out_proj.weight.dtype)
        return self.out_proj(self.norm(pooled))


class CrossFuseForConditionalGeneration(EncodersMixin, CrossFusePreTrainedModel, CrossFuseGenerationMixin):
    """
    CrossFuse with a language modelling head: any mix of modalities in, text out.

    Args:
        config ([`CrossFuseConfig`]): the config.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"text": {"vocab_size": 50}, "image": {"image_size": 16, "patch_size": 8}},
    ...     decoder={"vocab_size": 60},
    ... )
    >>> model = CrossFuseForConditionalGeneration(config).eval()
    >>> # the second sample has no image
    >>> answers = model.generate(
    ...     input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]]),
    ...     pixel_values=torch.zeros(2, 3, 16, 16),
    ...     modality_mask=torch.tensor([[1, 1], [1, 0]]),
    ...     max_new_tokens=4,
    ...     min_new_tokens=4,
    ... )
    >>> answers.shape
    torch.Size([2, 5])
    ```
    """

    task = "generation"
    auto_classes = ("AutoModelForSeq2SeqLM", "AutoModelForMultimodalLM", "AutoModelForImageTextToText")

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        self.model = CrossFuseModel(config)
        self.model.shares_vocabulary = True
        self.encoder_tensor_names = self.model.encoder_tensor_names
        self.known_arguments = self.model.known_arguments
        name_own_tensors(type(self).forward, config)
        self.main_input_name = main_input_name(self, config)
        self.lm_head = make_linear(config.d_model, config.decoder.vocab_size)
        self.answer_head = CrossFuseAnswerHead(config) if config.num_answers else None
        self.post_init()

    def train(self, mode: bool = True):
        # Trainer gives the config the special tokens of its tokenizer; what the config refuses can't be saved later.
        self.config.validate_special_tokens()
        return super().train(mode)

    def drop_answer_head(self):
        """Removes the auxiliary classifier from the model and its config, before the model is saved."""
        self.answer_head, self.config.num_answers = None, 0

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        if type(new_embeddings) is nn.Linear:  # as transformers makes it, and marks it, when the vocabulary is resized
            # Neither class has a state of its own.
            new_embeddings.__class__ = linear_class(new_embeddings.in_features, new_embeddings.out_features)
        self.lm_head = new_embeddings

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The decoder's input for `labels` `(batch, length)`, as data collators ask for it."""
        for name in ("decoder_start_token_id", "pad_token_id"):
            if getattr(self.config, name) is None:
                raise ValueError(
                    f"`config.{name}` is None, and the decoder's input can't be made from `labels` without it; set it "
                    "to a token of the tokenizer, or give `decoder_input_ids`"
                )
        return shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    @takes_modalities
    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        encoder_outputs: CrossFuseEncoderOutput | tuple | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        labels: torch.LongTensor | None = None,
        answer_ids: torch.LongTensor | None = None,
        skip_logits: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFuseSeq2SeqLMOutput:
        r"""
        The inputs of [`CrossFuseModel`], and:

        Args:
            labels (`torch.LongTensor` of shape `(batch, target_length)`): tokens of the answer, -100 where there is
                none. The decoder's input is made from them unless given.
            answer_ids (`torch.LongTensor` of shape `(batch,)`): which of the `num_answers` each sample's is, -100 for
                none of them. Only training reads it.
            skip_logits (`bool`, defaults to `False`): with `labels`, return the loss without the logits, which are
                then computed where there is a label only. [`CrossFuseTrainer`] does so: answers of different lengths
                leave most of a batch's positions without one.
            logits_to_keep (`int` or `torch.LongTensor` of shape `(kept,)`, defaults to 0): of how many last positions,
                or of which, to compute the logits; 0 is all. Not with `labels`, whose loss needs those of every label.

        Raises:
            ValueError: as [`CrossFuseModel`] does, for `labels` that don't fit, or beside `logits_to_keep`; in
                training, without `labels` and the decoder's input, or for `answer_ids` without `labels`.
        """
        # Consumed here, not by the layers below.
        loss_kwargs = {key: kwargs.pop(key) for key in ("num_items_in_batch", "shift_labels") if key in kwargs}
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        kwargs["return_dict"] = True  # of the parts; `unwrap_model` of accelerate may leave the caller's here
        if labels is not None:
            labels = as_classes(labels)
            check_labels(labels, self.config.vocab_size)
            if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
                raise ValueError(
                    "`labels` and `logits_to_keep` are both given; the loss needs the logits of each label"
                )
        elif self.training:
            if answer_ids is not None:
                raise ValueError(
                    "`answer_ids` are given without `labels`, to whose loss they add theirs. (With "
                    "`label_smoothing_factor` or `compute_loss_func`, Trainer keeps `labels` to itself; the config's "
                    "`label_smoothing` smooths both losses.)"
                )
            if decoder_input_ids is None and decoder_inputs_embeds is None and cache is None:
                raise ValueError(
                    "training needs `labels` or `decoder_input_ids`, and neither is given. (With "
                    "`label_smoothing_factor` or `compute_loss_func`, Trainer keeps `labels` to itself: give the "
                    "collator the model, `CrossFuseDataCollator(..., model=model)`, or use `CrossFuseTrainer`.)"
                )
        if labels is not None and use_cache is None and cache is None:
            use_cache = False  # nobody goes on from an answer that is known
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        # The decoder's input is shifted already: as `shift_labels`, the loss does not shift again.
        shift_labels, scored, needed = loss_kwargs.pop("shift_labels", labels), None, None
        if skip_logits and labels is not None and not torch.compiler.is_compiling():  # a graph has fixed shapes
            scored = shift_labels != -100
            if not records_layers(self.config, kwargs):
                needed = scored.flip(1).cumsum(1).flip(1) > 0  # up to the last label
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_position_ids=decoder_position_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_needed_mask=needed,
            encoder_outputs=encoder_outputs,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if scored is not None:
            hidden_states, shift_labels = hidden_states[scored], shift_labels[scored]
        elif isinstance(logits_to_keep, torch.Tensor):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        logits, loss = self.lm_head(hidden_states), None  # (batch, target_length, vocab_size)
        if self.training and self.answer_head is not None and answer_ids is None and is_distributed():
            # The processes have to agree on which parameters get a gradient.
            logits = logits + touch(self.answer_head.parameters())
        if labels is not None:
            loss = self._loss(logits, outputs, answer_ids, shift_labels, **loss_kwargs)
            logits = None if skip_logits else logits
        return CrossFuseSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            encoder_attention_mask=outputs.encoder_attention_mask,
            encoder_modality_ids=outputs.encoder_modality_ids,
        )

    def _loss(self, logits, outputs, answer_ids, shift_labels, num_items_in_batch=None) -> torch.Tensor:
        """Cross entropy and, in training, auxiliary losses and label smoothing: a mean over the accumulated items."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        targets = shift_labels.to(logits.device).flatten()
        loss = mean_cross_entropy(logits.view(-1, logits.shape[-1]), targets, smoothing, num_items_in_batch)
        if self.training and self.answer_head is not None and answer_ids is not None:
            answers = self.answer_head(outputs.encoder_last_hidden_state, outputs.encoder_attention_mask)
            answer_loss = mean_cross_entropy(answers, as_classes(answer_ids), smoothing)
            if num_items_in_batch is not None:  # a mean over this batch counts as its share of the accumulated items
                answer_loss = answer_loss * (targets != -100).sum() / num_items_in_batch
            loss = loss + self.config.answer_loss_weight * answer_loss
        return loss


class CrossFuseForSpeechSeq2Seq(CrossFuseForConditionalGeneration):
    """
    [`CrossFuseForConditionalGeneration`] whose main input is audio. The pipeline `automatic-speech-recognition` loads
    it from a checkpoint, and hands it `input_features` `(batch, num_mel_bins, frames)`.

    Args:
        config ([`CrossFuseConfig`]): the config, with a modality `audio`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForSpeechSeq2Seq

    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, modalities={"audio": {"num_mel_bins": 8}})
    >>> model = CrossFuseForSpeechSeq2Seq(config).eval()
    >>> model.generate(torch.zeros(1, 8, 20), max_new_tokens=4, min_new_tokens=4).shape
    torch.Size([1, 5])
    ```
    """

    auto_classes = ("AutoModelForSpeechSeq2Seq",)

    main_input_name = "input_features"


__all__ = [
    "CrossFuseEncoderModel",
    "CrossFuseForConditionalGeneration",
    "CrossFuseForSpeechSeq2Seq",
    "CrossFuseModel",
    "CrossFusePreTrainedModel",
]
