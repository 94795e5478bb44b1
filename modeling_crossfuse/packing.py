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
"""Leaving padding out of all that works position by position: projections, norms and feed-forwards."""

from dataclasses import dataclass

import torch


# With less padding than this share, moving the positions about takes longer than computing the padding.
_WORTHWHILE = 1 / 8


@dataclass
class Packing:
    """
    The positions of a padded batch that are kept, side by side as if of one sample. Only attention, which has to
    tell the samples apart, sees them padded (Zeng et al., 2022, *Boosting Distributed Training Performance of the
    Unpadded BERT Model*).

    Args:
        index (`torch.LongTensor` of shape `(kept,)`): the kept positions of the flattened batch.
        shape (`tuple[int, int]`): batch and length of the padded batch.

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

    index: torch.LongTensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: torch.Tensor | None) -> "Packing | None":
        """The packing of a mask `(batch, length)`, 1 for what is kept, if there is enough padding to make it pay."""
        if mask is None or mask.is_meta or torch.compiler.is_compiling():  # a graph has fixed shapes
            return None
        index = mask.flatten().nonzero().squeeze(1)
        return cls(index, tuple(mask.shape)) if len(index) <= (1 - _WORTHWHILE) * mask.numel() else None


def pack(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """`(batch, length, width)` to `(1, kept, width)`; as it is without a packing."""
    if packing is None:
        return states
    return states.reshape(-1, states.shape[-1]).index_select(0, packing.index).unsqueeze(0)


def unpack(states: torch.Tensor, packing: Packing | None) -> torch.Tensor:
    """`(1, kept, width)` to `(batch, length, width)`, with zeros in the padding; as it is without a packing."""
    if packing is None:
        return states
    padded = states.new_zeros(packing.shape[0] * packing.shape[1], states.shape[-1])
    return padded.index_copy(0, packing.index, states.squeeze(0)).view(*packing.shape, -1)
