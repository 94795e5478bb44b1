# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""From rows of a data set to batches with labels."""

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from ..configuration_crossfuse import PROBLEM_TYPES
from ..encoder_sources import check_special_tokens
from ..media import is_missing
from ..processing_tensors import check_text, say_once
from .labels import ClassNumbers, read_label, read_numbers, read_text
from .rows import are_missing, get_column, read_rows, row_names


if TYPE_CHECKING:
    import datasets


logger = logging.get_logger(__name__)


@dataclass(eq=False, repr=False)
class CrossFuseDataCollator:
    r"""
    Turns rows of a data set into a batch for a CrossFuse model, with labels. It reads columns by their own names, and
    so needs `TrainingArguments(remove_unused_columns=False)`. Errors name a row by its place in the batch, or by its
    number in the data set where the rows come from [`NumberedRows`], as those of [`CrossFuseTrainer`] do.

    Questions and augmentation are for training; evaluation needs a collator without them.

    Args:
        processor ([`CrossFuseProcessor`]): makes the tensors; its tokenizer makes the labels.
        inputs (`dict[str, str]`): name of each modality to its column; dots lead into structs (`"names.fr"`). If a row
            lacks the column, or has `None` in it, the sample lacks the modality.
        target (`str`, *optional*): column with the text to answer. Without it and `questions` there are no labels.
        questions (`dict[str, str]`, *optional*): text of a question to the column that answers it. Each row gets one
            that it can answer, drawn at random.
        question_modality (`str`, defaults to `"text"`): the modality that the question goes to.
        question_dropout (`float`, defaults to 0.0): probability with which a row gets no question; its answer is
            `target` then.
        max_target_length (`int`, *optional*): the most tokens of an answer, with its end of sequence.
        problem_type (`str`, *optional*): what `target` is, if it is not a text to generate. The types of transformers'
            configs (`"single_label_classification"`, `"multi_label_classification"` and `"regression"`) give the
            `labels` of [`CrossFuseForSequenceClassification`]; `"retrieval"` gives `item_ids`, by which
            [`CrossFuseForRetrieval`] knows samples of the same target.
        label2id (`dict[str, int]`, *optional*): numbers of the labels in `target`, such as `config.label2id`. Whole
            numbers in `target` are names if any name is a number, and else numbers of labels already; for a
            `ClassLabel` whose names are numbers, add its own numbers as keys (`{0: 0, 1: 1}`). A label of None, NaN or
            -100 becomes -100, which the loss leaves out.
        num_labels (`int`, *optional*): how many numbers `target` has for a regression. Defaults to as many as the
            first row of a batch has.
        answer_ids (`dict[str, int]`, *optional*): number of each answer in the `target` column, for a model with
            `num_answers`. The batch gets `answer_ids` `(batch,)`, with -100 for other answers, whichever question was
            drawn.
        augment (`Callable`, *optional*): takes the batch, a dict of tensors, and returns it changed.
        seed (`int`, *optional*): makes the questions repeatable. Workers of a `DataLoader` add their own seeds, which
            follow from `torch.manual_seed` and change with each epoch.
        model ([`CrossFuseForConditionalGeneration`], *optional*): the model that is trained. With it, batches with
            answers have `decoder_input_ids`, too, as those of [`~transformers.DataCollatorForSeq2Seq`]:
            [`~transformers.Trainer`] needs them with `label_smoothing_factor` or `compute_loss_func`.

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

    processor: Any
    inputs: dict[str, str]
    target: str | None = None
    questions: dict[str, str] | None = None
    question_modality: str = "text"
    question_dropout: float = 0.0
    max_target_length: int | None = None
    problem_type: str | None = None
    label2id: dict[str, int] | None = None
    num_labels: int | None = None
    answer_ids: dict[str, int] | None = None
    augment: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None
    seed: int | None = None
    model: Any = None

    def __post_init__(self):
        self.questions, self.label2id = self.questions or {}, self.label2id or {}
        self._classes = ClassNumbers(self.label2id)
        self._random, self._random_of = random.Random(self.seed), None
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
        if self.model is not None and not hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
            raise ValueError(f"`model` is a {type(self.model).__name__}; expected one that generates text")
        if self.model is not None:
            check_special_tokens(getattr(self.processor, "tokenizer", None), self.model.generation_config)
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
            for column in self.questions.values():
                self.read_column(rows, column)  # an error says so where no row has it
            inputs[self.question_modality] = [question for question, _ in chosen]
        batch, names = self._encode(rows, inputs), row_names(rows)
        if self.problem_type is not None:
            key = "item_ids" if self.problem_type == "retrieval" else "labels"
            self.read_column(rows, self.target)  # an error says so where no row has it
            targets = [self._in_row(name, self._target, row) for name, row in zip(names, rows)]
            batch[key] = self._targets(targets, names)
        elif self.target or self.questions:
            columns = [column for _, column in chosen]
            answers = [self._in_row(name, self._answer, *asked) for name, *asked in zip(names, rows, columns)]
            places = [f"{name} in the target column {column!r}" for name, column in zip(names, columns)]
            batch["labels"] = self._labels(answers, places)
            if self.model is not None:
                batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(batch["labels"])
        if self.answer_ids is not None:
            answers = [get_column(row, self.target) for row in rows]
            batch["answer_ids"] = torch.tensor([self.answer_ids.get(answer, -100) for answer in answers])
        return batch if self.augment is None else self.augment(batch)

    def find_bad_rows(self, rows: "datasets.Dataset") -> dict[int, str]:
        """
        The rows that can't be used, by number, with what is wrong of each: `"has None in the target column 'name';
        expected a str"`. Targets are read, and whether there are inputs; images, audio and video are not decoded.
        """
        bad, is_asked = {}, np.zeros(len(rows), dtype=bool)
        for index, row in enumerate(read_rows(rows, filter(None, [self.target, *self.questions.values()]))):
            asked = [column for column in self.questions.values() if self._answers(row, column)]
            is_asked[index] = always_asked = bool(asked) and self.question_dropout == 0
            try:
                if self.problem_type is not None:
                    self._target(row)
                elif self.target or self.questions:
                    for column in asked if always_asked else [*asked, self.target]:
                        self._answer(row, column)
            except (TypeError, ValueError) as error:
                bad[index] = str(error)
        columns = dict.fromkeys(self.inputs.values())
        lack_all = np.all([~is_asked, *(are_missing(rows, column) for column in columns)], axis=0)
        for index in lack_all.nonzero()[0].tolist():
            bad.setdefault(index, f"has None in all columns of inputs ({', '.join(columns)}); expected a value in any")
        return dict(sorted(bad.items()))

    def count_unlabeled(self, rows: "datasets.Dataset") -> int:
        """How many rows have no class: -100 in the labels. There are none where the targets are not classes."""
        if self.problem_type != "single_label_classification":
            return 0
        return sum(self._target(row) == -100 for row in read_rows(rows, [self.target]))

    def _encode(self, rows: list[Mapping[str, Any]], inputs: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
        return dict(self.processor(**inputs, sample_names=row_names(rows), return_tensors="pt"))

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
            return not is_missing(get_column(row, column))
        except KeyError:
            return False

    def _generator(self) -> random.Random:
        worker = torch.utils.data.get_worker_info()
        # Each worker has a copy of this object. Without seeds of their own, all would draw the same, in every epoch.
        if worker is not None and worker.seed != self._random_of:
            seed = worker.seed if self.seed is None else f"{self.seed}-{worker.seed}"
            self._random, self._random_of = random.Random(seed), worker.seed
        return self._random

    def _in_row(self, name: str, read: Callable, *args) -> Any:
        """What `read` makes of something in a row, whose name an error begins with."""
        try:
            return read(*args)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} {error}") from error

    def _answer(self, row: Mapping[str, Any], column: str | None) -> str:
        if column is None:
            raise ValueError("answers none of the questions, and there is no `target`")
        try:
            answer = read_text(get_column(row, column), column)
        except KeyError as error:
            raise ValueError(f"has {error.args[0]}") from error
        self._check_answer(f"in the target column {column!r}", answer)
        return answer

    def _check_answer(self, where: str, answer: str):
        """Refuses what a tokenizer can't read, or would read as the end of the answer, its start or padding."""
        check_text(where, answer)
        tokenizer = self.processor.tokenizer
        control = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token)
        tags = [tag for tag in control if tag is not None and tag in answer]
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"] if tags else []
        if {*tokenizer.convert_tokens_to_ids(tags)} & {*tokens}:
            raise ValueError(
                f"{where} has {tags[0]!r} in its text, which the tokenizer takes for a special token; the collator "
                "adds the end itself. To have it read as text, load the tokenizer with `split_special_tokens=True`"
            )

    def _target(self, row: Mapping[str, Any]) -> Any:
        """What `problem_type` makes of a row's target: a class's number, a list of them, a number or numbers."""
        try:
            value = get_column(row, self.target)
        except KeyError:
            value = None
        if self.problem_type == "regression":
            return read_numbers(value, self.target, self.num_labels)
        if self.problem_type == "multi_label_classification":
            return self._classes.read_list(value, self.target)
        return self._item_id(value) if self.problem_type == "retrieval" else self._classes.read(value, self.target)

    def _item_id(self, value: Any) -> int:
        item = read_label(value)
        if item is None:
            return -100
        # Items that training never saw need the same numbers in all processes.
        return self.label2id.get(str(item), len(self.label2id) + zlib.crc32(str(item).encode()))

    def _targets(self, values: list[Any], names: list[str]) -> torch.Tensor:
        """Targets as a tensor: classes `(batch,)`, numbers, or a 0 or 1 for each label `(batch, labels)`."""
        if self.problem_type == "regression":
            return self._numbers(values, names)
        if self.problem_type != "multi_label_classification":
            return torch.tensor(values)
        labels = torch.zeros(len(values), self._classes.count)
        for row, numbers in enumerate(values):
            labels[row, numbers] = 1.0
        return labels

    def _numbers(self, values: list[float] | list[list[float]], names: list[str]) -> torch.Tensor:
        """Numbers `(batch,)`, or lists of equally many numbers as `(batch, numbers)`."""
        counts = [len(value) if isinstance(value, list) else 1 for value in values]
        for name, count in zip(names, counts):
            if count != counts[0]:
                raise ValueError(
                    f"{name} has {count} numbers in the target column {self.target!r}; {names[0]} has {counts[0]}"
                )
        exact = torch.tensor(values, dtype=torch.float64)
        numbers = exact.float()
        if exact.unique().numel() > numbers.unique().numel() and exact.abs().max() > 2**24:
            logger.warning_once(
                f"The target column {self.target!r} has different numbers that are the same in float32; expected "
                "numbers with an offset subtracted, such as their mean."
            )
        return numbers

    def _labels(self, answers: list[str], names: list[str]) -> torch.Tensor:
        """Tokens of the answers with an end of sequence, `(batch, length)`, padded with -100."""
        tokenizer = self.processor.tokenizer
        rows = tokenizer(answers, add_special_tokens=False, padding=False, verbose=False)["input_ids"]
        for name, row in zip(names, rows):
            self._say_what_is_lost(name, row)
        kept = None if self.max_target_length is None else self.max_target_length - 1
        rows = [torch.tensor([*row[:kept], tokenizer.eos_token_id]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)

    def _say_what_is_lost(self, where: str, tokens: list[int]):
        """Says of the first answer with unknown tokens, and of the first that is too long, what is not learnt."""
        tokenizer = self.processor.tokenizer
        unknown = tokens.count(tokenizer.unk_token_id)
        if unknown:
            message = f"{where} has {unknown} unknown tokens of {len(tokens)}; the model learns"
            say_once(self, "unknown", f"{message} {tokenizer.unk_token!r} for these, there and in other answers.")
        special = set(tokens) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        if special:
            message = f"{where} has the special token {tokenizer.convert_ids_to_tokens(special.pop())!r} in its text"
            say_once(self, "special", f"{message}; answers that are decoded by `skip_special_tokens=True` lack such.")
        if self.max_target_length is not None and len(tokens) >= self.max_target_length:
            message = f"{where} has {len(tokens) + 1:,} tokens with its end, and is cut to {self.max_target_length:,}"
            say_once(self, "length", f"{message}, as all that are longer. `max_target_length` changes that.")
