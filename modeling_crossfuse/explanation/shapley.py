# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The cooperative game of a sample's modalities, and the one of a modality's positions within it."""

import itertools
import math

import torch

from ..evaluation.attention import attention_shares, eager_attention
from ..extras import needs
from ..inputs import ModalityInputs
from ..outputs import CrossFuseEncoderOutput


# The dimensions of values that are cut into positions.
_CUT = {"length", "images", "frames", "samples", "steps", "height", "width"}

# One modality's hidden states `(rows, length, hidden_size)` and their mask `(rows, length)`.
_Stream = tuple[torch.Tensor, torch.Tensor]


def all_coalitions(present: torch.Tensor) -> torch.Tensor:
    """Every subset `(2^members, num_modalities)` of the present modalities `(num_modalities,)`, as booleans."""
    members = present.nonzero().squeeze(1)
    choices = list(itertools.product([False, True], repeat=len(members)))
    coalitions = present.new_zeros(len(choices), len(present))
    coalitions[:, members] = torch.tensor(choices)
    return coalitions


def shapley_weights(coalitions: torch.Tensor) -> torch.Tensor:
    """
    Weights `(2^members, num_modalities)` of the coalitions that [`all_coalitions`] gives: `weights.T @ values` are the
    Shapley values (Shapley, 1953).
    """
    members = int(coalitions.any(0).sum())
    # For each size: the share of all orders in which exactly these others join before a member. No member has as many
    # others as there are members, so the last entry is for modalities that are not present.
    orders = [1 / (members * math.comb(members - 1, size)) for size in range(members)] + [0.0]
    orders = torch.tensor(orders, dtype=torch.float64)
    others = coalitions.sum(1, keepdim=True) - coalitions.long()
    signs = torch.where(coalitions, 1.0, -1.0) * coalitions.any(0)
    return orders[others] * signs


class Pieces:
    """
    One sample's values of a modality, cut into at most `max_positions` positions that can be left out; each image is
    at least one. `layout` names the values' dimensions after the batch.
    """

    def __init__(self, given: ModalityInputs, layout: tuple[str, ...], max_positions: int):
        self.given = given
        self.length = int(given.mask[0].nonzero().max()) + 1
        self.axes = {name: axis for axis, name in enumerate(layout, start=1) if name in _CUT}
        sizes = {name: given.values.shape[axis] for name, axis in self.axes.items()}
        sizes |= {name: self.length for name, axis in self.axes.items() if axis == given.axis}
        images = sizes.get("images", 1)
        inner = len(self.axes) - ("images" in sizes)
        # The most cells along each axis. 1e-6 is for roots that come out too small, as 64 ** (1 / 3) does.
        side = max(1, int((max_positions / images) ** (1 / inner) + 1e-6))
        self.edges = {}
        for name, size in sizes.items():
            cells = size if name == "images" else min(size, side)
            self.edges[name] = [round(cell * size / cells) for cell in range(cells + 1)]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(edges) - 1 for edges in self.edges.values())

    def keep(self, kept: torch.Tensor) -> ModalityInputs:
        """The values with only those positions that `kept`, booleans of shape `(rows, *shape)`, keeps."""
        values, mask = self.given.values, self.given.mask
        kept = kept.to(mask.device)
        for dim, (name, edges) in enumerate(self.edges.items(), start=1):
            kept = kept.repeat_interleave(torch.tensor(edges, device=kept.device).diff(), dim=dim)
            if self.axes[name] == self.given.axis:
                padding = list(kept.shape)
                padding[dim] = mask.shape[1] - self.length
                kept = torch.cat([kept, kept.new_ones(padding)], dim)
        if self.axes.keys() & {"length", "steps"}:  # their mask leaves them out
            return self.given._replace(values=values.expand(len(kept), *values.shape[1:]), mask=mask * kept)
        for axis in range(1, values.dim()):
            if axis not in self.axes.values():
                kept = kept.unsqueeze(axis)
        return self.given._replace(values=torch.where(kept, values, self._blank()), mask=mask.expand(len(kept), -1))

    def _blank(self) -> torch.Tensor:
        """The values of a position that is left out: the median colour of an image's border, or silence."""
        values = self.given.values
        if "height" in self.axes:
            border = [values[..., 0, :], values[..., -1, :], values[..., 0], values[..., -1]]
            return torch.cat(border, dim=-1).median(-1).values[..., None, None]
        return values.amin() if "frames" in self.axes else values.new_zeros(())


class Game:
    """
    The cooperative game of one sample's modalities: the value of a coalition is the score of the answer where the
    model is given these modalities and no other.

    Args:
        model: the model.
        answer ([`TokenAnswer`] or [`ClassAnswer`]): the answer that is explained.
        given (`dict[str, ModalityInputs]`): the sample's present modalities, each with one row.
        present (`torch.Tensor` of shape `(num_modalities,)`): which these are, as booleans on the CPU.
        batch_size (`int`): rows of a forward pass.
    """

    def __init__(self, model, answer, given: dict[str, ModalityInputs], present: torch.Tensor, batch_size: int):
        self.model, self.given, self.present, self.answer, self.batch_size = model, given, present, answer, batch_size
        self.streams = {name: self._encode(name, modality) for name, modality in given.items()}
        self.coalitions = all_coalitions(present)
        self.weights = shapley_weights(self.coalitions)
        self.baseline = self._score(encoder_outputs=self._empty_memory())[0]
        self.values = self._values(self.coalitions, self.streams)

    def _encode(self, name: str, given: ModalityInputs) -> _Stream:
        if given.is_encoded:
            return given.values, given.mask
        return self.model.get_encoder().encode_modality(name, given.values, given.mask)

    def _empty_memory(self) -> CrossFuseEncoderOutput:
        # The model refuses a sample without modalities. From a memory of one zero vector, attention takes nothing.
        memory = torch.zeros(1, 1, self.model.config.d_model, device=self.model.device, dtype=self.model.dtype)
        mask = torch.ones(1, 1, dtype=torch.long, device=self.model.device)
        return CrossFuseEncoderOutput(last_hidden_state=memory, attention_mask=mask, modality_ids=-mask)

    def _score(self, rows: int = 1, **memory) -> torch.Tensor:
        """The targets' scores and, last, the whole answer's: `(rows, num_targets + 1)`."""
        arguments = {name: value.expand(rows, -1) for name, value in self.answer.arguments.items()}
        logits = self.model(**memory, **arguments).logits.float()
        # All that is computed with the scores is on the CPU, since not every device has double precision.
        scores = self.answer.score(logits).cpu().double()
        return torch.cat([scores, self.answer.score_whole(scores)[:, None]], dim=1)

    def _tensors(self, coalitions: torch.Tensor, streams: dict[str, _Stream]) -> dict[str, torch.Tensor]:
        """The arguments of `forward` for coalitions `(rows, num_modalities)`, with a row for each."""
        tensors = {"modality_mask": coalitions.long().to(self.model.device)}
        for name, (hidden_states, mask) in streams.items():
            names = self.model.config.modalities.tensor_names_of(name)
            tensors[names.hidden_states] = hidden_states.expand(len(coalitions), -1, -1)
            tensors[names.hidden_states_mask] = mask.expand(len(coalitions), -1)
        return tensors

    def _values(self, coalitions: torch.Tensor, streams: dict[str, _Stream]) -> torch.Tensor:
        """Scores `(rows, num_targets + 1)` of coalitions `(rows, num_modalities)`."""
        values = self.baseline.repeat(len(coalitions), 1)
        tensors = self._tensors(coalitions, streams)
        given = coalitions.any(1).nonzero().squeeze(1)
        for rows in given.split(self.batch_size) if len(given) else ():
            values[rows] = self._score(len(rows), **{name: tensor[rows] for name, tensor in tensors.items()})
        return values

    def modality_values(self) -> torch.Tensor:
        """Shapley values `(num_targets + 1, num_modalities)`."""
        return self.values.T @ self.weights

    def attention_shares(self) -> torch.Tensor:
        """Attention shares `(num_targets, num_modalities)` where all present modalities are given."""
        tensors = self._tensors(self.present[None], self.streams)
        with eager_attention(self.model):
            outputs = self.model(**tensors, **self.answer.arguments, output_attentions=True)
        return attention_shares(outputs, len(self.present))[0].expand(len(self.answer.targets), -1)

    def position_values(self, name: str, pieces: Pieces, num_orders: int) -> torch.Tensor:
        """Shapley values `(num_targets + 1, *pieces.shape)` of a modality's positions, which add up to its own."""
        index = list(self.model.config.modalities).index(name)
        has_modality = self.coalitions[:, index]
        coalitions, weights = self.coalitions[has_modality], self.weights[has_modality, index]

        def modality_value(kept: torch.Tensor) -> torch.Tensor:
            """The modality's Shapley value, less a constant, for each row of positions that are kept."""
            kept = kept.bool()
            is_there = kept.flatten(1).any(1) & pieces.keep(kept).mask.any(1).cpu()
            kept = kept | ~is_there.view(-1, *[1] * len(pieces.shape))  # an encoder can't read nothing
            stream = self._encode(name, pieces.keep(kept))
            rows = coalitions.repeat(len(kept), 1)
            rows[:, index] = is_there.repeat_interleave(len(coalitions))
            stream = tuple(part.repeat_interleave(len(coalitions), dim=0) for part in stream)
            values = self._values(rows, self.streams | {name: stream})
            return torch.einsum("c,kct->kt", weights, values.unflatten(0, (len(kept), len(coalitions))))

        # The orders are the same each time, and the user's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # not those of GPUs, which are not put back
            values = import_sampling()(modality_value).attribute(
                torch.ones(1, *pieces.shape),
                n_samples=num_orders,
                perturbations_per_eval=max(1, self.batch_size // len(coalitions)),
            )
        return values[0].float()


def import_sampling():
    """captum's `ShapleyValueSampling`."""
    try:
        from captum.attr import ShapleyValueSampling
    except ImportError as error:
        raise needs("without `max_positions=0`, an explanation needs captum", "explain") from error
    return ShapleyValueSampling
