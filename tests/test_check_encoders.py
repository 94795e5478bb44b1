# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The check of encoder types, on a few types of each sort, and the page that it writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoModel

from .test_scripts import SCRIPTS, assert_refused, load_script


PAGE = Path(__file__).resolve().parent.parent / "docs" / "encoders.md"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "research"))
        yield load_script("check_encoders")


# One of each sort: towers, encoders of encoder-decoders, feature maps, patches, videos, waves, decoders.
EXPECTED = {
    "bert": {("text", "works", "BertModel")},
    "clip": {("text", "works", "CLIPTextModel"), ("image", "works", "CLIPVisionModel")},
    "llama": {("text", "decoder only", "")},
    "qwen2_vl": {
        ("text", "decoder only", ""),
        ("image", "works", "Qwen2VisionTransformerPretrainedModel"),
        ("video", "works", "Qwen2VisionTransformerPretrainedModel"),
    },
    "resnet": {("image", "works", "ResNetModel")},
    "vilt": {("text", "no own encoder", ""), ("image", "no own encoder", "")},
    "siglip2": {("text", "works", "Siglip2TextModel"), ("image", "works", "Siglip2VisionModel")},
    "wav2vec2": {("audio", "works", "Wav2Vec2Model")},
    "whisper": {("text", "decoder only", ""), ("audio", "works", "WhisperEncoder")},
}


@pytest.mark.parametrize("model_type", EXPECTED)
def test_types_of_each_sort(script, model_type):
    rows = script.try_type(model_type)
    assert {row[1:] for row in rows} == EXPECTED[model_type]
    assert {row[0] for row in rows} == {model_type}


def test_a_type_that_fails_says_why(script, monkeypatch):
    def fail(model, kind):
        raise ValueError("no good\nat all")

    monkeypatch.setattr(script, "try_encoder", fail)
    assert script.try_type("resnet") == [("resnet", "image", "fails", "no good")]


def test_what_is_not_an_encoder_fails(script):
    model = AutoModel.from_config(script.tiny_config(CONFIG_MAPPING["llama"]))
    with pytest.raises(ValueError, match="reads from left to right"):
        script.try_encoder(model, "text")


def test_the_page(script):
    rows = [
        ("bert", "text", "works", "BertModel"),
        ("llama", "text", "decoder only", ""),
        ("fuyu", "image", "no own encoder", ""),
        ("odd", "image", "fails", "a | b"),
    ]
    page = script.to_markdown(rows)
    assert "| bert | text | works | BertModel |" in page
    assert r"| odd | image | fails | a \| b |" in page
    assert "| text | 1 | 0 | 100.0 % | 1 | 0 |" in page
    assert "| image | 0 | 1 | 0.0 % | 0 | 1 |" in page
    assert "| all | 1 | 1 | 50.0 % |  |  |" in page


def test_the_page_in_the_repository_covers_every_type(script):
    """It is made again when transformers has new types; see docs/developing.md."""
    import transformers

    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " not in page:
        pytest.skip("the page is of another version of transformers")
    results = "works|fails|decoder only|no own encoder|not built|out of memory"
    row = rf"^\| (\S+) \| (?:text|image|video|audio|) \| (?:{results}) "
    listed = set(re.findall(row, page, re.MULTILINE))
    silent = set(script.all_types()) - listed  # those that take no values of any kind: time series and the like
    assert not listed - set(script.all_types())
    assert len(silent) < 30


@pytest.mark.slow
def test_the_program(tmp_path):
    rows = tmp_path / "rows.json"
    command = [sys.executable, SCRIPTS / "research" / "check_encoders.py", "resnet", "bert", "--output", rows]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = [["resnet", "image", "works", "ResNetModel"], ["bert", "text", "works", "BertModel"]]
    assert json.loads(rows.read_text()) == expected
    assert "ResNetModel" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["berd"], "'berd' is no model type"),
        (["bert", "--output", "nowhere/page.md"], "--output: there is no folder nowhere"),
        (["bert", "--processes", "0"], "--processes: 0 is not above 0"),
    ],
)
def test_wrong_arguments(script, capsys, arguments, message):
    assert_refused(capsys, script.main, arguments, message)
