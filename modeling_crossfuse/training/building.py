# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""From a recipe to the model, processor, collators and rows that training takes. A recipe is `crossfuse.recipe`'s."""

import functools
import itertools
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, PreTrainedTokenizerFast

from ..configuration_crossfuse import PROBLEM_TYPES, CrossFuseConfig, ready_config
from ..data.augmentation import BatchAugmentation
from ..data.caching import CachedInputs, CachedInputsCollator, EncodedInputs, frozen_modalities
from ..data.collator import CrossFuseDataCollator
from ..data.labels import count_numbers, label_names, problem_type_of, with_class_numbers
from ..data.rows import READING_ERRORS, NumberedRows, get_column, has_text, select_columns, top_column
from ..extras import needs
from ..heads import HEADS
from ..media import load_series
from ..pretrained import CrossFusePreTrainedModel
from ..processing_crossfuse import CrossFuseProcessor
from .tokenizer import train_tokenizer


def recipe_texts(recipe, rows: datasets.Dataset) -> Iterable[str]:
    """
    Every text of the training rows that a tokenizer has to know: questions, their answers, targets, text inputs. The
    target comes as often, beside the answer to one question, as training asks for it: what is frequent gets tokens.
    """
    questions = recipe.questions or {}
    targets = [recipe.target] if recipe.task == "generation" else []
    columns = [*targets, *questions.values(), *recipe.inputs.values()]
    columns = [column for column in dict.fromkeys(columns) if column]
    texts = select_columns(rows, columns)
    columns = [column for column in columns if has_text(texts.features[top_column(texts, column)])]
    asked = max(1 - recipe.question_dropout, 0.01)
    repeats = {recipe.target: max(1, round(recipe.question_dropout * len(questions) / asked))}
    yield from questions
    for row in select_columns(texts, columns) if columns else ():
        for column in columns:
            if isinstance(text := get_column(row, column), str):
                yield from itertools.repeat(text, repeats.get(column, 1))


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396): null removes a key."""
    merged = base | {
        key: _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return {key: value for key, value in merged.items() if key not in changes or value is not None}


def number_labels(recipe, rows: datasets.Dataset) -> dict[str, int] | None:
    """The distinct labels in the column of the targets to their numbers, where a recipe needs them."""
    if recipe.target is None:
        raise ValueError("`target` is missing; give the column of the text to generate, or of the labels")
    if recipe.task == "generation" and not recipe.answer_classifier:
        return None
    if recipe.task == "classification" and _problem_type(recipe, rows) == "regression":
        return None
    names = label_names(rows, recipe.target)
    if not names:
        raise ValueError(f"the target column {recipe.target!r} has no label in any row")
    return {name: number for number, name in enumerate(names)}


def _problem_type(recipe, rows: datasets.Dataset) -> str:
    """What the targets of a classification are: as `model_overrides` say, or as the column looks."""
    chosen = (recipe.model_overrides or {}).get("problem_type")
    if chosen is None:
        return problem_type_of(rows, recipe.target)
    if chosen not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type={chosen!r}`; expected one of {', '.join(PROBLEM_TYPES)}")
    return chosen


def _label_settings(recipe, rows: datasets.Dataset, labels: dict[str, int] | None) -> dict[str, Any]:
    """What a config says of the labels of a classification."""
    if labels is None:
        return {"problem_type": "regression", "num_labels": count_numbers(rows, recipe.target)}
    problem_type, names = _problem_type(recipe, rows), {number: label for label, number in labels.items()}
    if problem_type == "single_label_classification" and len(names) == 1:
        raise ValueError(
            f"the target column {recipe.target!r} has the label {names[0]!r} alone; expected at least two"
        )
    return {"problem_type": problem_type, "id2label": names, "label2id": dict(labels)}


def _knows(config: CrossFuseConfig, labels: dict[str, int] | None) -> bool:
    """Whether a classifier has all labels: by name or, where it has no names of its own ("LABEL_0"), by number."""
    if labels is None or labels.keys() <= config.label2id.keys():
        return labels is not None
    numbers = {str(number) for name, number in config.label2id.items() if name == f"LABEL_{number}"}
    return config.architectures == ["CrossFuseForSequenceClassification"] and labels.keys() <= numbers


def build_model(recipe, rows: datasets.Dataset, labels: dict[str, int] | None = None):
    """
    The model and processor of a recipe: those saved in a folder or on the Hub, or new ones from a config, and from
    encoders if the recipe has any, with a tokenizer and series statistics fitted on the training rows.

    Args:
        recipe ([`RecipeArguments`]): the recipe.
        rows (`datasets.Dataset`): the training rows.
        labels (`dict[str, int]`, *optional*): what [`number_labels`] gives.

    Returns:
        `tuple[CrossFusePreTrainedModel, CrossFuseProcessor]`: a model of the recipe's `task`.

    Raises:
        ValueError: if `encoders` are given for a model that has weights already, or `freeze` names no modality.
    """
    source = ready_config(recipe.model)
    config = AutoConfig.from_pretrained(source)
    if recipe.model_overrides:
        settings = config.to_dict()
        settings["modalities"].pop("names")  # their order is that of the dict
        try:
            config = type(config).from_dict(_merge(settings, recipe.model_overrides))
        except StrictDataclassError as error:
            raise ValueError(f"`model_overrides` make no config: {error.__cause__ or error}") from error
    config.num_answers = len(labels) if recipe.answer_classifier else 0
    has_new_labels = recipe.task == "classification" and not _knows(config, labels)
    if has_new_labels:
        for key, value in _label_settings(recipe, rows, labels).items():
            setattr(config, key, value)
    elif recipe.task == "classification":
        config.problem_type = config.problem_type or _problem_type(recipe, rows)
    if _has_weights(source):
        if recipe.encoders:
            raise ValueError(
                f"`encoders` make a new model, and `model={recipe.model!r}` has weights already; expected a config"
            )
        model = HEADS[recipe.task].from_pretrained(
            source,
            config=config,
            attn_implementation=recipe.attn_implementation,
            dtype=torch.float32,
            ignore_mismatched_sizes=has_new_labels,  # another number of labels gets a new classifier
        )
        processor = AutoProcessor.from_pretrained(source)
        new = {name: column for name, column in recipe.inputs.items() if name not in processor.modalities}
        processor.fit_modalities(config)
        _fit_series(processor, new, rows, skip=recipe.on_bad_sample == "skip")
    else:
        model, processor = _new_model(recipe, config, train_tokenizer(recipe_texts(recipe, rows), recipe.vocab_size))
        _fit_series(processor, recipe.inputs, rows, skip=recipe.on_bad_sample == "skip")
    model.freeze_modalities(*recipe.freeze)
    return model, processor.set_max_lengths(recipe.max_lengths)


def _new_model(recipe, config: CrossFuseConfig, tokenizer: PreTrainedTokenizerFast):
    model_class = HEADS[recipe.task]
    config.vocab_size = len(tokenizer)
    for part in config.modalities.values():
        if part.kind == "text" and not part.is_wrapped:  # one of transformers has a tokenizer of its own
            part.vocab_size = len(tokenizer)
    if not recipe.encoders and not any(part.is_wrapped for part in config.modalities.values()):
        model = model_class._from_config(config, attn_implementation=recipe.attn_implementation)
        return model, CrossFuseProcessor.from_config(config, tokenizer=tokenizer)
    encoders = {name: _encoder_entry(part) for name, part in config.modalities.items()}
    for name, entry in (recipe.encoders or {}).items():
        is_built_in_text = isinstance(entry, dict) and "encoder" not in entry and entry.get("kind", name) == "text"
        encoders[name] = {**entry, "vocab_size": len(tokenizer)} if is_built_in_text else entry
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in ("modalities", "dtype")}
    model = model_class.from_encoders(
        encoders, freeze=recipe.freeze, attn_implementation=recipe.attn_implementation, **settings
    )
    return model, CrossFuseProcessor.from_encoders(encoders, tokenizer=tokenizer)


def _encoder_entry(part: PreTrainedConfig) -> dict[str, Any]:
    """A modality's config as an entry of `encoders`."""
    if part.is_wrapped:
        return {"kind": part.kind, "encoder": part.encoder, "modality_dropout": part.modality_dropout}
    return part.to_dict()


def _fit_series(processor: CrossFuseProcessor, inputs: dict[str, str], rows: datasets.Dataset, skip: bool):
    for name, settings in processor.modalities.items():
        if settings["kind"] == "series" and name in inputs:
            processor.fit_series(name, _read_series(name, settings, inputs[name], rows, skip))


def _read_series(
    name: str, settings: dict[str, Any], column: str, rows: datasets.Dataset, skip: bool
) -> Iterator[np.ndarray | None]:
    """The values of a series in each row, or None; also for those that can't be read, if these are skipped."""
    for row in NumberedRows(select_columns(rows, [column]), "the training data"):
        value = get_column(row, column)
        try:
            where = f"`{name}` of {row.name}"
            yield None if value is None else load_series(where, value, settings.get("num_channels", 1))
        except READING_ERRORS:
            if not skip:
                raise
            yield None


def _has_weights(model: str) -> bool:
    folder = Path(model)
    return not folder.is_dir() or any(folder.glob("*.safetensors"))


# What peft adds to `modules_to_save` by itself.
_SAVED_FOR_TASKS = {"SEQ_CLS": ("classifier",), "TOKEN_CLS": ("classifier",)}


def add_lora(model: CrossFusePreTrainedModel, settings: dict[str, Any]):
    """
    Freezes a model, and adds LoRA adapters (Hu et al., 2021) that train in its place.

    Args:
        model ([`CrossFusePreTrainedModel`]): the model, which is changed in place.
        settings (`dict[str, Any]`): those of `peft.LoraConfig`. `target_modules` are names, or ends of names, of
            linear layers: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj` and `down_proj` in what is
            built in, and their own names in encoders of transformers. Adapters train in frozen encoders, too.

    Returns:
        `peft.PeftModel`

    Raises:
        ImportError: if peft is not installed.
        ValueError: if a setting is unknown, or no module has such a name.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise needs("`lora` needs peft", "peft") from error
    if getattr(model, "answer_head", None) is not None and "answer_head" not in settings.get("modules_to_save", ()):
        raise ValueError(
            "`answer_classifier` is new and has to train as a whole; name `answer_head` in the `modules_to_save` of "
            "`lora`, or leave it out"
        )
    saved = {*(settings.get("modules_to_save") or ()), *_SAVED_FOR_TASKS.get(settings.get("task_type"), ())}
    lost = [name for name in model.new_head_parts() if name not in saved]
    if lost:
        raise ValueError(
            f"the head of {type(model).__name__} is new and has to train as a whole; add {lost} to the "
            "`modules_to_save` of `lora`"
        )
    try:
        config = LoraConfig(**settings)
    except TypeError as error:
        raise ValueError(f"`lora={settings!r}`: {error}") from error
    with warnings.catch_warnings():
        # peft asks for what transformers 5.24 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def make_collators(
    recipe,
    model,
    processor: CrossFuseProcessor,
    labels: dict[str, int] | None = None,
    seed: int = 0,
    rows: datasets.Dataset | None = None,
) -> tuple[CrossFuseDataCollator, CrossFuseDataCollator]:
    """
    The collator for training, with questions and augmentation, and the one for evaluation, without.

    Args:
        recipe ([`RecipeArguments`]): the recipe.
        model ([`CrossFuseForConditionalGeneration`]): the model, with what is frozen frozen.
        processor ([`CrossFuseProcessor`]): its processor.
        labels (`dict[str, int]`, *optional*): what [`number_labels`] gives.
        seed (`int`, defaults to 0): that of the questions.
        rows (`datasets.Dataset`, *optional*): the training rows. The names of a `ClassLabel` say what its numbers are.

    Raises:
        ValueError: if `cache_encoder_outputs` has no frozen encoder, or the input of one is augmented.
    """
    make, augmentation = CrossFuseDataCollator, recipe.augmentation or {}
    if recipe.cache_encoder_outputs or recipe.cache_inputs:
        encoded = frozen_modalities(model, recipe.inputs) if recipe.cache_encoder_outputs else []
        for name in set(encoded) & set(augmentation):
            raise ValueError(
                f"`augmentation` has {name!r}, and `cache_encoder_outputs` encodes it once only; drop one of them"
            )
        kinds = {name: part.kind for name, part in model.config.modalities.items()}
        decoded = [name for name, kind in kinds.items() if recipe.cache_inputs and kind != "text"]
        make = functools.partial(CachedInputsCollator, cached={*encoded, *decoded})
    shared = {"inputs": recipe.inputs, "target": recipe.target}
    training = {
        "augment": BatchAugmentation(processor, model.config.modalities, augmentation) if augmentation else None,
        "seed": seed,
    }
    if recipe.task == "generation":
        shared["max_target_length"] = recipe.max_target_length
        training |= {
            "questions": recipe.questions,
            "question_dropout": recipe.question_dropout,
            "answer_ids": labels,
        }
    elif recipe.task == "retrieval":
        shared |= {"problem_type": "retrieval", "label2id": labels}
    else:
        label2id = with_class_numbers(model.config.label2id, rows, recipe.target)
        shared |= {"problem_type": model.config.problem_type, "label2id": label2id}
        shared["num_labels"] = model.config.num_labels
    return make(processor, **shared, **training), make(processor, **shared)


def cache_rows(
    recipe,
    rows: datasets.Dataset,
    model,
    processor: CrossFuseProcessor,
    folder: str | Path,
    part: str | None = None,
) -> torch.utils.data.Dataset:
    """
    The rows of a split as the collators of [`make_collators`] expect them: as they are, with their inputs decoded, or
    with the outputs of frozen encoders.

    Args:
        recipe ([`RecipeArguments`]): the recipe.
        rows (`datasets.Dataset`): the rows.
        model ([`CrossFuseForConditionalGeneration`]): the model; its encoders run where they are.
        processor ([`CrossFuseProcessor`]): its processor.
        folder (`str` or `Path`): where the encoders' outputs are kept.
        part (`str`, *optional*): what errors call the rows, as in [`NumberedRows`].
    """
    if not recipe.cache_encoder_outputs:
        return CachedInputs(rows, processor, recipe.inputs, recipe.target, part) if recipe.cache_inputs else rows
    encoded = EncodedInputs(rows, model, processor, recipe.inputs, folder, part=part)
    if recipe.cache_inputs:
        others = {name: column for name, column in recipe.inputs.items() if name not in encoded.names}
        encoded.rows = CachedInputs(encoded.rows, processor, others, recipe.target, part)
    return encoded
