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
"""What the training script is made of: recipes, tokenizer, model, LoRA, and a Trainer with a few additions."""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from .augmentation import BatchAugmentation
from .caching import CachedInputs, CachedInputsCollator, EncodedInputs, frozen_modalities
from .classification import CrossFuseForSequenceClassification
from .configuration_crossfuse import PROBLEM_TYPES, CrossFuseConfig
from .data import (
    CrossFuseDataCollator,
    get_column,
    has_text,
    label_names,
    parse_mapping,
    problem_type_of,
    select_columns,
    top_column,
)
from .layers import CrossFusePreTrainedModel
from .model_card import write_model_card
from .modeling_crossfuse import CrossFuseForConditionalGeneration
from .processing_crossfuse import CrossFuseProcessor
from .retrieval import CrossFuseForRetrieval


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
        default=None, metadata={"help": "Modality to its augmentation, as JSON; see modeling_crossfuse.augmentation."}
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
        ValueError: if the recipe is not YAML or not a mapping, or has a key that is no flag.
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
    if argv and not argv[0].startswith("-"):
        parser.set_defaults(**_read_recipe(argv[0]))
        argv = argv[1:]
    recipe, arguments = parser.parse_args_into_dataclasses(args=argv)
    arguments.predict_with_generate &= recipe.task == "generation"
    arguments.prediction_loss_only |= recipe.task == "retrieval"  # batches of logits don't add up to a ranking
    if arguments.remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns` would remove the columns that the inputs are read from; leave it out"
        )
    return recipe, arguments


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


def card_settings(recipe: RecipeArguments, arguments: Seq2SeqTrainingArguments, num_processes: int) -> dict[str, Any]:
    """What a model card says of the training."""
    settings = {key: getattr(arguments, key) for key in _CARD_KEYS}
    return {**vars(recipe), **settings, "num_processes": num_processes}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    A byte-level BPE tokenizer (Sennrich et al., 2016) of the texts, with `<pad>`, `<s>` and `</s>` as tokens 0, 1 and
    2.

    Args:
        texts (`Iterable[str]`): what to learn the vocabulary from.
        vocab_size (`int`): tokens at most; bytes alone are 256.

    Example:

    ```python
    >>> from modeling_crossfuse.training import train_tokenizer

    >>> tokenizer = train_tokenizer(["red apple", "green apple"], vocab_size=300)
    >>> tokenizer.decode(tokenizer("green apple").input_ids, skip_special_tokens=True)
    'green apple'
    ```
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="right"
    )


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
    config = AutoConfig.from_pretrained(recipe.model)
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
        if part.kind == "text" and not hasattr(part, "encoder"):  # one of transformers has a tokenizer of its own
            part.vocab_size = len(tokenizer)
    if not recipe.encoders and not any(hasattr(part, "encoder") for part in config.modalities.values()):
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
    if hasattr(part, "encoder"):
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


class _AverageWeights(TrainerCallback):
    """Averages the weights after each step of the optimizer."""

    def __init__(self, averages: AveragedModel, model: torch.nn.Module):
        self.averages, self.model = averages, model

    def on_step_end(self, args, state, control, **kwargs):
        self.averages.update_parameters(self.model)


def parameter_groups(
    model: torch.nn.Module, learning_rate: float, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """
    Groups of an optimizer in which parts of the model have learning rates of their own. Vectors, which are biases and
    the weights of norms, don't decay.

    Args:
        model (`torch.nn.Module`): its parameters that require a gradient are grouped.
        learning_rate (`float`): that of parameters which `learning_rates` says nothing of.
        learning_rates (`dict[str, float]`): start of a parameter's name, without `"model."`, to its learning rate; the
            longest start that fits counts. The name of a modality stands for its encoder.
        weight_decay (`float`): that of matrices.

    Raises:
        ValueError: if a key of `learning_rates` is the start of no parameter's name.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse.training import parameter_groups

    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2, bias=False)})
    >>> groups = parameter_groups(model, 1e-3, {"decoder": 2e-3}, weight_decay=0.1)
    >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    [(1, 0.001, 0.1), (1, 0.001, 0.0), (1, 0.002, 0.1)]
    ```
    """
    named = {
        name.removeprefix("base_model.model.").removeprefix("model."): parameter  # the first is that of PEFT
        for name, parameter in model.named_parameters()
    }
    modalities = getattr(getattr(model, "config", None), "modalities", ())
    learning_rates = {
        f"encoder.encoders.{start}." if start in modalities else start: rate for start, rate in learning_rates.items()
    }
    for start in learning_rates:
        if not any(name.startswith(start) for name in named):
            raise ValueError(f"`learning_rates` has {start!r}, with which no parameter's name starts")
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            fitting = [start for start in learning_rates if name.startswith(start)]
            rate = learning_rates[max(fitting, key=len)] if fitting else learning_rate
            groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


class _Secret(str):
    """A string that is not pickled: Trainer pushes `training_args.bin`, and with it `hub_token`, for all to read."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        return str, ("<HUB_TOKEN>",)

    def __deepcopy__(self, memo):
        return self


def batch_length(batch: dict[str, torch.Tensor]) -> int:
    """Positions that a batch's masks keep, and its labels: what its cost grows with."""
    masks = [value for name, value in batch.items() if name.endswith("mask") and name != "modality_mask"]
    labels = batch.get("labels")
    return int(sum((mask != 0).sum() for mask in masks)) + (0 if labels is None else int((labels != -100).sum()))


class CrossFuseTrainer(Seq2SeqTrainer):
    """
    [`~transformers.Seq2SeqTrainer`] with a learning rate per part and an average of the weights. The model may be one
    that PEFT has added adapters to. With `train_sampling_strategy="group_by_length"`, samples of about one length
    share a batch: as the column `length_column_name` says or, without it, as the collator makes them, once for each
    sample before training starts.

    Args:
        eval_collator (`Callable`, *optional*): collator for evaluation and prediction, where training's augments.
        learning_rates (`dict[str, float]`, *optional*): start of a parameter's name, such as
            `"encoder.encoders.image.stem"`, to its learning rate; the longest start that fits counts. The name of a
            modality, such as `"image"`, stands for its encoder.
        ema_decay (`float`, *optional*): evaluate and save the exponential moving average of the weights.
            Checkpoints hold both, so that resuming changes nothing.
        card (`dict`, *optional*): arguments of [`~modeling_crossfuse.model_card.write_model_card`] that say more about
            the training than the trainer knows by itself.

    Raises:
        ValueError: if a key of `learning_rates` is the start of no parameter's name.
    """

    def __init__(
        self, *args, eval_collator=None, learning_rates=None, ema_decay: float | None = None, card=None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.card = dict(card or {})
        if self.args.hub_token is not None:
            self.args.hub_token = _Secret(self.args.hub_token)
        if self.args.push_to_hub:  # what it pushes is to load without CrossFuse, too
            for part in (self.model, self.processing_class):
                if hasattr(part, "saves_code"):
                    part.saves_code = True
        self.eval_collator = eval_collator or self.data_collator
        self.learning_rates = {key: float(value) for key, value in (learning_rates or {}).items()}
        self.averages = None
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.averages = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
            self.add_callback(_AverageWeights(self.averages, self.model))

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        unwrapped = self.accelerator.unwrap_model(model)
        if "labels" not in inputs or not unwrapped.can_generate():
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            # Trainer keeps the labels from the model then, which can't make the decoder's input of them.
            prepare = unwrapped.prepare_decoder_input_ids_from_labels
            inputs = {"decoder_input_ids": prepare(inputs["labels"]), **inputs}
        elif not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        groups = self.args.train_sampling_strategy == "group_by_length" and has_length(rows)
        if not groups or self.args.length_column_name in getattr(rows, "column_names", ()):
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch_size, lengths=self._sample_lengths(rows))

    def _sample_lengths(self, rows) -> list[int]:
        """How much of each sample is kept by masks, and of its labels. transformers looks at one input only."""
        progress = tqdm(rows, desc="measuring lengths", disable=self.args.disable_tqdm)
        return [batch_length(self.eval_collator([row])) for row in progress]

    def create_optimizer(self, model=None):
        if self.optimizer is not None or not self.learning_rates:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        groups = parameter_groups(self.model, self.args.learning_rate, self.learning_rates, self.args.weight_decay)
        optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    @contextlib.contextmanager
    def _collator_of_evaluation(self):
        own, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = own

    def get_eval_dataloader(self, eval_dataset=None):
        with self._collator_of_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._collator_of_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within it, the model holds the average of its weights."""
        if self.averages is None or self.averages.n_averaged == 0:
            yield
            return
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averages.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def use_averaged_weights(self):
        """Puts the average of the weights in their place, for good."""
        if self.averages is not None and self.averages.n_averaged > 0:
            self.model.load_state_dict(self.averages.module.state_dict())
        self.averages = None

    def merge_adapter(self, folder: str | Path):
        """Saves the adapter of a model with LoRA in a folder, and makes the model a plain one that has it in it."""
        if self.args.should_save:
            self.model.save_pretrained(folder)
        self.model = self.model_wrapped = self.model.merge_and_unload()

    def evaluation_loop(self, *args, **kwargs):
        with self.averaged_weights():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        if _internal_call:  # a checkpoint: resuming needs the weights themselves
            return super().save_model(output_dir, _internal_call)
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)
        # Trainer's settings, pickled: nothing reads them, and the card has them for people.
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(self, *args, tags: str | list[str] | None = None, **kwargs):
        """
        Writes [`~modeling_crossfuse.model_card.write_model_card`]'s card into the output folder; adapters get the one
        of [`~transformers.Trainer`].

        Args:
            tags (`str` or `list[str]`, *optional*): for the Hub.
            args, kwargs: of the card of adapters; see `card` for the other.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, CrossFusePreTrainedModel):
            return super().create_model_card(*args, tags=tags, **kwargs)
        if not self.is_world_process_zero():
            return
        measured = next((entry for entry in reversed(self.state.log_history) if "eval_loss" in entry), {})
        settings = {
            "metrics": {key.removeprefix("eval_"): value for key, value in measured.items()},
            "model_id": self.hub_model_id,
            "tags": [tags] if isinstance(tags, str) else tags or (),
        }
        write_model_card(self.args.output_dir, model, self.processing_class, **{**settings, **self.card})

    def _save_checkpoint(self, *args, **kwargs):
        super()._save_checkpoint(*args, **kwargs)
        if self.averages is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=None), f"checkpoint-{self.state.global_step}")
            state = {key: value.clone() for key, value in self.averages.state_dict().items()}
            save_file(state, folder / "averages.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_averages(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_averages(self.state.best_model_checkpoint)

    def _load_averages(self, checkpoint: str):
        averages = Path(checkpoint, "averages.safetensors")
        if self.averages is not None and averages.exists():
            self.averages.load_state_dict(load_file(averages))
