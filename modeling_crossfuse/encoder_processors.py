# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer, image or video processor, or feature extractor that an encoder was trained with."""

import copy
import json
from typing import Any

import numpy as np
from PIL import Image
from transformers import (
    FEATURE_EXTRACTOR_MAPPING,
    IMAGE_PROCESSOR_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViTImageProcessorPil,
)
from transformers.utils import cached_file, is_torchvision_available

from .composition import SUB_PROCESSORS, EncoderSource, check_tokenizer, explain_loading
from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_search import infer_kind


_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# Tokenizers without a limit have a huge number here.
_NO_LIMIT = 1_000_000


def is_same(first: Any, second: Any) -> bool:
    """Whether two sub-processors do the same."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    return describe(first) == describe(second)


def pixel_values(output: Any) -> Any:
    """What an image or video processor gave: either may call it `pixel_values` or `pixel_values_videos`."""
    return output["pixel_values_videos" if "pixel_values_videos" in output else "pixel_values"]


def describe(sub_processor: Any) -> dict[str, Any]:
    """All that what a tokenizer, an image processor or a feature extractor gives depends on."""
    if not isinstance(sub_processor, PreTrainedTokenizerBase):
        return sub_processor.to_dict()
    described = {"vocabulary": sub_processor.get_vocab()}
    if sub_processor.is_fast:
        described = json.loads(sub_processor.backend_tokenizer.to_str())
        for key in ("padding", "truncation"):  # what the last call happened to ask for
            described.pop(key, None)
    sides = {"padding_side": sub_processor.padding_side, "truncation_side": sub_processor.truncation_side}
    return {**described, **sides, "class": type(sub_processor).__name__, **sub_processor.special_tokens_map}


def load_processor(
    source: EncoderSource, tokenizer: PreTrainedTokenizerBase | None, hub: dict[str, Any]
) -> dict[str, Any]:
    """
    The settings of a modality in a processor, its sub-processor among them.

    Args:
        source ([`EncoderSource`]): the modality and its encoder.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): for a text encoder that comes without one.
        hub (`dict`): arguments for loading.

    Raises:
        OSError: if nothing can be loaded.
        ValueError: if a tokenizer does not fit the encoder.
    """
    hub = {**hub, "revision": source.revision or "main"}
    config = _load_config(source, hub)
    kind = source.kind or infer_kind(_model_class(source, config), source.where)
    kinds = ("image", "video") if kind == "video" else (kind,)
    for part in source.processors:
        if SUB_PROCESSORS[part] not in kinds:
            raise ValueError(f"`encoders[{source.name!r}]` has a `{part}`, which is not for values of kind {kind!r}")
    settings = {"kind": kind, **source.processors}
    if kind == "text":
        return settings | _load_tokenizer(source, config, tokenizer, hub)
    load = {"image": _load_image_processor, "video": _load_video_processor, "audio": _load_feature_extractor}[kind]
    return {**load(source, config, hub), **settings}


def _model_class(source: EncoderSource, config: PreTrainedConfig) -> Any:
    if isinstance(source.encoder, PreTrainedModel):
        return source.encoder
    classes = MODEL_MAPPING.get(type(config), None)
    if classes is None:
        raise ValueError(
            f"{source.where} does not say what kind of values it is for; give "
            '`{"kind": ..., "encoder": ...}` with one of text, image, video, audio'
        )
    return classes[0] if isinstance(classes, tuple) else classes


def _load_config(source: EncoderSource, hub: dict[str, Any]) -> PreTrainedConfig:
    if not isinstance(source.encoder, str):
        return getattr(source.encoder, "config", source.encoder)
    try:
        return AutoConfig.from_pretrained(source.encoder, **hub)
    except (OSError, ValueError) as error:
        raise explain_loading(error, source.where) from error


def _load_tokenizer(
    source: EncoderSource, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, hub: dict[str, Any]
) -> dict[str, Any]:
    check_tokenizer(source.processors.get("tokenizer"))
    own = source.processors.get("tokenizer") or _find_tokenizer(source, hub) or tokenizer
    if own is None:
        raise ValueError(f"{source.where} comes without a tokenizer; give one as `tokenizer`")
    text_config = getattr(config, "text_config", None) or config.get_text_config(encoder=True)
    _check_vocabulary(own, getattr(text_config, "vocab_size", None), source.where)
    return {"tokenizer": own, **_length_limit(own)}


def _has_file(source: EncoderSource, name: str, hub: dict[str, Any]) -> bool:
    own = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    return cached_file(source.name_or_path, name, _raise_exceptions_for_missing_entries=False, **own) is not None


def _find_tokenizer(source: EncoderSource, hub: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    if source.name_or_path is None or not any(_has_file(source, name, hub) for name in _TOKENIZER_FILES):
        return None  # without its files, some classes are made with an empty vocabulary
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name_or_path, **hub)
    except (OSError, ValueError) as error:
        raise explain_loading(error, f"the tokenizer of {source.where}") from error
    _complete_special_tokens(tokenizer)
    return tokenizer


def _length_limit(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Longer texts are cut, as pipelines do, since the encoder has no positions for more."""
    return {"max_length": tokenizer.model_max_length} if tokenizer.model_max_length < _NO_LIMIT else {}


def _complete_special_tokens(tokenizer: PreTrainedTokenizerBase):
    """What answers need: some tokenizers end texts with a separator, or pad with the end."""
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, where: str):
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ValueError(
            f"`tokenizer` has {len(tokenizer)} tokens, and {where} knows only `vocab_size={vocab_size}`; expected the "
            "tokenizer that the encoder was trained with"
        )


def _load_image_processor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    # The same pictures give the same numbers whether torchvision is there or not.
    own = _load(AutoImageProcessor, IMAGE_PROCESSOR_MAPPING, source, config, {**hub, "backend": "pil"})
    if not _gives_pictures(own):
        return {"image_processor": _of_pictures(own, config)}
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if source.name_or_path is not None or not isinstance(size, int):
        return {"image_processor": own}
    sizes = ("size", "crop_size") if getattr(own, "do_center_crop", None) else ("size",)
    return {"image_processor": own, **{name: {"height": size, "width": size} for name in sizes}}


def _gives_pictures(image_processor: Any) -> bool:
    """Whether it leaves pictures whole; some cut them into patches, which is for the model here."""
    pixels = pixel_values(image_processor(Image.new("RGB", (64, 64)), return_tensors="np"))
    return np.ndim(pixels[0]) >= 3


def _gives_frames(video_processor: Any) -> bool:
    """Whether it leaves frames whole; some cut them into patches, which is for the model here."""
    frames = np.zeros((4, 3, 64, 64), dtype=np.uint8)
    pixels = pixel_values(video_processor([frames], do_sample_frames=False, return_tensors="pt"))
    return pixels[0].ndim == 4


def _of_pictures(image_processor: Any, config: PreTrainedConfig) -> ViTImageProcessorPil:
    """One that gives square pictures, with the same statistics, to an encoder that takes pictures of any size."""
    vision = CrossFuseWrappedEncoderConfig(
        kind="image", encoder=copy.deepcopy(getattr(config, "vision_config", config))
    )
    side = 16 * vision.patch_size * vision.spatial_merge_size
    return ViTImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=image_processor.image_mean,
        image_std=image_processor.image_std,
    )


def _load_video_processor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    number = next((getattr(config, name) for name in ("num_frames", "frames_per_clip") if hasattr(config, name)), None)
    frames = {} if number is None else {"num_frames": number}
    own = _find_video_processor(source, hub)
    if own is not None and _gives_frames(own):
        return {"video_processor": own, **frames}
    return {**_load_image_processor(source, config, hub), **frames}


def _find_video_processor(source: EncoderSource, hub: dict[str, Any]) -> Any:
    if source.name_or_path is None or not is_torchvision_available():
        return None
    try:
        return AutoVideoProcessor.from_pretrained(source.name_or_path, **hub)
    except (OSError, ValueError):  # an encoder of pictures, or an older one: its image processor does for frames
        return None


def _load_feature_extractor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    own = _load(AutoFeatureExtractor, FEATURE_EXTRACTOR_MAPPING, source, config, hub)
    bins = getattr(config, "num_mel_bins", None)
    if source.name_or_path is not None or bins is None or getattr(own, "feature_size", 1) in (1, bins):
        return {"feature_extractor": own}
    return {"feature_extractor": type(own)(**{**own.to_dict(), "feature_size": bins})}


def _load(auto_class, mapping, source: EncoderSource, config: PreTrainedConfig, options: dict[str, Any]) -> Any:
    """What was saved with the encoder or, for one that has not been saved, the default of its type."""
    if source.name_or_path is not None:
        try:
            return auto_class.from_pretrained(source.name_or_path, **options)
        except (OSError, ValueError) as error:
            raise OSError(f"{source.where}: no {auto_class.__name__[4:]} can be loaded: {_one_line(error)}") from error
    classes = mapping.get(type(config), None)
    if isinstance(classes, dict):  # of several backends
        classes = classes.get("pil") or classes.get("torchvision")
    if classes is None:
        name = "image_processor" if auto_class is AutoImageProcessor else "feature_extractor"
        raise ValueError(
            f"{source.where} comes without a processor, and its type has no default; give one as `{name}` in "
            f"`encoders[{source.name!r}]`"
        )
    return classes()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
