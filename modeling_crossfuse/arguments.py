# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The arguments that the `forward` of each model takes, and the errors for all others: none is ignored."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.utils import TransformersKwargs, logging

from .configuration_layers import close_match
from .configuration_modalities import MASK_NAMES, VALUE_NAMES
from .inputs import is_default_mask


logger = logging.get_logger(__name__)

# The tensors of modalities that are named as their kind.
_TENSORS_OF_KINDS = (*VALUE_NAMES.values(), "input_values", *MASK_NAMES.values(), "inputs_embeds", "modality_mask")

# What transformers hands to any model and no model of CrossFuse reads. To be given, it has to be None.
_UNREAD = frozenset({"position_ids", "is_causal", "seq_idx"})

# What transformers itself hands to any model, and what its decorators of `forward` read.
PASSED = (
    frozenset(TransformersKwargs.__annotations__)
    | {"return_dict", "use_cache", "debug_io", "debug_io_dir", "prune_layers"}
) - _UNREAD

_MAY_BE_NONE = frozenset([*_TENSORS_OF_KINDS, *_UNREAD])


def encoder_tensor_names(config) -> frozenset[str]:
    """The arguments that the encoder alone reads. A model keeps them, since `generate` asks for them at each step."""
    return frozenset([*config.modalities.tensor_names, *_TENSORS_OF_KINDS])


def known_arguments(config) -> frozenset[str]:
    """The arguments that a model takes beside those that its `forward` names. A model keeps them, too."""
    return PASSED | {*config.modalities.tensor_names, "modality_mask"}


def takes_modalities(forward: Callable) -> Callable:
    """Names the tensors of kinds in the signature of a `forward`: Trainer drops columns that it does not name."""
    _name_tensors(forward, _TENSORS_OF_KINDS)
    return forward


def name_own_tensors(forward: Callable, config):
    """
    Names the tensors of a model's modalities in the signature of its class, too, where Trainer looks. A model of the
    class that lacks them refuses them.
    """
    names = config.modalities.tensor_names
    for_labels = [name for name in names if "label" in name]
    if for_labels:
        logger.warning_once(
            f"Trainer takes `{for_labels[0]}` for labels, since its name has 'label' in it. To train on a data set "
            "with this column, use `TrainingArguments(remove_unused_columns=False)`."
        )
    _name_tensors(forward, [name for name in names if name not in for_labels])


def _name_tensors(forward: Callable, names: Iterable[str]):
    """Adds arguments to the signature of a function, before its `**kwargs`, without which it takes no others."""
    signature = inspect.signature(forward)
    *named, others = signature.parameters.values()
    if others.kind is not others.VAR_KEYWORD:
        return
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in names
        if name not in signature.parameters
    ]
    forward.__signature__ = signature.replace(parameters=[*named, *added, others])


def refuse_unknown(given: dict[str, Any], known: frozenset[str], forward: Callable | None = None):
    """
    Raises a `ValueError` for an argument that is not read. The message names the argument that was probably meant.

    Args:
        given (`dict[str, Any]`): arguments by name. Those of modalities that the model lacks may be `None`, or the
            mask of ones that `generate` adds.
        known (`frozenset[str]`): the arguments that are read.
        forward (`Callable`, *optional*): the method they were given to, whose arguments the message lists.
    """
    for name in given:
        if name in known or (given[name] is None and name in _MAY_BE_NONE) or is_default_mask(name, given[name]):
            continue
        refusal = f"`{name}` is not an input of this model"
        # What is compiled can't look at a signature.
        raise ValueError(refusal if torch.compiler.is_compiling() else refusal + _expected(name, known, forward))


def _expected(name: str, known: frozenset[str], forward: Callable | None) -> str:
    parameters = inspect.signature(forward).parameters.values() if forward else ()
    # Those by keyword alone are what `takes_modalities` has added.
    taken = known | {each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD} - {"self"}
    return f".{close_match(name, taken)} It takes {', '.join(sorted(taken - PASSED))}"


def refuse_beside_memory(given: dict[str, Any], names: frozenset[str]):
    """Raises a `ValueError` for a modality's tensor among `names`: `encoder_outputs` takes the place of them all."""
    for name in given:
        if name in names and given[name] is not None and not is_default_mask(name, given[name]):
            raise ValueError(f"`{name}` and `encoder_outputs`, which has a mask of its own, are both given; drop one")
