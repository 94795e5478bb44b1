# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
transformers' `PipelineTesterMixin`, run on CrossFuse's models.

The mixin takes tiny models from the Hub, or from a folder that an environment variable names: one that is made here.
"""

import json
import os
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

import modeling_crossfuse
from modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseForTokenClassification,
    CrossFuseProcessor,
)

from ..helpers import tiny_config, tiny_model
from ..test_processor import make_tokenizer


class CrossFuseForVideoClassification(CrossFuseForSequenceClassification):
    """Under another name, since a folder is that of a class: the model of the other tasks has no videos."""


MODALITIES = {CrossFuseForVideoClassification: ["video"]}
MODEL_CLASSES = [
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseForTokenClassification,
    CrossFuseForVideoClassification,
]
FOLDER = tempfile.TemporaryDirectory()


def _parts_of(model_class) -> dict[str, list[str]]:
    """The names of the classes that the mixin loads beside the model."""
    if model_class is CrossFuseForVideoClassification:
        return {"tokenizer_classes": [], "processor_classes": ["CrossFuseVideoImageProcessor"]}
    return {
        "tokenizer_classes": ["PreTrainedTokenizerFast"],
        "processor_classes": ["ViTImageProcessorPil", "CrossFuseFeatureExtractor"],
    }


def _load_mixin():
    """The mixin's module, which reads the list of tiny models and imports transformers' sources as it is imported."""
    reports = Path(FOLDER.name, "reports")
    reports.mkdir()
    summary = {model_class.__name__: _parts_of(model_class) for model_class in MODEL_CLASSES}
    (reports / "tiny_model_summary.json").write_text(json.dumps(summary))
    names = [name for parts in summary.values() for part in parts.values() for name in part] + ["CrossFuseProcessor"]
    classes = {name: getattr(modeling_crossfuse, name, None) or getattr(transformers, name) for name in names}
    with (
        mock.patch.dict(os.environ, {"TRANSFORMERS_TINY_MODEL_PATH": FOLDER.name}),
        mock.patch("transformers.utils.direct_transformers_import", lambda path: types.SimpleNamespace(**classes)),
    ):
        from .transformers_tests import test_pipeline_mixin
    return test_pipeline_mixin


MIXIN = _load_mixin()


def setUpModule():
    for model_class in MODEL_CLASSES:
        folder = Path(FOLDER.name, "crossfuse", model_class.__name__)
        modalities = MODALITIES.get(model_class, ["text", "image", "audio"])
        config = tiny_config(*modalities, id2label={0: "a", 1: "b", 2: "c"})
        tiny_model(config, model_class).save_pretrained(folder)
        CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer()).save_pretrained(folder)


class CrossFusePipelineTest(MIXIN.PipelineTesterMixin, unittest.TestCase):
    # Not `any-to-any`, which needs torchvision, and not `zero-shot-image-classification`, which the mixin's test of
    # batches calls without its `candidate_labels`; tests/test_pipelines.py has both.
    pipeline_model_mapping = {
        "audio-classification": CrossFuseForSequenceClassification,
        "automatic-speech-recognition": CrossFuseForSpeechSeq2Seq,
        "feature-extraction": CrossFuseEncoderModel,
        "image-classification": CrossFuseForSequenceClassification,
        "image-text-to-text": CrossFuseForConditionalGeneration,
        "text-classification": CrossFuseForSequenceClassification,
        "token-classification": CrossFuseForTokenClassification,
        "video-classification": CrossFuseForVideoClassification,
    }

    def setUp(self):
        stand_ins = f"{__package__}.transformers_tests.pipeline_tests"
        tests = {
            task: {"test": f"{stand_ins}.{entry['test'].rsplit('.', 1)[1]}"}
            for task, entry in MIXIN.pipeline_test_mapping.items()
        }
        for patch in (
            mock.patch.object(MIXIN, "pipeline_test_mapping", tests),
            mock.patch.dict(PROCESSOR_MAPPING_NAMES, {"crossfuse": "CrossFuseProcessor"}),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def run_task_tests(self, task, dtype="float32"):
        """As the mixin's; a model that can't be loaded is no reason to skip here."""
        try:
            super().run_task_tests(task, dtype)
        except unittest.SkipTest as skip:
            if task in self.pipeline_model_mapping:
                raise AssertionError(f"nothing was tested for {task}: {skip}") from skip
            raise
