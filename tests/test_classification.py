# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The heads that label, whole samples or positions of a stream."""

import datasets
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForVideoClassification,
    BertConfig,
    Trainer,
    TrainingArguments,
)

from modeling_crossfuse import (
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
)

from .helpers import FUSIONS, MODALITIES, assert_same, take_rows, tiny_config, tiny_inputs, tiny_model


LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}}


def classifier(*modalities, seed=0, **settings):
    return tiny_model(tiny_config(*modalities, **{**LABELS, **settings}), CrossFuseForSequenceClassification, seed)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_classifies_with_and_without_modalities(fusion):
    model = classifier(*MODALITIES, fusion=fusion)
    inputs = tiny_inputs(model.config)
    everything = model(**inputs).logits
    assert everything.shape == (2, 3)
    lacking = model(**inputs, modality_mask=torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 0, 1]])).logits
    assert_same(lacking[0], everything[0])
    alone = {key: inputs[key][1:] for key in ("pixel_values", "wrist_values")}
    assert_same(lacking[1:], model(**alone).logits)
    assert (lacking[1] - everything[1]).abs().max() > 1e-3


def test_builds_no_decoder():
    model = classifier("text", "image")
    assert not any("decoder" in name for name, _ in model.named_parameters())


def test_single_label():
    model = classifier("wrist")
    inputs, labels = tiny_inputs(model.config, 3), torch.tensor([2, -100, 0])
    outputs = model(**inputs, labels=labels)
    assert_same(outputs.loss, nn.functional.cross_entropy(outputs.logits, labels))


def test_regression():
    model = classifier("wrist", id2label={0: "grams"})
    inputs, labels = tiny_inputs(model.config), torch.tensor([0.5, 2.0])
    outputs = model(**inputs, labels=labels)
    assert_same(outputs.loss, nn.functional.mse_loss(outputs.logits[:, 0], labels))
    assert model.config.problem_type == "regression"
    assert_same(model(**inputs, labels=labels[:, None]).loss, outputs.loss)


def test_several_numbers_and_several_labels():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    model = classifier("wrist", problem_type="regression")
    outputs = model(**tiny_inputs(model.config), labels=labels)
    assert_same(outputs.loss, nn.functional.mse_loss(outputs.logits, labels))
    model = classifier("wrist")
    outputs = model(**tiny_inputs(model.config), labels=labels)
    assert_same(outputs.loss, nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels))
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    "labels, settings, message",
    [
        (torch.tensor([0, 3]), {}, "class 3; expected at least 0 and below `num_labels=3`"),
        (torch.tensor([0]), {}, "`labels` are for 1 samples; expected 2"),
        (torch.tensor([[0], [1]]), {}, r"shape \(2, 1\) and dtype torch.int64; expected integers in 1 dimension"),
        (torch.tensor([0.0, 1.0]), {}, r"expected floating point numbers of shape \(batch, 3\)"),
        (torch.tensor([0.0, 1.0]), {"problem_type": "single_label_classification"}, "expected integers"),
        (
            torch.tensor([0, 1]),
            {"id2label": {0: "grams"}},
            "floating point numbers .* for `problem_type='regression'`",
        ),
    ],
)
def test_wrong_labels(labels, settings, message):
    model = classifier("wrist", **settings)
    with pytest.raises(ValueError, match=message):
        model(**tiny_inputs(model.config), labels=labels)


def test_gives_attention_of_the_pooling():
    model = classifier("text", "wrist", attn_implementation="eager")
    outputs = model(**tiny_inputs(model.config), output_attentions=True)
    assert outputs.cross_attentions[0].shape == (2, 2, 1, 10)
    assert outputs.encoder_modality_ids.tolist() == [[0] * 5 + [1] * 5] * 2
    assert len(outputs.attentions) == 2
    assert model(**tiny_inputs(model.config)).cross_attentions is None


@pytest.mark.parametrize("return_dict", [True, False])
def test_takes_a_memory_from_before(return_dict):
    model = classifier("text", "wrist")
    inputs = {**tiny_inputs(model.config), "modality_mask": torch.tensor([[1, 0], [1, 1]])}
    memory = model.get_encoder()(**inputs, return_dict=return_dict)
    assert_same(model(encoder_outputs=memory).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "auto_class",
    [
        AutoModelForSequenceClassification,
        AutoModelForImageClassification,
        AutoModelForVideoClassification,
        AutoModelForAudioClassification,
    ],
)
def test_saves_and_loads_by_auto_classes(auto_class, tmp_path):
    model = classifier("image", problem_type="single_label_classification")
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert loaded.config.id2label == LABELS["id2label"] and loaded.config.problem_type == "single_label_classification"
    inputs = tiny_inputs(model.config)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_several_labels_may_be_integers():
    model, labels = classifier("wrist"), torch.tensor([[1, 0, 1], [0, 0, 1]])
    values = torch.randn(2, 5, 3)
    assert_same(model(wrist_values=values, labels=labels).loss, model(wrist_values=values, labels=labels.float()).loss)
    assert model.config.problem_type == "multi_label_classification"


def test_a_batch_without_labels_has_no_loss():
    model = classifier("wrist")
    loss = model(wrist_values=torch.randn(2, 5, 3), labels=torch.tensor([-100, -100])).loss
    assert loss == 0


def test_token_classification_smooths_labels():
    config = tiny_config("wrist", **LABELS, label_smoothing=0.3)
    model = tiny_model(config, CrossFuseForTokenClassification).train()
    labels = torch.tensor([[0, 1, 2, -100, 1], [2, 2, -100, 0, 1]])
    outputs = model(wrist_values=torch.randn(2, 5, 3), labels=labels)
    expected = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), label_smoothing=0.3)
    assert_same(outputs.loss, expected)


def test_starts_from_a_model_that_generates(tmp_path):
    config = tiny_config("text", "image")
    source = tiny_model(config, CrossFuseForConditionalGeneration, seed=1)
    source.save_pretrained(tmp_path)
    model, report = CrossFuseForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    for name, value in model.get_encoder().state_dict().items():
        assert torch.equal(value, source.get_encoder().state_dict()[name]), name
    assert all(name.startswith(("pooling.", "classifier.")) for name in report["missing_keys"])
    assert not report["unexpected_keys"]


def test_composes_of_encoders():
    bert = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = CrossFuseForSequenceClassification.from_encoders(
        {"text": bert}, freeze=("text",), d_model=32, num_labels=4
    )
    assert model(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 4)
    assert not any(p.requires_grad for p in model.get_encoder().encoders["text"].parameters())


def test_resizes_the_vocabulary_of_its_text_encoder():
    model = classifier("text")
    model.resize_token_embeddings(45)
    assert model.get_input_embeddings().num_embeddings == model.config.modalities["text"].vocab_size == 45
    assert model(input_ids=torch.tensor([[44]])).logits.shape == (1, 3)


def tagger(*modalities, **settings):
    return tiny_model(tiny_config(*modalities, **{**LABELS, **settings}), CrossFuseForTokenClassification)


@pytest.mark.parametrize("fusion", ["concat", "joint", "bottleneck"])
@pytest.mark.parametrize("labeled, length", [(None, 5), ("wrist", 5), ("image", 4), ("audio", 3)])
def test_labels_positions(fusion, labeled, length):
    model = tagger(*MODALITIES, fusion=fusion, labeled_modality=labeled)
    inputs = tiny_inputs(model.config)
    assert model(**inputs).logits.shape == (2, length, 3)


def test_token_labels_outside_the_stream_do_not_count():
    model = tagger("image", "wrist", fusion="joint")
    inputs = tiny_inputs(model.config, 3)
    inputs["wrist_mask"] = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1] * 5])
    inputs["modality_mask"] = torch.tensor([[1, 1], [1, 1], [1, 0]])
    labels = torch.arange(15).view(3, 5) % 3
    labels[0, 0] = -100
    outputs = model(**inputs, labels=labels)
    counted = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0] * 5]).bool()
    assert_same(outputs.loss, nn.functional.cross_entropy(outputs.logits[counted], labels[counted]))
    nothing = model(**take_rows(inputs, [2, 1]), labels=torch.full((2, 5), -100))
    assert nothing.loss == 0
    # The picture is the context of the steps.
    inputs["pixel_values"] = inputs["pixel_values"].roll(1, 0)
    assert (model(**inputs).logits[1, :3] - outputs.logits[1, :3]).abs().max() > 1e-3


def test_token_classification_refuses():
    with pytest.raises(ValueError, match="`fusion='latent'` leaves no positions"):
        tagger("text", fusion="latent")
    with pytest.raises(ValueError, match=r"`labeled_modality` is missing, .* expected one of image"):
        tagger("image")
    with pytest.raises(
        (ValueError, StrictDataclassError), match="`labeled_modality='wrist'` is no modality; expected one of text"
    ):
        tagger("text", labeled_modality="wrist")
    model = tagger("text", "wrist")
    inputs = tiny_inputs(model.config)
    with pytest.raises(ValueError, match="no sample has the modality 'text'"):
        model(wrist_values=inputs["wrist_values"])
    with pytest.raises(ValueError, match=r"`labels` have shape \(2, 4\); expected \(2, 5\)"):
        model(**inputs, labels=torch.zeros(2, 4, dtype=torch.long))


def test_token_classification_saves_and_loads(tmp_path):
    model = tagger("text", "wrist", labeled_modality="wrist")
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs(model.config)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_trainer_hands_on_the_modalities(auto_class, tmp_path):
    config = tiny_config("text", "image", **LABELS)
    model = auto_class.from_config(config)
    labels = torch.zeros(4, 5, dtype=torch.long) if "Token" in auto_class.__name__ else torch.tensor([0, 1, 2, 0])
    rows = [
        {name: value[row] for name, value in {**tiny_inputs(config, 4), "labels": labels}.items()} for row in range(4)
    ]
    seen = []
    model.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    Trainer(model, arguments, train_dataset=datasets.Dataset.from_list(rows)).train()
    assert {"input_ids", "pixel_values"} <= seen[0]


def test_refuses_an_unknown_problem_type():
    with pytest.raises((ValueError, StrictDataclassError), match="`problem_type='guessing'`; expected one of single"):
        tiny_config("text", problem_type="guessing")
