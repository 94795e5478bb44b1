# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer, image or video processor, or feature extractor that an encoder was trained with."""

import contextlib
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

from .configuration_encoders import CrossFuseWrappedEncoderConfig
from .encoder_search import infer_kind
from .encoder_sources import EncoderSource, check_tokenizer, parts_of_kind
from .loading import explain_loading


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
    return first is second or (type(first) is type(second) and describe(first) == describe(second))


def pixel_values(output: Any) -> Any:
    """What an image or video processor gave: either may call it `pixel_values` or `pixel_values_videos`."""
    return output["pixel_values_videos" if "pixel_values_videos" in output else "pixel_values"]


def describe(sub_processor: Any) -> dict[str, Any]:
    """The settings that determine what a tokenizer, an image processor or a feature extractor returns."""
    if not isinstance(sub_processor, PreTrainedTokenizerBase):
        return sub_processor.to_dict()
    described = {"vocabulary": sub_processor.get_vocab()}
    if sub_processor.is_fast:
        described = json.loads(sub_processor.backend_tokenizer.to_str())
        for key in ("padding", "truncation"):  # what the last call happened to ask for
            described.pop(key, None)
    settings = ("padding_side", "truncation_side", "split_special_tokens")
    described |= {name: getattr(sub_processor, name) for name in settings}
    return {**described, "class": type(sub_processor).__name__, **sub_processor.special_tokens_map}


def load_processor(
    source: EncoderSource, tokenizer: PreTrainedTokenizerBase | None, hub: dict[str, Any]
) -> dict[str, Any]:
    """
    The settings of a modality in a processor, its sub-processor among them. `tokenizer` is for a text encoder that
    comes without one, and `hub` has the arguments for loading.

    Raises:
        OSError: if nothing can be loaded.
        ValueError: if a sub-processor does not fit the encoder.
    """
    hub = {**hub, "revision": source.revision or "main"}
    config = _load_config(source, hub)
    kind = source.kind or infer_kind(_model_or_class(source, config), source.where)
    for part in source.processors:
        if part not in parts_of_kind(kind):
            raise ValueError(f"`encoders[{source.name!r}]` has a `{part}`, which is not for values of kind {kind!r}")
    if kind == "text":
        found = _load_tokenizer(source, config, tokenizer, hub)
    else:
        load = {"image": _load_image_processor, "video": _load_video_processor, "audio": _load_feature_extractor}[kind]
        found = load(source, config, hub)
    return {"kind": kind, **found, **source.processors}


def _model_or_class(source: EncoderSource, config: PreTrainedConfig) -> Any:
    classes = source.encoder if isinstance(source.encoder, PreTrainedModel) else MODEL_MAPPING.get(type(config), None)
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
    vocab_size = getattr(text_config, "vocab_size", None)
    if vocab_size is not None and len(own) > vocab_size:
        raise ValueError(
            f"`tokenizer` has {len(own)} tokens, and {source.where} knows only `vocab_size={vocab_size}`; expected "
            "the tokenizer that the encoder was trained with"
        )
    # Longer texts are cut, as pipelines do, since the encoder has no positions for more.
    limit = min(own.model_max_length, getattr(text_config, "max_position_embeddings", None) or _NO_LIMIT)
    return {"tokenizer": own, **({"max_length": limit} if limit < _NO_LIMIT else {})}


def _find_tokenizer(source: EncoderSource, hub: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    name, files = source.name_or_path, {key: value for key, value in hub.items() if key != "trust_remote_code"}
    files["_raise_exceptions_for_missing_entries"] = False
    if name is None or not any(cached_file(name, file, **files) for file in _TOKENIZER_FILES):
        return None  # without its files, some classes are made with an empty vocabulary
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise explain_loading(error, f"the tokenizer of {source.where}") from error
    # Answers need both: some tokenizers end texts with a separator, or pad with the end.
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_image_processor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    # The same images give the same numbers whether torchvision is there or not.
    own = _load("image_processor", AutoImageProcessor, source, config, {**hub, "backend": "pil"})
    if np.ndim(pixel_values(own(Image.new("RGB", (64, 64)), return_tensors="np"))[0]) < 3:  # cut into patches
        return {"image_processor": _without_patches(own, config)}
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if source.name_or_path is not None or not isinstance(size, int):
        return {"image_processor": own}
    sizes = ("size", "crop_size") if getattr(own, "do_center_crop", None) else ("size",)
    return {"image_processor": own, **{name: {"height": size, "width": size} for name in sizes}}


def _without_patches(image_processor: Any, config: PreTrainedConfig) -> ViTImageProcessorPil:
    """One that gives whole square images with the same statistics, since here the model cuts them into patches."""
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
    own = source.processors.get("video_processor")
    if own is None and source.name_or_path is not None and is_torchvision_available():
        # An encoder of images, or an older one, has none: its image processor does for frames.
        with contextlib.suppress(OSError, ValueError):
            own = AutoVideoProcessor.from_pretrained(source.name_or_path, **hub)
    if own is not None:
        video = np.zeros((4, 3, 64, 64), dtype=np.uint8)
        if pixel_values(own([video], do_sample_frames=False, return_tensors="pt"))[0].ndim == 4:  # not patches
            return {"video_processor": own, **frames}
    return {**_load_image_processor(source, config, hub), **frames}


def _load_feature_extractor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    own = _load("feature_extractor", AutoFeatureExtractor, source, config, hub)
    bins = getattr(config, "num_mel_bins", None)
    if source.name_or_path is not None or bins is None or getattr(own, "feature_size", 1) in (1, bins):
        return {"feature_extractor": own}
    return {"feature_extractor": type(own)(**{**own.to_dict(), "feature_size": bins})}


def _load(name: str, auto_class: Any, source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> Any:
    """The given one, what was saved with the encoder or, for one that has not been saved, the default of its type."""
    if source.processors.get(name) is not None:
        return source.processors[name]
    if source.name_or_path is not None:
        try:
            return auto_class.from_pretrained(source.name_or_path, **hub)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise OSError(f"{source.where}: no {auto_class.__name__[4:]} can be loaded: {reason}") from error
    mapping = IMAGE_PROCESSOR_MAPPING if name == "image_processor" else FEATURE_EXTRACTOR_MAPPING
    classes = mapping.get(type(config), None)
    if isinstance(classes, dict):  # of several backends
        classes = classes.get("pil") or classes.get("torchvision")
    if classes is None:
        raise ValueError(
            f"{source.where} comes without a processor, and its type has no default; give one as `{name}` in "
            f"`encoders[{source.name!r}]`"
        )
    return classes()
