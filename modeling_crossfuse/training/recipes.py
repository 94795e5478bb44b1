# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Recipes: from a command line or a YAML file to the model, processor, collators and rows that training takes."""

import argparse
import dataclasses
import difflib
import functools
import itertools
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from transformers import (
    AutoProcessor,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Seq2SeqTrainingArguments,
)

from ..classification import CrossFuseForSequenceClassification
from ..command_line import load_config
from ..configuration_crossfuse import PROBLEM_TYPES, CrossFuseConfig
from ..data.augmentation import BatchAugmentation
from ..data.caching import CachedInputs, CachedInputsCollator, EncodedInputs, frozen_modalities
from ..data.collator import CrossFuseDataCollator
from ..data.rows import get_column, has_text, label_names, parse_mapping, problem_type_of, select_columns, top_column
from ..modeling_crossfuse import CrossFuseForConditionalGeneration
from ..pretrained import CrossFusePreTrainedModel
from ..processing_crossfuse import CrossFuseProcessor
from ..retrieval import CrossFuseForRetrieval
from ..training import train_tokenizer
from .precision import DTYPES, choose_precision
from .time_budget import TimeBudget


# What a recipe's `task` trains.
TASKS = {
    "generation": CrossFuseForConditionalGeneration,
    "classification": CrossFuseForSequenceClassification,
    "retrieval": CrossFuseForRetrieval,
}


@dataclass
class RecipeArguments:
    """What is trained on what. Every field stands in a recipe (YAML) or on the command line, which wins."""

    task: str = field(
        default="generation",
        metadata={
            "help": "What to learn: generation of the text in `target`; classification, where `target` has a class, a "
            "list of classes or numbers; or retrieval, where the `contrastive_groups` of the model's config are "
            "compared, and rows with the same `target` belong together.",
            "choices": list(TASKS),
        },
    )
    model: str = field(
        default="configuration/tiny",
        metadata={"help": "Folder or Hub id: a config (new weights) or a saved CrossFuse model (fine-tuned)."},
    )
    model_overrides: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Changes to the config, as JSON, such as \'{"decoder": {"dropout": 0.1}}\'; null removes a key: '
            '\'{"modalities": {"text": null}}\'.'
        },
    )
    encoders: dict | str | None = field(
        default=None,
        metadata={
            "help": "Encoders of a new model, as JSON: modality to a Hub id, a folder, or settings such as "
            '{"kind": "series", "num_channels": 6}. The other modalities, and all the rest, are those of `model`.'
        },
    )
    freeze: list[str] | None = field(
        default=None, metadata={"help": "Modalities whose encoders training leaves as they are: image audio."}
    )
    lora: dict | str | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters instead of the weights: settings of peft.LoraConfig, as JSON, such as "
            '\'{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}\'. Modules that are to train as a '
            "whole go into `modules_to_save`."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Data set: a name on the Hub, a folder that load_dataset reads, or save_to_disk's."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, if it has several."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default="validation", metadata={"help": 'Split to evaluate on while training; "" for none.'}
    )
    inputs: list[str] | None = field(
        default=None, metadata={"help": "Columns of the modalities: image=photo text=question series=sensors.wrist."}
    )
    target: str | None = field(default=None, metadata={"help": "Column of the text to generate, or of the labels."})
    questions: dict | str | None = field(
        default=None,
        metadata={"help": "Questions and the columns that answer them, as JSON; one is drawn for each sample."},
    )
    question_dropout: float = field(
        default=0.0, metadata={"help": "Share of the samples that get no question and are to answer with the target."}
    )
    max_target_length: int = field(default=64, metadata={"help": "Tokens of an answer at most."})
    vocab_size: int = field(
        default=4096, metadata={"help": "Tokens of a new tokenizer, trained where the model comes without one."}
    )
    augmentation: dict | str | None = field(
        default=None,
        metadata={"help": "Modality to its augmentation, as JSON; see BatchAugmentation."},
    )
    learning_rates: dict | str | None = field(
        default=None,
        metadata={
            "help": "Learning rates of parts, as JSON: start of a parameter's name, or a modality, which stands for "
            "its encoder, to the rate."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and save an exponential moving average of the weights with this decay."},
    )
    max_minutes: float | None = field(
        default=None,
        metadata={
            "help": "End training by the clock: the first steps are measured, and the learning rate's schedule is "
            "planned for as many of the steps as fit. Evaluations during training count, caching before it does not."
        },
    )
    precision: str = field(
        default="auto",
        metadata={
            "help": "What to compute in, while the weights stay in float32: bfloat16, float16, float32, or auto, "
            "which is bfloat16 where the device computes it fast and float32 elsewhere. auto where nothing is said."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flex_attention or flash_attention_2."}
    )
    answer_classifier: bool = field(
        default=False,
        metadata={"help": "Train with an auxiliary classifier of the distinct answers; the saved model has none."},
    )
    cache_inputs: bool = field(
        default=False, metadata={"help": "Decode every sample once and keep it in memory: for data sets that fit."}
    )
    cache_encoder_outputs: bool = field(
        default=False,
        metadata={
            "help": "Run encoders that are frozen once for each sample, and keep the results in a file in "
            "output_dir/_encoder_outputs, which later runs use again."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many samples to train."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many samples to evaluate."})

    def __post_init__(self):
        for name in ("model_overrides", "encoders", "lora", "questions", "augmentation", "learning_rates"):
            setattr(self, name, _parse_json(name, getattr(self, name)))
        self.freeze = [self.freeze] if isinstance(self.freeze, str) else list(self.freeze or ())
        self.inputs = parse_mapping(self.inputs)
        if self.task not in TASKS:
            raise ValueError(f"`task={self.task!r}`; expected one of {', '.join(TASKS)}")
        if self.precision not in ("auto", *DTYPES):
            raise ValueError(f"`precision={self.precision!r}`; expected one of auto, {', '.join(DTYPES)}")
        if self.max_minutes is not None:
            TimeBudget(self.max_minutes)  # refuses what is no time
        if self.task != "generation" and (self.questions or self.answer_classifier):
            raise ValueError(f"`questions` and `answer_classifier` are for `task=generation`, not {self.task!r}")


def _parse_json(name: str, value: Any) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{name}={value!r}` is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"`{name}={value!r}` is not a JSON object")
    return parsed


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples."""


def parse_recipe(
    argv: list[str], description: str, epilog: str = ""
) -> tuple[RecipeArguments, Seq2SeqTrainingArguments]:
    """
    Reads `[recipe.yaml] --flag value ...`.

    Args:
        argv (`list[str]`): the command line without the program's name.
        description, epilog (`str`): texts of `--help`.

    Raises:
        ValueError: if the recipe is not YAML or not a mapping, has a key that is no flag, or says two things about the
            precision.
        FileNotFoundError: if there is no such recipe.
    """
    parser = HfArgumentParser(
        (RecipeArguments, Seq2SeqTrainingArguments),
        description=description,
        epilog=epilog,
        formatter_class=_HelpFormatter,
    )
    # Without this, transformers takes `bf16` for a GPU's and refuses it on a machine that has none.
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    # The collator reads the raw columns; answers are what the metrics are of.
    parser.set_defaults(remove_unused_columns=False, predict_with_generate=True)
    # Whether they are given is what counts.
    parser.set_defaults(precision=None, bf16=None, fp16=None)
    if argv and not argv[0].startswith("-"):
        parser.set_defaults(**_read_recipe(argv[0]))
        argv = argv[1:]
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(f"unknown arguments: {' '.join(unknown)}")
    flags = vars(flags)
    recipe, arguments = parser.parse_dict({**flags, **_precision_flags(flags)})
    arguments.predict_with_generate &= recipe.task == "generation"
    arguments.prediction_loss_only |= recipe.task == "retrieval"  # batches of logits don't add up to a ranking
    if arguments.remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns` would remove the columns that the inputs are read from; leave it out"
        )
    return recipe, arguments


def _precision_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """`precision`, and the flags of transformers that follow from it, or that say it in its place."""
    given = [name for name in ("bf16", "fp16") if flags[name] is not None]
    precision = flags["precision"]
    if precision is not None and given:
        raise ValueError(
            f"`precision={precision}` and `{given[0]}={str(flags[given[0]]).lower()}` are both given; leave one out "
            "(the flag --precision overrides a recipe's)"
        )
    if given:
        chosen = "bfloat16" if flags["bf16"] else "float16" if flags["fp16"] else "float32"
        return {"precision": chosen, "bf16": bool(flags["bf16"]), "fp16": bool(flags["fp16"])}
    precision, device = precision or "auto", _device(flags["use_cpu"])
    if precision == "float16" and device.type == "cpu":
        raise ValueError("`precision=float16` is for GPUs; expected auto, bfloat16 or float32")
    chosen = choose_precision(device)[0] if precision == "auto" else precision
    return {"precision": precision, "bf16": chosen == "bfloat16", "fp16": chosen == "float16"}


def _device(use_cpu: bool) -> torch.device:
    return torch.device("cpu") if use_cpu else torch.accelerator.current_accelerator()


def describe_precision(recipe: RecipeArguments, arguments: Seq2SeqTrainingArguments) -> str:
    """What training computes in and why, on one line."""
    if recipe.precision != "auto":
        return f"computing in {recipe.precision}, as told"
    return "computing in {}: {}".format(*choose_precision(_device(arguments.use_cpu)))


class _RecipeLoader(yaml.SafeLoader):
    """Takes `1e-3`, which has no dot, for a number, too, as YAML 1.2 does and PyYAML does not."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_recipe(path: str) -> dict[str, Any]:
    """A recipe's flags and, where it has none of its own, those of the recipe beside it that it names as `base`."""
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} is not a mapping of flags to values")
    base = recipe.pop("base", None)
    allowed = [
        part.name
        for arguments in (RecipeArguments, Seq2SeqTrainingArguments)
        for part in dataclasses.fields(arguments)
    ]
    for key in recipe:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise ValueError(f"the recipe {path} has the key `{key}`, which is no flag.{hint}")
    return recipe if base is None else {**_read_recipe(str(Path(path).with_name(base))), **recipe}


# What of `TrainingArguments` a reader of a model card wants to know.
_CARD_KEYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "bf16",
    "seed",
)


def card_settings(
    recipe: RecipeArguments, arguments: Seq2SeqTrainingArguments, num_processes: int, steps: int
) -> dict[str, Any]:
    """What a model card says of a training that has made so many steps."""
    settings = {key: getattr(arguments, key) for key in _CARD_KEYS}
    return {**vars(recipe), **settings, "max_steps": steps, "num_processes": num_processes}


def recipe_texts(recipe: RecipeArguments, rows: datasets.Dataset) -> Iterable[str]:
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


def number_labels(recipe: RecipeArguments, rows: datasets.Dataset) -> dict[str, int] | None:
    """The distinct labels in the column of the targets to their numbers, where a recipe needs them."""
    if recipe.target is None:
        raise ValueError("`target` is missing; give the column of the text to generate, or of the labels")
    if recipe.task == "generation" and not recipe.answer_classifier:
        return None
    if recipe.task == "classification" and _problem_type(recipe, rows) == "regression":
        return None
    return {label: number for number, label in enumerate(label_names(rows, recipe.target))}


def _problem_type(recipe: RecipeArguments, rows: datasets.Dataset) -> str:
    """What the targets of a classification are: as `model_overrides` say, or as the column looks."""
    chosen = (recipe.model_overrides or {}).get("problem_type")
    if chosen is None:
        return problem_type_of(_feature(rows.features, recipe.target))
    if chosen not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type={chosen!r}`; expected one of {', '.join(PROBLEM_TYPES)}")
    return chosen


def _feature(features: dict[str, Any], column: str) -> Any:
    """The feature of a column, or of a field of a struct."""
    if column in features:
        return features[column]
    head, dot, rest = column.partition(".")
    if not dot or not isinstance(features.get(head), dict):
        raise ValueError(f"no column {column!r}; the data set has {', '.join(features)}")
    return _feature(features[head], rest)


def _label_settings(recipe: RecipeArguments, rows: datasets.Dataset, labels: dict[str, int] | None) -> dict[str, Any]:
    """What a config says of the labels of a classification."""
    problem_type = _problem_type(recipe, rows)
    if problem_type == "regression":
        first = get_column(select_columns(rows, [recipe.target])[0], recipe.target)
        return {"problem_type": problem_type, "num_labels": len(first) if isinstance(first, list) else 1}
    names = {number: label for label, number in labels.items()}
    return {"problem_type": problem_type, "id2label": names, "label2id": dict(labels)}


def build_model(recipe: RecipeArguments, rows: datasets.Dataset, labels: dict[str, int] | None = None):
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
    config = load_config(recipe.model)
    if recipe.model_overrides:
        settings = config.to_dict()
        settings["modalities"].pop("names")  # their order is that of the dict
        config = type(config).from_dict(_merge(settings, recipe.model_overrides))
    config.num_answers = len(labels) if recipe.answer_classifier else 0
    if recipe.task == "classification" and (labels is None or not labels.keys() <= config.label2id.keys()):
        for key, value in _label_settings(recipe, rows, labels).items():
            setattr(config, key, value)
    if _has_weights(recipe.model):
        if recipe.encoders:
            raise ValueError(
                f"`encoders` make a new model, and `model={recipe.model!r}` has weights already; expected a config"
            )
        model = TASKS[recipe.task].from_pretrained(
            recipe.model, config=config, attn_implementation=recipe.attn_implementation, dtype=torch.float32
        )
        processor = AutoProcessor.from_pretrained(recipe.model)
    else:
        model, processor = _new_model(recipe, config, train_tokenizer(recipe_texts(recipe, rows), recipe.vocab_size))
        _fit_series(processor, recipe.inputs, rows)
    model.freeze_modalities(*recipe.freeze)
    return model, processor


def _new_model(recipe: RecipeArguments, config: CrossFuseConfig, tokenizer: PreTrainedTokenizerFast):
    model_class = TASKS[recipe.task]
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


def _fit_series(processor: CrossFuseProcessor, inputs: dict[str, str], rows: datasets.Dataset):
    for name, settings in processor.modalities.items():
        if settings["kind"] == "series" and name in inputs:
            column = inputs[name]
            processor.fit_series(name, (get_column(row, column) for row in select_columns(rows, [column])))


def _has_weights(model: str) -> bool:
    folder = Path(model)
    return not folder.is_dir() or any(folder.glob("*.safetensors"))


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
        raise ImportError("`lora` needs peft; install it with `pip install crossfuse[peft]`") from error
    if getattr(model, "answer_head", None) is not None and "answer_head" not in settings.get("modules_to_save", ()):
        raise ValueError(
            "`answer_classifier` is new and has to train as a whole; name `answer_head` in the `modules_to_save` of "
            "`lora`, or leave it out"
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
    recipe: RecipeArguments, model, processor: CrossFuseProcessor, labels: dict[str, int] | None = None, seed: int = 0
) -> tuple[CrossFuseDataCollator, CrossFuseDataCollator]:
    """
    The collator for training, with questions and augmentation, and the one for evaluation, without.

    Args:
        recipe ([`RecipeArguments`]): the recipe.
        model ([`CrossFuseForConditionalGeneration`]): the model, with what is frozen frozen.
        processor ([`CrossFuseProcessor`]): its processor.
        labels (`dict[str, int]`, *optional*): what [`number_labels`] gives.
        seed (`int`, defaults to 0): that of the questions.

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
    else:
        shared["problem_type"] = "retrieval" if recipe.task == "retrieval" else model.config.problem_type
        shared["label2id"] = labels if recipe.task == "retrieval" else model.config.label2id
    return make(processor, **shared, **training), make(processor, **shared)


def cache_rows(
    recipe: RecipeArguments, rows: datasets.Dataset, model, processor: CrossFuseProcessor, folder: str | Path
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
    """
    if not recipe.cache_encoder_outputs:
        return CachedInputs(rows, processor, recipe.inputs, recipe.target) if recipe.cache_inputs else rows
    encoded = EncodedInputs(rows, model, processor, recipe.inputs, folder)
    if recipe.cache_inputs:
        others = {name: column for name, column in recipe.inputs.items() if name not in encoded.names}
        encoded.rows = CachedInputs(encoded.rows, processor, others, recipe.target)
    return encoded
