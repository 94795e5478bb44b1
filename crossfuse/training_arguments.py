# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The other half of train's command line: the flags that transformers' Trainer has, and the precision."""

import dataclasses
import difflib

import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from modeling_crossfuse.training.precision import choose_precision

from .flags import OneLineErrors, refuse_unknown
from .recipe import OWN, RecipeArguments, TrainFlags, parse_flags


class TrainerParser(OneLineErrors, HfArgumentParser):
    """The parser of `Seq2SeqTrainingArguments`, with defaults that fit CrossFuse."""

    def __init__(self, **settings):
        super().__init__(Seq2SeqTrainingArguments, allow_abbrev=False, **settings)
        # Without this, transformers takes `bf16` for a GPU's and refuses it on a machine that has none.
        self.set_defaults(use_cpu=not torch.accelerator.is_available())
        # The collator reads the raw columns; answers are what the metrics are of.
        self.set_defaults(remove_unused_columns=False, predict_with_generate=True)


def parse_recipe(argv: list[str]) -> tuple[RecipeArguments, Seq2SeqTrainingArguments]:
    """What [`read_arguments`] makes of a command line, `[recipe] --flag value ...`."""
    return read_arguments(parse_flags(argv))


def read_arguments(flags: TrainFlags) -> tuple[RecipeArguments, Seq2SeqTrainingArguments]:
    """
    What is trained on what, and how.

    Raises:
        ValueError: if a key or a flag is unknown, a value is wrong, or two things are said about the precision.
    """
    _check_keys(flags)
    parser = TrainerParser()
    parser.set_defaults(bf16=None, fp16=None)  # whether they are given is what counts
    parser.set_defaults(**{key: value for key, value in flags.settings().items() if key not in OWN})
    others, unknown = parser.parse_known_args(flags.others)
    refuse_unknown(unknown, [f"--{name}" for name in (*OWN, *vars(others))])
    precision, formats = _read_precision(flags.own.get("precision"), others)
    recipe = RecipeArguments(**{**flags.own, "precision": precision})
    (arguments,) = parser.parse_dict({**vars(others), **formats})
    arguments.predict_with_generate &= recipe.task == "generation"
    arguments.prediction_loss_only |= recipe.task == "retrieval"  # batches of logits don't add up to a ranking
    if arguments.remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns` would remove the columns that the inputs are read from; leave it out"
        )
    return recipe, arguments


def _check_keys(flags: TrainFlags):
    allowed = [*OWN, *(part.name for part in dataclasses.fields(Seq2SeqTrainingArguments))]
    for path, keys in flags.files:
        for key in keys:
            if key not in allowed:
                close = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f" Did you mean `{close[0]}`?" if close else ""
                raise ValueError(f"the recipe {path} has the key `{key}`, which is no flag.{hint}")


def _read_precision(precision: str | None, others) -> tuple[str, dict[str, bool]]:
    """`precision`, and the flags of transformers that follow from it, or that say it in its place."""
    given = [name for name in ("bf16", "fp16") if getattr(others, name) is not None]
    if precision is not None and given:
        raise ValueError(
            f"`precision={precision}` and `{given[0]}={str(getattr(others, given[0])).lower()}` are both given; leave "
            "one out (the flag --precision overrides a recipe's)"
        )
    if given:
        precision = "bfloat16" if others.bf16 else "float16" if others.fp16 else "float32"
        return precision, {"bf16": bool(others.bf16), "fp16": bool(others.fp16)}
    precision, device = precision or "auto", _device(others.use_cpu)
    if precision == "float16" and device.type == "cpu":
        raise ValueError("`precision=float16` is for GPUs; expected auto, bfloat16 or float32")
    chosen = choose_precision(device)[0] if precision == "auto" else precision
    return precision, {"bf16": chosen == "bfloat16", "fp16": chosen == "float16"}


def _device(use_cpu: bool) -> torch.device:
    return torch.device("cpu") if use_cpu else torch.accelerator.current_accelerator()


def describe_precision(recipe: RecipeArguments, arguments: Seq2SeqTrainingArguments) -> str:
    """What training computes in and why, on one line."""
    if recipe.precision != "auto":
        return f"computing in {recipe.precision}, as told"
    return "computing in {}: {}".format(*choose_precision(_device(arguments.use_cpu)))
