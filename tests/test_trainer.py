# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Trainer and Seq2SeqTrainer of transformers, and ours: which columns reach the model, and what each computes."""

import datasets
import numpy as np
import peft
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from modeling_crossfuse import (
    CrossFuseDataCollator,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseProcessor,
    CrossFuseTrainer,
)

from .helpers import MODALITIES, tiny_config, tiny_inputs, tiny_labels, tiny_model


TRAINERS = [Trainer, Seq2SeqTrainer, CrossFuseTrainer]
# Of each head, what it learns from in five samples.
TARGETS = {
    CrossFuseForConditionalGeneration: {"labels": tiny_labels(5).tolist()},
    CrossFuseForSequenceClassification: {"labels": [0, 1, 0, 1, 0]},
    CrossFuseForTokenClassification: {"labels": [[0, 1, 0, 1, 0]] * 5},
    CrossFuseForRetrieval: {"item_ids": [0, 1, 2, 0, 1]},
}


def make_trainer(trainer_class, model, rows, folder, collator=None, compute_loss_func=None, **arguments):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    arguments_class = TrainingArguments if trainer_class is Trainer else Seq2SeqTrainingArguments
    return trainer_class(
        model=model,
        args=arguments_class(str(folder), **{**defaults, **quiet, **arguments}),
        train_dataset=rows,
        data_collator=collator,
        compute_loss_func=compute_loss_func,
    )


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def make_rows(config, targets: dict[str, list]) -> datasets.Dataset:
    """Five samples as tensors, and a column that no model takes."""
    inputs = {name: values.tolist() for name, values in tiny_inputs(config, batch_size=5).items()}
    return datasets.Dataset.from_dict({**inputs, **targets, "note": ["of no use"] * 5}).with_format("torch")


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("model_class", TARGETS)
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_models_own_tensors_are_columns_that_are_kept(trainer_class, model_class, adapted, tmp_path):
    names = {"question": "text", "left_eye": "image", "wrist": "series", "heard": "audio", "seen": "video"}
    parts = {part.get("kind", name): part for name, part in MODALITIES.items()}
    config = tiny_config(modalities={name: {**parts[kind], "kind": kind} for name, kind in names.items()})
    rows = make_rows(config, TARGETS[model_class])
    rows = rows.add_column("wrist_mask", [[1] * 5] * 5).add_column("modality_mask", [[1] * 5] * 5)
    model, given = tiny_model(config, model_class), set()
    model.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    if adapted:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    make_trainer(trainer_class, model, rows.with_format("torch"), tmp_path).train()
    assert set(rows.column_names) - given == {"note"}


def test_a_model_of_the_same_class_refuses_what_it_lacks():
    with_wrist, without = tiny_config("text", "wrist"), tiny_config("text")
    tiny_model(with_wrist)
    with pytest.raises(ValueError, match="`wrist_values` is not an input of this model"):
        tiny_model(without)(**tiny_inputs(with_wrist))


def test_a_column_that_trainer_would_take_for_labels(tmp_path):
    """Trainer takes every argument whose name has "label" in it for one that has the labels."""
    config = tiny_config(modalities={"text": {"vocab_size": 40}, "label": MODALITIES["image"] | {"kind": "image"}})
    rows = make_rows(config, TARGETS[CrossFuseForConditionalGeneration])
    trainer = make_trainer(Trainer, tiny_model(config), rows, tmp_path)
    assert trainer.label_names == ["labels"]


@pytest.mark.parametrize("recorded", [{}, {"output_attentions": True}, {"output_hidden_states": True}])
@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize("model_class", [head for head in TARGETS if head is not CrossFuseForRetrieval])
def test_predictions_are_the_logits(model_class, trainer_class, recorded, tmp_path):
    config = tiny_config("text", "wrist", num_labels=2, **recorded)
    model = tiny_model(config, model_class)
    rows = make_rows(config, TARGETS[model_class])
    predicted = make_trainer(trainer_class, model, rows, tmp_path).predict(rows)
    assert isinstance(predicted.predictions, np.ndarray)
    batch = rows[:]
    batch.pop("note")
    with torch.no_grad():
        np.testing.assert_allclose(predicted.predictions, model(**batch).logits, atol=1e-5)
    assert predicted.metrics["test_loss"] > 0


def test_predictions_of_retrieval_are_logits_and_vectors(tmp_path):
    config = tiny_config("text", "image")
    rows = make_rows(config, TARGETS[CrossFuseForRetrieval])
    predicted = make_trainer(Trainer, tiny_model(config, CrossFuseForRetrieval), rows, tmp_path).predict(rows)
    assert [part.shape for part in predicted.predictions] == [(5, 5), (5, 32), (5, 32)]


@pytest.fixture
def processor():
    words = ["[PAD]", "[BOS]", "[EOS]", "walk", "run", "up", "down", "now"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)})),
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    )
    return CrossFuseProcessor.from_config(tiny_config("wrist"), tokenizer=tokenizer)


@pytest.fixture
def actions():
    generator = np.random.default_rng(0)
    answers = ["walk", "run", "up", "down"]
    signals = [generator.normal(size=(length, 3)).tolist() for length in (3, 4, 5, 6)]
    return datasets.Dataset.from_dict({"acceleration": signals, "action": answers})


def make_collator(processor, model=None) -> CrossFuseDataCollator:
    return CrossFuseDataCollator(processor, inputs={"wrist": "acceleration"}, target="action", model=model)


def cross_entropy(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    total = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_losses_that_trainer_computes(trainer_class, accumulation, processor, actions, tmp_path):
    found = []
    for settings in ({}, {"compute_loss_func": cross_entropy}, {"label_smoothing_factor": 1e-9}):
        model = tiny_model(tiny_config("wrist"))
        settings |= {"remove_unused_columns": False, "gradient_accumulation_steps": accumulation}
        collator = make_collator(processor, model)
        trainer = make_trainer(trainer_class, model, actions, tmp_path, collator, **settings)
        found.append([*losses_of(trainer), trainer.evaluate(actions)["eval_loss"]])
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"compute_loss_func": cross_entropy}, {"label_smoothing_factor": 0.1}])
def test_a_collator_without_the_model(settings, processor, actions, tmp_path):
    arguments = (tiny_model(tiny_config("wrist")), actions, tmp_path, make_collator(processor))
    with pytest.raises(ValueError, match=r"`label_smoothing_factor`.*`CrossFuseDataCollator\(\.\.\., model=model\)`"):
        make_trainer(Trainer, *arguments, remove_unused_columns=False, **settings).train()
    # Ours needs no help.
    assert losses_of(make_trainer(CrossFuseTrainer, *arguments, remove_unused_columns=False, **settings))


def test_a_collator_with_a_model_that_generates_nothing(processor):
    model = tiny_model(tiny_config("wrist"), CrossFuseForSequenceClassification)
    with pytest.raises(ValueError, match="`model` is a CrossFuseForSequenceClassification"):
        make_collator(processor, model)


def test_generated_predictions_do_not_begin_with_the_answer(processor, actions, tmp_path):
    predicted = []
    for model in (None, tiny_model(tiny_config("wrist"))):
        collator = make_collator(processor, model)
        settings = {"remove_unused_columns": False, "predict_with_generate": True, "generation_max_length": 5}
        trainer = make_trainer(
            Seq2SeqTrainer, tiny_model(tiny_config("wrist")), actions, tmp_path, collator, **settings
        )
        predicted.append(trainer.predict(actions).predictions)
    np.testing.assert_array_equal(*predicted)


def test_answer_ids_without_labels_are_refused():
    model = tiny_model(tiny_config(num_answers=3)).train()
    given = {**tiny_inputs(model.config), "decoder_input_ids": tiny_labels(), "answer_ids": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"`answer_ids` are given without `labels`.*`label_smoothing`"):
        model(**given)


@pytest.mark.parametrize("given", ["labels", "decoder_input_ids"])
def test_an_answer_head_without_answers_in_distributed_training(given, tmp_path):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = tiny_model(tiny_config(num_answers=3)).train()
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second step fails where parameters of the first have no gradient
            parallel(**tiny_inputs(model.config), **{given: tiny_labels()}).logits.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert model.answer_head.out_proj.weight.grad.abs().sum() == 0
