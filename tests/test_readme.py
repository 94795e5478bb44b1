# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The README's Python blocks run, one after the other, as a reader would type them; its commands and links exist."""

import re
import shlex
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "readme"}
    assert len(blocks("python")) >= 5
    for number, block in enumerate(blocks("python"), start=1):
        code = block
        for written in ("my-model", "explanation.png"):
            code = code.replace(f'"{written}"', repr(str(tmp_path / written)))
        exec(compile(code, f"README.md, block {number}", "exec"), namespace)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if line.strip()])
def test_commands_name_what_exists(line):
    words = shlex.split(line.split("#")[0])
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for before, word in zip(["", *words], words):
        if before == "make":
            assert word in targets
        elif word.endswith((".py", ".yaml")):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
