# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Composing a model of encoders that exist already."""

import copy
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .configuration_crossfuse import CrossFuseConfig
from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .configuration_layers import build_part
from .encoder_search import find_encoder, infer_kind
from .encoder_sources import HUB_ARGUMENTS, EncoderSource, check_tokenizer, read_encoders
from .encoders import CrossFuseWrappedEncoder
from .freezing import FreezingMixin
from .loading import SafeLoadingMixin, explain_loading, refuse_outside_shards
from .quantization import adopt_quantizer, check_quantizers


def _load(source: EncoderSource, hub: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    if isinstance(source.encoder, PreTrainedModel):
        return source.encoder
    if isinstance(source.encoder, PreTrainedConfig):
        return AutoModel.from_config(copy.deepcopy(source.encoder), dtype=dtype)
    refuse_outside_shards(source.encoder)
    try:
        return AutoModel.from_pretrained(
            source.encoder, revision=source.revision or "main", dtype=dtype, use_safetensors=True, **hub
        )
    except (OSError, ValueError) as error:
        raise explain_loading(error, source.where, source.encoder) from error


def _find(
    source: EncoderSource, model: PreTrainedModel, hub: dict[str, Any], defaults: dict[str, Any]
) -> tuple[nn.Module, CrossFuseWrappedEncoderConfig]:
    """The encoder of a modality within a model of transformers, and the modality's config."""
    settings = {
        "kind": source.kind or infer_kind(model, source.where),
        "encoder": copy.deepcopy(model.config),
        **_origin(source, hub),
        **defaults,
        **source.settings,
    }
    config = build_part(f"encoders[{source.name!r}]", CrossFuseWrappedEncoderConfig, settings)
    return find_encoder(model, config, source.where)


def _origin(source: EncoderSource, hub: dict[str, Any]) -> dict[str, Any]:
    """The id of an encoder and its commit, as the cache names it, or the name of its folder."""
    name = source.name_or_path
    if name is None:
        return {}
    if os.path.isabs(name):  # where the folder is on this machine is nobody's business
        return {"source": os.path.basename(name.rstrip(os.sep))}
    cache = {"cache_dir": hub.get("cache_dir"), "local_files_only": True}
    try:
        commit = extract_commit_hash(cached_file(name, "config.json", revision=source.revision, **cache), None)
    except OSError:
        commit = source.revision
    return {"source": name, "revision": commit}


def _read_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype={dtype!r}`; expected a floating point dtype, such as torch.bfloat16 or 'bfloat16'")
    return found


def _answer_settings(tokenizer: PreTrainedTokenizerBase, given: dict[str, Any]) -> dict[str, Any]:
    """
    The special tokens of answers: those that are `given`, or else the tokenizer's. Families of tokenizers have
    different names for them.

    Raises:
        ValueError: if the tokenizer has none to pad, to begin or to end answers with.
    """
    start = ("bos", "cls", "pad", "eos", "sep")
    names = {
        "pad_token_id": ("pad", "eos", "sep"),
        "bos_token_id": start,
        "eos_token_id": ("eos", "sep"),
        "decoder_start_token_id": start,
    }
    settings = {}
    for key in (key for key in names if key not in given):
        tokens = [getattr(tokenizer, f"{name}_token_id") for name in names[key]]
        settings[key] = next((token for token in tokens if token is not None), None)
        if settings[key] is None and key != "bos_token_id":  # in whose place generation has a start token
            raise ValueError(
                f"`tokenizer` has no token for `{key}`; set its `{names[key][0]}_token`, or give `{key}` as an "
                "argument"
            )
    return {**settings, **given}


def _take_weights(encoder: CrossFuseWrappedEncoder, source: nn.Module, dtype: torch.dtype, copied: bool):
    """Gives an encoder the weights of its source, or copies. A weight trains if it trains in the source."""
    weights = source.state_dict(keep_vars=True)
    taken = {key: _take(weights[key], dtype, copied) for key in encoder.model.state_dict() if key in weights}
    encoder.model.load_state_dict(taken, strict=False, assign=True)  # counters of frozen batch norms may be missing
    for key, parameter in encoder.model.named_parameters():
        parameter.requires_grad_(weights[key].requires_grad)
    if isinstance(encoder.model, PreTrainedModel):
        encoder.model.tie_weights()
    encoder.note_trainable()
    encoder.apply_frozen()


def _take(weight: torch.Tensor, dtype: torch.dtype, copied: bool) -> torch.Tensor:
    taken = weight.detach()
    if taken.is_floating_point() and taken.dtype != dtype:
        taken = taken.to(dtype)
    elif copied:
        taken = taken.clone()
    return nn.Parameter(taken, requires_grad=False) if isinstance(weight, nn.Parameter) else taken


class EncodersMixin(SafeLoadingMixin, FreezingMixin):
    """What models with encoders can do: be composed of existing encoders, be loaded safely, and freeze encoders."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the memory, and of a saved model when it is loaded. An encoder may have another until then."""
        return self.get_encoder().dtype

    @classmethod
    def from_encoders(
        cls,
        encoders: dict[str, Any],
        decoder: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        freeze: Iterable[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | str = torch.float32,
        **kwargs,
    ):
        r"""
        A model of encoders that exist already, with a new fusion and a new decoder.

        Of a model with several parts the one that fits is taken: the encoder of an encoder-decoder such as T5 or
        Whisper, the tower of a dual model such as CLIP or SigLIP. Poolers are left out. The weights are the source's.

        Args:
            encoders (`dict[str, Any]`): name of each modality to its encoder: a Hub id or a folder, whose weights have
                to be safetensors; a `PreTrainedModel`, whose weights are copied; a config of transformers, for random
                weights; or a dict of the modality's settings, with one of these as its `encoder`, and `kind`
                where neither the name nor the encoder says it, `revision`, `modality_dropout`. A dict without
                `encoder` is a built-in encoder, as in [`CrossFuseConfig`].
            decoder, fusion (`dict`, *optional*): as in [`CrossFuseConfig`].
            freeze (`Iterable[str]`, *optional*): modalities whose encoders training is to leave as they are. Quantised
                encoders have to be among them.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): that of the answers: the decoder gets its vocabulary and
                special tokens. Otherwise they are settings of `decoder` and of the config.
            dtype (`torch.dtype` or `str`, defaults to `torch.float32`): of all weights.
            kwargs: other settings of [`CrossFuseConfig`], such as `d_model`; `attn_implementation`; and, for loading,
                `cache_dir`, `force_download`, `local_files_only`, `proxies`, `token` and `trust_remote_code`.

        Raises:
            ValueError: if a model has no encoder of the modality's kind, or only a decoder.
            OSError: if an id or a folder does not exist, or has no weights in safetensors.

        Example:

        ```python
        >>> import torch
        >>> from transformers import BertConfig, ResNetConfig
        >>> from modeling_crossfuse import CrossFuseForConditionalGeneration

        >>> bert = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> resnet = ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1])
        >>> model = CrossFuseForConditionalGeneration.from_encoders(
        ...     {"text": bert, "image": resnet, "wrist": {"kind": "series", "num_channels": 6}},
        ...     decoder={"vocab_size": 50, "num_hidden_layers": 1},
        ...     freeze=("text",),
        ...     d_model=32,
        ... )
        >>> model.config.modalities["text"].architecture, model.config.modalities["image"].hidden_size
        ('BertModel', 16)
        >>> outputs = model(
        ...     input_ids=torch.tensor([[5, 6, 7]]),
        ...     pixel_values=torch.zeros(1, 3, 32, 32),
        ...     decoder_input_ids=torch.tensor([[1]]),
        ... )
        >>> outputs.encoder_last_hidden_state.shape  # 3 tokens, 8 x 8 places of the feature map
        torch.Size([1, 67, 32])
        ```
        """
        dtype = _read_dtype(dtype)
        check_tokenizer(tokenizer)
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        attention = {key: kwargs.pop(key) for key in ("attn_implementation",) if key in kwargs}
        if tokenizer is not None:
            decoder = {"vocab_size": len(tokenizer), **(decoder or {})}
            kwargs = _answer_settings(tokenizer, kwargs)
        defaults = {key: kwargs[key] for key in ("modality_dropout",) if key in kwargs}
        modalities, found, quantizers = {}, {}, {}
        sources = read_encoders(encoders)
        for source in sources:
            if source.encoder is None:
                modalities[source.name] = source.modality
                continue
            model = _load(source, hub, dtype)
            found[source.name], modalities[source.name] = _find(source, model, hub, defaults)
            if getattr(model, "hf_quantizer", None) is not None:
                quantizers[source.name] = model.hf_quantizer
        freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze or ())
        check_quantizers(quantizers, {*freeze, *(name for name in found if modalities[name].frozen)})
        config = CrossFuseConfig(modalities=modalities, decoder=decoder, fusion=fusion, **kwargs)
        for name, encoder in found.items():
            # Where the encoder has not the default, which not all have, someone chose it.
            if encoder.config._attn_implementation not in (None, "sdpa"):
                config.modalities[name].encoder._attn_implementation = encoder.config._attn_implementation
        model = cls._from_config(config, dtype=dtype, **attention)
        for source in sources:
            if source.encoder is not None:
                encoder = model.get_encoder().encoders[source.name]
                # A model that was given goes on by itself, so its weights are copied.
                _take_weights(encoder, found[source.name], dtype, copied=isinstance(source.encoder, PreTrainedModel))
        model.freeze_modalities(*freeze)
        if quantizers:
            adopt_quantizer(model, quantizers)
        return model
