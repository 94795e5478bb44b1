# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What each modality, and each position of it, contributed to an answer."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..arguments import refuse_unknown
from ..classification import CrossFuseForSequenceClassification
from ..evaluation.evaluation import (
    answer_length,
    answered,
    attention_shares,
    eager_attention,
    evaluation_mode,
    to_device,
)
from ..extras import needs
from ..inputs import ModalityInputs, check_labels, find_present, read_inputs
from ..modeling_crossfuse import CrossFuseForConditionalGeneration
from ..outputs import CrossFuseEncoderOutput


_MAX_MODALITIES = 8
_ACTIVATIONS = {
    "single_label_classification": lambda logits: logits.softmax(-1),
    "multi_label_classification": torch.sigmoid,
    "regression": lambda logits: logits,
}
# The dimensions of values that are cut into positions.
_CUT = {"length", "images", "frames", "samples", "steps", "height", "width"}

# One modality's hidden states `(rows, length, hidden_size)` and their mask `(rows, length)`.
_Stream = tuple[torch.Tensor, torch.Tensor]


class Position(NamedTuple):
    """
    A position of the input that counted.

    Args:
        modality (`str`): the modality.
        value (`float`): what it added to the score of the whole answer.
        where (`dict[str, tuple[int, int]]`): begin and end along each dimension of the modality's values, such as
            `{"images": (0, 1), "height": (8, 16), "width": (0, 8)}` in pixels or `{"frames": (20, 30)}`.
        text (`str`, *optional*): the words, for a modality of kind `text`, if there was a processor to ask.
        seconds (`tuple[float, float]`, *optional*): begin and end, for sound, if there was a processor to ask.
    """

    modality: str
    value: float
    where: dict[str, tuple[int, int]]
    text: str | None = None
    seconds: tuple[float, float] | None = None


@dataclass
class PositionValues:
    """
    What the positions of one modality contributed. They add up to what the modality did.

    Args:
        values (`torch.Tensor` of shape `(num_targets, ...)`): for each target, one value for each cell of a grid whose
            axes are those of `edges`.
        answer_values (`torch.Tensor` of shape `(...)`): the same for the whole answer.
        edges (`dict[str, list[int]]`): dimension of the modality's values to where its cells begin, and where the last
            one ends.
        tokens (`torch.LongTensor` of shape `(length,)`, *optional*): tokens of the text.
    """

    values: torch.Tensor
    answer_values: torch.Tensor
    edges: dict[str, list[int]]
    tokens: torch.LongTensor | None = None

    def where(self, cell: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        """Begin and end of a cell along each dimension."""
        return {axis: (edges[index], edges[index + 1]) for index, (axis, edges) in zip(cell, self.edges.items())}


@dataclass
class Explanation:
    """
    What one answer came from. For each target, `baselines + modality_values.sum(1)` is `scores`; for the whole answer,
    `answer_baseline + answer_values.sum()` is `answer_score`.

    Args:
        modalities (`list[str]`): the model's modalities, in the config's order.
        targets (`torch.LongTensor` of shape `(num_targets,)`): tokens of the answer, its end token included, or
            classes.
        labels (`list[str]`, *optional*): names of the targets, where they are classes.
        scores (`torch.Tensor` of shape `(num_targets,)`): what the model gave each target: a token's probability
            after the tokens before it, a class's probability, or a regression's value.
        baselines (`torch.Tensor` of shape `(num_targets,)`): the same without any modality.
        modality_values (`torch.Tensor` of shape `(num_targets, num_modalities)`): Shapley values; 0 for a modality
            that the sample lacks.
        answer_score (`float`): of the answer as a whole: the geometric mean of its tokens' probabilities, which is
            1 / perplexity, or the mean of the classes' scores.
        answer_baseline (`float`): the same without any modality.
        answer_values (`torch.Tensor` of shape `(num_modalities,)`): Shapley values of `answer_score`.
        attention_shares (`torch.Tensor` of shape `(num_targets, num_modalities)`): the part of the cross-attention
            that each modality got, as in [`modality_shares`].
        positions (`dict[str, PositionValues]`): present modality to what its positions contributed.
    """

    modalities: list[str]
    targets: torch.LongTensor
    labels: list[str] | None
    scores: torch.Tensor
    baselines: torch.Tensor
    modality_values: torch.Tensor
    answer_score: float
    answer_baseline: float
    answer_values: torch.Tensor
    attention_shares: torch.Tensor
    positions: dict[str, PositionValues] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """
        Each modality's share of what the modalities added to the score of the whole answer: `answer_values`, those
        below 0 as 0, scaled to add up to 1. All 0 if no modality helped.
        """
        gained = self.answer_values.clamp(min=0)
        return dict(zip(self.modalities, (gained / gained.sum().clamp(min=1e-12)).tolist()))

    def top_positions(self, count: int = 5, processor=None) -> list[Position]:
        """
        The positions that added most to the score of the whole answer, of all modalities.

        Args:
            count (`int`, defaults to 5): how many.
            processor ([`CrossFuseProcessor`], *optional*): the model's, for words and seconds.

        Returns:
            `list[Position]`: the best first.
        """
        found = []
        for name, positions in self.positions.items():
            for cell in itertools.product(*map(range, positions.answer_values.shape)):
                where = positions.where(cell)
                described = {} if processor is None else _describe(name, where, positions, processor)
                found.append(Position(name, positions.answer_values[cell].item(), where, **described))
        return sorted(found, key=lambda position: -position.value)[:count]


def _describe(name: str, where: dict[str, tuple[int, int]], positions: PositionValues, processor) -> dict[str, Any]:
    """The words or the seconds of a position."""
    if positions.tokens is not None:
        tokens = positions.tokens[slice(*where["length"])]
        return {"text": processor.sub_processor(name, "tokenizer").decode(tokens).strip()}
    rate = positions_per_second(name, positions, processor)
    begin_and_end = where.get("frames", where.get("samples"))
    return {} if rate is None else {"seconds": tuple(place / rate for place in begin_and_end)}


def positions_per_second(name: str, positions: PositionValues, processor) -> float | None:
    """Frames or samples per second of a modality of kind `audio`, as far as its feature extractor tells."""
    extractor = processor.sub_processor(name, "feature_extractor")
    if "samples" in positions.edges:
        return getattr(extractor, "sampling_rate", None)
    if list(positions.edges) != ["frames"] or not hasattr(extractor, "hop_length"):
        return None
    return extractor.sampling_rate / extractor.hop_length


class _Answer(NamedTuple):
    """
    What is explained about one sample, and all that the heads differ in.

    Args:
        targets (`torch.LongTensor` of shape `(num_targets,)`): tokens or classes.
        labels (`list[str]`, *optional*): names of the classes.
        arguments (`dict[str, torch.Tensor]`): what `forward` needs besides the memory, for one sample.
        score (`Callable[[torch.Tensor], torch.Tensor]`): logits of so many rows to the targets' scores
            `(rows, num_targets)`.
        whole (`Callable[[torch.Tensor], torch.Tensor]`): these to the scores of the whole answer `(rows,)`.
    """

    targets: torch.LongTensor
    labels: list[str] | None
    arguments: dict[str, torch.Tensor]
    score: Callable[[torch.Tensor], torch.Tensor]
    whole: Callable[[torch.Tensor], torch.Tensor]


def _read_tokens(model, inputs: dict[str, torch.Tensor], generated_ids, batch_size: int) -> list[_Answer]:
    if generated_ids is None:
        generated_ids = model.generate(**inputs, **answer_length(model, {}))
    generated_ids = torch.as_tensor(getattr(generated_ids, "sequences", generated_ids), device=model.device)
    if generated_ids.dim() != 2 or len(generated_ids) != batch_size or generated_ids.shape[1] < 2:
        raise ValueError(
            f"`generated_ids` has shape {tuple(generated_ids.shape)}; expected {batch_size} rows of a start token and "
            "an answer"
        )
    check_labels(generated_ids, model.config.vocab_size)
    lengths = answered(generated_ids[:, 1:], model).sum(1)
    return [_token_answer(ids[: length + 1]) for ids, length in zip(generated_ids, lengths)]


def _token_answer(ids: torch.LongTensor) -> _Answer:
    targets = ids[1:]

    def score(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)[:, range(len(targets)), targets]

    def whole(scores: torch.Tensor) -> torch.Tensor:
        return scores.log().mean(1).exp()

    return _Answer(targets, None, {"decoder_input_ids": ids[None, :-1]}, score, whole)


def _read_labels(model, inputs: dict[str, torch.Tensor], labels, batch_size: int) -> list[_Answer]:
    logits = model(**inputs).logits
    num_labels = logits.shape[1]
    problem_type = model.config.resolved_problem_type
    activation = _ACTIVATIONS[problem_type]
    is_exclusive = problem_type == "single_label_classification"
    if labels is None:
        labels = logits.argmax(1) if is_exclusive else torch.arange(num_labels).expand(batch_size, -1)
    labels = torch.atleast_1d(torch.as_tensor(labels, device=logits.device))
    labels = labels.reshape(len(labels), -1)
    if len(labels) != batch_size or labels.is_floating_point() or ((labels < 0) | (labels >= num_labels)).any():
        raise ValueError(
            f"`labels={labels.tolist()}`; expected {batch_size} rows of classes, integers of at least 0 and below "
            f"`num_labels={num_labels}`"
        )

    return [_class_answer(row, model.config.id2label, activation) for row in labels]


def _class_answer(targets: torch.LongTensor, names: dict[int, str], activation) -> _Answer:
    def score(logits: torch.Tensor) -> torch.Tensor:
        return activation(logits)[:, targets]

    def whole(scores: torch.Tensor) -> torch.Tensor:
        return scores.mean(1)

    return _Answer(targets, [names[target] for target in targets.tolist()], {}, score, whole)


def all_coalitions(present: torch.Tensor) -> torch.Tensor:
    """Every subset `(2^members, num_modalities)` of the present modalities `(num_modalities,)`, as booleans."""
    members = present.nonzero().squeeze(1)
    numbers = torch.arange(2 ** len(members))
    coalitions = present.new_zeros(len(numbers), len(present))
    coalitions[:, members] = (numbers[:, None] >> torch.arange(len(members))) % 2 == 1
    return coalitions


def shapley_weights(coalitions: torch.Tensor) -> torch.Tensor:
    """
    Weights `(2^members, num_modalities)` of the coalitions that [`all_coalitions`] gives: `weights.T @ values` are the
    Shapley values (Shapley, 1953).
    """
    members = int(coalitions.any(0).sum())
    # How often, in all orders, exactly so many join before a member; the last entry is of no member.
    orders = [1 / (members * math.comb(members - 1, size)) for size in range(members)] + [0.0]
    orders = torch.tensor(orders, dtype=torch.float64)
    others = coalitions.sum(1, keepdim=True) - coalitions.long()
    signs = torch.where(coalitions, 1.0, -1.0) * coalitions.any(0)
    return orders[others] * signs


class _Pieces:
    """
    One sample's values of a modality, cut into positions that can be left out.

    Args:
        given ([`ModalityInputs`]): values and mask of one sample.
        layout (`tuple[str, ...]`): what the dimensions of the values are, after the batch.
        max_positions (`int`): how many positions there are at most; each image is one at least.
    """

    def __init__(self, given: ModalityInputs, layout: tuple[str, ...], max_positions: int):
        self.given = given
        self.length = int(given.mask[0].nonzero().max()) + 1
        self.axes = {name: axis for axis, name in enumerate(layout, start=1) if name in _CUT}
        sizes = {
            name: self.length if axis == given.axis else given.values.shape[axis] for name, axis in self.axes.items()
        }
        images = sizes.get("images", 1)
        inner = len(self.axes) - ("images" in sizes)
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
        padding = mask.shape[1] - self.length
        for dim, (name, edges) in enumerate(self.edges.items(), start=1):
            sizes = torch.tensor(edges).diff().tolist()
            if self.axes[name] == self.given.axis and padding:  # one more cell, which always stays as it is
                kept, sizes = torch.cat([kept, torch.ones_like(kept.narrow(dim, 0, 1))], dim), [*sizes, padding]
            kept = kept.repeat_interleave(torch.tensor(sizes, device=kept.device), dim=dim)
        if self.axes.keys() & {"length", "steps"}:  # their mask leaves them out
            return self.given._replace(values=values.expand(len(kept), *values.shape[1:]), mask=mask * kept)
        for axis in range(1, values.dim()):
            if axis not in self.axes.values():
                kept = kept.unsqueeze(axis)
        return self.given._replace(values=torch.where(kept, values, self._blank()), mask=mask.expand(len(kept), -1))

    def _blank(self) -> torch.Tensor:
        """What takes the place of what is left out, and tells nothing of it: the background, or silence."""
        values = self.given.values
        if "height" in self.axes:
            border = [values[..., 0, :], values[..., -1, :], values[..., 0], values[..., -1]]
            return torch.cat(border, dim=-1).median(-1).values[..., None, None]
        return values.amin() if "frames" in self.axes else values.new_zeros(())


class _Game:
    """
    The cooperative game of one sample's modalities: a coalition is worth the score of the answer where the model is
    given these modalities and no other.

    Args:
        model: the model.
        given (`dict[str, ModalityInputs]`): the sample's present modalities, each with one row.
        present (`torch.Tensor` of shape `(num_modalities,)`): which these are, as booleans on the CPU.
        answer ([`_Answer`]): what is explained.
        batch_size (`int`): rows of a forward pass.
    """

    def __init__(
        self, model, given: dict[str, ModalityInputs], present: torch.Tensor, answer: _Answer, batch_size: int
    ):
        self.model, self.given, self.present, self.answer, self.batch_size = model, given, present, answer, batch_size
        self.streams = {name: self._encode(name, modality) for name, modality in given.items()}
        self.coalitions = all_coalitions(present)
        self.weights = shapley_weights(self.coalitions)
        self.baseline = self._score(encoder_outputs=self._nothing())[0]
        self.values = self._values(self.coalitions)

    def _encode(self, name: str, given: ModalityInputs) -> _Stream:
        if given.is_encoded:
            return given.values, given.mask
        return self.model.get_encoder().encode_modality(name, given.values, given.mask)

    def _nothing(self) -> CrossFuseEncoderOutput:
        # The model refuses a sample without modalities. From a memory of one zero vector, attention takes nothing.
        memory = torch.zeros(1, 1, self.model.config.d_model, device=self.model.device, dtype=self.model.dtype)
        mask = torch.ones(1, 1, dtype=torch.long, device=self.model.device)
        return CrossFuseEncoderOutput(last_hidden_state=memory, attention_mask=mask, modality_ids=-mask)

    def _score(self, rows: int = 1, **memory) -> torch.Tensor:
        """The targets' scores and, last, the whole answer's: `(rows, num_targets + 1)`."""
        arguments = {name: value.expand(rows, -1) for name, value in self.answer.arguments.items()}
        # On the CPU, like all that is computed with the scores: in double precision, which not every device has.
        scores = self.answer.score(self.model(**memory, **arguments).logits.float()).cpu().double()
        return torch.cat([scores, self.answer.whole(scores)[:, None]], dim=1)

    def _tensors(self, coalitions: torch.Tensor, streams: dict[str, _Stream]) -> dict[str, torch.Tensor]:
        """What `forward` is given for coalitions `(rows, num_modalities)`."""
        tensors = {"modality_mask": coalitions.long().to(self.model.device)}
        for name, (hidden_states, mask) in streams.items():
            key = self.model.config.modalities.hidden_states_name(name)
            tensors[key] = hidden_states.expand(len(coalitions), -1, -1)
            tensors[f"{key}_mask"] = mask.expand(len(coalitions), -1)
        return tensors

    def _values(self, coalitions: torch.Tensor, changed: dict[str, _Stream] | None = None) -> torch.Tensor:
        """
        Scores `(rows, num_targets + 1)` of coalitions `(rows, num_modalities)`. `changed` streams have a row for each
        coalition.
        """
        values = self.baseline.repeat(len(coalitions), 1)
        given = coalitions.any(1).nonzero().squeeze(1)
        for rows in given.split(self.batch_size) if len(given) else ():
            chosen = {name: (states[rows], mask[rows]) for name, (states, mask) in (changed or {}).items()}
            values[rows] = self._score(len(rows), **self._tensors(coalitions[rows], self.streams | chosen))
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

    def position_values(self, name: str, max_positions: int, num_orders: int) -> PositionValues:
        """What the positions of a modality contributed."""
        given, modalities = self.given[name], self.model.config.modalities
        is_raw = given.name == modalities.value_name(name)
        pieces = _Pieces(given, modalities[name].layout if is_raw else ("length", "hidden_size"), max_positions)
        index = list(modalities).index(name)
        has_modality = self.coalitions[:, index]
        coalitions, weights = self.coalitions[has_modality], self.weights[has_modality, index]

        def modality_value(kept: torch.Tensor) -> torch.Tensor:
            """The modality's Shapley value, but for a constant, of so many rows of positions that are kept."""
            kept = kept.bool()
            is_there = kept.flatten(1).any(1) & pieces.keep(kept).mask.any(1).cpu()
            kept = kept | ~is_there.view(-1, *[1] * len(pieces.shape))  # an encoder can't read nothing
            stream = self._encode(name, pieces.keep(kept))
            rows = coalitions.repeat(len(kept), 1)
            rows[:, index] = is_there.repeat_interleave(len(coalitions))
            stream = tuple(part.repeat_interleave(len(coalitions), dim=0) for part in stream)
            values = self._values(rows, {name: stream}).unflatten(0, (len(kept), len(coalitions)))
            return torch.einsum("c,kct->kt", weights, values)

        # Reproducible, and without a trace in the user's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # not those of GPUs, which are not put back
            values = _sampling_class()(modality_value).attribute(
                torch.ones(1, *pieces.shape),
                n_samples=num_orders,
                perturbations_per_eval=max(1, self.batch_size // len(coalitions)),
            )
        tokens = given.values[0, : pieces.length].cpu() if is_raw and "length" in pieces.axes else None
        values = values[0].float()
        return PositionValues(values[:-1], values[-1], pieces.edges, tokens)


def _sampling_class():
    try:
        from captum.attr import ShapleyValueSampling
    except ImportError as error:
        raise needs("without `max_positions=0`, an explanation needs captum", "explain") from error
    return ShapleyValueSampling


@torch.no_grad()
def explain(
    model,
    inputs: dict[str, torch.Tensor],
    generated_ids: torch.LongTensor | None = None,
    labels: torch.LongTensor | None = None,
    max_positions: int = 36,
    num_orders: int = 16,
    batch_size: int = 64,
) -> list[Explanation]:
    """
    What each modality contributed to each token, or class, of the model's answer.

    A modality's contribution is its Shapley value (Shapley, 1953, *A Value for n-Person Games*; Lundberg & Lee, 2017,
    *A Unified Approach to Interpreting Model Predictions*): what it adds to the target's score when it joins the
    modalities that are there already, averaged over all orders in which they can join. It is exact: the model is run
    on each of the `2**M` sets of a sample's `M` modalities, each of which is encoded once. A modality left out is
    missing, as the model knows it; nothing stands in for it. So a model that trained with `modality_dropout` is asked
    nothing new. Where all are left out, the memory is one zero vector, from which cross-attention takes nothing. The
    contributions to a target add up to its score less its baseline, the score without any modality.

    The score is a probability, not its logarithm: it is bounded, so that no token that was unlikely anyway outweighs
    the others. A token's is that after the answer's tokens before it, so that the end of a word, which its beginning
    gives away, is credited to none; the whole answer's is the geometric mean of its tokens' (1 / perplexity), which
    does not fade as answers get longer.

    The same game is played within a modality: its positions share its contribution, and add up to it (Owen, 1977,
    *Values of Games with a Priori Unions*). They are the patches of a picture, tokens, spans of time. Their values are
    estimates: captum's `ShapleyValueSampling` lets them join in `num_orders` random orders (Castro et al., 2009).
    Tokens and time steps are left out by their mask. A patch gives way to the background, the median colour of its
    picture's border, and a span of sound to silence. Where no position is left, the modality is missing. For each
    modality, that costs `num_orders * positions * 2**(M - 1)` rows of a forward pass.

    Args:
        model ([`CrossFuseForConditionalGeneration`] or [`CrossFuseForSequenceClassification`]): run in evaluation
            mode; its mode and attention are put back afterwards.
        inputs (`dict[str, torch.Tensor]`): a batch as the processor makes it.
        generated_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): what `generate` answered, the start
            token included; what comes after the end token is left out. By default `generate` is asked.
        labels (`torch.LongTensor` of shape `(batch,)` or `(batch, num_targets)`, *optional*): the classes that are
            explained, of a classifier. By default the likeliest class; all of them for several labels a sample or a
            regression.
        max_positions (`int`, defaults to 36): positions of a modality at most; where there are more, neighbours are
            taken together. With 0, no positions are explained, and captum is not needed.
        num_orders (`int`, defaults to 16): random orders in which positions join: the more, the less noise.
        batch_size (`int`, defaults to 64): rows of a forward pass.

    Returns:
        `list[Explanation]`: one for each sample, on the CPU.

    Raises:
        ImportError: if `max_positions` is not 0 and captum is not installed.
        TypeError: if the model is of another class.
        ValueError: if a sample has more than 8 modalities, a number is out of range, `generated_ids` or `labels` do
            not fit the model, or the inputs are not what the model takes.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration, explain

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"text": {"vocab_size": 50}, "image": {"image_size": 16, "patch_size": 8}},
    ...     decoder={"vocab_size": 60},
    ... )
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "pixel_values": torch.rand(1, 3, 16, 16)}
    >>> explanation = explain(model, inputs, torch.tensor([[1, 7, 9]]), max_positions=4)[0]
    >>> explanation.modality_values.shape  # two tokens, two modalities
    torch.Size([2, 2])
    >>> total = explanation.baselines + explanation.modality_values.sum(1)
    >>> torch.allclose(total, explanation.scores, atol=1e-6)
    True
    >>> explanation.positions["image"].values.shape, explanation.positions["text"].values.shape
    (torch.Size([2, 1, 2, 2]), torch.Size([2, 3]))
    ```
    """
    _check_arguments(model, generated_ids, labels, max_positions, num_orders, batch_size)
    inputs = to_device(inputs, model)
    given, present = _read(inputs, model.config.modalities)
    with evaluation_mode(model):
        if model.can_generate():
            answers = _read_tokens(model, inputs, generated_ids, len(present))
        else:
            answers = _read_labels(model, inputs, labels, len(present))
        explanations = []
        for row, answer in enumerate(answers):
            sample = {
                name: modality._replace(values=modality.values[[row]], mask=modality.mask[[row]])
                for name, modality in given.items()
                if present[row, list(model.config.modalities).index(name)]
            }
            game = _Game(model, sample, present[row], answer, batch_size)
            explanations.append(_explanation(game, max_positions, num_orders))
    return explanations


def _explanation(game: _Game, max_positions: int, num_orders: int) -> Explanation:
    scores, baselines = game.values[-1].float(), game.baseline.float()  # of all modalities, and of none
    values = game.modality_values().float()
    names = game.given if max_positions else ()
    return Explanation(
        modalities=list(game.model.config.modalities),
        targets=game.answer.targets.cpu(),
        labels=game.answer.labels,
        scores=scores[:-1],
        baselines=baselines[:-1],
        modality_values=values[:-1],
        answer_score=scores[-1].item(),
        answer_baseline=baselines[-1].item(),
        answer_values=values[-1],
        attention_shares=game.attention_shares().cpu(),
        positions={name: game.position_values(name, max_positions, num_orders) for name in names},
    )


def _check_arguments(model, generated_ids, labels, max_positions: int, num_orders: int, batch_size: int):
    heads = (CrossFuseForConditionalGeneration, CrossFuseForSequenceClassification)
    if not isinstance(model, heads):
        raise TypeError(f"`model` is {type(model).__name__}; expected {' or '.join(head.__name__ for head in heads)}")
    if model.can_generate() and labels is not None:
        raise ValueError("`labels` are of a classifier; give a model that generates its answer as `generated_ids`")
    if not model.can_generate() and generated_ids is not None:
        raise ValueError("`generated_ids` are of a model that generates; give a classifier its classes as `labels`")
    for name, value, least in (
        ("max_positions", max_positions, 0),
        ("num_orders", num_orders, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"`{name}={value}`; expected at least {least}")
    if max_positions:
        _sampling_class()  # before anything is computed


def _read(inputs: dict[str, torch.Tensor], modalities) -> tuple[dict[str, ModalityInputs], torch.Tensor]:
    """Each given modality, in the config's order, and which samples have it."""
    tensors = {name: inputs.get(name) for name in modalities.tensor_names}
    refuse_unknown(inputs, frozenset([*tensors, "modality_mask"]))
    given = read_inputs(tensors, modalities)
    present = find_present(given, inputs.get("modality_mask"), modalities).cpu()
    counts = present.sum(1)
    if (counts > _MAX_MODALITIES).any():
        raise ValueError(
            f"sample {int(counts.argmax())} of the batch has {int(counts.max())} modalities; expected "
            f"{_MAX_MODALITIES} at most, since every set of them is a row of a forward pass"
        )
    return given, present


__all__ = ["Explanation", "Position", "PositionValues", "explain"]
