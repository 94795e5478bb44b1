# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Answers of a model for many samples, what they are worth, and which modalities they came from."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.rows import get_column, select_columns


def text_modality(config) -> str:
    """The first modality of kind `text` of a model's config: the one that takes questions."""
    for name in config.modalities.names_of_kind("text"):
        return name
    raise ValueError(
        f"this model takes no text, so it can't be asked a question; it takes {', '.join(config.modalities)}"
    )


class _Samples(Dataset):
    """What the model is given of each row, by modality, and made worse where that is asked for."""

    def __init__(self, rows, inputs: dict[str, str], degrade):
        self.rows, self.inputs, self.degrade = rows, inputs, degrade

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        sample = {name: get_column(row, column) for name, column in self.inputs.items()}
        if self.degrade is None:
            return sample
        return {name: None if value is None else self.degrade(name, value) for name, value in sample.items()}


def _batches(config, processor, rows, inputs, question, degrade, batch_size) -> DataLoader:
    """Batches of tensors, in the order of the rows."""
    check_inputs(config, rows, inputs)
    asked = None if question is None else text_modality(config)
    if asked in inputs:
        raise ValueError(f"the question takes the place of the modality {asked!r}; leave {asked!r} out of the inputs")

    def collate(samples: list[dict[str, Any]]):
        columns = {name: [sample[name] for sample in samples] for name in inputs}
        if asked is not None:
            columns[asked] = [question] * len(samples)
        return processor(**columns, return_tensors="pt")

    samples = _Samples(select_columns(rows, inputs.values()), inputs, degrade)
    return DataLoader(samples, batch_size=batch_size, collate_fn=collate)


def check_inputs(config, rows: Sequence[dict[str, Any]], inputs: dict[str, str], target: str | None = None):
    """
    Raises:
        ValueError: if there are no rows, `config` has no such modality, or the first row has no such column.
    """
    if len(rows) == 0:
        raise ValueError("the data set has no rows")
    for name in inputs:
        if name not in config.modalities:
            raise ValueError(f"unknown modality {name!r}; this model takes {', '.join(config.modalities)}")
    try:
        for column in [*inputs.values(), *([] if target is None else [target])]:
            get_column(rows[0], column)
    except KeyError as error:
        raise ValueError(error.args[0]) from error


@torch.inference_mode()
def predict(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    question: str | None = None,
    batch_size: int = 64,
    degrade: Callable[[str, Any], Any] | None = None,
    progress: bool = True,
    **generate_kwargs,
) -> list[Any]:
    """
    Answers for many samples.

    Args:
        model ([`CrossFuseForConditionalGeneration`] or [`CrossFuseForSequenceClassification`]): put into evaluation
            mode for the time being.
        processor ([`CrossFuseProcessor`]): the model's.
        rows (`datasets.Dataset` or a sequence of `dict`): one row per sample, read one batch at a time.
        inputs (`dict[str, str]`): modality to column; dots lead into structs. A row's `None` is a missing modality.
        question (`str`, *optional*): asked of every sample, as the first modality of kind `text`.
        batch_size (`int`, defaults to 64): samples per batch.
        degrade (`Callable[[str, Any], Any]`, *optional*): takes a modality's name and a raw value and returns a worse
            one, such as [`Degradation`].
        progress (`bool`, defaults to `True`): whether to show a progress bar.
        generate_kwargs: as `model.generate` takes them; a model that does not generate does not read them.

    Returns:
        `list`: an answer for each row: a text without special tokens and surrounding blanks, or what [`read_logits`]
        makes of a classification.

    Raises:
        ValueError: if a modality or a column is unknown, or a sample has no modality.
    """
    if hasattr(model, "get_fused_features"):
        raise ValueError("a model for retrieval gives vectors, not answers; see `embed`")
    if model.can_generate():
        generate_kwargs = answer_length(model, generate_kwargs)

    def answer(batch: dict[str, torch.Tensor]) -> list[Any]:
        if not model.can_generate():
            return read_logits(model(**batch).logits, model.config)
        texts = processor.batch_decode(model.generate(**batch, **generate_kwargs), skip_special_tokens=True)
        return [text.strip() for text in texts]

    batches = _batches(model.config, processor, rows, inputs, question, degrade, batch_size)
    return list(itertools.chain.from_iterable(_run(model, answer, batches, len(rows), progress)))


def _run(model, function: Callable, batches: DataLoader, num_rows: int, progress: bool) -> list[Any]:
    """What a function makes of each batch, with the model in evaluation mode."""
    results = []
    bar = tqdm(total=num_rows, desc="Answering", unit="sample", disable=None if progress else True, leave=False)
    with evaluation_mode(model), bar:
        for batch in batches:
            results.append(function(to_device(batch, model)))
            bar.update(len(results[-1]))
    return results


def read_logits(logits: torch.Tensor, config) -> list[Any]:
    """
    What a classification head answered.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels)`): its logits.
        config ([`CrossFuseConfig`]): says by `problem_type` and `id2label` what they mean.

    Returns:
        `list`: for each sample the name of the best label; the names of all labels that are more likely than not, for
        several labels; a number or a list of numbers, for a regression.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig
    >>> from modeling_crossfuse.evaluation.evaluation import read_logits

    >>> logits = torch.tensor([[0.5, 2.0], [1.0, -1.0]])
    >>> read_logits(logits, CrossFuseConfig(id2label={0: "cat", 1: "dog"}))
    ['dog', 'cat']
    >>> read_logits(logits, CrossFuseConfig(id2label={0: "cat", 1: "dog"}, problem_type="multi_label_classification"))
    [['cat', 'dog'], ['cat']]
    ```
    """
    if config.resolved_problem_type == "regression":
        return (logits.squeeze(1) if config.num_labels == 1 else logits).tolist()
    if config.resolved_problem_type == "multi_label_classification":
        return [[config.id2label[label] for label in row.nonzero().flatten().tolist()] for row in logits > 0]
    return [config.id2label[label] for label in logits.argmax(1).tolist()]


@contextlib.contextmanager
def evaluation_mode(model):
    """The model in evaluation mode; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def eager_attention(model):
    """The model with the attention that gives its weights; afterwards each part has its own again."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    implementations = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        # Setting a config's sets those of its parts, too: the whole comes first, its parts after it.
        for config, implementation in zip(configs, implementations):
            config._attn_implementation = implementation


def to_device(batch, model) -> dict[str, torch.Tensor]:
    """A batch without labels, on the model's device."""
    return {name: value.to(model.device) for name, value in batch.items() if name != "labels"}


def answer_length(model, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`, with a length where nobody chose one."""
    # transformers stops after 20 tokens where nobody said when to: too early for text made of characters.
    defaults = model.generation_config
    chosen = {"max_new_tokens", "max_length", "generation_config"} & generate_kwargs.keys()
    if chosen or defaults.max_new_tokens is not None or defaults.max_length not in (None, 20):
        return generate_kwargs
    return {"max_new_tokens": 64, **generate_kwargs}


def evaluate_rows(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    target: str,
    **predict_kwargs,
) -> dict[str, float]:
    """
    How good a model's answers are.

    Args:
        model: any with a head.
        processor, rows, inputs: as in [`predict`].
        target (`str`): the column of the right answers; dots lead into structs. For [`CrossFuseForRetrieval`], what
            the modality of kind `text` is given: each sample has to find its own among the distinct ones of all rows.
        predict_kwargs: the other arguments of [`predict`].

    Returns:
        `dict[str, float]`: the metrics of [`compute_text_metrics`],
        [`compute_label_metrics`] or [`RankingMetrics`],
        `num_samples` and `samples_per_second`.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        ValueError: as [`predict`] does, or if a row has no answer.
    """
    check_inputs(model.config, rows, inputs, target)
    references = [get_column(row, target) for row in select_columns(rows, [target])]
    start = time.perf_counter()
    if hasattr(model, "get_fused_features"):
        metrics = _evaluate_retrieval(model, processor, rows, inputs, references, **predict_kwargs)
    elif hasattr(model, "labeled_modality"):
        raise ValueError("a model that labels positions can't be evaluated by samples")
    elif model.can_generate():
        metrics = _evaluate_texts(model, processor, rows, inputs, references, **predict_kwargs)
    else:
        metrics = _evaluate_labels(model, processor, rows, inputs, references, **predict_kwargs)
    seconds = time.perf_counter() - start
    return {**metrics, "num_samples": len(rows), "samples_per_second": round(len(rows) / seconds, 1)}


def _check_texts(references: list[Any]):
    for index, reference in enumerate(references):
        if not isinstance(reference, str):
            raise ValueError(f"row {index} has {reference!r} in the column of the right answers; expected a text")


def _evaluate_texts(model, processor, rows, inputs, references, **predict_kwargs) -> dict[str, float]:
    from .metrics import compute_text_metrics

    _check_texts(references)
    return compute_text_metrics(predict(model, processor, rows, inputs, **predict_kwargs), references)


def _evaluate_labels(model, processor, rows, inputs, references, **predict_kwargs) -> dict[str, float]:
    from .metrics import compute_label_metrics

    answers = predict(model, processor, rows, inputs, **predict_kwargs)
    problem_type = model.config.resolved_problem_type
    if problem_type != "regression":
        references = [_named(row, reference, model.config.id2label) for row, reference in enumerate(references)]
    return compute_label_metrics(answers, references, problem_type)


def _named(row: int, reference: Any, id2label: dict[int, str]) -> Any:
    """The name of a label, which a data set may have as its number."""
    if isinstance(reference, list):
        return [_named(row, label, id2label) for label in reference]
    name = id2label.get(reference) if isinstance(reference, int) else reference
    if name not in id2label.values():
        raise ValueError(
            f"row {row} has {reference!r} in the column of the right answers, which is none of the model's "
            f"{len(id2label)} labels"
        )
    return name


def _evaluate_retrieval(
    model, processor, rows, inputs, references, question=None, batch_size=64, degrade=None, progress=True, **kwargs
) -> dict[str, float]:
    from .metrics import RankingMetrics

    if question is not None:
        raise ValueError("a model for retrieval can't be asked a question; leave it out")
    _check_texts(references)
    name = text_modality(model.config)
    if name in inputs:
        raise ValueError(f"the candidates are what the modality {name!r} is given; leave it out of the inputs")
    candidates = sorted(set(references))
    settings = {"batch_size": batch_size, "progress": progress}
    queries = embed(model, processor, rows, inputs, degrade=degrade, **settings)
    found = embed(model, processor, [{name: text} for text in candidates], {name: name}, **settings)
    places = {text: place for place, text in enumerate(candidates)}
    scores = (queries @ found.t()).tolist()
    return RankingMetrics().compute(predictions=scores, references=[places[text] for text in references])


@torch.inference_mode()
def embed(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    batch_size: int = 64,
    degrade: Callable[[str, Any], Any] | None = None,
    progress: bool = True,
) -> torch.Tensor:
    """
    The vectors of many samples.

    Args:
        model ([`CrossFuseForRetrieval`]): put into evaluation mode for the time being.
        processor, rows, inputs, batch_size, degrade, progress: as in [`predict`].

    Returns:
        `torch.Tensor` of shape `(rows, projection_dim)`, float32 and on the CPU: vectors of length 1.
    """
    batches = _batches(model.config, processor, rows, inputs, None, degrade, batch_size)
    vectors = _run(model, lambda batch: model.get_fused_features(**batch).pooler_output, batches, len(rows), progress)
    return torch.cat(vectors).float().cpu()


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """
    Every non-empty subset, the small ones first.

    Example:

    ```python
    >>> from modeling_crossfuse.evaluation.evaluation import subsets

    >>> list(subsets(["image", "audio"]))
    [('image',), ('audio',), ('image', 'audio')]
    ```
    """
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


@torch.inference_mode()
def modality_shares(model, inputs: dict[str, torch.Tensor], generated_ids: torch.LongTensor) -> torch.Tensor:
    """
    How much of the decoder's cross-attention went to each modality while it answered.

    It is the attention weight, summed over a modality's positions in the memory and averaged over layers, heads and
    the answer's tokens. That says where the decoder *read*, not what *caused* the answer: a modality with many
    positions draws weight even if it tells little, and after `joint` or `bottleneck` fusion a position also carries
    what it took from other modalities. What an answer depends on, [`explain`] tells.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): run in evaluation mode with eager attention, which is the one
            that gives its weights; its own mode and attention are put back afterwards.
        inputs (`dict[str, torch.Tensor]`): a batch as the processor makes it.
        generated_ids (`torch.LongTensor` of shape `(batch, length)`): what `generate` answered, the start token
            included. What comes after the end token is left out.

    Returns:
        `torch.Tensor` of shape `(batch, num_modalities)`: shares from 0 to 1 in the config's order. They add up to 1,
        less the share of positions that belong to no single modality: some for fusion `bottleneck`, all for
        `latent`.

    Raises:
        ValueError: if `generated_ids` has nothing after the start token.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration
    >>> from modeling_crossfuse.evaluation.evaluation import modality_shares

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"text": {"vocab_size": 50}, "image": {"image_size": 16, "patch_size": 8}},
    ...     decoder={"vocab_size": 60},
    ... )
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "pixel_values": torch.zeros(1, 3, 16, 16)}
    >>> shares = modality_shares(model, inputs, model.generate(**inputs, max_new_tokens=4))
    >>> shares.shape, round(shares.sum().item(), 3)
    (torch.Size([1, 2]), 1.0)
    ```
    """
    if generated_ids.shape[1] < 2:
        raise ValueError(
            f"`generated_ids` has shape {tuple(generated_ids.shape)}; expected an answer after the start token"
        )
    with evaluation_mode(model), eager_attention(model):
        outputs = model(
            **to_device(inputs, model),
            decoder_input_ids=generated_ids[:, :-1],
            output_attentions=True,
            use_cache=False,
        )
    shares = attention_shares(outputs, len(model.config.modalities))
    kept = answered(generated_ids[:, 1:], model).unsqueeze(-1)
    return (shares * kept).sum(1) / kept.sum(1).clamp(min=1)


def attention_shares(outputs, num_modalities: int) -> torch.Tensor:
    """The part of each query's cross-attention that each modality got, `(batch, queries, num_modalities)`."""
    # (batch, queries, memory_length)
    weights = torch.stack(outputs.cross_attentions).float().mean(dim=(0, 2))
    # In bfloat16, the softmax's rounded weights can add up to a little more than 1.
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    is_of = torch.nn.functional.one_hot(outputs.encoder_modality_ids + 1, num_modalities + 1)[..., 1:]
    return (weights @ is_of.to(weights.dtype)).clamp(max=1.0)


def answered(ids: torch.LongTensor, model) -> torch.Tensor:
    """1 for the tokens `(batch, length)` of an answer up to its end token, the end token included."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return torch.ones_like(ids)
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device)).long()
    return ((is_end.cumsum(1) - is_end) == 0).long()


__all__ = [
    "check_inputs",
    "embed",
    "evaluate_rows",
    "modality_shares",
    "predict",
    "read_logits",
    "subsets",
    "text_modality",
]
