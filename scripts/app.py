# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`crossfuse app`; in a new process, since a module in this folder would hide the library `evaluate`."""

import os
import sys


os.execv(sys.executable, [sys.executable, "-m", "crossfuse", "app", *sys.argv[1:]])
