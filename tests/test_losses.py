# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Label smoothing and the answer classifier: their values, their gradients, and that only training has them."""

import pytest
import torch
from torch import nn

from .helpers import assert_same, take_rows, tiny_config, tiny_inputs, tiny_labels, tiny_model


ANSWERS = torch.tensor([2, 0, -100, 4])


def make_labels(batch_size: int = 4) -> torch.Tensor:
    """Labels of different lengths."""
    labels = tiny_labels(batch_size=batch_size, length=5)
    return labels.masked_fill(torch.arange(5)[None] > torch.arange(batch_size)[:, None], -100)


def make_model(**settings):
    config = tiny_config("text", "wrist", **settings)
    return tiny_model(config).train(), tiny_inputs(config, batch_size=4)


def answer_loss(model, outputs, answers, label_smoothing: float = 0.0) -> torch.Tensor:
    """The classifier's loss on the mean of the memory, its padding left out."""
    mask = outputs.encoder_attention_mask[..., None].float()
    pooled = (outputs.encoder_last_hidden_state * mask).sum(1) / mask.sum(1)
    logits = model.answer_head.out_proj(model.answer_head.norm(pooled))
    return nn.functional.cross_entropy(logits, answers, label_smoothing=label_smoothing)


def token_loss(outputs, labels, label_smoothing: float = 0.0, reduction: str = "mean") -> torch.Tensor:
    return nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing, reduction=reduction
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_answer_loss(smoothing):
    model, inputs = make_model(num_answers=5, label_smoothing=smoothing)
    labels = make_labels()
    outputs = model(**inputs, labels=labels, answer_ids=ANSWERS)
    expected = token_loss(outputs, labels, smoothing) + answer_loss(model, outputs, ANSWERS, smoothing)
    assert_same(outputs.loss, expected)


@pytest.mark.slow
def test_compiled_loss_without_logits():
    """As Trainer asks for it with `torch_compile`: in one graph."""
    model, inputs = make_model()
    expected = model(**inputs, labels=make_labels(), skip_logits=True).loss
    torch.compiler.reset()
    outputs = torch.compile(model, fullgraph=True, backend="aot_eager")(
        **inputs, labels=make_labels(), skip_logits=True
    )
    assert outputs.logits is None
    assert_same(outputs.loss, expected)


def test_weight_of_the_answer_loss():
    model, inputs = make_model(num_answers=5, answer_loss_weight=3.0)
    labels = make_labels()
    outputs = model(**inputs, labels=labels, answer_ids=ANSWERS)
    assert_same(outputs.loss, token_loss(outputs, labels) + 3.0 * answer_loss(model, outputs, ANSWERS))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("items", [None, 20])
def test_the_loss_without_logits_is_the_loss_with_them(smoothing, items):
    model, inputs = make_model(num_answers=5, label_smoothing=smoothing)
    given = {**inputs, "labels": make_labels(), "answer_ids": ANSWERS, "num_items_in_batch": items}
    expected = model(**given)
    outputs = model(**given, skip_logits=True)
    assert outputs.logits is None and expected.logits.shape[:2] == given["labels"].shape
    assert_same(outputs.loss, expected.loss)
    outputs.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    expected.loss.backward()
    for gradient, other in zip(gradients, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        assert_same(gradient, other)


def test_without_labels_there_are_always_logits():
    model, inputs = make_model()
    tokens = torch.ones(4, 2, dtype=torch.long)
    assert model(**inputs, decoder_input_ids=tokens, skip_logits=True).logits.shape[:2] == (4, 2)


def test_answer_loss_reaches_the_encoders():
    model, inputs = make_model(num_answers=5)
    outputs = model(**inputs, labels=make_labels(), answer_ids=ANSWERS)
    answer_loss(model, outputs, ANSWERS).backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "answer_head.out_proj.weight" in names
    assert any(name.startswith("model.encoder.encoders.text.") for name in names)
    assert any(name.startswith("model.encoder.encoders.wrist.") for name in names)
    assert not any(name.startswith(("lm_head", "model.decoder.")) for name in names)


def test_without_answer_ids_there_is_no_answer_loss():
    model, inputs = make_model(num_answers=5)
    labels = make_labels()
    outputs = model(**inputs, labels=labels)
    assert_same(outputs.loss, token_loss(outputs, labels))


def test_dropping_the_answer_head(tmp_path):
    model, inputs = make_model(num_answers=5)
    expected = model.eval()(**inputs, labels=make_labels()).logits
    model.drop_answer_head()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.num_answers == 0 and not any("answer_head" in name for name in loaded.state_dict())
    assert torch.equal(loaded.eval()(**inputs, labels=make_labels()).logits, expected)


@pytest.mark.parametrize("items", [None, 20])
def test_label_smoothing_is_that_of_torch(items):
    model, inputs = make_model(label_smoothing=0.2)
    labels = make_labels()
    outputs = model(**inputs, labels=labels, num_items_in_batch=items)
    expected = token_loss(outputs, labels, 0.2, "mean" if items is None else "sum")
    assert_same(outputs.loss, expected / (items or 1))


@pytest.mark.parametrize("items", [None, 20])
def test_evaluation_has_neither(items):
    model, inputs = make_model(label_smoothing=0.2, num_answers=5)
    given = {**inputs, "labels": make_labels(), "answer_ids": ANSWERS, "num_items_in_batch": items}
    outputs = model.eval()(**given)
    expected = token_loss(outputs, given["labels"], reduction="mean" if items is None else "sum")
    assert_same(outputs.loss, expected / (items or 1))
    assert model.train()(**given).loss > outputs.loss


def test_a_part_of_the_batch_counts_as_its_share_of_the_items():
    model, inputs = make_model(label_smoothing=0.1, num_answers=5)
    labels = make_labels()
    items = (labels != -100).sum()
    for rows in ([0, 1], [2, 3]):
        outputs = model(
            **take_rows(inputs, rows), labels=labels[rows], answer_ids=ANSWERS[rows], num_items_in_batch=items
        )
        answers = answer_loss(model, outputs, ANSWERS[rows], 0.1) * (labels[rows] != -100).sum()
        assert_same(outputs.loss, (token_loss(outputs, labels[rows], 0.1, "sum") + answers) / items)


def test_parts_sum_to_the_whole():
    model, inputs = make_model(label_smoothing=0.1)
    labels = make_labels()
    items = (labels != -100).sum()
    whole = model(**inputs, labels=labels).loss
    parts = [
        model(**take_rows(inputs, rows), labels=labels[rows], num_items_in_batch=items).loss
        for rows in ([0, 1], [2, 3])
    ]
    assert_same(sum(parts), whole)


def test_bfloat16():
    model, inputs = make_model(label_smoothing=0.1, num_answers=5)
    given = {**inputs, "labels": make_labels(), "answer_ids": ANSWERS}
    expected = model(**given).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**given).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
