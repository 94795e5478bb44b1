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
"""The benchmark: each variant runs, and measures what it says."""

import json

import pytest
from transformers import BertConfig, ViTConfig

from .test_scripts import assert_refused, load_script


SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def script(monkeypatch):
    """With encoders small enough for a test."""
    script = load_script("benchmark")
    monkeypatch.setattr(script, "TEXT", BertConfig(**SIZES))
    monkeypatch.setattr(script, "IMAGE", ViTConfig(**SIZES))
    monkeypatch.setattr(script, "BATCH", 2)
    return script


@pytest.mark.parametrize("variant", ["both encoders train", "text frozen", "both frozen", "both frozen, cached"])
def test_variants_of_freezing(script, variant):
    measured = script.measure("frozen", variant, steps=1, threads=1)
    assert measured["step_ms"] > 0 and measured["step_mb"] >= 0
    model, batch = script.VARIANTS["frozen"][variant]()
    frozen = {name for name, part in model.config.modalities.items() if part.frozen}
    assert len(frozen) == {"both encoders train": 0, "text frozen": 1}.get(variant, 2)
    assert ("image_hidden_states" in batch) == ("cached" in variant)


def test_int8_encoders_are_smaller(script):
    pytest.importorskip("torchao")
    whole, small = (
        script.measure("quantized", variant, 1, 1)["encoder_mb"] for variant in script.VARIANTS["quantized"]
    )
    assert small < whole
    assert 0 < script.quantization_error() < 1e-2


def test_the_table_has_ratios_to_the_first(script):
    results = {
        "one": {"step_ms": 200.0, "step_mb": 100.0, "encoder_mb": 10.0},
        "other": {"step_ms": 50.0, "step_mb": 20.0, "encoder_mb": 10.0},
    }
    table = script.report(results).splitlines()
    assert table[-1].split() == ["other", "50", "0.25", "20", "0.20", "10"]


def test_the_program(script, monkeypatch, tmp_path, capsys):
    figures = dict.fromkeys(("step_ms", "step_mb", "encoder_mb"), 1.0)
    monkeypatch.setattr(script, "run_variants", lambda *arguments: {"one": figures})
    script.main(["frozen", "--output", str(tmp_path / "figures.json")])
    assert json.loads((tmp_path / "figures.json").read_text())["one"]["step_ms"] == 1.0
    assert "one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frozen", "--repeats", "0"], "--repeats is 0; expected more than 0"),
        (["frozen", "--output", "nowhere/figures.json"], "--output: there is no folder nowhere"),
    ],
)
def test_wrong_arguments(script, capsys, arguments, message):
    assert_refused(capsys, script.main, arguments, message)
