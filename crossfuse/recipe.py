# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Recipes: what `crossfuse train` trains on what, from a YAML file and the command line."""

import argparse
import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flags import BAD_SAMPLE_CHOICES, DTYPES, Parser, parse_lengths, parse_mapping


# What a recipe's `task` may be.
TASKS = ("generation", "classification", "retrieval")


def flag(default: Any, help: str, **settings) -> Any:
    """A field of a recipe that is a flag, too."""
    return field(default=default, metadata={"help": help, **settings})


@dataclass
class RecipeArguments:
    """What is trained on what. Every field stands in a recipe (YAML) or on the command line, which wins."""

    task: str = flag(
        "generation",
        "What to learn: generation of the text in `target`; classification, where `target` has a class, a list of "
        "classes or numbers; or retrieval, where the `contrastive_groups` of the model's config are compared, and "
        "rows with the same `target` belong together.",
        choices=TASKS,
    )
    model: str = flag(
        "configuration/tiny",
        "Folder, Hub id, or name of a ready configuration: a config (new weights) or a saved CrossFuse model "
        "(fine-tuned).",
    )
    model_overrides: dict | str | None = flag(
        None,
        'Changes to the config, as JSON, such as \'{"decoder": {"dropout": 0.1}}\'; null removes a key: '
        '\'{"modalities": {"text": null}}\'.',
    )
    encoders: dict | str | None = flag(
        None,
        "Encoders of a new model, as JSON: modality to a Hub id, a folder, or settings such as "
        '{"kind": "series", "num_channels": 6}. The other modalities, and all the rest, are those of `model`.',
    )
    freeze: list[str] | None = flag(
        None, "Modalities whose encoders training leaves as they are: image audio.", nargs="+"
    )
    lora: dict | str | None = flag(
        None,
        "Train LoRA adapters instead of the weights: settings of peft.LoraConfig, as JSON, such as "
        '\'{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}\'. Modules that are to train as a '
        "whole go into `modules_to_save`.",
    )
    dataset: str | None = flag(
        None, "Data set: a name on the Hub, a folder that load_dataset reads, or save_to_disk's."
    )
    dataset_config: str | None = flag(None, "Configuration of the data set, if it has several.")
    train_split: str = flag("train", "Split to train on.")
    eval_split: str | None = flag("validation", 'Split to evaluate on while training; "" for none.')
    inputs: list[str] | None = flag(
        None, "Columns of the modalities: image=photo text=question series=sensors.wrist.", nargs="+"
    )
    target: str | None = flag(None, "Column of the text to generate, or of the labels.")
    questions: dict | str | None = flag(
        None, "Questions and the columns that answer them, as JSON; one is drawn for each sample."
    )
    question_dropout: float = flag(
        0.0, "Share of the samples that get no question and are to answer with the target.", type=float
    )
    max_lengths: list[str] | None = flag(
        None,
        "How much is read of a sample: tokens of a text, seconds of audio, steps of a series, as text=128 audio=20 "
        "wrist=500. What is longer is cut, in training and by the saved processor.",
        nargs="+",
    )
    max_target_length: int = flag(64, "Tokens of an answer at most.", type=int)
    vocab_size: int = flag(4096, "Tokens of a new tokenizer, trained where the model comes without one.", type=int)
    augmentation: dict | str | None = flag(None, "Modality to its augmentation, as JSON; see BatchAugmentation.")
    learning_rates: dict | str | None = flag(
        None,
        "Learning rates of parts, as JSON: start of a parameter's name, or a modality, which stands for its encoder, "
        "to the rate.",
    )
    ema_decay: float | None = flag(
        None, "Evaluate and save an exponential moving average of the weights with this decay.", type=float
    )
    max_minutes: float | None = flag(
        None,
        "End training by the clock: the first steps are measured, and the learning rate's schedule is planned for as "
        "many of the steps as fit. Evaluations during training count, caching before it does not.",
        type=float,
    )
    precision: str = flag(
        "auto",
        "What to compute in, while the weights stay in float32: bfloat16, float16, float32, or auto, which is "
        "bfloat16 where the device computes it fast and float32 elsewhere.",
    )
    attn_implementation: str | None = flag(None, "eager, sdpa, flex_attention or flash_attention_2.")
    answer_classifier: bool = flag(
        False, "Train with an auxiliary classifier of the distinct answers; the saved model has none."
    )
    cache_inputs: bool = flag(False, "Decode every sample once and keep it in memory: for data sets that fit.")
    cache_encoder_outputs: bool = flag(
        False,
        "Run encoders that are frozen once for each sample, and keep the results in a file in "
        "output_dir/_encoder_outputs, which later runs use again.",
    )
    on_bad_sample: str = flag(
        "stop",
        "A row that can't be read: stop, with an error that names it, or skip, which reads all rows once before "
        "training and lists those that are left out in output_dir/bad_samples.jsonl.",
        choices=BAD_SAMPLE_CHOICES,
    )
    max_train_samples: int | None = flag(None, "Use only so many samples to train.", type=int)
    max_eval_samples: int | None = flag(None, "Use only so many samples to evaluate.", type=int)

    def __post_init__(self):
        for name in ("model_overrides", "encoders", "lora", "questions", "augmentation", "learning_rates"):
            setattr(self, name, _parse_json(name, getattr(self, name)))
        self.freeze = [self.freeze] if isinstance(self.freeze, str) else list(self.freeze or ())
        self.inputs, self.max_lengths = parse_mapping(self.inputs), parse_lengths(self.max_lengths)
        if self.task not in TASKS:
            raise ValueError(f"`task={self.task!r}`; expected one of {', '.join(TASKS)}")
        if self.on_bad_sample not in BAD_SAMPLE_CHOICES:
            raise ValueError(f"`on_bad_sample={self.on_bad_sample!r}`; expected {' or '.join(BAD_SAMPLE_CHOICES)}")
        if self.precision not in ("auto", *DTYPES):
            raise ValueError(f"`precision={self.precision!r}`; expected one of auto, {', '.join(DTYPES)}")
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise ValueError(f"`max_minutes={self.max_minutes}`; expected more than 0")
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


@dataclass
class TrainFlags:
    """What the command line of `crossfuse train` and its recipe say."""

    own: dict[str, Any]  # those fields of `RecipeArguments` that are given
    files: list[tuple[str, dict[str, Any]]]  # paths and keys: of the recipe, and of each of its bases
    others: list[str]  # arguments for `Seq2SeqTrainingArguments`

    def settings(self) -> dict[str, Any]:
        """All keys of the recipe, where the first of its files wins."""
        return {key: value for _, keys in reversed(self.files) for key, value in keys.items()}


OWN = tuple(part.name for part in dataclasses.fields(RecipeArguments))


def add_recipe_arguments(parser: argparse.ArgumentParser):
    """A flag for each field of [`RecipeArguments`]. What is not given has no value."""
    for part in dataclasses.fields(RecipeArguments):
        settings = dict(part.metadata)
        if part.type is bool:
            settings |= {"type": _read_bool, "nargs": "?", "const": True, "metavar": "BOOL"}
        elif not settings.get("choices"):
            settings["metavar"] = "JSON" if part.type == dict | str | None else "X"
        if part.default not in (None, False):
            settings["help"] += f" (default: {part.default})"
        parser.add_argument(f"--{part.name}", default=argparse.SUPPRESS, **settings)


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() in ("true", "yes", "1")


def parse_flags(argv: list[str], parser: argparse.ArgumentParser | None = None) -> TrainFlags:
    """Reads `[recipe] --flag value ...`, without any heavy import. The parser may have other flags."""
    parser = parser or Parser("crossfuse train", allow_abbrev=False)
    add_recipe_arguments(parser)
    flags = TrainFlags({}, [], [])
    if argv and not argv[0].startswith("-"):
        flags.files, argv = _read_recipe(find_recipe(argv[0])), argv[1:]
    parser.set_defaults(**{key: value for key, value in flags.settings().items() if key in OWN})
    given, flags.others = parser.parse_known_args(argv)
    flags.own = vars(given)
    return flags


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of a ready one, which a clone has beside the package, and a wheel in it."""
    root = Path(__file__).resolve().parents[1]
    ready = Path(name.removeprefix("configuration/recipes/")).with_suffix(".yaml")
    for path in (root / "configuration/recipes" / ready, root / "modeling_crossfuse/configuration/recipes" / ready):
        if not Path(name).is_file() and path.is_file():
            return path
    return Path(name)


def _read_recipe(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """A recipe's path and keys; then those of the recipe beside it that it names as `base`."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Takes `1e-3`, which has no dot, for a number, too, as YAML 1.2 does and PyYAML does not."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} is not a mapping of flags to values")
    base = recipe.pop("base", None)
    return [(str(path), recipe), *(_read_recipe(path.with_name(base)) if base else ())]
