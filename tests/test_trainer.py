# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Trainer and Seq2SeqTrainer of transformers, and ours: which columns reach the model, and what each computes."""

import contextlib

import datasets
import numpy as np
import peft
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    pipeline,
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


def make_trainer(
    trainer_class, model, rows, folder, collator=None, compute_loss_func=None, processing_class=None, **arguments
):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    arguments_class = TrainingArguments if trainer_class is Trainer else Seq2SeqTrainingArguments
    return trainer_class(
        model=model,
        args=arguments_class(str(folder), **{**defaults, **quiet, **arguments}),
        train_dataset=rows,
        data_collator=collator,
        compute_loss_func=compute_loss_func,
        processing_class=processing_class,
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


@pytest.mark.parametrize(
    ("names", "questions", "dropped"),
    [
        ({"acceleration": "acceleration", "action": "action"}, None, "No columns in the dataset match"),
        ({"acceleration": "acceleration", "action": "labels"}, None, "no row has the column 'acceleration'"),
        ({"acceleration": "wrist_values", "action": "action"}, None, r"row \d+ .*'action'"),
        (
            {"acceleration": "wrist_values", "action": "labels"},
            {"in French": "french"},
            "no row has the column 'french'",
        ),
        ({"acceleration": "wrist_values", "action": "labels"}, None, None),
    ],
)
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_columns_of_raw_samples_that_trainer_drops(
    trainer_class, names, questions, dropped, processor, actions, tmp_path
):
    rows = actions.rename_columns({old: new for old, new in names.items() if old != new})
    rows = rows.add_column("french", actions["action"])
    texts = {"text": {"kind": "text"}} if questions else {}
    processor = CrossFuseProcessor(tokenizer=processor.tokenizer, modalities={**processor.modalities, **texts})
    collator = CrossFuseDataCollator(
        processor,
        inputs={"wrist": names["acceleration"]},
        target=names["action"],
        questions=questions,
        question_dropout=0.5 if questions else 0.0,
    )
    model = tiny_model(tiny_config(*processor.modalities))
    trainer = make_trainer(trainer_class, model, rows, tmp_path, collator)
    with pytest.raises(ValueError, match=dropped) if dropped else contextlib.nullcontext():
        trainer.train()


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


@pytest.mark.slow
@pytest.mark.parametrize("given", ["labels", "decoder_input_ids"])
def test_an_answer_head_without_answers_in_distributed_training(given, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = tiny_model(tiny_config(num_answers=3)).train()
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second step fails where parameters of the first have no gradient
            parallel(**tiny_inputs(model.config), **{given: tiny_labels()}).logits.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert model.answer_head.out_proj.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("distributed", [False, True])
def test_gradients_of_an_answer_head_without_answers(distributed, monkeypatch):
    monkeypatch.setattr("modeling_crossfuse.modeling_crossfuse.is_distributed", lambda: distributed)
    model = tiny_model(tiny_config(num_answers=3)).train()
    model(**tiny_inputs(model.config), labels=tiny_labels(), skip_logits=True).loss.backward()
    assert all((parameter.grad is not None) == distributed for parameter in model.answer_head.parameters())


def make_tokenizer(pad: int, bos: int, eos: int, size: int = 20) -> PreTrainedTokenizerFast:
    """A tokenizer of words whose special tokens have the given ids."""
    names = {pad: "[PAD]", bos: "[BOS]", eos: "[EOS]"}
    vocabulary = {names.get(index, f"w{index}"): index for index in range(size)}
    special = {f"{name.strip('[]').lower()}_token": name for name in names.values()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=f"w{size - 1}")), **special
    )


# Special tokens of the config that is its default (0, 1, 2), and whether each agrees with those of a tokenizer.
TOKENIZERS = {
    "the same": (make_tokenizer(0, 1, 2), None),
    "another end": (make_tokenizer(0, 1, 3), "eos_token_id=2"),
    "another padding": (make_tokenizer(4, 1, 2), "pad_token_id=0"),
    "a start that is a word": (make_tokenizer(0, 3, 2), "decoder_start_token_id=1"),
    "all others": (make_tokenizer(7, 8, 9), "eos_token_id=2, pad_token_id=0, decoder_start_token_id=1"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_special_tokens_that_disagree(case, actions, tmp_path):
    tokenizer, found = TOKENIZERS[case]
    config = tiny_config("wrist")
    model = tiny_model(config)
    processor = CrossFuseProcessor(tokenizer=tokenizer, modalities={"wrist": {"kind": "series", "num_channels": 3}})
    ways = [
        lambda: CrossFuseProcessor.from_config(config, tokenizer=tokenizer),
        lambda: make_collator(processor, model),
        lambda: make_trainer(CrossFuseTrainer, model, actions, tmp_path, make_collator(processor)),
        lambda: pipeline("crossfuse", model=model, processor=processor),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=f"`{found}`.*`CrossFuseConfig") if found else contextlib.nullcontext():
            way()


def test_special_tokens_that_the_error_tells():
    tokenizer = make_tokenizer(7, 8, 9)
    with pytest.raises(ValueError, match="special") as error:
        CrossFuseProcessor.from_config(tiny_config(), tokenizer=tokenizer)
    settings = dict(pair.split("=") for pair in str(error.value).split("CrossFuseConfig(")[1].rstrip(")`").split(", "))
    config = tiny_config(**{name: int(token) for name, token in settings.items()})
    assert CrossFuseProcessor.from_config(config, tokenizer=tokenizer).tokenizer is tokenizer


def test_padding_that_the_tokenizer_lacks():
    tokenizer = make_tokenizer(5, 1, 2)
    tokenizer.pad_token = None  # as that of GPT-2; what fills a batch would be read as text
    with pytest.raises(ValueError, match=r"`pad_token_id=0`.*pad_token_id=2"):
        CrossFuseProcessor.from_config(tiny_config(), tokenizer=tokenizer)
    CrossFuseProcessor.from_config(tiny_config(pad_token_id=2), tokenizer=tokenizer)


def test_several_ends_and_tokenizers_that_end_nothing():
    config = tiny_config(eos_token_id=[2, 3])
    assert CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer(0, 1, 3)).tokenizer.eos_token_id == 3
    tokenizer = make_tokenizer(5, 6, 7)
    tokenizer.eos_token = None  # as that of BERT, which answers are not made of
    assert CrossFuseProcessor.from_config(config, tokenizer=tokenizer).tokenizer is tokenizer


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_special_tokens_beyond_the_vocabulary_stop_training_before_it_starts(trainer_class, tmp_path):
    """transformers gives the config those of the `processing_class`, and the config could not be saved later."""
    config = tiny_config()
    rows = make_rows(config, TARGETS[CrossFuseForConditionalGeneration])
    with pytest.raises(ValueError, match=r"`pad_token_id=57` is not a token of the decoder|`CrossFuseConfig"):
        trainer = make_trainer(trainer_class, tiny_model(config), rows, tmp_path)
        trainer.processing_class = make_tokenizer(57, 58, 59, size=60)
        trainer.train()


@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize("model_class", [CrossFuseForSequenceClassification, CrossFuseForRetrieval])
def test_models_without_a_decoder_take_any_special_tokens(model_class, trainer_class, tmp_path):
    config = tiny_config("text", "image")
    rows = make_rows(config, TARGETS[model_class])
    model = tiny_model(config, model_class)
    trainer = make_trainer(trainer_class, model, rows, tmp_path)
    trainer.processing_class = make_tokenizer(57, 58, 59, size=60)
    trainer.train()
    trainer.save_model(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    inputs = tiny_inputs(config)
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)


def test_a_processor_without_a_tokenizer_as_processing_class(actions, tmp_path):
    processor = CrossFuseProcessor.from_config(tiny_config("wrist"))
    assert not hasattr(processor, "tokenizer")
    for trainer_class in TRAINERS:
        rows = make_rows(tiny_config("wrist"), TARGETS[CrossFuseForSequenceClassification])
        model = tiny_model(tiny_config("wrist"), CrossFuseForSequenceClassification)
        trainer = make_trainer(trainer_class, model, rows, tmp_path, processing_class=processor)
        is_ours = trainer_class is CrossFuseTrainer
        expected = pytest.raises(AttributeError, match=r"no `tokenizer`.*`processing_class`.*CrossFuseTrainer")
        with contextlib.nullcontext() if is_ours else expected:
            trainer.train()
            trainer.save_model(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).modalities == processor.modalities


@pytest.mark.parametrize("settings", [{"include_for_metrics": ["inputs"]}, {"include_num_input_tokens_seen": True}])
@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize("model_class", TARGETS)
def test_what_trainer_does_with_the_main_input(model_class, trainer_class, settings, tmp_path):
    """A model without a modality `text` has another main input."""
    config = tiny_config(modalities={"image": MODALITIES["image"], "question": {"kind": "text", "vocab_size": 40}})
    rows = make_rows(config, TARGETS[model_class])
    shapes = []
    trainer = make_trainer(trainer_class, tiny_model(config, model_class), rows, tmp_path, **settings)
    trainer.compute_metrics = lambda predicted: shapes.append(getattr(predicted.inputs, "shape", None)) or {}
    trainer.train()
    trainer.evaluate(rows)
    if "include_for_metrics" in settings:
        assert not TARGETS[model_class].get("labels") or shapes == [(5, 3, 8, 8)]
    else:
        assert trainer.state.num_input_tokens_seen == 2 * 2 * 3 * 8 * 8


def test_evaluation_keeps_the_order_of_rows_whose_lengths_group_training(processor, tmp_path):
    signals = [np.ones((length, 3)).tolist() for length in (2, 9, 4, 7, 3)]
    rows = datasets.Dataset.from_dict({"acceleration": signals, "action": ["walk", "run", "up", "down", "now"]})
    settings = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    model = tiny_model(tiny_config("wrist"))
    settings |= {"per_device_eval_batch_size": 2}
    trainer = make_trainer(CrossFuseTrainer, model, rows, tmp_path, make_collator(processor), **settings)
    trainer.train()
    assert trainer.predict(rows).label_ids[:, 0].tolist() == [3, 4, 5, 6, 7]
    assert trainer.args.train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [(CrossFuseForSequenceClassification, {"num_labels": 1}), (CrossFuseForRetrieval, {})],
)
def test_label_smoothing_of_what_has_no_classes(model_class, settings, tmp_path):
    model = tiny_model(tiny_config("text", "image", **settings), model_class)
    with pytest.raises(ValueError, match=r"`label_smoothing_factor=0\.1` smooths classes and tokens"):
        make_trainer(CrossFuseTrainer, model, None, tmp_path, label_smoothing_factor=0.1)
