# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
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
from .configuration_encoders import (
    CrossFuseAudioConfig,
    CrossFuseImageConfig,
    CrossFuseSeriesConfig,
    CrossFuseTextConfig,
    CrossFuseVideoConfig,
    CrossFuseWrappedEncoderConfig,
)
from .configuration_modalities import CrossFuseModalitiesConfig
from .evaluation.pipeline import (
    AutoModelForCrossFuse,
    CrossFuseAudioClassificationPipeline,
    CrossFusePipeline,
    CrossFuseSpeechRecognitionPipeline,
)
from .extras import needs
from .feature_extraction_crossfuse import CrossFuseFeatureExtractor
from .fusion import CrossFuseFusion, Memory, Stream, register_fusion
from .heads import AUTO_CLASSES
from .hub import __version__, save_code
from .image_processing_crossfuse import CrossFuseVideoImageProcessor
from .modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseModel,
    CrossFusePreTrainedModel,
)
from .processing_crossfuse import CrossFuseProcessor
from .retrieval import CrossFuseForRetrieval


# What needs more than torch and transformers, or time to import, is loaded when first used: the file, and the extra of
# pyproject.toml that it may need.
_LAZY = {
    "CrossFuseDataCollator": ("data.collator", "train"),
    "CrossFuseExportedModel": ("export.exported_model", "export"),
    "CrossFuseTrainer": ("training.trainer", "train"),
    "Explanation": ("explanation.explanation", "explain"),
    "explain": ("explanation.explanation", "explain"),
    "export_model": ("export.graphs", "export"),
    "plot_explanation": ("explanation.plot", "explain"),
}

AutoConfig.register("crossfuse", CrossFuseConfig, exist_ok=True)
for name, models in AUTO_CLASSES.items():
    getattr(transformers, name).register(
        CrossFuseConfig, tuple(models) if len(models) > 1 else models[0], exist_ok=True
    )
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
# These do the same with the models of transformers, and make batches of our features, too.
PIPELINE_REGISTRY.supported_tasks["audio-classification"]["impl"] = CrossFuseAudioClassificationPipeline
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = CrossFuseSpeechRecognitionPipeline


def _write_card(model, folder, **settings):
    from .training.model_card import write_model_card

    return write_model_card(folder, model, **settings)


CrossFusePreTrainedModel.write_card = _write_card


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file, extra = _LAZY[name]
    try:
        return getattr(importlib.import_module(f".{file}", __name__), name)
    except ModuleNotFoundError as error:
        raise needs(f"`{name}` needs more than is installed ({error})", extra) from error


def __dir__() -> list[str]:
    return __all__


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
