# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""transformers' `ModelTesterMixin` and `TrainingTesterMixin`, run on CrossFuse's models."""

import unittest
from dataclasses import fields

import pytest
import torch
from transformers import BertConfig, ViTConfig
from transformers.modeling_outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.testing_utils import torch_device

from modeling_crossfuse import (
    CrossFuseConfig,
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseModel,
)

from ..helpers import composed_config
from .transformers_tests.generation.test_utils import GenerationTesterMixin
from .transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from .transformers_tests.test_training_mixin import TrainingTesterMixin


# `test_bc_cache_name_forward` waits for it.
pytestmark = pytest.mark.filterwarnings("always:`past_key_values` is deprecated:FutureWarning")


class CrossFuseWithoutGenerate(CrossFuseForConditionalGeneration):
    """
    What `test_training_overfit` trains. Its last step, which it leaves out where a model has no `generate`, gives a
    decoder-only model the first token of the answer as prompt; an encoder-decoder starts from a token of its own.
    """

    generate = property()


class TextTester:
    """A text-only model and a batch for it, by the attribute names that the mixins read."""

    is_training = True
    batch_size = 3
    seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = 99
    causal_lm_class = CrossFuseWithoutGenerate

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return CrossFuseConfig(
            d_model=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            modalities={"text": {"vocab_size": self.vocab_size}},
            decoder={"vocab_size": self.vocab_size},
        )

    def prepare_config_and_inputs_for_common(self):
        inputs = {
            "input_ids": ids_tensor([self.batch_size, self.seq_length], self.vocab_size),
            "decoder_input_ids": ids_tensor([self.batch_size, self.seq_length], self.vocab_size),
            "decoder_attention_mask": torch.ones(
                self.batch_size, self.seq_length, dtype=torch.long, device=torch_device
            ),
        }
        return self.get_config(), inputs


class LatentTester(TextTester):
    """
    Text, image, audio and a series, read by a latent fusion; two samples lack a modality each.

    The mixin wants `encoder_attentions` to hold as many layers as the decoder has, two at most, and the first of them
    to be as long as the memory: the text encoder has one layer, the fusion the other.
    """

    num_latents = TextTester.seq_length
    fusion = {"type": "latent", "num_layers": 1, "num_latents": num_latents}
    text_layers = 1

    def get_config(self):
        return CrossFuseConfig(
            d_model=self.hidden_size,
            num_hidden_layers=0,
            num_attention_heads=self.num_attention_heads,
            modalities={
                "text": {"vocab_size": self.vocab_size, "num_hidden_layers": self.text_layers},
                "image": {"image_size": 16, "patch_size": 4, "stem_type": "conv"},
                "audio": {"num_mel_bins": 8, "hidden_size": 16},
                "wrist": {"kind": "series", "num_channels": 6},
            },
            fusion=self.fusion,
            decoder={"vocab_size": self.vocab_size, "num_hidden_layers": self.num_hidden_layers},
        )

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs |= {
            "pixel_values": floats_tensor([self.batch_size, 3, 16, 16]),
            "input_features": floats_tensor([self.batch_size, 8, 12]),
            "wrist_values": floats_tensor([self.batch_size, 5, 6]),
            "wrist_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 5], device=torch_device),
            "modality_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1]], device=torch_device),
        }
        return config, inputs


class BottleneckTester(TextTester):
    """Text and a video, sinusoidal positions, GELU and layer norm; the fusion has one layer for each modality."""

    num_latents = 4
    num_layers = 1
    encoder_seq_length = TextTester.seq_length + num_latents

    def get_config(self):
        return CrossFuseConfig(
            d_model=self.hidden_size,
            num_hidden_layers=0,
            num_attention_heads=self.num_attention_heads,
            position_embedding_type="sinusoidal",
            mlp_type="gelu",
            norm_type="layernorm",
            modalities={
                "text": {"vocab_size": self.vocab_size},
                "video": {"image_size": 16, "patch_size": 8},
            },
            fusion={"type": "bottleneck", "num_layers": self.num_layers, "num_latents": self.num_latents},
            decoder={"vocab_size": self.vocab_size, "num_hidden_layers": self.num_hidden_layers},
        )

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs |= {
            "pixel_values_videos": floats_tensor([self.batch_size, 4, 3, 16, 16]),
            "video_mask": torch.tensor([[1] * 4, [1] * 2 + [0] * 2, [0] * 4], device=torch_device),
        }
        return config, inputs


class BottleneckWithoutVideoTester(BottleneckTester):
    """The mixin wants all attention, the decoder's too, to be over as many positions: those of a text and latents."""

    num_layers = 2

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, {name: values for name, values in inputs.items() if "video" not in name}


class WrappedTester(TextTester):
    """A BERT and a ViT as encoders, and a series without layers."""

    def get_config(self):
        sizes = {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        return composed_config(
            {
                "text": BertConfig(vocab_size=self.vocab_size, **sizes),
                "image": ViTConfig(image_size=16, patch_size=8, **sizes),
                "wrist": {"kind": "series", "num_channels": 6},
            },
            d_model=self.hidden_size,
            num_hidden_layers=0,
            num_attention_heads=self.num_attention_heads,
            fusion={"type": "latent", "num_layers": 2, "num_latents": self.seq_length},
            decoder={"vocab_size": self.vocab_size, "num_hidden_layers": self.num_hidden_layers},
        )

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs |= {
            "pixel_values": floats_tensor([self.batch_size, 3, 16, 16]),
            "wrist_values": floats_tensor([self.batch_size, 5, 6]),
            "modality_mask": torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0]], device=torch_device),
        }
        return config, inputs


def with_entries_of(output_class, model_class):
    """The model class, its outputs cut to the entries that transformers' own output class has."""

    class Cut(model_class):
        def forward(self, **kwargs):
            outputs = super().forward(**kwargs)
            return output_class(**{field.name: outputs.get(field.name) for field in fields(output_class)})

    return Cut


def run_sdpa_dispatch(self):
    """
    The test of composite models asks for towers by names of transformers' own, and skips those without. That of other
    models looks at every attention, whatever part it is of.
    """
    self._is_composite = False
    self.test_sdpa_can_dispatch_non_composite_models()


class CrossFuseTesterMixin(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (CrossFuseModel, CrossFuseForConditionalGeneration)
    is_encoder_decoder = True
    _is_composite = True
    model_tester_class = None

    def setUp(self):
        self.model_tester = self.model_tester_class(self)

    test_sdpa_can_dispatch_all_parts = run_sdpa_dispatch

    @unittest.skip(
        "It counts the entries of the outputs, and CrossFuse's have more than Seq2SeqModelOutput: `pooler_output`, "
        "`encoder_attention_mask` and `encoder_modality_ids`. `test_attention_outputs_without_own_entries` runs it."
    )
    def test_attention_outputs(self):
        pass

    @unittest.skip(
        "It embeds questions and answers by one table. CrossFuse's text encoder and decoder have a table each, whose "
        "vocabularies may differ; tests/test_model.py passes both kinds of embeddings."
    )
    def test_inputs_embeds_matches_input_ids(self):
        pass


class CrossFuseTextModelTest(CrossFuseTesterMixin, TrainingTesterMixin, unittest.TestCase):
    model_tester_class = TextTester
    model_tester = None  # TrainingTesterMixin has it as an abstract property

    def test_attention_outputs_without_own_entries(self):
        self.all_model_classes = (
            with_entries_of(Seq2SeqModelOutput, CrossFuseModel),
            with_entries_of(Seq2SeqLMOutput, CrossFuseForConditionalGeneration),
        )
        ModelTesterMixin.test_attention_outputs(self)


class CrossFuseLatentModelTest(CrossFuseTesterMixin, unittest.TestCase):
    model_tester_class = LatentTester
    additional_model_inputs = ("pixel_values", "input_features", "wrist_values", "wrist_mask")

    test_attention_outputs_without_own_entries = CrossFuseTextModelTest.test_attention_outputs_without_own_entries


class CrossFuseBottleneckModelTest(CrossFuseTesterMixin, unittest.TestCase):
    model_tester_class = BottleneckTester
    additional_model_inputs = ("pixel_values_videos", "video_mask")

    def test_attention_outputs_without_own_entries(self):
        self.model_tester = BottleneckWithoutVideoTester(self)
        CrossFuseTextModelTest.test_attention_outputs_without_own_entries(self)


class CrossFuseWrappedModelTest(CrossFuseTesterMixin, unittest.TestCase):
    model_tester_class = WrappedTester
    additional_model_inputs = ("pixel_values", "wrist_values")

    test_attention_outputs_without_own_entries = CrossFuseTextModelTest.test_attention_outputs_without_own_entries


class EncoderTester(TextTester):
    """Text alone, for models without a decoder."""

    def get_config(self):
        config = super().get_config()
        config.is_encoder_decoder = False
        return config

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, {name: values for name, values in inputs.items() if not name.startswith("decoder_")}


class FusedEncoderTester(EncoderTester):
    """Text, images, videos and audio without layers of their own, in a joint fusion."""

    lengths = {"text": TextTester.seq_length, "image": 4, "video": 4, "audio": 3}
    encoder_seq_length = sum(lengths.values())

    def get_config(self):
        return CrossFuseConfig(
            d_model=self.hidden_size,
            num_hidden_layers=0,
            num_attention_heads=self.num_attention_heads,
            modalities={
                "text": {"vocab_size": self.vocab_size},
                "image": {"image_size": 16, "patch_size": 8},
                "video": {"image_size": 16, "patch_size": 8},
                "audio": {"num_mel_bins": 8},
            },
            fusion={"type": "joint", "num_layers": self.num_hidden_layers},
            decoder={"vocab_size": self.vocab_size},
            projection_dim=self.hidden_size,
            is_encoder_decoder=False,
        )

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs |= {
            "pixel_values": floats_tensor([self.batch_size, 3, 16, 16]),
            "pixel_values_videos": floats_tensor([self.batch_size, 2, 3, 16, 16]),
            "input_features": floats_tensor([self.batch_size, 8, 12]),
        }
        return config, inputs


class CrossFuseEncoderTesterMixin(ModelTesterMixin):
    all_model_classes = (
        CrossFuseEncoderModel,
        CrossFuseForSequenceClassification,
        CrossFuseForTokenClassification,
    )
    _is_composite = True
    model_tester_class = None

    def setUp(self):
        self.model_tester = self.model_tester_class(self)

    test_sdpa_can_dispatch_all_parts = run_sdpa_dispatch


class CrossFuseTextEncoderTest(CrossFuseEncoderTesterMixin, unittest.TestCase):
    model_tester_class = EncoderTester


class CrossFuseFusedEncoderTest(CrossFuseEncoderTesterMixin, unittest.TestCase):
    model_tester_class = FusedEncoderTester
    additional_model_inputs = ("pixel_values", "pixel_values_videos", "input_features")


class CrossFuseRetrievalTest(CrossFuseEncoderTesterMixin, unittest.TestCase):
    model_tester_class = FusedEncoderTester
    all_model_classes = (CrossFuseForRetrieval,)
    additional_model_inputs = ("pixel_values", "pixel_values_videos", "input_features")

    @unittest.skip("Its outputs are vectors, as CLIP's; `test_get_*_features_attentions` test attentions")
    def test_attention_outputs(self):
        pass

    @unittest.skip("Its outputs are vectors, as CLIP's; `test_get_*_features_hidden_states` test hidden states")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("Its outputs are vectors, as CLIP's, without hidden states and attentions")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("It reads `config.text_config`; CrossFuse's modalities have names of the user's choice")
    def test_get_text_features_output_0(self):
        pass

    test_get_text_features_output_2 = test_get_text_features_output_0
