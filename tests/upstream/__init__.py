# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""transformers' own test mixins, unmodified, run on CrossFuse's classes."""
