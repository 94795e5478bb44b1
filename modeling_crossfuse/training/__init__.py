# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Training: a Trainer, what recipes build, tokenizers, and the card of what was trained."""

from .tokenizer import train_tokenizer


__all__ = ["train_tokenizer"]
