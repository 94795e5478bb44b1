# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""From raw samples (text, images, videos, audio, series) to the tensors of a CrossFuse model."""

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from transformers import ViTImageProcessorPil
from transformers.audio_utils import AudioInput
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput

from .configuration_crossfuse import CrossFuseConfig
from .configuration_layers import close_match
from .configuration_modalities import TensorNames, tensor_names
from .encoder_processors import is_same, load_processor
from .encoder_sources import (
    HUB_ARGUMENTS,
    SUB_PROCESSORS,
    check_special_tokens,
    check_tokenizer,
    parts_of_kind,
    read_encoders,
)
from .feature_extraction_crossfuse import CrossFuseFeatureExtractor
from .image_processing_crossfuse import CrossFuseVideoImageProcessor
from .media import as_batch, is_list, is_missing, load_series, unique_names
from .processing_options import ALIASES, KWARGS_NAMES, OPTIONS, check_settings, options_of, take_options
from .processing_tensors import convert_tensors, make_tensors, placeholder, say_once, spread_rows
from .sub_processors import SubProcessorsMixin


class CrossFuseProcessor(SubProcessorsMixin):
    r"""
    Turns raw samples of any mix of modalities into the tensors of a CrossFuse model.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): for modalities of kind `text`, and for the answers.
        image_processor ([`BaseImageProcessor`], *optional*): for images and, without a `video_processor`, for the
            frames of videos.
        video_processor ([`BaseVideoProcessor`], *optional*): for videos; needs torchvision.
        feature_extractor ([`SequenceFeatureExtractor`], *optional*): for audio.
        modalities (`dict[str, dict]`, *optional*): name of each modality to its settings, in the order of
            `config.modalities`. `kind` may be left out if the name is the kind. Other settings win over those of the
            shared sub-processor: for `text`, `max_length` and other options of a tokenizer's call; for `image` and
            `video`, `num_channels`, `size` and other options of the image processor, and a video's `num_frames`; for
            `audio`, `feature_size`, `sampling_rate` (of arrays that do not say theirs), `max_seconds` and `max_length`
            (in frames, or what the feature extractor counts); for `series`, `num_channels`, `mean`, `std` and
            `max_length` (in steps). What is cut is said once for each modality. For an encoder that reads a window,
            such as Whisper's of 30 s, `max_seconds` may be more, or `truncation=False` leave clips as they are: then
            the model joins what the encoder makes of each window. A modality may have a `tokenizer`, an
            `image_processor`, a `video_processor` or a `feature_extractor` of its own, too, which becomes the
            attribute `<name>_tokenizer` and so on. Defaults to one modality for each sub-processor.
        chat_template (`str`, *optional*): kept and saved, as in any processor.

    Raises:
        ValueError: if a modality's name, kind or setting is unknown; the message names it and what is allowed.

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseProcessor

    >>> config = CrossFuseConfig(
    ...     modalities={
    ...         "image": {"image_size": 32, "patch_size": 8},
    ...         "audio": {"num_mel_bins": 40},
    ...         "wrist": {"kind": "series", "num_channels": 2},
    ...     }
    ... )
    >>> processor = CrossFuseProcessor.from_config(config)
    >>> batch = processor(
    ...     image=[Image.new("RGB", (100, 80)), None],  # the second sample has no image
    ...     wrist=[np.zeros((5, 2)), np.zeros((3, 2))],
    ...     return_tensors="pt",
    ... )
    >>> batch["pixel_values"].shape, batch["wrist_values"].shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 5, 2]))
    >>> batch["modality_mask"]  # image, audio, wrist
    tensor([[1, 0, 1],
            [0, 0, 1]])
    ```
    """

    # Tokenizers do not pad unless told to, but a batch of tensors must be.
    text_kwargs = {"padding": True}

    def __init__(
        self,
        tokenizer=None,
        image_processor=None,
        video_processor=None,
        feature_extractor=None,
        modalities: dict[str, dict] | list[dict] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ):
        for name, sub_processor in zip(
            SUB_PROCESSORS, (tokenizer, image_processor, video_processor, feature_extractor)
        ):
            self.set_sub_processor(name, sub_processor)
        self.chat_template = chat_template
        if modalities is None:
            modalities = {kind: {} for name, kind in SUB_PROCESSORS.items() if hasattr(self, name)}
        if isinstance(modalities, list):  # as saved: JSON with sorted keys would lose a dict's order
            modalities = {
                settings["name"]: {key: value for key, value in settings.items() if key != "name"}
                for settings in modalities
            }
        self.modalities = {name: self._read_settings(name, settings) for name, settings in modalities.items()}

    def _read_settings(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """A modality's settings, checked. Its own sub-processors become attributes."""
        settings = {"kind": name, **settings}
        if settings["kind"] not in OPTIONS:
            raise ValueError(
                f"`modalities[{name!r}]` has `kind={settings['kind']!r}`; expected one of {', '.join(OPTIONS)}"
            )
        for part in parts_of_kind(settings["kind"]):
            self.set_sub_processor(f"{name}_{part}", settings.pop(part, None))
        settings = copy.deepcopy(settings)
        check_settings(name, settings, self.sub_processor(name, "image_processor"))
        return settings

    @classmethod
    def from_config(cls, config: CrossFuseConfig, tokenizer=None) -> "CrossFuseProcessor":
        """
        A processor whose tensors fit a model of this config.

        Images and frames are resized to `image_size` and scaled to [-1, 1]; audio becomes log-mel frames of 10 ms at
        16 kHz. Sub-processors are made for the kinds that the config has.

        Args:
            config ([`CrossFuseConfig`]): the model's config.
            tokenizer ([`PreTrainedTokenizerBase`], *optional*): for texts and answers.

        Raises:
            ValueError: if a modality has an encoder of transformers: [`~CrossFuseProcessor.from_encoders`] finds the
                processor that it was trained with; or if the tokenizer's special tokens are not those of the config.
        """
        check_special_tokens(tokenizer, config)
        shared, modalities = {}, {}
        for name, part in config.modalities.items():
            if part.is_wrapped:
                raise ValueError(
                    f"`modalities[{name!r}]` has the encoder {part.architecture or type(part.encoder).__name__} of "
                    "transformers; make its processor by `CrossFuseProcessor.from_encoders`"
                )
            own = _fitting_settings(part)
            # The first modality's are shared. Others have what differs in their settings.
            first = shared.setdefault("audio" if part.kind == "audio" else "image", own) if own else {}
            modalities[name] = {
                "kind": part.kind,
                **{key: getattr(part, key) for key in ("num_channels", "num_frames") if hasattr(part, key)},
                **{key: value for key, value in own.items() if value != first[key]},
            }
        has_images = bool(config.modalities.names_of_kind("image"))
        image_class = ViTImageProcessorPil if has_images else CrossFuseVideoImageProcessor
        return cls(
            tokenizer=tokenizer,
            image_processor=image_class(**shared["image"]) if "image" in shared else None,
            feature_extractor=CrossFuseFeatureExtractor(**shared["audio"]) if "audio" in shared else None,
            modalities=modalities,
        )

    @classmethod
    def from_encoders(
        cls, encoders: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None = None, **kwargs
    ) -> "CrossFuseProcessor":
        r"""
        A processor whose tensors fit a model of the same `encoders`: each modality gets the tokenizer, image or video
        processor, or feature extractor that its encoder was trained with.

        Args:
            encoders (`dict[str, Any]`): as in [`~CrossFuseForConditionalGeneration.from_encoders`]. Models and configs
                stand for the place that they were loaded from; one that was not loaded gets the default processor of
                its type. A dict of settings may have the modality's own `tokenizer`, `image_processor`,
                `video_processor` or `feature_extractor`.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): for answers, and for texts whose encoder comes without
                one. Defaults to the first text encoder's.
            kwargs: `cache_dir`, `force_download`, `local_files_only`, `proxies`, `token` and `trust_remote_code`.

        Raises:
            ValueError: if a tokenizer does not fit its encoder's vocabulary, or an argument can't be used.
            OSError: if an id or a folder does not exist, or has no processor for the modality.

        Example:

        ```python
        >>> from PIL import Image
        >>> from transformers import ViTConfig
        >>> from modeling_crossfuse import CrossFuseProcessor

        >>> processor = CrossFuseProcessor.from_encoders(
        ...     {"image": ViTConfig(), "wrist": {"kind": "series", "num_channels": 2}}
        ... )
        >>> processor(image=Image.new("RGB", (300, 200)), return_tensors="pt")["pixel_values"].shape
        torch.Size([1, 3, 224, 224])
        ```
        """
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        if kwargs:
            raise TypeError(f"from_encoders() got an unexpected argument {next(iter(kwargs))!r}")
        check_tokenizer(tokenizer)
        sources = {source.name: source for source in read_encoders(encoders)}
        built_in = {name: source.modality for name, source in sources.items() if source.encoder is None}
        base = cls.from_config(CrossFuseConfig(modalities=built_in)) if built_in else cls(modalities={})
        modalities = {
            name: {**base.modalities[name], **source.processors}
            if name in built_in
            else load_processor(source, tokenizer, hub)
            for name, source in sources.items()
        }
        shared = {part: getattr(base, part) for part in SUB_PROCESSORS if hasattr(base, part)}
        if tokenizer is not None:
            shared["tokenizer"] = tokenizer
        for settings in modalities.values():
            for part in set(settings) & set(SUB_PROCESSORS):
                # The first of its sort is for all that have none of their own.
                if is_same(shared.setdefault(part, settings[part]), settings[part]):
                    del settings[part]
        return cls(**shared, modalities=modalities)

    def fit_modalities(self, config: CrossFuseConfig) -> "CrossFuseProcessor":
        """
        Takes the modalities of a model's config, in its order, which is that of `modality_mask`. What the processor
        has of them stays as it is; what is new becomes what [`~CrossFuseProcessor.from_config`] makes of it.

        Args:
            config ([`CrossFuseConfig`]): the model's config, such as one with a modality more than the processor has.

        Returns:
            [`CrossFuseProcessor`]: itself.

        Raises:
            ValueError: as [`~CrossFuseProcessor.from_config`] does.
        """
        kinds = {name: settings["kind"] for name, settings in self.modalities.items()}
        new = {name: part for name, part in config.modalities.items() if kinds.get(name) != part.kind}
        made = type(self).from_config(CrossFuseConfig(modalities=new)) if new else self
        for name in new:
            for part, sub_processor in made.sub_processors_of(name).items():
                self.set_sub_processor(f"{name}_{part}", sub_processor)
        self.modalities = {name: (made if name in new else self).modalities[name] for name in config.modalities}
        return self

    def fit_series(self, name: str, values: Iterable[Any]) -> "CrossFuseProcessor":
        """
        Computes the mean and standard deviation of a series' channels over training data; from then on the processor
        normalises by them, and saves them.

        Args:
            name (`str`): a modality of kind `series`.
            values (iterable of arrays of shape `(steps, channels)`): one array per sample; `None` for a missing one.

        Returns:
            [`CrossFuseProcessor`]: itself.
        """
        names = self._names_of_kind("series")
        if name not in names:
            raise ValueError(
                f"{name!r} is not a modality of kind 'series'; expected one of {', '.join(names) or 'none'}"
            )
        num_channels = self.modalities[name].get("num_channels", 1)
        count, mean, squares = 0, np.zeros(num_channels), np.zeros(num_channels)
        for index, sample in enumerate(values):
            if is_missing(sample):
                continue
            steps = load_series(f"`{name}` of sample {index}", sample, num_channels)
            # The sums are updated sample by sample (Chan et al., 1979), since differences of big sums lose digits.
            total = count + len(steps)
            delta = steps.mean(0) - mean
            squares += ((steps - steps.mean(0)) ** 2).sum(0) + delta**2 * count * len(steps) / total
            mean += delta * len(steps) / total
            count = total
        if count == 0:
            raise ValueError(f"`values` has no sample of `{name}`")
        std = np.sqrt(squares / count)
        # A channel that never changes is only shifted.
        self.modalities[name] |= {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}
        return self

    def set_max_lengths(self, max_lengths: dict[str, float]) -> "CrossFuseProcessor":
        """
        Sets how much of a sample is read; from then on the processor cuts what is longer, and saves the limits.

        Args:
            max_lengths (`dict[str, float]`): name of a modality to its limit: tokens of a text, seconds of audio, or
                steps of a series.

        Returns:
            [`CrossFuseProcessor`]: itself.

        Raises:
            ValueError: if there is no such modality, it has no length, or the limit is none.
        """
        changed = {}
        for argument, limit in max_lengths.items():
            name = self.modality_of(argument)
            settings = dict(self.modalities[name])
            if settings["kind"] in ("image", "video"):
                raise ValueError(f"`max_lengths` has {name!r}, whose kind {settings['kind']!r} has no length")
            if settings["kind"] == "audio":
                settings.pop("max_length", None)  # the same limit, in other units
            settings["max_seconds" if settings["kind"] == "audio" else "max_length"] = limit
            check_settings(name, settings, None)
            changed[name] = settings
        self.modalities |= changed
        return self

    def _names_of_kind(self, kind: str | None) -> list[str]:
        return [name for name, settings in self.modalities.items() if settings["kind"] == kind]

    def _model_arguments(self, name: str) -> TensorNames:
        """The arguments of the model for a modality. The encoder and its feature extractor call audio by one name."""
        extractor = self.sub_processor(name, "feature_extractor")
        values_argument = None if extractor is None else extractor.model_input_names[0]
        return tensor_names(name, self.modalities[name]["kind"], values_argument)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call can give."""
        names = [self._model_arguments(name) for name in self.modalities]
        return [name for own in names for name in (own.values, own.mask)] + ["modality_mask"]

    def __call__(
        self,
        text: TextInput | list[TextInput | None] | None = None,
        images: ImageInput | list | None = None,
        audio: AudioInput | list | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        Processes a batch, or one sample.

        Each modality is given under its own name: `processor(text=[...], image=[...], wrist=[...])`. `images`,
        `videos`, `audio` and `text` also stand for the only modality of their kind. A list is a batch, with `None` for
        each sample that lacks the modality (or NaN, `pandas.NA`, a null of Arrow); anything else is one sample. Nested
        lists of numbers are read as the array that they make, unless their outer list is given with `sample_names` or
        for a series: then it is a batch, too.

        A file is a path, bytes, a dict of `bytes` or `path`, an open file, an address (`https://...`), a data URL, or
        base64. Arrays with values that are missing (masked, `None`, NaN) are refused.

        For `Dataset.map(processor, batched=True)` of `datasets`, whose columns have the names of modalities, the first
        argument may be a dict of all of them.

        Args:
            text (`str` or list of `str`): texts.
            images (image, or list of images or of lists of images): an image is a PIL image, a file, or an array
                `(height, width)`, `(channels, height, width)` or `(height, width, channels)` of uint8, of int64 from 0
                to 255, of floats from 0 to 1 or 0 to 255, or of booleans for black and white. The option
                `input_data_format` (`"channels_first"` or `"channels_last"`) says which, where a shape could be both.
                Floats go to 1 in all images of a sample or in none. Transparent pixels become white. With lists of
                images as samples, `pixel_values` are `(batch, images, channels, height, width)`.
            audio (clip or list of clips): a clip is an array `(samples,)` of floats from -1 to 1 or of int16, an array
                with a second axis for several channels, which are averaged, a dict of `array` (or `raw`) and
                `sampling_rate`, torchcodec's `AudioDecoder`, or a file. Files are read by soundfile; formats that it
                doesn't know, such as m4a, webm and the sound of videos, by PyAV. It is resampled to what the model
                expects. The option `sampling_rate` says that of arrays.
            kwargs:
                modalities by name. Videos are lists of frames, arrays of four axes, of which the first has the frames,
                torchcodec's `VideoDecoder`, or files, read by PyAV: of the main stream, upright, in the order of time.
                Of more frames than `num_frames`, those are taken that are evenly spread over the video's time, or, if
                it has no times, over its frames. Pixels that are not square stay as they are. Series are arrays
                `(steps, channels)`, `(steps,)` for one channel or `(channels,)` for one step.
                Options: `return_tensors` (`"pt"`, `"np"`, or `None` for lists of tokens and NumPy arrays), `padding`,
                `truncation`, `max_length` (of tokens), `sampling_rate` (hertz), those of the image processor,
                `text_kwargs`, `images_kwargs`, `videos_kwargs`, `audio_kwargs`, `common_kwargs`, `sample_names` (list
                of `str`: what errors call the samples of the lists, such as `"row 107"`, instead of `"sample 0"` and
                so on), and `all_modalities` (`bool`, by default `False`: whether a modality that no sample of the
                batch has gets tensors, too, whose mask is 0, so that all batches have the same ones).

        Returns:
            [`BatchFeature`]: values and mask of each modality that at least one sample has, or of all with
            `all_modalities`, and `modality_mask` of shape `(batch, num_modalities)`.

        Raises:
            ValueError: if an input can't be used; the message names the modality, the sample and what is expected.
            TypeError: if it has the wrong type.
        """
        if isinstance(text, Mapping):
            given = {name: value for name, value in (("images", images), ("audio", audio)) if value is not None}
            return self(**text, **given, **kwargs)
        sample_names, all_modalities = kwargs.pop("sample_names", None), kwargs.pop("all_modalities", False)
        inputs, options, return_tensors = self._sort_arguments(
            {"text": text, "images": images, "audio": audio, **kwargs}
        )
        batches = {
            name: as_batch(name, self.modalities[name]["kind"], value, is_batch=sample_names is not None)
            for name, value in inputs.items()
        }
        sample_names = self._sample_names(batches, sample_names)
        modality_mask = self._modality_mask(batches, sample_names)
        data = {}
        for column, (name, settings) in enumerate(self.modalities.items()):
            rows = modality_mask[:, column].nonzero()[0].tolist()
            kind, parts = settings["kind"], self.sub_processors_of(name)
            is_usable = not parts or any(part is not None for part in parts.values())
            if not rows and not (all_modalities and is_usable):
                continue
            samples = {f"`{name}` of {sample_names[row]}": batches[name][row] for row in rows}
            if not is_usable:
                raise ValueError(f"{next(iter(samples))} is given, but this processor has no `{next(iter(parts))}`")
            chosen = {**self.settings_of(name), **options[kind]}
            chosen.pop("kind")
            if rows:
                values, mask = make_tensors(kind, samples, chosen, parts, partial(say_once, self, name))
            else:
                values, mask = placeholder(kind, batches.get(name, ()), chosen, parts)
            fill = (parts["tokenizer"].pad_token_id or 0) if kind == "text" else 0
            names = self._model_arguments(name)
            data[names.values] = spread_rows(values, rows, len(modality_mask), fill)
            if mask is not None:
                data[names.mask] = spread_rows(mask, rows, len(modality_mask), 0)
        return BatchFeature(convert_tensors({**data, "modality_mask": modality_mask}, return_tensors))

    def _sort_arguments(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str | None]:
        """A call's arguments: the modalities by name, the options by kind, and `return_tensors`."""
        arguments = {**(arguments.pop("common_kwargs", None) or {}), **arguments}
        return_tensors = arguments.pop("return_tensors", None)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"`return_tensors={return_tensors!r}`; expected 'pt', 'np' or None")
        options = take_options(arguments, {kind: self._call_options(kind) for kind in OPTIONS})
        inputs = {}
        for key, value in arguments.items():
            if value is not None:
                name = self.modality_of(key)
                if name in inputs:
                    raise ValueError(f"modality `{name}` is given twice, once as `{key}`")
                inputs[name] = value
        return inputs, options, return_tensors

    def _call_options(self, kind: str) -> set[str]:
        """The options of a call for a kind."""
        return options_of(kind, [self.sub_processor(name, "image_processor") for name in self._names_of_kind(kind)])

    def modality_of(self, argument: str) -> str:
        """The modality that an argument's name stands for."""
        if argument in self.modalities:
            return argument
        names = self._names_of_kind(ALIASES.get(argument))
        if len(names) == 1:
            return names[0]
        known = ", ".join(f"`{name}` ({settings['kind']})" for name, settings in self.modalities.items()) or "none"
        if names:
            raise ValueError(
                f"`{argument}` could be any of the modalities {', '.join(f'`{name}`' for name in names)}; "
                "give them by name"
            )
        raise ValueError(
            f"`{argument}` is not a modality of this processor.{close_match(argument, self.modalities)} "
            f"It has: {known}."
        )

    def _sample_names(self, batches: dict[str, list[Any]], given: list[str] | None) -> list[str]:
        """What errors call the samples of a batch; the modalities have to have equally many."""
        if not batches:
            known = ", ".join(f"`{name}`" for name in self.modalities)
            raise ValueError(f"no modality is given; expected at least one of {known}")
        lengths = {name: len(samples) for name, samples in batches.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the modalities have different numbers of samples: {lengths}")
        number = next(iter(lengths.values()))
        if given is None:
            return [f"sample {row}" for row in range(number)]
        if len(given) != number:
            raise ValueError(f"`sample_names` has {len(given)} names for {number} samples")
        return unique_names(list(given))

    def _modality_mask(self, batches: dict[str, list[Any]], sample_names: list[str]) -> np.ndarray:
        """`(batch, num_modalities)`: which sample has which modality."""
        mask = np.zeros((len(sample_names), len(self.modalities)), dtype=np.int64)
        for column, name in enumerate(self.modalities):
            mask[:, column] = [not self.is_missing(name, sample) for sample in batches.get(name, [None] * len(mask))]
        without = (mask.sum(1) == 0).nonzero()[0]
        if len(without):
            raise ValueError(
                f"{sample_names[without[0]]} has no modality; expected at least one of {', '.join(self.modalities)}"
            )
        return mask

    def is_missing(self, name: str, sample: Any) -> bool:
        """
        Whether a sample lacks the modality: it is `None`, a NaN, or what NumPy, pandas or Arrow have for a value that
        is not there; or a list in which each image is such a value.
        """
        if self.modalities[name]["kind"] == "image" and is_list(sample):
            return all(map(is_missing, sample))
        return is_missing(sample)

    def settings_of(self, name: str) -> dict[str, Any]:
        """A modality's settings and, for what they leave open, the defaults of its tokenizer and of this class."""
        settings = self.modalities[name]
        defaults = dict(getattr(self, KWARGS_NAMES.get(settings["kind"], ""), {}))
        tokenizer = self.sub_processors_of(name).get("tokenizer")
        if tokenizer is not None:
            defaults |= {key: value for key, value in tokenizer.init_kwargs.items() if key in OPTIONS["text"]}
        return {**defaults, **settings}


def _fitting_settings(part) -> dict[str, Any]:
    """Settings with which a sub-processor's tensors fit a built-in encoder of images, frames or audio."""
    if part.kind in ("image", "video"):
        statistics = [0.5] * part.num_channels
        size = {"height": part.image_size, "width": part.image_size}
        return {"size": size, "image_mean": statistics, "image_std": statistics}
    return {"feature_size": part.num_mel_bins} if part.kind == "audio" else {}


__all__ = ["CrossFuseProcessor"]
