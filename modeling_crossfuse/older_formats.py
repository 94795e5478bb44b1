# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Loading weights of older formats: what they are called today."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming, WeightTransform
from transformers.modeling_utils import load_state_dict


class _OneWay:
    """A conversion that saving does not undo: what is saved has the format of today."""

    def was_used(self) -> bool:
        return False


class _Renaming(_OneWay, WeightRenaming):
    pass


class _Splitting(_OneWay, WeightConverter):
    pass


class _TakeRows(ConversionOps):
    """Some rows of a weight, each as a weight of its own."""

    def __init__(self, places: list[int]):
        self.places = places

    def convert(
        self, input_dict: dict[str, Any], source_patterns, target_patterns: list[str], **kwargs
    ) -> dict[str, torch.Tensor]:
        ((weight,),) = input_dict.values()
        return {target: weight[place : place + 1].clone() for target, place in zip(target_patterns, self.places)}


def conversions_of_older_formats(
    model: PreTrainedModel, state_dict: dict[str, Any] | None, checkpoint_files: list[str] | None, load_config
) -> list[WeightTransform]:
    """
    What makes weights of an older format those of a model. Format 1 has modalities by their places in the config that
    was saved with them.
    """
    stored = _stored_names(state_dict, checkpoint_files)
    if not any(name.endswith("modality_embeddings.weight") for name in stored):
        return []
    places = {name: place for place, name in enumerate(_saved_order(load_config) or model.config.modalities)}
    conversions = [
        _Renaming(rf"fusion\.layers\.{place}\.", f"fusion.layers.{name}_layers.") for name, place in places.items()
    ]
    conversions += [_Renaming(old, new) for old, new in model.renamed_since_format_1.items()]
    kept = [name for name in model.config.modalities if name in places]
    if kept:
        rows = [f"modality_embeddings.{name}_embedding.weight" for name in kept]
        take_rows = _TakeRows([places[name] for name in kept])
        conversions.append(_Splitting(r"modality_embeddings\.weight", rows, [take_rows]))
    return conversions


def refuse_format_1(model: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *args):
    """Raises a `ValueError` for weights of format 1. With `strict=False`, as Trainer loads, they would be left out."""
    if f"{prefix}modality_embeddings.weight" in state_dict:
        raise ValueError(
            "these weights have format 1, which has modalities by their places; expected weights that "
            "`from_pretrained` has read and `save_pretrained` has saved anew"
        )


def _stored_names(state_dict: dict[str, Any] | None, checkpoint_files: list[str] | None) -> set[str]:
    if state_dict is not None:
        return set(state_dict)
    return {name for path in checkpoint_files or () for name in load_state_dict(path, map_location="meta")}


def _saved_order(load_config) -> list[str] | None:
    """The modalities of the config beside the weights, not of a config that the user gives."""
    if load_config.pretrained_model_name_or_path is None:
        return None
    settings, _ = PreTrainedConfig.get_config_dict(
        load_config.pretrained_model_name_or_path, **load_config.download_kwargs
    )
    return stored_modalities(settings)


def stored_modalities(settings: dict[str, Any]) -> list[str]:
    """The modalities of a `config.json`, in its order."""
    modalities = settings.get("modalities") or {}
    return modalities.get("names") or list(modalities)
