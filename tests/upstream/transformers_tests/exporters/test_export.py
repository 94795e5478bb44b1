# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Stand-in: transformers' source package lacks its export tests."""


class ExportTesterMixin:
    """What `ModelTesterMixin` inherits from."""
