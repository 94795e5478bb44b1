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
"""The tokenizer, image or video processor, or feature extractor that an encoder was trained with."""

import os
from typing import Any

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
    PreTrainedTokenizerBase,
)
from transformers.utils import is_torchvision_available

from .composition import EncoderSource, explain_loading
from .encoder_search import infer_kind


# Tokenizers without a limit have a huge number here.
_NO_LIMIT = 1_000_000


def is_same(first: Any, second: Any) -> bool:
    """Whether two sub-processors do the same."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, PreTrainedTokenizerBase):
        return first.get_vocab() == second.get_vocab() and first.special_tokens_map == second.special_tokens_map
    return first.to_dict() == second.to_dict()


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
    kind = source.kind or infer_kind(MODEL_MAPPING[type(config)], source.where)
    settings = {"kind": kind, **source.processors}
    if kind == "text":
        return settings | _load_tokenizer(source, config, tokenizer, hub)
    load = {"image": _load_image_processor, "video": _load_video_processor, "audio": _load_feature_extractor}[kind]
    return {**load(source, config, hub), **settings}


def _load_config(source: EncoderSource, hub: dict[str, Any]) -> PreTrainedConfig:
    if not isinstance(source.encoder, str):
        return getattr(source.encoder, "config", source.encoder)
    if os.path.isabs(source.encoder) and not os.path.exists(source.encoder):
        raise OSError(f"{source.where}: there is no such folder")
    try:
        return AutoConfig.from_pretrained(source.encoder, **hub)
    except (OSError, ValueError) as error:
        raise explain_loading(error, source.where) from error


def _load_tokenizer(
    source: EncoderSource, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, hub: dict[str, Any]
) -> dict[str, Any]:
    own = source.processors.get("tokenizer")
    if own is None and source.name_or_path is not None:
        try:
            own = AutoTokenizer.from_pretrained(source.name_or_path, **hub)
        except (OSError, ValueError) as error:
            if tokenizer is None:
                raise OSError(f"{source.where} comes without a tokenizer; give one as `tokenizer`") from error
        else:
            _complete_special_tokens(own)
            return {"tokenizer": own, **_length_limit(own)}
    own = tokenizer if own is None else own
    if own is None:
        raise ValueError(f"{source.where} comes without a tokenizer; give one as `tokenizer`")
    _check_vocabulary(own, config, source.where)
    return {"tokenizer": own, **_length_limit(own)}


def _length_limit(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Longer texts are cut, as pipelines do, since the encoder has no positions for more."""
    return {"max_length": tokenizer.model_max_length} if tokenizer.model_max_length < _NO_LIMIT else {}


def _complete_special_tokens(tokenizer: PreTrainedTokenizerBase):
    """What answers need: some tokenizers end texts with a separator, or pad with the end."""
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, where: str):
    vocab_size = getattr(config.get_text_config(encoder=True), "vocab_size", None)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ValueError(
            f"`tokenizer` has {len(tokenizer)} tokens, and {where} knows only `vocab_size={vocab_size}`; expected the "
            "tokenizer that the encoder was trained with"
        )
    pad, expected = tokenizer.pad_token_id, getattr(config.get_text_config(encoder=True), "pad_token_id", None)
    if None not in (pad, expected) and pad != expected:
        raise ValueError(
            f"`tokenizer` pads with token {pad}, and {where} with `pad_token_id={expected}`; expected the tokenizer "
            "that the encoder was trained with"
        )


def _load_image_processor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    # The same pictures give the same numbers whether torchvision is there or not.
    own = _load(AutoImageProcessor, IMAGE_PROCESSOR_MAPPING, source, config, {**hub, "backend": "pil"})
    size = getattr(config, "image_size", None)
    if source.name_or_path is not None or not isinstance(size, int):
        return {"image_processor": own}
    return {"image_processor": own, "size": {"height": size, "width": size}}


def _load_video_processor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    number = next((getattr(config, name) for name in ("num_frames", "frames_per_clip") if hasattr(config, name)), None)
    frames = {} if number is None else {"num_frames": number}
    if is_torchvision_available() and source.name_or_path is not None:
        try:
            return {"video_processor": AutoVideoProcessor.from_pretrained(source.name_or_path, **hub), **frames}
        except (OSError, ValueError):  # an encoder of pictures, or an older one: its image processor does for frames
            pass
    return {**_load_image_processor(source, config, hub), **frames}


def _load_feature_extractor(source: EncoderSource, config: PreTrainedConfig, hub: dict[str, Any]) -> dict[str, Any]:
    return {"feature_extractor": _load(AutoFeatureExtractor, FEATURE_EXTRACTOR_MAPPING, source, config, hub)}


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
