# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the upstream tests need before they are collected."""

import pytest
from transformers import set_seed
from transformers.models.auto import modeling_auto


# Mixins and stand-ins: nothing in there is a test by itself.
collect_ignore = ["transformers_tests"]

# Many upstream tests ask these tables by class name what a class is for, and pass without testing anything where it is
# not listed. `AutoModel.register` does not write to them.
_NAMES = {
    "MODEL_MAPPING_NAMES": ("CrossFuseModel", "CrossFuseEncoderModel"),
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "CrossFuseForConditionalGeneration",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "CrossFuseForConditionalGeneration",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "CrossFuseForConditionalGeneration",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "CrossFuseForSequenceClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "CrossFuseForTokenClassification",
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES": "CrossFuseForRetrieval",
}


@pytest.fixture(autouse=True)
def listed_in_auto_mappings(monkeypatch):
    for table, class_name in _NAMES.items():
        monkeypatch.setitem(getattr(modeling_auto, table), "crossfuse", class_name)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """The mixins compare float16 with float32 on random weights: some draws are beyond their tolerance."""
    set_seed(1)
