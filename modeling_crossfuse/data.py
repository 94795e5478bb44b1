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
"""Data sets: reading their rows and columns, and turning rows into batches with labels."""

import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .configuration_crossfuse import PROBLEM_TYPES


if TYPE_CHECKING:
    import datasets


def get_column(row: Mapping[str, Any], column: str) -> Any:
    """
    The value of a column, or of a field of a struct.

    Args:
        row (`Mapping[str, Any]`): a row of a data set.
        column (`str`): the column's name; dots lead into structs.

    Returns:
        The value; `None` where a struct on the way is `None`.

    Raises:
        KeyError: if there is no such column or field; the message lists those that exist.

    Example:

    ```python
    >>> from modeling_crossfuse.data import get_column

    >>> get_column({"names": {"en": "red apple", "fr": "pomme rouge"}}, "names.fr")
    'pomme rouge'
    ```
    """
    value = row
    head, rest = "", column
    while True:
        if rest in value:  # a whole name first: it may have a dot itself
            return value[rest]
        part, dot, rest = rest.partition(".")
        if not dot or part not in value:
            where = f"the field {head!r}" if head else "a row"
            raise KeyError(f"no column {column!r}; {where} has {', '.join(map(str, value))}")
        head, value = f"{head}.{part}" if head else part, value[part]
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise KeyError(f"no column {column!r}; {head!r} is {type(value).__name__} and has no fields")


def top_column(rows: "datasets.Dataset", column: str) -> str:
    """The column of the data set that holds `column`, which may be a field of a struct."""
    return column if column in rows.column_names else column.split(".")[0]


def select_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> Sequence[Mapping[str, Any]]:
    """Only what `columns` needs: whatever else a row of a `datasets.Dataset` has would be decoded, too."""
    if not hasattr(rows, "select_columns"):
        return rows
    return rows.select_columns(list(dict.fromkeys(top_column(rows, column) for column in columns)))


def has_text(feature: Any) -> bool:
    """Whether a feature of a `datasets.Dataset`, or a field of it if it is a struct, is text."""
    if isinstance(feature, dict):
        return any(has_text(part) for part in feature.values())
    return getattr(feature, "dtype", None) in ("string", "large_string")


def parse_mapping(pairs: Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """
    Modalities and what belongs to each, as a command line or a recipe gives them.

    Args:
        pairs (`list[str]`, `dict[str, str]`, *optional*): such as `["image=picture", "audio=speech"]`; a `dict` stays
            as it is, and None becomes an empty one.

    Raises:
        ValueError: if one is not of the form `modality=value`, or a modality comes twice.

    Example:

    ```python
    >>> from modeling_crossfuse.data import parse_mapping

    >>> parse_mapping(["image=photo", "text=question"])
    {'image': 'photo', 'text': 'question'}
    ```
    """
    if pairs is None or isinstance(pairs, Mapping):
        return dict(pairs or {})
    mapping = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{pair!r} is not of the form modality=value, such as image=picture")
        if name in mapping:
            raise ValueError(f"the modality {name!r} is given twice")
        mapping[name] = value
    return mapping


def check_exists(what: str, name_or_path: str):
    """What can't be an id on the Hub must be a folder; the Hub's own message for it would speak of ids."""
    is_path = (
        Path(name_or_path).is_absolute() or name_or_path.startswith(".") or name_or_path.rstrip("/").count("/") > 1
    )
    if is_path and not Path(name_or_path).exists():
        raise FileNotFoundError(f"there is no {what} at {name_or_path}")


def load_rows(
    dataset: str | None, split: str = "test", max_samples: int | None = None, config: str | None = None
) -> "datasets.Dataset":
    """
    A split of a data set, with audio left undecoded, so that `torchcodec` is not needed.

    Args:
        dataset (`str`): a name on the Hub, a folder that `load_dataset` reads, or one that `save_to_disk` wrote.
        split (`str`, defaults to `"test"`): its split.
        max_samples (`int`, *optional*): how many rows to keep, spaced evenly: a data set may be sorted.
        config (`str`, *optional*): the data set's configuration, if it has several.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        OSError, ValueError: if there is no such data set or split.
    """
    from datasets import Audio, load_from_disk

    if dataset is None:
        raise ValueError("`dataset` is missing; give a data set's name or folder")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples={max_samples}` is not at least 1")
    check_exists("data set", dataset)
    if Path(dataset, "state.json").exists():  # a single split, as `Dataset.save_to_disk` writes it
        rows = load_from_disk(dataset)
    elif Path(dataset, "dataset_dict.json").exists():
        splits = load_from_disk(dataset)
        if split not in splits:
            raise ValueError(f"the data set {dataset} has no split {split!r}; it has {', '.join(splits)}")
        rows = splits[split]
    else:
        rows = _load_split(dataset, config, split)
    for column, feature in rows.features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(column, Audio(decode=False))
    if max_samples is not None and max_samples < len(rows):
        rows = rows.select(np.linspace(0, len(rows) - 1, max_samples).round().astype(int))
    return rows


def _load_split(dataset: str, config: str | None, split: str) -> "datasets.Dataset":
    from datasets import get_dataset_split_names, load_dataset

    try:
        return load_dataset(dataset, config, split=split)
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        names = ", ".join(get_dataset_split_names(dataset, config))
        raise ValueError(f"the data set {dataset} has no split {split!r}; it has {names}") from error


class CrossFuseDataCollator:
    r"""
    Turns rows of a data set into a batch for a CrossFuse model, with labels. Use it with
    `TrainingArguments(remove_unused_columns=False)`: columns are read here, under their own names.

    Questions and augmentation belong to training; give the evaluation a collator of its own.

    Args:
        processor ([`CrossFuseProcessor`]): makes the tensors; its tokenizer makes the labels.
        inputs (`dict[str, str]`): name of each modality to the column that holds it; dots lead into structs
            (`"names.fr"`). Where a row lacks the column or it is `None`, the sample lacks the modality.
        target (`str`, *optional*): column with the text to answer. Without it and `questions` there are no labels.
        questions (`dict[str, str]`, *optional*): text of a question to the column that answers it. One, among those
            that the row can answer, is drawn for each row.
        question_modality (`str`, defaults to `"text"`): the modality that the question goes to.
        question_dropout (`float`, defaults to 0.0): probability with which a row gets no question, and `target` to
            answer.
        max_target_length (`int`, *optional*): tokens of an answer, its end of sequence included.
        problem_type (`str`, *optional*): what `target` is, where it is not a text to generate:
            `"single_label_classification"`, `"multi_label_classification"` or `"regression"`, as in a config of
            transformers, which give the `labels` of [`CrossFuseForSequenceClassification`]; or `"retrieval"`, which
            gives `item_ids`, by which [`CrossFuseForRetrieval`] knows samples of the same target.
        label2id (`dict[str, int]`, *optional*): numbers of the labels in `target`, such as `config.label2id`. Whole
            numbers in `target` are numbers of labels already.
        answer_ids (`dict[str, int]`, *optional*): number of each answer in the `target` column, for a model with
            `num_answers`: gives `answer_ids` `(batch,)`, -100 for other answers, whatever question was drawn.
        augment (`Callable`, *optional*): takes the finished batch, a dict of tensors, and returns it changed.
        seed (`int`, *optional*): makes the questions repeatable. In workers of a `DataLoader` the worker's own seed,
            which follows from `torch.manual_seed` and changes with each epoch, is mixed in.

    Raises:
        ValueError: if an argument or a row can't be used; the message names it.

    Example:

    ```python
    >>> import numpy as np
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> from modeling_crossfuse import CrossFuseDataCollator, CrossFuseProcessor

    >>> vocabulary = {"[PAD]": 0, "[EOS]": 1, "walk": 2, "run": 3}
    >>> tokenizer = PreTrainedTokenizerFast(
    ...     tokenizer_object=Tokenizer(models.WordLevel(vocabulary)), pad_token="[PAD]", eos_token="[EOS]"
    ... )
    >>> processor = CrossFuseProcessor(
    ...     tokenizer=tokenizer, modalities={"wrist": {"kind": "series", "num_channels": 3}}
    ... )
    >>> collator = CrossFuseDataCollator(processor, inputs={"wrist": "acceleration"}, target="activity")
    >>> batch = collator([{"acceleration": np.zeros((5, 3)), "activity": "run"}])
    >>> batch["wrist_values"].shape, batch["labels"]
    (torch.Size([1, 5, 3]), tensor([[3, 1]]))
    ```
    """

    def __init__(
        self,
        processor,
        inputs: dict[str, str],
        target: str | None = None,
        questions: dict[str, str] | None = None,
        question_modality: str = "text",
        question_dropout: float = 0.0,
        max_target_length: int | None = None,
        problem_type: str | None = None,
        label2id: dict[str, int] | None = None,
        answer_ids: dict[str, int] | None = None,
        augment: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
        seed: int | None = None,
    ):
        self.processor = processor
        self.inputs = dict(inputs)
        self.target = target
        self.questions = dict(questions or {})
        self.question_modality = question_modality
        self.question_dropout = question_dropout
        self.max_target_length = max_target_length
        self.problem_type = problem_type
        self.label2id = dict(label2id or {})
        self.answer_ids = answer_ids
        self.augment = augment
        self.seed = seed
        self._random, self._random_of = random.Random(seed), None
        self._check()

    def _check(self):
        known = self.processor.modalities
        for name in [*self.inputs, *([self.question_modality] if self.questions else [])]:
            if name not in known:
                raise ValueError(f"`{name}` is not a modality of the processor; it has {', '.join(known)}")
        if self.questions and self.question_modality in self.inputs:
            raise ValueError(f"modality `{self.question_modality}` is given by `inputs` and by `questions`; drop one")
        if not 0 <= self.question_dropout <= 1:
            raise ValueError(f"`question_dropout={self.question_dropout}`; expected a probability")
        if self.questions and self.question_dropout > 0 and self.target is None:
            raise ValueError("`question_dropout` needs `target`: what a row without a question has to answer")
        if self.answer_ids is not None and self.target is None:
            raise ValueError("`answer_ids` needs `target`: the column whose answers they number")
        if self.max_target_length is not None and self.max_target_length < 1:
            raise ValueError(f"`max_target_length={self.max_target_length}`; expected at least 1")
        if self.problem_type is not None:
            self._check_problem_type()
            return
        tokenizer = getattr(self.processor, "tokenizer", None)
        if (self.target or self.questions) and getattr(tokenizer, "eos_token_id", None) is None:
            raise ValueError("labels need a processor with a `tokenizer` that has an `eos_token`")

    def _check_problem_type(self):
        if self.problem_type not in (*PROBLEM_TYPES, "retrieval"):
            raise ValueError(
                f"`problem_type={self.problem_type!r}`; expected one of {', '.join(PROBLEM_TYPES)}, retrieval, or None"
            )
        if self.questions or self.answer_ids is not None:
            raise ValueError(f"`questions` and `answer_ids` don't go with `problem_type={self.problem_type!r}`")
        if self.target is None:
            raise ValueError(f"`problem_type={self.problem_type!r}` needs `target`: the column of the labels")

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of a data set to the tensors of the model's `forward`, `labels` among them."""
        inputs = {name: self.read_column(rows, column) for name, column in self.inputs.items()}
        chosen = [self._draw(row) for row in rows]
        if self.questions:
            inputs[self.question_modality] = [question for question, _ in chosen]
        batch = self._encode(rows, inputs)
        if self.problem_type is not None:
            name = "item_ids" if self.problem_type == "retrieval" else "labels"
            batch[name] = self._targets(self.read_column(rows, self.target))
        elif self.target or self.questions:
            columns = [column for _, column in chosen]
            batch["labels"] = self._labels([self._answer(*item) for item in zip(range(len(rows)), rows, columns)])
        if self.answer_ids is not None:
            answers = [get_column(row, self.target) for row in rows]
            batch["answer_ids"] = torch.tensor([self.answer_ids.get(answer, -100) for answer in answers])
        return batch if self.augment is None else self.augment(batch)

    def _encode(self, rows: list[Mapping[str, Any]], inputs: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
        return dict(self.processor(**inputs, return_tensors="pt"))

    def read_column(self, rows: list[Mapping[str, Any]], column: str) -> list[Any]:
        """A column of all rows, with None where a row lacks it."""
        values, lacking = [], 0
        for row in rows:
            try:
                values.append(get_column(row, column))
            except KeyError:
                values.append(None)
                lacking += 1
        if lacking == len(rows):
            raise ValueError(
                f"no row has the column {column!r}; the first has {', '.join(map(str, rows[0])) or 'none'}. (Trainer "
                "drops columns that the model does not name, unless `TrainingArguments(remove_unused_columns=False)`.)"
            )
        return values

    def _draw(self, row: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The question for a row, or None, and the column that answers it."""
        generator = self._generator()
        if not self.questions or generator.random() < self.question_dropout:
            return None, self.target
        answerable = [item for item in self.questions.items() if self._answers(row, item[1])]
        return generator.choice(answerable) if answerable else (None, self.target)

    @staticmethod
    def _answers(row: Mapping[str, Any], column: str) -> bool:
        try:
            return get_column(row, column) is not None
        except KeyError:
            return False

    def _generator(self) -> random.Random:
        worker = torch.utils.data.get_worker_info()
        # A worker starts from a copy of this object: without its own seed all would draw alike, in every epoch.
        if worker is not None and worker.seed != self._random_of:
            seed = worker.seed if self.seed is None else f"{self.seed}-{worker.seed}"
            self._random, self._random_of = random.Random(seed), worker.seed
        return self._random

    def _answer(self, index: int, row: Mapping[str, Any], column: str | None) -> str:
        if column is None:
            raise ValueError(f"row {index} answers none of the questions, and there is no `target`")
        try:
            answer = get_column(row, column)
        except KeyError as error:
            raise ValueError(f"row {index}: {error.args[0]}") from error
        if not isinstance(answer, str):
            raise TypeError(f"row {index} has {answer!r} in the target column {column!r}; expected a str")
        return answer

    def _targets(self, values: list[Any]) -> torch.Tensor:
        """Targets that are no text to generate: classes `(batch,)`, or numbers or a 0 or 1 for each label."""
        if self.problem_type == "regression":
            return _numbers(values, self.target)
        if self.problem_type != "multi_label_classification":
            return torch.tensor([-100 if value is None else self._label_id(value) for value in values])
        labels = torch.zeros(len(values), len(self.label2id))
        for row, names in enumerate(values):
            if not isinstance(names, (list, tuple)):
                raise TypeError(f"row {row} has {names!r} in the target column {self.target!r}; expected a list")
            labels[row, [self._label_id(name) for name in names]] = 1.0
        return labels

    def _label_id(self, label: str | int) -> int:
        if isinstance(label, str) and label in self.label2id:
            return self.label2id[label]
        if isinstance(label, int):
            return int(label)
        if self.problem_type == "retrieval":  # items that training never saw need numbers, alike in all processes
            return len(self.label2id) + zlib.crc32(label.encode())
        raise ValueError(
            f"the target column {self.target!r} has {label!r}, which is none of the {len(self.label2id)} labels"
        )

    def _labels(self, answers: list[str]) -> torch.Tensor:
        """Tokens of the answers with an end of sequence, `(batch, length)`, padded with -100."""
        tokenizer = self.processor.tokenizer
        kept = None if self.max_target_length is None else self.max_target_length - 1
        rows = tokenizer(answers, add_special_tokens=False, padding=False)["input_ids"]
        rows = [torch.tensor([*row[:kept], tokenizer.eos_token_id]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def _numbers(values: list[Any], column: str) -> torch.Tensor:
    """Numbers `(batch,)`, or lists of as many numbers `(batch, numbers)`."""
    try:
        numbers = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the target column {column!r} has other values than as many numbers: {error}") from error
    if not numbers.isfinite().all():
        raise ValueError(f"the target column {column!r} has numbers that are not finite")
    return numbers


def problem_type_of(feature: Any) -> str:
    """
    The `problem_type` that a column of a data set is made for.

    Args:
        feature: an entry of `datasets.Features`.

    Raises:
        ValueError: if it is neither text, classes, numbers, nor lists of them.

    Example:

    ```python
    >>> from datasets import ClassLabel, List, Value
    >>> from modeling_crossfuse.data import problem_type_of

    >>> problem_type_of(ClassLabel(names=["cat", "dog"])), problem_type_of(List(Value("string")))
    ('single_label_classification', 'multi_label_classification')
    >>> problem_type_of(Value("float32"))
    'regression'
    ```
    """
    inner = getattr(feature, "feature", feature)
    dtype = getattr(inner, "dtype", None) or ""
    if dtype.startswith("float"):
        return "regression"
    if dtype.startswith(("int", "uint", "string", "large_string")):
        return "single_label_classification" if inner is feature else "multi_label_classification"
    raise ValueError(f"a column of {feature} has no labels; expected text, classes, numbers, or lists of them")


def label_names(rows: "datasets.Dataset", column: str) -> list[str]:
    """
    The names of the labels in a column: those of a `ClassLabel`, the distinct texts, sorted, or the whole numbers from
    0 on.
    """
    feature = rows.features.get(column)  # a field of a struct has no names
    inner = getattr(feature, "feature", feature)
    if hasattr(inner, "names"):
        return list(inner.names)
    values = [get_column(row, column) for row in select_columns(rows, [column])]
    labels = {label for value in values for label in (value if isinstance(value, list) else [value])} - {None}
    if all(isinstance(label, int) for label in labels):
        return [str(number) for number in range(max(labels, default=-1) + 1)]
    return sorted(labels)


__all__ = [
    "CrossFuseDataCollator",
    "check_exists",
    "get_column",
    "has_text",
    "label_names",
    "load_rows",
    "parse_mapping",
    "problem_type_of",
    "select_columns",
    "top_column",
]
