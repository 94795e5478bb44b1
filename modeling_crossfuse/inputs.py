# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Reading the keyword arguments of `forward`: the values, mask and presence of each modality, checked."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch


# The dimensions that masks run along.
_LENGTHS = {"length", "images", "frames", "samples", "steps"}


class ModalityInputs(NamedTuple):
    """
    What `forward` is given of one modality.

    Args:
        values (`torch.Tensor` of shape `(batch, ...)`): its values, or what its encoder gave before.
        mask (`torch.Tensor` of shape `(batch, length)`): 1 for what is to be read.
        axis (`int`): the dimension of the values that the mask runs along.
        is_encoded (`bool`): whether `values` are hidden states of the encoder.
        name (`str`): the argument that gave the values.
    """

    values: torch.Tensor
    mask: torch.Tensor
    axis: int
    is_encoded: bool
    name: str


def says_nothing(name: str, mask: Any) -> bool:
    """Whether it is a mask that `generate` and feature extractors give, of ones, whatever the input is."""
    if name != "attention_mask" or not isinstance(mask, torch.Tensor):
        return False
    return torch.compiler.is_compiling() or bool((mask != 0).all())


def refuse_no_modality(modalities):
    """Raises the `ValueError` for a batch without any modality."""
    raise ValueError(
        "no modality is given; expected at least one of "
        + ", ".join(f"`{modalities.value_name(name)}`" for name in modalities)
    )


def read_inputs(tensors: dict[str, torch.Tensor | None], modalities) -> dict[str, ModalityInputs]:
    """Values and mask of each given modality, checked; images with a dimension for several per sample."""
    inputs = {}
    for name in modalities:
        given, mask_name = _given_values(tensors, name, modalities)
        if given is not None:
            inputs[name] = _read_modality(given, tensors[given], tensors[mask_name], mask_name, name, modalities)
        _refuse_other_masks(tensors, given, mask_name, name, modalities)
    if not inputs:
        refuse_no_modality(modalities)
    sizes = {modalities.value_name(name): given.values.shape[0] for name, given in inputs.items()}
    if any(before != after for before, after in pairwise(sizes.values())):  # a set would fix an exported batch's size
        raise ValueError(f"the modalities have different batch sizes: {sizes}")
    return inputs


def _given_values(tensors: dict[str, torch.Tensor | None], name: str, modalities) -> tuple[str | None, str]:
    """Which of the tensors that can give a modality is given, if any, and the name of its mask."""
    encoded_name = modalities.hidden_states_name(name)
    possible = [modalities.value_name(name), modalities.embeds_name(name), encoded_name]
    given = [key for key in possible if tensors.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"You cannot specify both `{given[0]}` and `{given[1]}` at the same time")
    mask_name = f"{encoded_name}_mask" if given == [encoded_name] else modalities.mask_name(name)
    return given[0] if given else None, mask_name


def _refuse_other_masks(tensors: dict[str, Any], given: str | None, mask_name: str, name: str, modalities):
    """Raises a `ValueError` for a mask of what is not given."""
    owners = {
        modalities.mask_name(name): modalities.value_name(name),
        f"{modalities.hidden_states_name(name)}_mask": modalities.hidden_states_name(name),
    }
    for key, owner in owners.items():
        mask = tensors[key]
        if mask is None or (given is not None and key == mask_name) or says_nothing(key, mask):
            continue
        raise ValueError(f"`{key}` is given without `{owner}`")


def _read_modality(given: str, values: Any, mask, mask_name: str, name: str, modalities) -> ModalityInputs:
    part = modalities[name]
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"`{given}` is {type(values).__name__}; expected a torch.Tensor")
    is_encoded = given == modalities.hidden_states_name(name)
    layout = part.layout
    if is_encoded or given == modalities.embeds_name(name):
        # A wrapped encoder's embeddings may be narrower than its hidden states.
        layout = ("length", "embedding_size" if part.is_wrapped and not is_encoded else "hidden_size")
    if part.kind == "image" and values.dim() == 4:
        values = values.unsqueeze(1)
    _check_values(given, values, part, layout)
    axis = 1 + next((place for place, dimension in enumerate(layout) if dimension in _LENGTHS), 0)
    return ModalityInputs(values, _read_mask(mask, mask_name, values, given, axis), axis, is_encoded, given)


def _read_mask(mask: torch.Tensor | None, mask_name: str, values: torch.Tensor, value_name: str, axis: int):
    shape = (values.shape[0], values.shape[axis])
    if mask is None:
        return torch.ones(shape, dtype=torch.long, device=values.device)
    if mask.shape != shape:
        raise ValueError(
            f"`{mask_name}` has shape {tuple(mask.shape)}; `{value_name}` of shape {tuple(values.shape)} needs {shape}"
        )
    if mask.is_floating_point() and not torch.compiler.is_compiling() and ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"`{mask_name}` has values other than 1, to keep, and 0")
    return (mask != 0).long()


def _check_values(value_name: str, values: torch.Tensor, part, layout: tuple[str, ...]):
    is_tokens = part.kind == "text" and layout == part.layout
    if values.is_floating_point() == is_tokens:
        expected = "integers, the ids of tokens" if is_tokens else "floating point numbers"
        raise ValueError(f"`{value_name}` has dtype {values.dtype}; expected {expected}")
    dims = 1 + len(layout)
    if values.dim() != dims:
        raise ValueError(
            f"`{value_name}` has shape {tuple(values.shape)}; expected {dims} dimensions for {part.kind!r}"
        )
    if 0 in values.shape:
        raise ValueError(f"`{value_name}` has shape {tuple(values.shape)}; expected no empty dimension")
    for axis, field in enumerate(layout, start=1):
        size = getattr(part, field, None)
        if isinstance(size, int) and values.shape[axis] != size:
            raise ValueError(
                f"`{value_name}` has shape {tuple(values.shape)}; expected `{field}={size}` in dimension {axis}"
            )


def find_present(inputs: dict[str, ModalityInputs], modality_mask: torch.Tensor | None, modalities) -> torch.Tensor:
    """[`read_present`], and errors for a sample that has none and for values that are wrong where they are read."""
    present = read_present(inputs, modality_mask, modalities)
    if not torch.compiler.is_compiling():
        _check_samples(inputs, present, modalities)
    return present


def read_present(inputs: dict[str, ModalityInputs], modality_mask: torch.Tensor | None, modalities) -> torch.Tensor:
    """Which sample has which modality, `(batch, num_modalities)`, as booleans."""
    some_mask = next(iter(inputs.values())).mask
    lacking = torch.zeros(some_mask.shape[0], dtype=torch.bool, device=some_mask.device)
    present = torch.stack([inputs[name].mask.any(1) if name in inputs else lacking for name in modalities], dim=1)
    if modality_mask is not None:
        if modality_mask.shape != present.shape:
            raise ValueError(
                f"`modality_mask` has shape {tuple(modality_mask.shape)}; expected {tuple(present.shape)}, a column "
                f"for each of {', '.join(modalities)}"
            )
        present = present & (modality_mask != 0)
    return present


def _check_samples(inputs: dict[str, ModalityInputs], present: torch.Tensor, modalities):
    without = (~present.any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"sample {without[0]} of the batch has no modality; expected at least one of {', '.join(modalities)}"
        )
    for name, (values, mask, axis, _, given) in inputs.items():
        if values.is_meta:
            continue
        rows = present[:, list(modalities).index(name)]
        kept = mask.bool() & rows[:, None]
        if not values.is_floating_point():
            _check_tokens(given, values, kept, modalities[name].vocab_size)
            continue
        finite = values.isfinite().transpose(1, axis)
        finite = finite.flatten(2).all(-1) if finite.dim() > 2 else finite
        if not (finite | ~kept).all():
            sample = (~finite & kept).any(1).nonzero().flatten()[0].item()
            raise ValueError(f"`{given}` of sample {sample} has values that are not finite (NaN or inf)")


def _check_tokens(value_name: str, tokens: torch.Tensor, kept: torch.Tensor, vocab_size: int | None):
    # Some encoders read characters, whose number is not limited.
    vocab_size = float("inf") if vocab_size is None else vocab_size
    wrong = kept & ((tokens < 0) | (tokens >= vocab_size))
    if wrong.any():
        sample, position = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"`{value_name}` of sample {sample} has the token {tokens[sample, position].item()}; expected at least 0 "
            f"and below `vocab_size={vocab_size}`"
        )


def check_labels(labels: torch.Tensor, vocab_size: int):
    """Raises a `ValueError` unless `labels` are of shape `(batch, target_length)`, and each a token or -100."""
    if labels.dim() != 2 or 0 in labels.shape or labels.is_floating_point():
        raise ValueError(
            f"`labels` have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected integers of shape (batch, "
            "target_length)"
        )
    if not torch.compiler.is_compiling() and not labels.is_meta:
        _check_tokens("labels", labels, labels != -100, vocab_size)
