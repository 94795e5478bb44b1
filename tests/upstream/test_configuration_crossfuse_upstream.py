# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `ConfigTester`, run on CrossFuse's configs."""

import unittest

from modeling_crossfuse import (
    CrossFuseAudioConfig,
    CrossFuseConfig,
    CrossFuseDecoderConfig,
    CrossFuseFusionConfig,
    CrossFuseImageConfig,
    CrossFuseSeriesConfig,
    CrossFuseTextConfig,
    CrossFuseVideoConfig,
)

from .test_modeling_crossfuse_upstream import LatentTester, TextTester
from .transformers_tests.test_configuration_common import ConfigTester


class CrossFuseConfigTest(unittest.TestCase):
    common_properties = ["d_model", "hidden_size", "num_attention_heads", "num_hidden_layers", "modalities", "decoder"]

    def check(self, model_tester):
        self.model_tester = model_tester
        tester = ConfigTester(self, CrossFuseConfig, common_properties=list(self.common_properties), d_model=48)
        tester.run_common_tests()

    def test_text_config(self):
        self.check(TextTester(self))

    def test_multimodal_config(self):
        self.check(LatentTester(self))


class CrossFusePartConfigTest(unittest.TestCase):
    """The sub-configs, each as a config of its own."""

    model_tester = None

    def check(self, config_class, has_text_modality=False, common_properties=None):
        ConfigTester(self, config_class, has_text_modality, common_properties, hidden_size=48).run_common_tests()

    def test_text_config(self):
        self.check(CrossFuseTextConfig, has_text_modality=True)

    def test_image_config(self):
        self.check(CrossFuseImageConfig)

    def test_video_config(self):
        self.check(CrossFuseVideoConfig)

    def test_audio_config(self):
        self.check(CrossFuseAudioConfig)

    def test_series_config(self):
        self.check(CrossFuseSeriesConfig)

    def test_decoder_config(self):
        self.check(CrossFuseDecoderConfig, has_text_modality=True)

    def test_fusion_config(self):
        self.check(CrossFuseFusionConfig, common_properties=["hidden_size", "num_attention_heads", "num_layers"])
