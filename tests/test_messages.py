# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Nothing is said on standard error that a user can't act on, whatever else is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import modeling_crossfuse


ROOT = Path(__file__).parents[1]
SCRIPTS = ("app", "evaluate", "export", "predict", "push_to_hub", "train")
HEAVY = {"captum", "datasets", "evaluate", "kornia", "matplotlib", "sklearn"}
# The package by itself brings none of the optional packages; then all that the programs import follows.
IMPORTS = f"""
import importlib, pkgutil, sys
import modeling_crossfuse
from transformers import AutoModel, AutoProcessor
print(*{HEAVY} & set(sys.modules))
for module in pkgutil.walk_packages(modeling_crossfuse.__path__, "modeling_crossfuse."):
    importlib.import_module(module.name)
"""


def run_quietly(*argv: str) -> str:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_is_quiet_and_brings_no_optional_package():
    assert run_quietly("-c", IMPORTS).split() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quiet(script):
    assert run_quietly(f"scripts/{script}.py", "--help")


def test_a_lazy_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "modeling_crossfuse.training.trainer", None)  # as if it could not be imported
    with pytest.raises(ImportError, match=r"`CrossFuseTrainer` needs more than is .*pip install .crossfuse\[train\]"):
        modeling_crossfuse.CrossFuseTrainer  # noqa: B018
