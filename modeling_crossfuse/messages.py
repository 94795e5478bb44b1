# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
