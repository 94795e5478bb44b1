# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What libraries say of each other while transformers imports them or a model is exported, and no user can act on."""

import logging

import torch


def leave_out(logger: str, message: str):
    """Leaves messages that contain `message` out of a library's log."""
    logging.getLogger(logger).addFilter(lambda record: message not in record.getMessage())


if torch.version.cuda is None:
    leave_out("torchao", "Failed to load ")  # its files for GPUs
leave_out("torch.utils._pytree", "register_constant() on Enum")  # how torchao registers its types
leave_out("torch.onnx._internal.exporter._registration", "torchvision is not installed")  # no model here needs it
