# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The answers that are explained: a sample's tokens or classes, and how the model's logits score them."""

import torch

from ..evaluation.attention import answer_mask
from ..evaluation.prediction import answer_length
from ..inputs import check_labels


class TokenAnswer:
    """The tokens of a generated answer; a token's score is its probability after the tokens before it."""

    labels = None

    def __init__(self, ids: torch.LongTensor):  # with the start token
        self.targets = ids[1:]
        self.arguments = {"decoder_input_ids": ids[None, :-1]}

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `(rows, length, vocab_size)` to the targets' scores `(rows, num_targets)`."""
        return logits.softmax(-1)[:, range(len(self.targets)), self.targets]

    def score_whole(self, scores: torch.Tensor) -> torch.Tensor:
        """The targets' scores to those of the whole answer `(rows,)`: their geometric mean."""
        return scores.log().mean(1).exp()


class ClassAnswer:
    """Classes of a sample; a class's score is its probability, or a regression's value."""

    arguments: dict[str, torch.Tensor] = {}

    def __init__(self, targets: torch.LongTensor, config):
        self.targets, self.problem_type = targets, config.resolved_problem_type
        self.labels = [config.id2label[target] for target in targets.tolist()]

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `(rows, num_labels)` to the targets' scores `(rows, num_targets)`."""
        if self.problem_type == "single_label_classification":
            logits = logits.softmax(-1)
        elif self.problem_type == "multi_label_classification":
            logits = logits.sigmoid()
        return logits[:, self.targets]

    def score_whole(self, scores: torch.Tensor) -> torch.Tensor:
        """The targets' scores to those of the whole answer `(rows,)`: their mean."""
        return scores.mean(1)


def read_tokens(model, inputs: dict[str, torch.Tensor], generated_ids, batch_size: int) -> list[TokenAnswer]:
    """Each sample's generated answer, without what comes after its end token."""
    if generated_ids is None:
        generated_ids = model.generate(**inputs, **answer_length(model, {}))
    generated_ids = torch.as_tensor(getattr(generated_ids, "sequences", generated_ids), device=model.device)
    if generated_ids.dim() != 2 or len(generated_ids) != batch_size or generated_ids.shape[1] < 2:
        raise ValueError(
            f"`generated_ids` has shape {tuple(generated_ids.shape)}; expected {batch_size} rows of a start token and "
            "an answer"
        )
    check_labels(generated_ids, model.config.vocab_size)
    lengths = answer_mask(generated_ids[:, 1:], model).sum(1)
    return [TokenAnswer(ids[: length + 1]) for ids, length in zip(generated_ids, lengths)]


def read_classes(model, inputs: dict[str, torch.Tensor], labels, batch_size: int) -> list[ClassAnswer]:
    """Each sample's classes: the likeliest, or all where there may be several, unless `labels` say which."""
    logits = model(**inputs).logits
    num_labels = logits.shape[1]
    if labels is None and model.config.resolved_problem_type == "single_label_classification":
        labels = logits.argmax(1)
    elif labels is None:
        labels = torch.arange(num_labels).expand(batch_size, -1)
    labels = torch.atleast_1d(torch.as_tensor(labels, device=logits.device))
    labels = labels.reshape(len(labels), -1)
    if len(labels) != batch_size or labels.is_floating_point() or ((labels < 0) | (labels >= num_labels)).any():
        raise ValueError(
            f"`labels={labels.tolist()}`; expected {batch_size} rows of classes, integers of at least 0 and below "
            f"`num_labels={num_labels}`"
        )
    return [ClassAnswer(row, model.config) for row in labels]
