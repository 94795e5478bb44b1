# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The sub-processors of a CrossFuse processor, shared or a modality's own: which there are, and how they are saved."""

from typing import Any

import transformers
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, AutoVideoProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file, is_torchvision_available

from .configuration_modalities import check_modality_name
from .encoder_sources import SUB_PROCESSORS, parts_of_kind
from .feature_extraction_crossfuse import CrossFuseFeatureExtractor
from .hub import CodeToHubMixin
from .image_processing_crossfuse import CrossFuseVideoImageProcessor


# Those of CrossFuse are loaded by their classes, since where this code came with a model they are not registered.
_OWN_CLASSES = {
    "CrossFuseFeatureExtractor": CrossFuseFeatureExtractor,
    "CrossFuseVideoImageProcessor": CrossFuseVideoImageProcessor,
}
_AUTO_CLASSES = {
    "image_processor": AutoImageProcessor,
    "video_processor": AutoVideoProcessor,
    "feature_extractor": AutoFeatureExtractor,
}


class SubProcessorsMixin(CodeToHubMixin, ProcessorMixin):
    """
    A processor that has only those sub-processors that its modalities need: shared ones as attributes such as
    `tokenizer`, and a modality's own as attributes such as `wrist_tokenizer`.
    """

    modalities: dict[str, dict[str, Any]]

    def get_attributes(self=None) -> list[str]:
        """
        The names of the sub-processors. An instance answers with those that it has, which `ProcessorMixin` saves and
        prints. Of the class, transformers asks for the shared ones that there can be.
        """
        # Without torchvision, transformers can't load a video processor.
        shared = [name for name in SUB_PROCESSORS if name != "video_processor" or is_torchvision_available()]
        if self is None:
            return shared
        own = [f"{name}_{part}" for name in self.modalities for part in SUB_PROCESSORS]
        return [name for name in shared + own if hasattr(self, name)]

    def set_sub_processor(self, name: str, sub_processor: Any):
        """Sets the attribute of that name, unless the sub-processor is None."""
        if sub_processor is not None:
            self.check_argument_for_proper_class(name, sub_processor)
            setattr(self, name, sub_processor)

    def __getattr__(self, name: str):
        hint = ""
        if name == "tokenizer":
            hint = ". (Trainer asks its `processing_class` for one; CrossFuseTrainer takes a processor without, too.)"
        raise AttributeError(f"this {type(self).__name__} has no `{name}`{hint}")

    def sub_processor(self, name: str, part: str) -> Any:
        """The sub-processor for a modality: its own, the shared one, or None."""
        return getattr(self, f"{name}_{part}", getattr(self, part, None))

    def sub_processors_of(self, name: str) -> dict[str, Any]:
        """What a modality's kind is processed by, such as `tokenizer`, and the sub-processor or None for each."""
        return {part: self.sub_processor(name, part) for part in parts_of_kind(self.modalities[name]["kind"])}

    def to_dict(self) -> dict[str, Any]:
        """As in any processor; `modalities` is a list, since JSON files with sorted keys lose a dict's order."""
        output = super().to_dict()
        for settings in (output, *(part for part in output.values() if isinstance(part, dict))):
            settings.pop("auto_map", None)  # `save_code` writes it, and the code that it leads to
        output["modalities"] = [
            {"name": name, **settings, **self._own_to_dict(name)} for name, settings in output["modalities"].items()
        ]
        return output

    def _own_to_dict(self, name: str) -> dict[str, Any]:
        """A modality's own sub-processors, as they are saved; tokenizers have folders of their own."""
        own = {part: getattr(self, f"{name}_{part}", None) for part in SUB_PROCESSORS if part != "tokenizer"}
        return {part: sub_processor.to_dict() for part, sub_processor in own.items() if sub_processor is not None}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs) -> list[Any]:
        """The shared sub-processors that were saved, in the order of `__init__`, and None for the others."""
        source, saved = pretrained_model_name_or_path, processor_dict or {}
        if not saved.get("modalities"):
            raise OSError(
                f"there is no CrossFuse processor in {source}: it has no processor_config.json with modalities. Make "
                "one with `CrossFuseProcessor.from_config(config, ...)`, and save it there"
            )
        subfolder = kwargs.pop("subfolder", "")
        shared = dict.fromkeys(SUB_PROCESSORS)
        shared["tokenizer"] = _find_tokenizer(source, subfolder, kwargs)
        for part in set(_AUTO_CLASSES) & set(saved):
            shared[part] = _load_shared(part, saved[part], source, subfolder=subfolder, **kwargs)
        for settings in saved["modalities"]:
            check_modality_name(settings.get("name"))  # it becomes part of a path
            if settings.get("kind") == "text":
                folder = f"{subfolder}/{settings['name']}_tokenizer".lstrip("/")
                settings["tokenizer"] = _find_tokenizer(source, folder, kwargs)
            for part in _AUTO_CLASSES:
                if isinstance(settings.get(part), dict):
                    settings[part] = cls._build_own(part, settings[part])
        return list(shared.values())

    @classmethod
    def _build_own(cls, part: str, settings: dict[str, Any]) -> Any:
        """A modality's own sub-processor, from what was saved of it."""
        name = settings.get(f"{part}_type", "")
        if name in _OWN_CLASSES:
            return _OWN_CLASSES[name](**settings)
        # The same images give the same numbers whether torchvision is there or not.
        if part == "image_processor" and hasattr(transformers, f"{name}Pil"):
            name = f"{name}Pil"
        return cls.get_possibly_dynamic_module(name)(**settings)


def _load_shared(part: str, settings: dict[str, Any], source: str, **kwargs) -> Any:
    loader = _OWN_CLASSES.get(settings.get(f"{part}_type"), _AUTO_CLASSES[part])
    # The same images give the same numbers whether torchvision is there or not.
    backend = {"backend": "pil"} if loader is AutoImageProcessor else {}
    return loader.from_pretrained(source, **{**backend, **kwargs})


def _find_tokenizer(source: str, subfolder: str, kwargs: dict[str, Any]) -> Any:
    """The tokenizer saved in a folder, or None if there is none."""
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
    found = cached_file(
        source,
        "tokenizer_config.json",
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        **{key: kwargs[key] for key in hub if kwargs.get(key) is not None},
    )
    return None if found is None else AutoTokenizer.from_pretrained(source, subfolder=subfolder, **kwargs)
