# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The ready-made configs and recipes of `configuration/`."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration
from modeling_crossfuse.data.augmentation import BatchAugmentation
from modeling_crossfuse.processing_crossfuse import CrossFuseProcessor

from .helpers import tiny_inputs


CONFIGURATION = Path(__file__).resolve().parent.parent / "configuration"
RECIPES = sorted((CONFIGURATION / "recipes").glob("*.yaml"))

# Millions of parameters, as the table in docs/models.md gives them.
SIZES = {"tiny": 1.0, "small": 22.6, "base": 308, "emoji": 3.4}


def test_every_folder_is_tested():
    assert {path.parent.name for path in CONFIGURATION.glob("*/config.json")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_config_loads_and_saves_as_it_is(name, tmp_path):
    config = AutoConfig.from_pretrained(CONFIGURATION / name)
    assert type(config) is CrossFuseConfig
    config.save_pretrained(tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert saved == config.to_dict() | {"_name_or_path": saved["_name_or_path"]}


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(CONFIGURATION / name))
    assert type(model) is CrossFuseForConditionalGeneration
    assert model.num_parameters() / 1e6 == pytest.approx(SIZES[name], rel=0.02)


@pytest.mark.parametrize("name", SIZES)
def test_kinds(name):
    kinds = {part.kind for part in AutoConfig.from_pretrained(CONFIGURATION / name).modalities.values()}
    assert {"text", "image", "audio"} <= kinds


def test_tiny_runs():
    config = AutoConfig.from_pretrained(CONFIGURATION / "tiny")
    model = CrossFuseForConditionalGeneration(config).eval()
    inputs = tiny_inputs(config)
    with torch.no_grad():
        outputs = model(**inputs, labels=torch.tensor([[3, 4, 2], [5, 2, -100]]))
        answers = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert outputs.logits.shape == (2, 3, config.vocab_size) and outputs.loss.isfinite()
    assert answers.shape == (2, 4)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    recipe, arguments = parse_recipe([str(path), "--use_cpu"])
    config = AutoConfig.from_pretrained(CONFIGURATION.parent / recipe.model)
    assert set(recipe.inputs) <= set(config.modalities) and recipe.target
    assert arguments.output_dir == yaml.safe_load(path.read_text())["output_dir"]
    if recipe.augmentation:
        BatchAugmentation(CrossFuseProcessor.from_config(config), config.modalities, recipe.augmentation)
