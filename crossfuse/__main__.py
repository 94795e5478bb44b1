# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`python -m crossfuse`."""

from .main import main


if __name__ == "__main__":
    main()
