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
"""CrossFuse: any mix of text, images, video, audio and series, fused by one Transformer encoder-decoder."""

import importlib

from . import messages  # noqa: F401  before transformers imports what speaks


# isort: split
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY

from .classification import CrossFuseForSequenceClassification, CrossFuseForTokenClassification
from .configuration_crossfuse import CrossFuseConfig, CrossFuseDecoderConfig, CrossFuseFusionConfig
from .configuration_modalities import (
    CrossFuseAudioConfig,
    CrossFuseImageConfig,
    CrossFuseModalitiesConfig,
    CrossFuseSeriesConfig,
    CrossFuseTextConfig,
    CrossFuseVideoConfig,
    CrossFuseWrappedEncoderConfig,
)
from .feature_extraction_crossfuse import CrossFuseFeatureExtractor
from .fusion import CrossFuseFusion, Memory, Stream, register_fusion
from .hub import __version__, model_classes, save_code
from .image_processing_crossfuse import CrossFuseVideoImageProcessor
from .modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseModel,
    CrossFusePreTrainedModel,
)
from .pipelines import AutoModelForCrossFuse, CrossFusePipeline
from .processing_crossfuse import CrossFuseProcessor
from .retrieval import CrossFuseForRetrieval


# What needs more than torch and transformers, or time to import, is loaded when first used.
_LAZY = {
    "CrossFuseDataCollator": "data",
    "CrossFuseExportedModel": "exported",
    "CrossFuseTrainer": "training",
    "Explanation": "explanation",
    "explain": "explanation",
    "export_model": "exporting",
    "plot_explanation": "plotting_explanation",
}

AutoConfig.register("crossfuse", CrossFuseConfig, exist_ok=True)
for name, classes in model_classes().items():
    getattr(transformers, name).register(CrossFuseConfig, classes if len(classes) > 1 else classes[0], exist_ok=True)
AutoFeatureExtractor.register(CrossFuseConfig, CrossFuseFeatureExtractor, exist_ok=True)
AutoImageProcessor.register(
    CrossFuseConfig,
    image_processor_classes={"pil": CrossFuseVideoImageProcessor, "torchvision": CrossFuseVideoImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(CrossFuseConfig, CrossFuseProcessor, exist_ok=True)
# The pipeline `automatic-speech-recognition` asks this table, which `register` does not write to, by class name.
MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES["crossfuse"] = CrossFuseForSpeechSeq2Seq.__name__
PIPELINE_REGISTRY.register_pipeline(
    "crossfuse", pipeline_class=CrossFusePipeline, pt_model=AutoModelForCrossFuse, type="multimodal"
)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CrossFuseAudioConfig",
    "CrossFuseConfig",
    "CrossFuseDataCollator",
    "CrossFuseDecoderConfig",
    "CrossFuseEncoderModel",
    "CrossFuseExportedModel",
    "CrossFuseFeatureExtractor",
    "CrossFuseForConditionalGeneration",
    "CrossFuseForRetrieval",
    "CrossFuseForSequenceClassification",
    "CrossFuseForSpeechSeq2Seq",
    "CrossFuseForTokenClassification",
    "CrossFuseFusion",
    "CrossFuseFusionConfig",
    "CrossFuseImageConfig",
    "CrossFuseModalitiesConfig",
    "CrossFuseModel",
    "CrossFusePipeline",
    "CrossFusePreTrainedModel",
    "CrossFuseProcessor",
    "CrossFuseSeriesConfig",
    "CrossFuseTextConfig",
    "CrossFuseTrainer",
    "CrossFuseVideoConfig",
    "CrossFuseVideoImageProcessor",
    "CrossFuseWrappedEncoderConfig",
    "Explanation",
    "Memory",
    "Stream",
    "__version__",
    "explain",
    "export_model",
    "plot_explanation",
    "register_fusion",
    "save_code",
]
