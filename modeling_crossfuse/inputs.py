# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Reading the keyword arguments of `forward`: the values, mask and presence of each modality, checked."""

from itertools import pairwise
from typing import Any, NamedTuple

import torch

from .configuration_modalities import TensorSpec


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


def is_default_mask(name: str, mask: Any) -> bool:
    """Whether it is the `attention_mask` of ones that `generate` and feature extractors add to any input."""
    if name != "attention_mask" or not isinstance(mask, torch.Tensor):
        return False
    return torch.compiler.is_compiling() or bool((mask != 0).all())


def refuse_no_modality(modalities):
    """Raises the `ValueError` for a batch without any modality."""
    names = ", ".join(f"`{modalities.value_name(name)}`" for name in modalities)
    raise ValueError(f"no modality is given; expected at least one of {names}")


def read_inputs(tensors: dict[str, torch.Tensor | None], modalities) -> dict[str, ModalityInputs]:
    """Values and mask of each given modality, checked; images with a dimension for several per sample."""
    inputs = {}
    for name, specs in modalities.tensor_specs.items():
        given = [spec for spec in specs if tensors.get(spec.name) is not None]
        if len(given) > 1:
            raise ValueError(f"You cannot specify both `{given[0].name}` and `{given[1].name}` at the same time")
        for spec in specs:
            mask = tensors.get(spec.mask_name)
            is_read = mask is None or (given and spec.mask_name == given[0].mask_name)
            if not is_read and not is_default_mask(spec.mask_name, mask):
                raise ValueError(f"`{spec.mask_name}` is given without `{spec.name}`")
        if given:
            inputs[name] = _read_modality(tensors, given[0], modalities[name])
    if not inputs:
        refuse_no_modality(modalities)
    # Neighbours are compared: a set of the sizes would fix the batch size of an exported graph.
    if any(one.mask.shape[0] != other.mask.shape[0] for one, other in pairwise(inputs.values())):
        sizes = {modalities.value_name(name): given.values.shape[0] for name, given in inputs.items()}
        raise ValueError(f"the modalities have different batch sizes: {sizes}")
    return inputs


def _read_modality(tensors: dict[str, Any], spec: TensorSpec, part) -> ModalityInputs:
    values, mask = tensors[spec.name], tensors.get(spec.mask_name)
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"`{spec.name}` is {type(values).__name__}; expected a torch.Tensor")
    if spec.layout[0] == "images" and values.dim() == len(spec.layout):  # one image a sample
        values = values.unsqueeze(1)
    _check_values(values, spec, part)
    if mask is None:
        shape = (values.shape[0], values.shape[spec.mask_axis])
        mask = torch.ones(shape, dtype=torch.long, device=values.device)
    else:
        mask = _check_mask(mask, values, spec)
    return ModalityInputs(values, mask, spec.mask_axis, spec.is_encoded, spec.name)


def _check_mask(mask: torch.Tensor, values: torch.Tensor, spec: TensorSpec) -> torch.LongTensor:
    shape = (values.shape[0], values.shape[spec.mask_axis])
    if mask.shape != shape:
        raise ValueError(
            f"`{spec.mask_name}` has shape {tuple(mask.shape)}; `{spec.name}` of shape {tuple(values.shape)} needs "
            f"{shape}"
        )
    if mask.is_floating_point() and not torch.compiler.is_compiling() and ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"`{spec.mask_name}` has values other than 1, to keep, and 0")
    return (mask != 0).long()


def _check_values(values: torch.Tensor, spec: TensorSpec, part):
    if values.is_floating_point() == spec.is_tokens:
        expected = "integers, the ids of tokens" if spec.is_tokens else "floating point numbers"
        raise ValueError(f"`{spec.name}` has dtype {values.dtype}; expected {expected}")
    dims = 1 + len(spec.layout)
    if values.dim() != dims:
        raise ValueError(
            f"`{spec.name}` has shape {tuple(values.shape)}; expected {dims} dimensions for {part.kind!r}"
        )
    if 0 in values.shape:
        raise ValueError(f"`{spec.name}` has shape {tuple(values.shape)}; expected no empty dimension")
    for axis, dimension in enumerate(spec.layout, start=1):
        size = getattr(part, dimension, None)
        if isinstance(size, int) and values.shape[axis] != size:
            raise ValueError(
                f"`{spec.name}` has shape {tuple(values.shape)}; expected `{dimension}={size}` in dimension {axis}"
            )


def find_present(inputs: dict[str, ModalityInputs], modality_mask: torch.Tensor | None, modalities) -> torch.Tensor:
    """As [`read_present`]. A sample without modalities, and wrong values that are read, are a `ValueError`."""
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
        said = modality_mask != 0
        _refuse_other_order(present, said, modalities)
        present = present & said
    return present


def _refuse_other_order(given: torch.Tensor, said: torch.Tensor, modalities):
    """
    Raises a `ValueError` if a row of `modality_mask` has a modality that is not given, and lacks one that is. To lack
    one that is given, so that it is left out, or to have one that is empty, is no mistake by itself.
    """
    if torch.compiler.is_compiling() or given.is_meta:
        return
    swapped = (said & ~given).any(1) & (given & ~said).any(1)
    if swapped.any():
        sample = swapped.nonzero()[0].item()
        extra, left_out = (
            ", ".join(name for name, wrong in zip(modalities, row) if wrong)
            for row in ((said & ~given)[sample], (given & ~said)[sample])
        )
        raise ValueError(
            f"`modality_mask` of sample {sample} has {extra}, which is not given, and lacks {left_out}, which is; "
            f"expected a column for each of {', '.join(modalities)}, in this order. The order of a processor is that "
            "of its own modalities: `processor.fit_modalities(model.config)`"
        )


def _check_samples(inputs: dict[str, ModalityInputs], present: torch.Tensor, modalities):
    without = (~present.any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"sample {without[0]} of the batch has no modality; expected at least one of {', '.join(modalities)}"
        )
    for name, rows in zip(modalities, present.unbind(1)):
        if name not in inputs or inputs[name].values.is_meta:
            continue
        values, mask, axis, _, given = inputs[name]
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


def as_classes(labels: torch.Tensor) -> torch.Tensor:
    """Integers and booleans of any dtype as those that losses take."""
    return labels if labels.is_floating_point() else labels.long()


def check_labels(labels: torch.Tensor, vocab_size: int):
    """Raises a `ValueError` unless `labels` are of shape `(batch, target_length)`, and each a token or -100."""
    if labels.dim() != 2 or 0 in labels.shape or labels.is_floating_point():
        raise ValueError(
            f"`labels` have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected integers of shape (batch, "
            "target_length)"
        )
    if not torch.compiler.is_compiling() and not labels.is_meta:
        _check_tokens("labels", labels, labels != -100, vocab_size)
