# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Nothing is said on standard error that a user can't act on, whatever else is installed."""

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SCRIPTS = ("app", "evaluate", "export", "predict", "push_to_hub", "train")
IMPORTS = "import modeling_crossfuse; from transformers import AutoModel, AutoProcessor"


@pytest.mark.parametrize("argv", [["-c", IMPORTS], *([f"scripts/{name}.py", "--help"] for name in SCRIPTS)])
def test_importing_is_quiet(argv):
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
