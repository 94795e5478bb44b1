# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Number formats by the machine: what training computes in, and what a saved model answers in."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoProcessor, pipeline

from crossfuse.loading import load_model
from crossfuse.main import run
from crossfuse.training_arguments import describe_precision, parse_recipe
from modeling_crossfuse.training import precision
from modeling_crossfuse.training.precision import choose_precision, loading_dtype, relative_time

from .helpers import tiny_config, tiny_model


CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "emoji"
# As PyTorch's libraries read them: a processor without instructions for bfloat16, which most laptops have.
NO_BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture
def processor_time(monkeypatch):
    """Sets how long this machine takes in 16 bits, as a ratio to float32."""

    def set_time(ratio: float):
        monkeypatch.setattr(precision, "relative_time", lambda dtype: ratio)

    return set_time


def test_it_is_measured_once():
    torch.set_num_threads(2)
    relative_time.cache_clear()
    ratio = relative_time(torch.bfloat16)
    assert torch.get_num_threads() == 2
    assert ratio > 0 and relative_time(torch.bfloat16) is ratio
    assert relative_time(torch.float32) == pytest.approx(1, abs=0.9)


# 0.26 is AVX512-BF16's, 1.3 that of AVX512 without it, 42 that of AVX2
@pytest.mark.parametrize(("ratio", "chosen"), [(0.26, "bfloat16"), (1.3, "float32"), (42, "float32")])
def test_precision_of_a_processor(processor_time, ratio, chosen):
    processor_time(ratio)
    name, reason = choose_precision("cpu")
    assert name == chosen and f"{ratio:.2f} times as long" in reason


@pytest.mark.parametrize(("has_it", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_precision_of_an_accelerator(monkeypatch, has_it, chosen):
    def is_supported(including_emulation=True):
        return has_it or including_emulation  # what a GPU emulates is slow

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: has_it)
    assert choose_precision("cuda:1")[0] == choose_precision("xpu")[0] == chosen


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are those of x86 processors")
@pytest.mark.slow
def test_a_processor_without_bfloat16():
    program = "from modeling_crossfuse.training.precision import choose_precision; print(*choose_precision())"
    environment = {**os.environ, **NO_BFLOAT16}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.stdout.startswith("float32 bfloat16 takes "), done.stderr


# Recipes


def parse(tmp_path, recipe: str, *argv: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: out\nuse_cpu: true\n{recipe}\n")
    return parse_recipe([str(path), *argv])


@pytest.mark.parametrize(
    ("recipe", "argv", "computes_in", "words"),
    [
        ("", [], "auto", "bfloat16 takes "),
        ("precision: auto", [], "auto", "bfloat16 takes "),
        ("precision: float32", [], "float32", "computing in float32, as told"),
        ("precision: bfloat16", [], "bfloat16", "computing in bfloat16, as told"),
        ("precision: bfloat16", ["--precision", "float32"], "float32", "computing in float32, as told"),
        ("precision: float32", ["--precision", "auto"], "auto", "bfloat16 takes "),
        ("bf16: true", [], "bfloat16", "computing in bfloat16, as told"),
        ("bf16: true", ["--bf16", "false"], "float32", "computing in float32, as told"),
        ("fp16: false", [], "float32", "computing in float32, as told"),
    ],
)
@pytest.mark.parametrize(("ratio", "fast"), [(0.3, "bfloat16"), (40, "float32")])
def test_precision_of_a_recipe(processor_time, tmp_path, recipe, argv, computes_in, words, ratio, fast):
    processor_time(ratio)
    settings, arguments = parse(tmp_path, recipe, *argv)
    expected = fast if computes_in == "auto" else computes_in
    assert settings.precision == computes_in and not arguments.fp16
    assert arguments.bf16 == (expected == "bfloat16")
    line = describe_precision(settings, arguments)
    assert words in line and line.startswith(f"computing in {expected}") and "\n" not in line


@pytest.mark.parametrize(
    ("recipe", "argv", "message"),
    [
        ("precision: fp7", [], "`precision='fp7'`; expected one of auto, float32, bfloat16, float16"),
        ("precision: 16", [], "`precision=16`; expected one of auto"),
        ("precision: float16", [], "`precision=float16` is for GPUs"),
        ("precision: auto", ["--bf16"], "`precision=auto` and `bf16=true` are both given"),
        ("bf16: true", ["--precision", "float32"], "`precision=float32` and `bf16=true` are both given"),
        ("precision: float32\nfp16: false", [], "`precision=float32` and `fp16=false` are both given"),
        ("bf16: true\nfp16: true", [], "At most one of fp16 and bf16"),
    ],
)
def test_precisions_that_are_refused(tmp_path, recipe, argv, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, recipe, *argv)


# Saved models


@pytest.mark.parametrize(
    ("own", "device", "ratio", "expected"),
    [
        (torch.float32, "cpu", 0.3, torch.float32),  # nothing is lost
        (torch.bfloat16, "cpu", 0.3, torch.bfloat16),
        (torch.bfloat16, "cpu", 6, torch.float32),
        (torch.float16, "cpu", 6, torch.float32),
        (torch.bfloat16, "cuda", 6, torch.bfloat16),
        (None, "cpu", 6, "auto"),
    ],
)
def test_what_a_model_answers_in(processor_time, own, device, ratio, expected):
    processor_time(ratio)
    assert loading_dtype(own, device) == expected


@pytest.fixture
def half(tmp_path) -> str:
    """A model that is saved in bfloat16."""
    tiny_model(tiny_config("text")).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    return str(tmp_path / "half")


@pytest.mark.parametrize(
    ("dtype", "ratio", "expected"),
    [("auto", 0.3, "bfloat16"), ("auto", 6, "float32"), ("bfloat16", 6, "bfloat16"), ("float32", 0.3, "float32")],
)
def test_programs_load_it_so(processor_time, monkeypatch, half, dtype, ratio, expected):
    processor_time(ratio)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda name: None)
    assert load_model(half, "cpu", dtype)[0].dtype == getattr(torch, expected)


@pytest.mark.parametrize("name", ["evaluate", "predict", "app"])
def test_programs_have_the_flag(name, capsys):
    with pytest.raises(SystemExit):
        run([name, "--help"])
    assert "--dtype {auto,float32,bfloat16,float16}" in capsys.readouterr().out


def test_the_checkpoint_loads_in_float32():
    """Stored in half the size, and fast on any processor without being told, in pipelines, too."""
    model = AutoModelForSeq2SeqLM.from_pretrained(CHECKPOINT)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(value, value.bfloat16().float()) for value in model.parameters())
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 2.1 * model.num_parameters()
    assert AutoModelForSeq2SeqLM.from_pretrained(CHECKPOINT, dtype="bfloat16").dtype == torch.bfloat16
    assert pipeline("crossfuse", model=str(CHECKPOINT)).model.dtype == torch.float32
