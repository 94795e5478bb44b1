# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Leaving padding out: of all that works position by position, and of flash attention."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn


# With less padding than this share, moving the positions about takes longer than computing the padding.
_WORTHWHILE = 1 / 8


@dataclass
class Packing:
    """
    The positions of a padded batch that are kept, side by side as if of one sample. Only attention, which has to
    tell the samples apart, sees them padded, unless it is flash attention (Zeng et al., 2022, *Boosting Distributed
    Training Performance of the Unpadded BERT Model*).

    Args:
        mask (`torch.Tensor` of shape `(batch, length)`): 1 for what is kept.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse.packing import Packing, pack, unpack

    >>> packing = Packing.of(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    >>> states = torch.arange(6.0).view(2, 3, 1)
    >>> pack(states, packing).flatten()
    tensor([0., 1., 2., 3.])
    >>> unpack(pack(states, packing), packing).squeeze(2)
    tensor([[0., 1., 2.],
            [3., 0., 0.]])
    ```
    """

    mask: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor | None) -> "Packing | None":
        """The packing of a mask, if there is one with enough padding to make it pay."""
        if mask is None or mask.is_meta or torch.compiler.is_compiling():  # a graph has fixed shapes
            return None
        packing = cls(mask)
        return packing if 0 < len(packing.index) <= (1 - _WORTHWHILE) * mask.numel() else None

    @cached_property
    def index(self) -> torch.LongTensor:
        """The kept positions of the flattened batch `(kept,)`."""
        return self.mask.flatten().nonzero().squeeze(1)

    @cached_property
    def lengths(self) -> torch.LongTensor:
        """How many positions of each sample are kept `(batch,)`."""
        return (self.mask != 0).sum(1)

    @cached_property
    def longest(self) -> int:
        """How many positions of the longest sample are kept."""
        return int(self.lengths.max())

    @cached_property
    def without_gaps(self) -> "Packing":
        """
        The same positions for a batch `(batch, longest)`, each sample's at its start. Two samples that lack a modality
        each are as long as the longer, not as both modalities.
        """
        places = torch.arange(self.longest, device=self.mask.device)
        return Packing((places < self.lengths[:, None]).to(self.mask.dtype))

    @cached_property
    def bounds(self) -> tuple[torch.IntTensor, int]:
        """Where each sample begins among the kept positions, and the last ends `(batch + 1,)`; the longest length."""
        return nn.functional.pad(self.lengths.cumsum(0, dtype=torch.int32), (1, 0)), self.longest


def pack(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """`(batch, length, ...)`, or one row that all samples share, to `(1, kept, ...)`; as it is without a packing."""
    if packing is None:
        return states
    states = states.expand(len(packing.mask), *states.shape[1:])
    return states.flatten(0, 1).index_select(0, packing.index.to(states.device)).unsqueeze(0)


def unpack(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """`(1, kept, ...)` to `(batch, length, ...)`, with zeros in the padding; as it is without a packing."""
    if packing is None:
        return states
    padded = states.new_zeros(packing.mask.numel(), *states.shape[2:])
    return padded.index_copy(0, packing.index.to(states.device), states.squeeze(0)).unflatten(0, packing.mask.shape)


def pack_samples(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """The samples `(kept, ...)` of `(batch, ...)` that a packing of `(batch, 1)` keeps; all of them without one."""
    return pack(states.unsqueeze(1), packing).flatten(0, 1)


def unpack_samples(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """Samples `(kept, ...)` to `(batch, ...)`, with zeros for the others."""
    return unpack(states.unsqueeze(0), packing).flatten(0, 1)


def pack_positions(
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None, packing: Packing | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cosines and sines `(batch or 1, length, head_dim)` for states that are packed."""
    if position_embeddings is None or packing is None:
        return position_embeddings
    cos, sin = position_embeddings
    return pack(cos, packing), pack(sin, packing)


def flash_bounds(
    queries: torch.Tensor, packing: Packing | None, keys: torch.Tensor, key_packing: Packing | None
) -> dict[str, torch.IntTensor | int]:
    """
    The arguments by which flash attention tells apart the samples whose queries and keys `(batch, heads, length,
    head_dim)` are side by side. Without packings there are none: it takes samples of one length as they are.
    """
    if packing is None and key_packing is None:
        return {}
    starts, longest = _bounds(queries, packing)
    key_starts, longest_key = _bounds(keys, key_packing)
    return {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": key_starts,
        "max_length_q": longest,
        "max_length_k": longest_key,
    }


def _bounds(heads: torch.Tensor, packing: Packing | None) -> tuple[torch.IntTensor, int]:
    if packing is not None:
        return packing.bounds
    batch, _, length, _ = heads.shape
    return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=heads.device), length
