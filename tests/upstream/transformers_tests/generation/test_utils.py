# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Stand-in: transformers' source package lacks its generation tests; `tests/test_generation.py` has ours."""


class GenerationTesterMixin:
    """Says that a tester's models can generate, which `test_generation_tester_mixin_inheritance` asks."""
