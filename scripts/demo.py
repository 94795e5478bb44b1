# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`research/demo.py`; in a new process, since a module in this folder would hide the library `evaluate`."""

import os
import sys
from pathlib import Path


os.execv(sys.executable, [sys.executable, str(Path(__file__).with_name("research") / "demo.py"), *sys.argv[1:]])
