# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What each modality, and each position of it, contributed to an answer."""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..arguments import refuse_unknown
from ..evaluation.prediction import evaluation_mode, to_device
from ..heads import HEADS
from ..inputs import ModalityInputs, find_present, read_inputs
from .answers import read_classes, read_tokens
from .shapley import Game, Pieces, import_sampling


_MAX_MODALITIES = 8
# The heads whose answers can be explained, by `task`.
_TASKS = ("generation", "classification")


class Position(NamedTuple):
    """
    A position of the input, and what it contributed.

    Args:
        modality (`str`): the modality.
        value (`float`): what it added to the score of the whole answer.
        where (`dict[str, tuple[int, int]]`): begin and end along each dimension of the modality's values, such as
            `{"images": (0, 1), "height": (8, 16), "width": (0, 8)}` in pixels or `{"frames": (20, 30)}`.
        text (`str`, *optional*): the words, for a modality of kind `text`, if a processor was given.
        seconds (`tuple[float, float]`, *optional*): begin and end, for audio, if a processor was given.
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
    """The words or the seconds of a position, by the name of their field in [`Position`]."""
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
    missing, as the model knows it from `modality_dropout`. Where all are left out, the memory is one zero vector, from
    which cross-attention takes nothing. The contributions to a target add up to its score less its baseline, the score
    without any modality.

    The score is a probability, not its logarithm: it is bounded, so that no token that was unlikely anyway outweighs
    the others. A token's is that after the answer's tokens before it, so that no modality is credited for the end of a
    word, which its beginning gives away. The whole answer's is the geometric mean of its tokens' (1 / perplexity),
    which does not fade as answers get longer.

    The same game is played within a modality: its positions (the patches of an image, tokens, or spans of time) share
    its contribution, and add up to it (Owen, 1977, *Values of Games with a Priori Unions*). Their values are
    estimates: captum's `ShapleyValueSampling` lets them join in `num_orders` random orders (Castro et al., 2009).
    Tokens and time steps are left out by their mask. A patch is replaced by the background, the median colour of its
    image's border, and a span of audio by silence. Where no position is left, the modality is missing. For each
    modality, that costs `num_orders * positions * 2**(M - 1)` rows of a forward pass.

    Args:
        model ([`CrossFuseForConditionalGeneration`] or [`CrossFuseForSequenceClassification`]): run in evaluation
            mode; its mode and attention are put back afterwards.
        inputs (`dict[str, torch.Tensor]`): a batch as the processor makes it.
        generated_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): what `generate` answered, the start
            token included; what comes after the end token is left out. By default `generate` is asked.
        labels (`torch.LongTensor` of shape `(batch,)` or `(batch, num_targets)`, *optional*): the classes of a
            classifier that are explained. By default the likeliest one; for several labels or a regression, all.
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

    >>> modalities = {"text": {"vocab_size": 50}, "image": {"image_size": 16, "patch_size": 8}}
    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, modalities=modalities, decoder={"vocab_size": 60})
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
        if model.task == "generation":
            answers = read_tokens(model, inputs, generated_ids, len(present))
        else:
            answers = read_classes(model, inputs, labels, len(present))
        explanations = []
        for row, answer in enumerate(answers):
            sample = {
                name: modality._replace(values=modality.values[[row]], mask=modality.mask[[row]])
                for name, modality in given.items()
                if present[row, list(model.config.modalities).index(name)]
            }
            game = Game(model, answer, sample, present[row], batch_size)
            explanations.append(_explanation(game, max_positions, num_orders))
    return explanations


def _explanation(game: Game, max_positions: int, num_orders: int) -> Explanation:
    scores, baselines = game.values[-1].float(), game.baseline.float()  # with all modalities, and with none
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
        positions={name: _position_values(game, name, max_positions, num_orders) for name in names},
    )


def _position_values(game: Game, name: str, max_positions: int, num_orders: int) -> PositionValues:
    given, specs = game.given[name], game.model.config.modalities.tensor_specs[name]
    spec = next(spec for spec in specs if spec.name == given.name)
    pieces = Pieces(given, spec.layout, max_positions)
    values = game.position_values(name, pieces, num_orders)
    tokens = given.values[0, : pieces.length].cpu() if spec.is_tokens else None
    return PositionValues(values[:-1], values[-1], pieces.edges, tokens)


def _check_arguments(model, generated_ids, labels, max_positions: int, num_orders: int, batch_size: int):
    if getattr(model, "task", None) not in _TASKS:
        expected = " or ".join(HEADS[task].__name__ for task in _TASKS)
        raise TypeError(f"`model` is {type(model).__name__}; expected {expected}")
    if model.task == "generation" and labels is not None:
        raise ValueError("`labels` are of a classifier; give a model that generates its answer as `generated_ids`")
    if model.task == "classification" and generated_ids is not None:
        raise ValueError("`generated_ids` are of a model that generates; give a classifier its classes as `labels`")
    for name, value, least in (
        ("max_positions", max_positions, 0),
        ("num_orders", num_orders, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"`{name}={value}`; expected at least {least}")
    if max_positions:
        import_sampling()  # before anything is computed


def _read(inputs: dict[str, torch.Tensor], modalities) -> tuple[dict[str, ModalityInputs], torch.Tensor]:
    """Each given modality, in the config's order, and which samples have it."""
    refuse_unknown(inputs, frozenset([*modalities.tensor_names, "modality_mask"]))
    given = read_inputs(inputs, modalities)
    present = find_present(given, inputs.get("modality_mask"), modalities).cpu()
    counts = present.sum(1)
    if (counts > _MAX_MODALITIES).any():
        raise ValueError(
            f"sample {int(counts.argmax())} of the batch has {int(counts.max())} modalities; expected "
            f"{_MAX_MODALITIES} at most, since every set of them is a row of a forward pass"
        )
    return given, present


__all__ = ["Explanation", "Position", "PositionValues", "explain"]
