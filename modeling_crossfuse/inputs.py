# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Reading the keyword arguments of `forward`: the values, mask and presence of each modality, checked."""

from typing import Any

import torch


# Number of dimensions of each kind's values, and the axis that the mask runs along.
_VALUE_DIMS = {"text": 2, "image": 5, "video": 5, "audio": 3, "series": 3}
_LENGTH_AXIS = {"text": 1, "image": 1, "video": 1, "audio": 2, "series": 1}
# The axis of the channels, and the config's field that says how many.
_CHANNEL_AXIS = {
    "image": (2, "num_channels"),
    "video": (2, "num_channels"),
    "audio": (1, "num_mel_bins"),
    "series": (2, "num_channels"),
}


def refuse_unknown_tensors(given: dict[str, Any], modalities):
    """Raises a `ValueError` for a tensor or an array that no modality takes."""
    for name, value in given.items():
        if hasattr(value, "__array__") and name not in ("num_items_in_batch", "cu_seq_lens_q", "cu_seq_lens_k"):
            raise ValueError(
                f"`{name}` is not an input of this model; its modalities take {', '.join(modalities.tensor_names)}"
            )


def refuse_no_modality(modalities):
    """Raises the `ValueError` for a batch without any modality."""
    raise ValueError(
        "no modality is given; expected at least one of "
        + ", ".join(f"`{modalities.value_name(name)}`" for name in modalities)
    )


def read_inputs(tensors: dict[str, torch.Tensor | None], modalities) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Values and mask of each given modality, checked; images with a dimension for several per sample."""
    inputs = {}
    for name, part in modalities.items():
        value_name, values = _read_values(tensors, name, modalities)
        mask = tensors[modalities.mask_name(name)]
        if values is not None:
            inputs[name] = (values, _read_mask(mask, modalities.mask_name(name), values, value_name, part.kind))
        elif mask is not None and part.kind != "text":
            raise ValueError(f"`{modalities.mask_name(name)}` is given without `{value_name}`")
    if not inputs:
        refuse_no_modality(modalities)
    sizes = {modalities.value_name(name): values.shape[0] for name, (values, _) in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the modalities have different batch sizes: {sizes}")
    return inputs


def _read_values(tensors: dict[str, torch.Tensor | None], name: str, modalities) -> tuple[str, torch.Tensor | None]:
    part, value_name, embeds_name = modalities[name], modalities.value_name(name), modalities.embeds_name(name)
    values, embeds = tensors[value_name], tensors.get(embeds_name)
    if values is not None and embeds is not None:
        raise ValueError(f"You cannot specify both `{value_name}` and `{embeds_name}` at the same time")
    if embeds is not None:
        values, value_name = embeds, embeds_name
    if values is None:
        return value_name, None
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"`{value_name}` is {type(values).__name__}; expected a torch.Tensor")
    if part.kind == "image" and values.dim() == 4:
        values = values.unsqueeze(1)
    _check_values(value_name, values, part, is_tokens=part.kind == "text" and embeds is None)
    return value_name, values


def _read_mask(mask: torch.Tensor | None, mask_name: str, values: torch.Tensor, value_name: str, kind: str):
    shape = (values.shape[0], values.shape[_LENGTH_AXIS[kind]])
    if mask is None:
        return torch.ones(shape, dtype=torch.long, device=values.device)
    if mask.shape != shape:
        raise ValueError(
            f"`{mask_name}` has shape {tuple(mask.shape)}; `{value_name}` of shape {tuple(values.shape)} needs {shape}"
        )
    if mask.is_floating_point() and not torch.compiler.is_compiling() and ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"`{mask_name}` has values other than 1, to keep, and 0")
    return mask.long()


def _check_values(value_name: str, values: torch.Tensor, part, is_tokens: bool):
    embeds = part.kind == "text" and not is_tokens
    if values.is_floating_point() == is_tokens:
        expected = "integers, the ids of tokens" if is_tokens else "floating point numbers"
        raise ValueError(f"`{value_name}` has dtype {values.dtype}; expected {expected}")
    dims = 3 if embeds else _VALUE_DIMS[part.kind]
    if values.dim() != dims:
        raise ValueError(
            f"`{value_name}` has shape {tuple(values.shape)}; expected {dims} dimensions for {part.kind!r}"
        )
    if 0 in values.shape:
        raise ValueError(f"`{value_name}` has shape {tuple(values.shape)}; expected no empty dimension")
    axis, field = (2, "hidden_size") if embeds else _CHANNEL_AXIS.get(part.kind, (None, None))
    if axis is not None and values.shape[axis] != getattr(part, field):
        raise ValueError(
            f"`{value_name}` has shape {tuple(values.shape)}; expected `{field}={getattr(part, field)}` in dimension "
            f"{axis}"
        )


def find_present(inputs: dict[str, tuple], modality_mask: torch.Tensor | None, modalities) -> torch.Tensor:
    """Which sample has which modality, `(batch, num_modalities)`, as booleans."""
    some_mask = next(iter(inputs.values()))[1]
    lacking = torch.zeros(some_mask.shape[0], dtype=torch.bool, device=some_mask.device)
    present = torch.stack([inputs[name][1].any(1) if name in inputs else lacking for name in modalities], dim=1)
    if modality_mask is not None:
        if modality_mask.shape != present.shape:
            raise ValueError(
                f"`modality_mask` has shape {tuple(modality_mask.shape)}; expected {tuple(present.shape)}, a column "
                f"for each of {', '.join(modalities)}"
            )
        present = present & (modality_mask != 0)
    if not torch.compiler.is_compiling():
        _check_samples(inputs, present, modalities)
    return present


def _check_samples(inputs: dict[str, tuple], present: torch.Tensor, modalities):
    without = (~present.any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(
            f"sample {without[0]} of the batch has no modality; expected at least one of {', '.join(modalities)}"
        )
    for name, (values, mask) in inputs.items():
        if values.is_meta:
            continue
        rows = present[:, list(modalities).index(name)]
        kept = mask.bool() & rows[:, None]
        if not values.is_floating_point():
            _check_tokens(modalities.value_name(name), values, kept, modalities[name].vocab_size)
            continue
        axis = _LENGTH_AXIS[modalities[name].kind]
        finite = values.isfinite().transpose(1, axis).flatten(2).all(-1)
        if not (finite | ~kept).all():
            sample = (~finite & kept).any(1).nonzero().flatten()[0].item()
            value_name = modalities.embeds_name(name) or modalities.value_name(name)
            raise ValueError(f"`{value_name}` of sample {sample} has values that are not finite (NaN or inf)")


def _check_tokens(value_name: str, tokens: torch.Tensor, kept: torch.Tensor, vocab_size: int):
    wrong = kept & ((tokens < 0) | (tokens >= vocab_size))
    if wrong.any():
        sample, position = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"`{value_name}` of sample {sample} has the token {tokens[sample, position].item()}; expected at least 0 "
            f"and below `vocab_size={vocab_size}`"
        )


def check_labels(labels: torch.Tensor, vocab_size: int):
    """Raises a `ValueError` for a label `(batch, target_length)` that is no token, nor -100."""
    if not torch.compiler.is_compiling() and not labels.is_meta:
        _check_tokens("labels", labels, labels != -100, vocab_size)
