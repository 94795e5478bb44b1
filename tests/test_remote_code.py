# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The code that travels with a model: loading and saving it where CrossFuse is not installed."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoProcessor, BertConfig
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import modeling_crossfuse
from modeling_crossfuse import (
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseProcessor,
    save_code,
)
from modeling_crossfuse.hub import AUTO_CLASSES
from modeling_crossfuse.training import train_tokenizer

from .helpers import MODALITIES, run_python, tiny_config, tiny_inputs, tiny_model


# The head of each folder, what loads it, and which of its outputs are compared.
HEADS = {
    "generation": (CrossFuseForConditionalGeneration, "AutoModelForSeq2SeqLM", "logits"),
    "classification": (CrossFuseForSequenceClassification, "AutoModelForSequenceClassification", "logits"),
    "wrapped": (CrossFuseForConditionalGeneration, "AutoModelForImageTextToText", "logits"),
    "tokens": (CrossFuseForTokenClassification, "AutoModelForTokenClassification", "logits"),
    "retrieval": (CrossFuseForRetrieval, "AutoModelForZeroShotImageClassification", "logits_per_text"),
}

# Loads every folder, asks each model, saves it again with the processor, loads that and asks again.
PROGRAM = """
import json, pathlib, sys
import numpy as np, torch, transformers
from PIL import Image
from safetensors.torch import load_file, save_file

def ask(folder, name, inputs, output):
    auto_class = getattr(transformers, name)
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        return model, getattr(model(**inputs), output).contiguous()

answers = {}
for head, (name, output) in json.loads(pathlib.Path("heads.json").read_text()).items():
    inputs = load_file(f"{head}/inputs.safetensors")
    model, answers[head] = ask(head, name, inputs, output)
    model.save_pretrained(f"again/{head}")
    _, answers[head + " again"] = ask(f"again/{head}", name, inputs, output)

inputs = load_file("generation/inputs.safetensors")
_, answers["base"] = ask("again/generation", "AutoModel", inputs, "last_hidden_state")
processor = transformers.AutoProcessor.from_pretrained("generation", trust_remote_code=True)
processor.save_pretrained("again/generation")
for folder in ("generation", "again/generation"):
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    sample = {"text": ["what is it?"], "image": [Image.new("RGB", (9, 9), "red")]}
    sample |= {"audio": [{"array": np.sin(np.arange(4000.0)), "sampling_rate": 16000}]}
    for key, value in processor(**sample, return_tensors="pt").items():
        answers[f"{folder} {key}"] = value.contiguous()
save_file(answers, "answers.safetensors")
assert "modeling_crossfuse" not in sys.modules
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each head with the code, its inputs and what the installed code answers."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("remote")
    tokenizer = train_tokenizer(["what is it?", "a cat"], vocab_size=300)
    expected = {}
    for head, (model_class, _, output) in HEADS.items():
        modalities = {name: MODALITIES[name] for name in ("text", "image", "audio")} | {"text": {"vocab_size": 300}}
        if head == "wrapped":
            bert = BertConfig(
                vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
            )
            modalities["text"] = {"encoder": bert}
        config = tiny_config(modalities=modalities, decoder={"vocab_size": 300})
        model, inputs = tiny_model(config, model_class), tiny_inputs(config)
        if model.can_generate():
            inputs["decoder_input_ids"] = torch.tensor([[1, 5], [1, 6]])
        if head == "generation":
            processor = CrossFuseProcessor.from_config(config, tokenizer=tokenizer)
            processor.save_pretrained(root / head)
            with torch.no_grad():
                expected["base"] = model.model(**inputs).last_hidden_state
        model.save_pretrained(root / head)
        save_file(inputs, root / head / "inputs.safetensors")
        with torch.no_grad():
            expected[head] = expected[f"{head} again"] = getattr(model(**inputs), output)
    batch = processor(
        text=["what is it?"],
        image=[Image.new("RGB", (9, 9), "red")],
        audio=[{"array": np.sin(np.arange(4000.0)), "sampling_rate": 16000}],
        return_tensors="pt",
    )
    for folder in ("generation", "again/generation"):
        expected |= {f"{folder} {key}": value for key, value in batch.items()}
    (root / "heads.json").write_text(json.dumps({head: HEADS[head][1:] for head in HEADS}))
    return root, expected


@pytest.mark.slow
def test_answers_without_crossfuse_installed(folders):
    """Every head and the processor, from the folder and saved again: bit for bit what the installed code gives."""
    root, expected = folders
    done = run_python(PROGRAM, root, installed=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = load_file(root / "answers.safetensors")
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        assert torch.equal(answer, expected[name]), name
    for head in HEADS:
        saved = json.loads((root / "again" / head / "config.json").read_text())
        assert saved == json.loads((root / head / "config.json").read_text())
    code = {path.name for path in (root / "generation").glob("*.py")}
    assert {path.name for path in (root / "again" / "generation").glob("*.py")} == code


@pytest.mark.slow
def test_refused_without_the_flag(folders):
    root, _ = folders
    program = (
        "import transformers\n"
        "refused = 0\n"
        "for name in ('AutoModelForSeq2SeqLM', 'AutoProcessor', 'AutoConfig'):\n"
        "    try:\n"
        "        getattr(transformers, name).from_pretrained('generation')\n"
        "    except ValueError as error:\n"
        "        refused += 'trust_remote_code=True' in str(error)\n"
        "print()\n"
        "print(refused)\n"
    )
    done = run_python(program, root, installed=False)
    assert done.stdout.splitlines()[-1:] == ["3"], done.stderr[-3000:]


def test_installed_code_goes_first(folders):
    root, expected = folders
    inputs = load_file(root / "generation" / "inputs.safetensors")
    model = AutoModelForSeq2SeqLM.from_pretrained(root / "generation", trust_remote_code=True)
    assert type(model) is CrossFuseForConditionalGeneration
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected["generation"])


@pytest.mark.parametrize(("version", "warns"), [("0.0.9", True), (modeling_crossfuse.__version__, False)])
def test_other_version_is_mentioned(version, warns, folders, tmp_path, caplog):
    shutil.copytree(folders[0] / "generation", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["crossfuse_version"] = version
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    logging.getLogger("transformers").propagate = True
    logging.getLogger("modeling_crossfuse").propagate = True
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert ("CrossFuse 0.0.9" in caplog.text and "is installed and used instead" in caplog.text) == warns


def test_the_code_can_be_left_out(folders, tmp_path):
    """Then nothing points at it, either, unless the class is registered."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folders[0] / "generation")
    processor = AutoProcessor.from_pretrained(folders[0] / "generation")
    model.saves_code = processor.saves_code = False
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for name in ("config.json", "processor_config.json"):
        assert not {"auto_map", "crossfuse_version"} & set(json.loads((tmp_path / name).read_text()))


def test_a_processor_alone_leaves_the_model_as_it_is(folders, tmp_path, monkeypatch):
    """Code of a processor that came without its model knows of no models."""
    processor = AutoProcessor.from_pretrained(folders[0] / "generation")
    shutil.copytree(folders[0] / "generation", tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_text()
    monkeypatch.setattr("modeling_crossfuse.hub.AUTO_CLASSES", {})
    processor.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == json.loads(before)


def test_registered_class_saves_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(CrossFuseForConditionalGeneration, "_auto_class", None)
    CrossFuseForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
    model = tiny_model(tiny_config())
    model.saves_code = False
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", *AUTO_CLASSES}
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert re.search(rf"\b{name}\b", (tmp_path / f"{module}.py").read_text())


def test_only_what_is_needed_travels(folders):
    """No training, evaluation or plotting; and no import of what a bare installation of transformers lacks."""
    code = {path.stem for path in (folders[0] / "generation").glob("*.py")}
    assert {"modeling_crossfuse", "configuration_crossfuse", "processing_crossfuse", "retrieval"} <= code
    assert not code & {"__init__", "training", "evaluation", "data", "caching", "plotting", "explanation"}
    known = {"PIL", "huggingface_hub", "numpy", "torch", "transformers"}
    for name in code:
        imports = set(get_imports(Path(modeling_crossfuse.__file__).parent / f"{name}.py"))
        assert imports <= known | sys.stdlib_module_names, name
    package = Path(modeling_crossfuse.__file__).parent
    for path in get_relative_import_files(package / "modeling_crossfuse.py"):
        assert "PIL" not in get_imports(path), path


def test_an_adapters_folder_is_left_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_code(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_version_is_that_of_the_package():
    pyproject = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    assert f'version = "{modeling_crossfuse.__version__}"' in pyproject
