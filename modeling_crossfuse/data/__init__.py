# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Data sets: their rows, the batches made of them, augmentation and caches."""
