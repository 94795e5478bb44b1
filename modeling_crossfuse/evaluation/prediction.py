# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A model's answers, or vectors, for many rows of a data set."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.bad_samples import encode_readable
from ..data.rows import READING_ERRORS, NumberedRows, Row, check_columns, get_column, row_names, select_columns


def text_modality(config) -> str:
    """The first modality of kind `text` of a model's config: the one that takes questions."""
    names = config.modalities.names_of_kind("text")
    if not names:
        raise ValueError(
            f"this model takes no text, so it answers no questions; it takes {', '.join(config.modalities)}"
        )
    return names[0]


def check_inputs(config, rows: Sequence[dict[str, Any]], inputs: dict[str, str], target: str | None = None):
    """Raises a `ValueError` if there are no rows, the model lacks a modality, or the first row lacks a column."""
    if len(rows) == 0:
        raise ValueError("the data set has no rows")
    for name in inputs:
        if name not in config.modalities:
            raise ValueError(f"unknown modality {name!r}; this model takes {', '.join(config.modalities)}")
    check_columns(rows, [*inputs.values(), *([] if target is None else [target])])


def predict(model, processor, rows: Sequence[dict[str, Any]], inputs: dict[str, str], **kwargs) -> list[Any]:
    """
    Answers for many samples.

    Args:
        model, processor, rows, inputs, kwargs: those of [`iter_answers`].

    Returns:
        `list`: an answer for each row.

    Raises:
        ValueError: if a modality or a column is unknown, a row can't be read or has no modality, or the model gives no
            answers.
    """
    return list(without_errors(iter_answers(model, processor, rows, inputs, **kwargs)))


def without_errors(results: Iterable[Any]) -> Iterator[Any]:
    """The results; one that is an error is raised."""
    for result in results:
        if isinstance(result, Exception):
            raise result
        yield result


def iter_answers(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    question: str | None = None,
    batch_size: int = 64,
    degrade: Callable[[str, Any], Any] | None = None,
    progress: bool = True,
    **generate_kwargs,
) -> Iterator[Any]:
    """
    Answers for many samples, one after the other as batches of them are ready. A row that can't be read has in the
    place of an answer the error that says why.

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

    Yields:
        an answer for each row: a text without special tokens and surrounding blanks, or what [`read_logits`] makes of
        a classification; or an `Exception`.

    Raises:
        ValueError: if a modality or a column is unknown, or the model gives no answers.
    """
    if model.task not in ("generation", "classification"):
        raise ValueError(f"`predict` is for models that generate or classify, not a {type(model).__name__}")

    def generate(batch: dict[str, torch.Tensor]) -> list[str]:
        ids = model.generate(**batch, **answer_length(model, generate_kwargs))
        return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]

    def classify(batch: dict[str, torch.Tensor]) -> list[Any]:
        return read_logits(model(**batch).logits, model.config)

    batches = _batches(model.config, processor, rows, inputs, question, degrade, batch_size)
    return _run(model, generate if model.task == "generation" else classify, batches, len(rows), progress)


def embed(model, processor, rows: Sequence[dict[str, Any]], inputs: dict[str, str], **kwargs) -> torch.Tensor:
    """
    Vectors of many samples by a [`CrossFuseForRetrieval`]: `(rows, projection_dim)`, float32, on the CPU, of length 1.
    The arguments are those of [`iter_vectors`].
    """
    return torch.stack(list(without_errors(iter_vectors(model, processor, rows, inputs, **kwargs))))


def iter_vectors(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    batch_size: int = 64,
    degrade: Callable[[str, Any], Any] | None = None,
    progress: bool = True,
) -> Iterator[Any]:
    """As [`iter_answers`], with a vector `(projection_dim,)` of a [`CrossFuseForRetrieval`] for each row."""

    def encode(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.get_fused_features(**batch).pooler_output.float().cpu()

    batches = _batches(model.config, processor, rows, inputs, None, degrade, batch_size)
    return _run(model, encode, batches, len(rows), progress)


def _batches(config, processor, rows, inputs, question, degrade, batch_size) -> DataLoader:
    """
    Batches in the order of the rows: the indices of their rows, the tensors of those that can be read, and the errors
    of the others by their indices.
    """
    check_inputs(config, rows, inputs)
    rows = NumberedRows(select_columns(rows, inputs.values()))
    asked = None if question is None else text_modality(config)
    if asked in inputs:
        raise ValueError(f"the question takes the place of the modality {asked!r}; leave {asked!r} out of the inputs")

    def read(row: Row, name: str) -> Any:
        value = get_column(row, inputs[name])
        if value is None or degrade is None:
            return value
        try:
            return degrade(name, value)
        except READING_ERRORS as error:
            raise ValueError(f"{row.name}: {error}") from error

    def encode(indices: list[int]):
        samples = [rows[index] for index in indices]
        columns = {name: [read(row, name) for row in samples] for name in inputs}
        if asked is not None:
            columns[asked] = [question] * len(samples)
        return processor(**columns, sample_names=row_names(samples), return_tensors="pt")

    def collate(indices: list[int]):
        return indices, *encode_readable(encode, indices)

    return DataLoader(range(len(rows)), batch_size=batch_size, collate_fn=collate)


@torch.inference_mode()
def _run(model, function: Callable, batches: DataLoader, num_rows: int, progress: bool) -> Iterator[Any]:
    """What a function makes of each row's tensors, or the row's error, with the model in evaluation mode."""
    bar = tqdm(total=num_rows, desc="Answering", unit="sample", disable=None if progress else True, leave=False)
    with evaluation_mode(model), bar:
        for indices, tensors, errors in batches:
            results = iter(() if tensors is None else function(to_device(tensors, model)))
            yield from [errors[index] if index in errors else next(results) for index in indices]
            bar.update(len(indices))


def read_logits(logits: torch.Tensor, config) -> list[Any]:
    """
    A classification head's answers in words or numbers.

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
    >>> from modeling_crossfuse.evaluation.prediction import read_logits

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


__all__ = [
    "check_inputs",
    "embed",
    "iter_answers",
    "iter_vectors",
    "predict",
    "read_logits",
    "text_modality",
    "without_errors",
]
