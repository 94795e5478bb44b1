# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The base class of every CrossFuse model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .configuration_crossfuse import CrossFuseConfig
from .hub import CodeToHubMixin
from .layers import CrossFuseLayer, CrossFuseRotaryEmbedding
from .loading import refuse_missing_weights
from .older_formats import conversions_of_older_formats


class CrossFusePreTrainedModel(CodeToHubMixin, PreTrainedModel):
    """Base class of every CrossFuse model: initialisation, what the layers support, and what goes to the Hub."""

    config: CrossFuseConfig
    # What the head is for, and the Auto classes that load it; see `heads.py`.
    task: ClassVar[str | None] = None
    auto_classes: ClassVar[tuple[str, ...]] = ()
    # Whether it is a part of a model, other parts of which have the same vocabulary.
    shares_vocabulary: bool = False
    # Regular expressions of the names of weights in format 1, and what stands in their place today.
    renamed_since_format_1: ClassVar[dict[str, str]] = {}
    # Writes the card of a pushed model. The installed package sets it; the code that a model brings along has none.
    write_card: ClassVar[Callable | None] = None
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "video", "audio", "time")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CrossFuseLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """
        Resizes the decoder's vocabulary and, with it, that of each text encoder whose vocabulary is as large:
        questions and answers share the tokenizer that has grown. The arguments are those of
        [`~transformers.PreTrainedModel.resize_token_embeddings`].
        """
        arguments = (new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.shares_vocabulary and arguments[:2] != (None, None):
            raise ValueError(
                f"the vocabulary of this {type(self).__name__} is that of the whole model, and of its head; call "
                "`model.resize_token_embeddings` of the whole model instead"
            )
        size = self.get_input_embeddings().num_embeddings
        embeddings = super().resize_token_embeddings(*arguments)
        for part in self.modules():
            if part is self or not isinstance(part, PreTrainedModel) or getattr(part.config, "kind", None) != "text":
                continue
            if part.config.vocab_size == size:
                part.resize_token_embeddings(*arguments)
        return embeddings

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        refuse_missing_weights(model, checkpoint_files)
        conversions = conversions_of_older_formats(model, state_dict, checkpoint_files, load_config)
        config = replace(load_config, weight_mapping=[*conversions, *(load_config.weight_mapping or ())])
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, config, *args, **kwargs)

    def _make_card(self, folder: Path, repo_id: str, is_new: bool):
        if self.write_card is not None:
            tags = ModelCard.load(folder / "README.md").data.tags if (folder / "README.md").is_file() else None
            self.write_card(folder, model_id=repo_id, tags=tags or ())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CrossFuseRotaryEmbedding):
            init.copy_(module.inv_freq, module.compute_inv_freq())
        elif isinstance(module, CrossFuseLayer):
            # What is added to the residual stream starts small, the more so the deeper the layer (Zhang et al., 2019).
            for projection in module.residual_projections():
                init.normal_(projection.weight, mean=0.0, std=module.residual_std)
