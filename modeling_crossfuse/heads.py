# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Every model, with the head that it has. Code that a model brings along is loaded through this file, so that all heads
come with any of them.
"""

from .classification import CrossFuseForSequenceClassification, CrossFuseForTokenClassification
from .hub import AUTO_CLASSES
from .modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseModel,
)
from .retrieval import CrossFuseForRetrieval


# By `task`, which says what a head is for. Recipes, pipelines, cards and evaluation go by it.
HEADS = {
    head.task: head
    for head in (
        CrossFuseForConditionalGeneration,
        CrossFuseForSequenceClassification,
        CrossFuseForTokenClassification,
        CrossFuseForRetrieval,
    )
}

MODELS = (CrossFuseModel, CrossFuseEncoderModel, *HEADS.values(), CrossFuseForSpeechSeq2Seq)

for model in MODELS:
    for name in model.auto_classes:
        AUTO_CLASSES.setdefault(name, []).append(model)
