# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""From raw samples (text, pictures, videos, sound, series) to the tensors of a CrossFuse model."""

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    ViTImageProcessorPil,
)
from transformers.audio_utils import AudioInput
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput
from transformers.utils import cached_file, is_torchvision_available, logging

from .configuration_crossfuse import CrossFuseConfig
from .configuration_modalities import check_modality_name, tensor_names
from .encoder_processors import is_same, load_processor, pixel_values
from .encoder_sources import HUB_ARGUMENTS, SUB_PROCESSORS, check_tokenizer, read_encoders
from .feature_extraction_crossfuse import CrossFuseFeatureExtractor
from .hub import CodeToHubMixin
from .image_processing_crossfuse import CrossFuseVideoImageProcessor
from .media import (
    as_batch,
    fit_array,
    is_list,
    load_frames,
    load_picture,
    load_series,
    load_sound,
    pad_rows,
    picture_size,
    resample,
    spread_rows,
    target_size,
    to_array,
)
from .processing_options import (
    ALIASES,
    COUNTS,
    KWARGS_NAMES,
    NOT_OPTIONS,
    OPTIONS,
    SETTINGS,
    close_match,
)


logger = logging.get_logger(__name__)


class _SubProcessorNames:
    """
    `get_attributes()`: of the class, the sub-processors that it may have; of an instance, those that it has, so that
    `ProcessorMixin` saves and prints no others.
    """

    def __get__(self, instance, owner):
        # Without torchvision, transformers has no video processor that could be loaded.
        possible = [name for name in SUB_PROCESSORS if name != "video_processor" or is_torchvision_available()]
        if instance is None:
            return lambda: possible
        own = [f"{name}_{part}" for name in getattr(instance, "modalities", ()) for part in SUB_PROCESSORS]
        return lambda: [name for name in possible + own if hasattr(instance, name)]


class _ProcessorWithCode(CodeToHubMixin, ProcessorMixin):
    """A class between the two: transformers' tests take a processor's first base class for all that it inherits."""


class CrossFuseProcessor(_ProcessorWithCode):
    r"""
    Turns raw samples of any mix of modalities into the tensors of a CrossFuse model.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): for modalities of kind `text`, and for the answers.
        image_processor ([`BaseImageProcessor`], *optional*): for pictures and, without a `video_processor`, for the
            frames of videos.
        video_processor ([`BaseVideoProcessor`], *optional*): for videos; needs torchvision.
        feature_extractor ([`SequenceFeatureExtractor`], *optional*): for sound.
        modalities (`dict[str, dict]`, *optional*): name of each modality to its settings, in the order of
            `config.modalities`. `kind` may be left out where the name is the kind. Other settings win over those of
            the shared sub-processor: for `text`, `max_length` and other options of a tokenizer's call; for `image` and
            `video`, `num_channels`, `size` and other options of the image processor, and a video's `num_frames`; for
            `audio`, `feature_size`, `sampling_rate` (of arrays that do not say theirs) and `max_length` (in frames);
            for `series`, `num_channels`, `mean`, `std` and `max_length` (in steps). A modality may have a `tokenizer`,
            an `image_processor`, a `video_processor` or a `feature_extractor` of its own, too, which becomes the
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
    ...     image=[Image.new("RGB", (100, 80)), None],  # the second sample has no picture
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
    get_attributes = _SubProcessorNames()

    def __init__(
        self,
        tokenizer=None,
        image_processor=None,
        video_processor=None,
        feature_extractor=None,
        modalities: dict[str, dict] | list[dict] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ):
        given = [tokenizer, image_processor, video_processor, feature_extractor]
        for name, sub_processor in zip(SUB_PROCESSORS, given):
            if sub_processor is not None:
                self.check_argument_for_proper_class(name, sub_processor)
                setattr(self, name, sub_processor)
        self.chat_template = chat_template
        self.modalities = self._check_modalities(modalities)

    def _check_modalities(self, modalities: dict[str, dict] | list[dict] | None) -> dict[str, dict]:
        if modalities is None:
            modalities = {kind: {} for name, kind in SUB_PROCESSORS.items() if hasattr(self, name)}
        if isinstance(modalities, list):  # as saved: JSON with sorted keys would lose a dict's order
            modalities = {
                settings["name"]: {key: value for key, value in settings.items() if key != "name"}
                for settings in modalities
            }
        modalities = {name: {"kind": name, **settings} for name, settings in modalities.items()}
        for name, settings in modalities.items():
            if settings["kind"] not in OPTIONS:
                raise ValueError(
                    f"`modalities[{name!r}]` has `kind={settings['kind']!r}`; expected one of {', '.join(OPTIONS)}"
                )
            self._take_sub_processors(name, settings)
            modalities[name] = copy.deepcopy(settings)
            self._check_settings(name, modalities[name])
        return modalities

    def _take_sub_processors(self, name: str, settings: dict[str, Any]):
        """Takes a modality's own sub-processors out of its settings."""
        kinds = ("image", "video") if settings["kind"] == "video" else (settings["kind"],)
        for part, kind in SUB_PROCESSORS.items():
            sub_processor = settings.pop(part, None) if kind in kinds else None
            if sub_processor is not None:
                self.check_argument_for_proper_class(f"{name}_{part}", sub_processor)
                setattr(self, f"{name}_{part}", sub_processor)

    def sub_processor(self, name: str, part: str) -> Any:
        """The sub-processor for a modality: its own, else the shared one, else None."""
        return getattr(self, f"{name}_{part}", getattr(self, part, None))

    def _need_sub_processor(self, name: str, part: str, where: str) -> Any:
        sub_processor = self.sub_processor(name, part)
        if sub_processor is None:
            raise ValueError(f"{where} is given, but this processor has no `{part}`")
        return sub_processor

    def _check_settings(self, name: str, settings: dict[str, Any]):
        kind = settings["kind"]
        reserved = {"images", "videos", "return_tensors", "common_kwargs", *KWARGS_NAMES.values()}
        if name in reserved.union(*OPTIONS.values(), self._options("image", name)):
            raise ValueError(
                f"`modalities` has the name {name!r}, which is an argument of the processor; choose another"
            )
        check_modality_name(name)
        allowed = {"kind", *self._options(kind, name), *SETTINGS[kind]}
        for key, value in settings.items():
            if key in COUNTS and value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`modalities[{name!r}]` has `{key}={value!r}`; expected an integer of at least 1")
            if key not in allowed:
                raise ValueError(
                    f"`modalities[{name!r}]` has `{key}={value!r}`.{close_match(key, allowed)} Allowed for "
                    f"{kind!r}: {', '.join(sorted(allowed))}."
                )
        for key in ("mean", "std"):
            if kind == "series" and settings.get(key) is not None:
                self._check_statistics(name, key, settings)

    def _options(self, kind: str, *names: str) -> set[str]:
        """Names of a call's options for a kind; the image processors of modalities may have some of their own."""
        if kind not in ("image", "video"):
            return OPTIONS[kind]
        names = names or [name for name, settings in self.modalities.items() if settings["kind"] == kind]
        processors = [self.sub_processor(name, "image_processor") for name in names]
        own = [set(processor.valid_kwargs.__annotations__) for processor in processors if processor is not None]
        return OPTIONS[kind] | set().union(*own) - NOT_OPTIONS

    def _flat_options(self) -> dict[str, set[str]]:
        # By itself, `max_length=64` means tokens: sound is cut only by `audio_kwargs` or a modality's settings.
        return {kind: self._options(kind) for kind in OPTIONS} | {"audio": {"sampling_rate"}}

    @staticmethod
    def _check_statistics(name: str, key: str, settings: dict[str, Any]):
        num_channels = settings.get("num_channels", 1)
        values = to_array(f"`modalities[{name!r}]['{key}']`", settings[key])
        if values.shape != (num_channels,):
            raise ValueError(
                f"`modalities[{name!r}]` has `{key}` of shape {values.shape}; expected `num_channels={num_channels}` "
                "numbers"
            )
        if key == "std" and values.min() <= 0:
            raise ValueError(f"`modalities[{name!r}]` has `std={settings[key]!r}`; expected numbers above 0")
        settings[key] = values.astype(float).tolist()

    @classmethod
    def from_config(cls, config: CrossFuseConfig, tokenizer=None) -> "CrossFuseProcessor":
        """
        A processor whose tensors fit a model of this config.

        Pictures and frames are resized to `image_size` and scaled to [-1, 1]; sound becomes log-mel frames of 10 ms at
        16 kHz. Sub-processors are made for the kinds that the config has.

        Args:
            config ([`CrossFuseConfig`]): the model's config.
            tokenizer ([`PreTrainedTokenizerBase`], *optional*): for texts and answers.

        Raises:
            ValueError: if a modality has an encoder of transformers: [`~CrossFuseProcessor.from_encoders`] finds the
                processor that it was trained with.
        """
        for name, part in config.modalities.items():
            if part.is_wrapped:
                raise ValueError(
                    f"`modalities[{name!r}]` has the encoder {part.architecture or type(part.encoder).__name__} of "
                    "transformers; make its processor by `CrossFuseProcessor.from_encoders`"
                )
        pictures = [part for part in config.modalities.values() if part.kind in ("image", "video")]
        sounds = [part for part in config.modalities.values() if part.kind == "audio"]
        image_processor = feature_extractor = None
        if pictures:
            has_images = any(part.kind == "image" for part in pictures)
            image_processor = (ViTImageProcessorPil if has_images else CrossFuseVideoImageProcessor)(
                size={"height": pictures[0].image_size, "width": pictures[0].image_size},
                image_mean=[0.5] * pictures[0].num_channels,
                image_std=[0.5] * pictures[0].num_channels,
            )
        if sounds:
            feature_extractor = CrossFuseFeatureExtractor(feature_size=sounds[0].num_mel_bins)
        modalities = {}
        for name, part in config.modalities.items():
            settings = modalities[name] = {"kind": part.kind}
            if part.kind in ("image", "video"):
                settings["num_channels"] = part.num_channels
                if part.kind == "video":
                    settings["num_frames"] = part.num_frames
                if part.image_size != pictures[0].image_size:
                    settings["size"] = {"height": part.image_size, "width": part.image_size}
                if part.num_channels != pictures[0].num_channels:
                    settings["image_mean"] = settings["image_std"] = [0.5] * part.num_channels
            elif part.kind == "audio" and part.num_mel_bins != sounds[0].num_mel_bins:
                settings["feature_size"] = part.num_mel_bins
            elif part.kind == "series":
                settings["num_channels"] = part.num_channels
        return cls(
            tokenizer=tokenizer,
            image_processor=image_processor,
            feature_extractor=feature_extractor,
            modalities=modalities,
        )

    @classmethod
    def from_encoders(
        cls, encoders: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None = None, **kwargs
    ) -> "CrossFuseProcessor":
        r"""
        A processor whose tensors fit a model of the same `encoders`: each modality gets what its encoder was trained
        with, be it a tokenizer, an image or video processor, or a feature extractor.

        Args:
            encoders (`dict[str, Any]`): as in [`~CrossFuseForConditionalGeneration.from_encoders`]. Models and configs
                count as where they were loaded from; one that was not loaded gets the default processor of its type. A
                dict of settings may have the modality's own `tokenizer`, `image_processor`, `video_processor` or
                `feature_extractor`.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): that of the answers, and of texts whose encoder comes
                without one. Defaults to the first text encoder's.
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
        if self.modalities.get(name, {}).get("kind") != "series":
            names = [key for key, settings in self.modalities.items() if settings["kind"] == "series"]
            raise ValueError(
                f"{name!r} is not a modality of kind 'series'; expected one of {', '.join(names) or 'none'}"
            )
        num_channels = self.modalities[name].get("num_channels", 1)
        count, mean, squares = 0, np.zeros(num_channels), np.zeros(num_channels)
        for index, sample in enumerate(values):
            if sample is None:
                continue
            steps = load_series(f"`{name}` of sample {index}", sample, num_channels)
            # Sample by sample (Chan et al., 1979), since differences of big sums lose their digits.
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

    @property
    def _tensor_names(self) -> dict[str, tuple[str, str]]:
        return {
            name: tensor_names(name, settings["kind"], self._sound_name(name))[:2]
            for name, settings in self.modalities.items()
        }

    def _sound_name(self, name: str) -> str | None:
        """What the modality's feature extractor, and so its encoder, calls its values."""
        extractor = self.sub_processor(name, "feature_extractor")
        return None if extractor is None else extractor.model_input_names[0]

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call can give."""
        return [name for pair in self._tensor_names.values() for name in pair] + ["modality_mask"]

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
        each sample that lacks the modality; anything else is one sample.

        Args:
            text (`str` or list of `str`): texts.
            images (picture, or list of pictures or of lists of pictures): a picture is a PIL image, an array
                `(height, width)`, `(channels, height, width)` or `(height, width, channels)` of 0 to 255 or of floats
                from 0 to 1, a path, bytes, or a dict of `bytes` or `path`. Transparent pixels become white. Lists of
                pictures per sample make `pixel_values` `(batch, images, channels, height, width)`.
            audio (sound or list of sounds): an array `(samples,)` of floats from -1 to 1 or of int16, one of two axes
                for several channels, which are averaged, a dict of `array` and `sampling_rate`, a path, bytes, or a
                dict of `bytes` or `path`. It is resampled where its sampling rate differs; a mere array's is
                `sampling_rate`.
            kwargs:
                modalities by name. Videos are lists of frames, arrays with frames as the first of four axes, or files;
                series are arrays `(steps, channels)`, `(steps,)` for one channel or `(channels,)` for one step.
                Options: `return_tensors` (`"pt"`, `"np"`, or `None` for lists of tokens and NumPy arrays), `padding`,
                `truncation`, `max_length` (of tokens), `sampling_rate` (hertz), those of the image processor, and
                `text_kwargs`, `images_kwargs`, `videos_kwargs`, `audio_kwargs`, `common_kwargs`.

        Returns:
            [`BatchFeature`]: values and mask of each modality that any sample has, and `modality_mask` of shape
            `(batch, num_modalities)`.

        Raises:
            ValueError: if an input can't be used; the message names the modality, the sample and what is expected.
            TypeError: if it has the wrong type.
        """
        inputs, options = self._sort_arguments({"text": text, "images": images, "audio": audio, **kwargs})
        return_tensors = options.pop("return_tensors")
        batches = {name: as_batch(name, self.modalities[name]["kind"], value) for name, value in inputs.items()}
        modality_mask = self._modality_mask(batches)
        data = {}
        names = self._tensor_names
        for column, (name, settings) in enumerate(self.modalities.items()):
            rows = modality_mask[:, column].nonzero()[0].tolist()
            if not rows:
                continue
            kind = settings["kind"]
            samples = {f"`{name}` of sample {row}": batches[name][row] for row in rows}
            merged = {**self._defaults(name), **settings, **options[kind]}
            merged.pop("kind")
            values, mask = getattr(self, f"_{kind}_tensors")(name, samples, merged)
            fill = (self.sub_processor(name, "tokenizer").pad_token_id or 0) if kind == "text" else 0
            value_name, mask_name = names[name]
            data[value_name] = spread_rows(values, rows, len(modality_mask), fill)
            if mask is not None:
                data[mask_name] = spread_rows(mask, rows, len(modality_mask), 0)
        return BatchFeature(_convert({**data, "modality_mask": modality_mask}, return_tensors))

    def _sort_arguments(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A call's arguments as modalities by name, and options by kind."""
        arguments = {**(arguments.pop("common_kwargs", None) or {}), **arguments}
        options = {"return_tensors": arguments.pop("return_tensors", None)}
        if options["return_tensors"] not in (None, "pt", "np"):
            raise ValueError(f"`return_tensors={options['return_tensors']!r}`; expected 'pt', 'np' or None")
        nested = {kind: dict(arguments.pop(key, None) or {}) for kind, key in KWARGS_NAMES.items()}
        by_kind = self._flat_options()
        flat = {key: arguments.pop(key) for key in set(arguments) & set().union(*by_kind.values())}
        for kind, allowed in by_kind.items():
            chosen = nested.get(kind, {})
            chosen.pop("return_tensors", None)
            self._check_nested(kind, chosen, flat)
            options[kind] = {**{key: value for key, value in flat.items() if key in allowed}, **chosen}
        inputs = {}
        for key, value in arguments.items():
            if value is not None:
                name = self.modality_of(key)
                if name in inputs:
                    raise ValueError(f"modality `{name}` is given twice, once as `{key}`")
                inputs[name] = value
        return inputs, options

    def _check_nested(self, kind: str, chosen: dict[str, Any], flat: dict[str, Any]):
        for key in chosen:
            if key not in self._options(kind):
                raise ValueError(
                    f"`{KWARGS_NAMES[kind]}` has `{key}`.{close_match(key, self._options(kind))} Allowed: "
                    f"{', '.join(sorted(self._options(kind)))}."
                )
            if key in flat:
                raise ValueError(f"`{key}` is given twice: by itself and in `{KWARGS_NAMES[kind]}`")

    def modality_of(self, argument: str) -> str:
        """The modality that an argument's name stands for."""
        if argument in self.modalities:
            return argument
        kind = ALIASES.get(argument)
        names = [name for name, settings in self.modalities.items() if settings["kind"] == kind]
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

    def _modality_mask(self, batches: dict[str, list[Any]]) -> np.ndarray:
        """`(batch, num_modalities)`: which sample has which modality."""
        if not batches:
            known = ", ".join(f"`{name}`" for name in self.modalities)
            raise ValueError(f"no modality is given; expected at least one of {known}")
        lengths = {name: len(samples) for name, samples in batches.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the modalities have different numbers of samples: {lengths}")
        mask = np.zeros((next(iter(lengths.values())), len(self.modalities)), dtype=np.int64)
        for column, name in enumerate(self.modalities):
            mask[:, column] = [not self.is_missing(name, sample) for sample in batches.get(name, [None] * len(mask))]
        without = (mask.sum(1) == 0).nonzero()[0]
        if len(without):
            raise ValueError(
                f"sample {without[0]} of the batch has no modality; expected at least one of "
                + ", ".join(self.modalities)
            )
        return mask

    def is_missing(self, name: str, sample: Any) -> bool:
        """Whether a sample lacks the modality: it is `None`, or all images in its list are."""
        if self.modalities[name]["kind"] == "image" and is_list(sample):
            return all(picture is None for picture in sample)
        return sample is None

    def _defaults(self, name: str) -> dict[str, Any]:
        """Options where neither the call nor a modality's settings give any: the class's, then the tokenizer's own."""
        kind = self.modalities[name]["kind"]
        defaults = dict(getattr(self, KWARGS_NAMES.get(kind, ""), {}))
        tokenizer = self.sub_processor(name, "tokenizer")
        if kind == "text" and tokenizer is not None:
            defaults |= {key: value for key, value in tokenizer.init_kwargs.items() if key in OPTIONS["text"]}
        return defaults

    def _text_tensors(self, name: str, samples: dict[str, str], options: dict[str, Any]) -> tuple[Any, Any]:
        tokenizer = self._need_sub_processor(name, "tokenizer", next(iter(samples)))
        for where, text in samples.items():
            if not isinstance(text, str):
                raise TypeError(f"{where} is {type(text).__name__}; expected a str")
            if not text.strip():
                raise ValueError(f"{where} is empty; expected text, or None where the sample has none")
        if options.get("max_length") is not None:
            options.setdefault("truncation", True)
        tokens = tokenizer(list(samples.values()), return_attention_mask=True, **options)
        for where, mask in zip(samples, tokens["attention_mask"]):
            if not any(mask):
                raise ValueError(f"{where} gives no token: {samples[where]!r}")
        return tokens["input_ids"], tokens["attention_mask"]

    def _image_tensors(
        self, name: str, samples: dict[str, Any], options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        # One array may hold several pictures, too.
        samples = {
            where: list(sample) if getattr(sample, "ndim", 0) == 4 else sample for where, sample in samples.items()
        }
        several = any(is_list(sample) for sample in samples.values())
        lists = {where: sample if is_list(sample) else [sample] for where, sample in samples.items()}
        pictures = [
            (f"{where}, picture {index}" if several else where, picture)
            for where, sample in lists.items()
            for index, picture in enumerate(sample)
            if picture is not None
        ]
        pixels = self._pixels(name, pictures, options)
        number = max(map(len, lists.values()))
        mask = np.array([[int(i < len(s) and s[i] is not None) for i in range(number)] for s in lists.values()])
        if not several:
            return pixels, mask
        values = np.zeros((*mask.shape, *pixels.shape[1:]), dtype=pixels.dtype)
        values[mask == 1] = pixels
        return values, mask

    def _pixels(self, name: str, pictures: list[tuple[str, Any]], options: dict[str, Any]) -> np.ndarray:
        """Pixel values `(pictures, channels, height, width)`."""
        image_processor = self._need_sub_processor(name, "image_processor", pictures[0][0])
        options = dict(options)
        num_channels = options.pop("num_channels", 3)
        do_rescale = options.get("do_rescale", getattr(image_processor, "do_rescale", True))
        do_resize = options.pop("do_resize", getattr(image_processor, "do_resize", True))
        size = target_size(options.get("size", getattr(image_processor, "size", None)))
        loaded = [load_picture(where, picture, num_channels, do_rescale) for where, picture in pictures]
        if do_resize and size is not None:
            loaded = [fit_array(picture, size) for picture in loaded]
        # Pictures that have the size already are left as they are: resizing to the same size costs most of the time.
        resized = [do_resize and picture_size(picture) != size for picture in loaded]
        pixels: list[np.ndarray | None] = [None] * len(loaded)
        for resize in set(resized):
            rows = [row for row, value in enumerate(resized) if value == resize]
            output = image_processor(
                [loaded[row] for row in rows],
                do_resize=resize,
                input_data_format="channels_first",
                **options,
            )
            # Image processors of video models take pictures for the frames of one video.
            output = pixel_values(output)
            output = output[0] if len(output) == 1 and np.ndim(output[0]) == 4 else output
            for row, picture in zip(rows, output):
                pixels[row] = np.asarray(picture, dtype=np.float32)
        shapes = {picture.shape for picture in pixels}
        if len(shapes) > 1:
            raise ValueError(
                f"{pictures[0][0]} and others have different shapes after the image processor: "
                f"{', '.join(map(str, sorted(shapes)))}; set `size={{'height': ..., 'width': ...}}`"
            )
        return np.stack(pixels)

    def _video_tensors(
        self, name: str, samples: dict[str, Any], options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        num_frames = options.pop("num_frames", None)
        if not options.pop("do_sample_frames", True):
            num_frames = None
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"`num_frames={num_frames}`; expected at least 1")
        videos = [load_frames(where, sample, num_frames) for where, sample in samples.items()]
        named = [
            [(f"{where}, frame {index}", frame) for index, frame in enumerate(frames)]
            for where, frames in zip(samples, videos)
        ]
        if self.sub_processor(name, "video_processor") is not None:
            rows = [self._video_pixels(name, frames, dict(options)) for frames in named]
        else:
            pixels = self._pixels(name, [frame for frames in named for frame in frames], options)
            rows = np.split(pixels, np.cumsum([len(frames) for frames in videos])[:-1])
        return pad_rows(rows)

    def _video_pixels(self, name: str, frames: list[tuple[str, Any]], options: dict[str, Any]) -> np.ndarray:
        num_channels = options.pop("num_channels", 3)
        loaded = [load_picture(where, frame, num_channels, do_rescale=True) for where, frame in frames]
        arrays = [x if isinstance(x, np.ndarray) else np.moveaxis(np.atleast_3d(np.asarray(x)), -1, 0) for x in loaded]
        output = self.sub_processor(name, "video_processor")(
            [np.stack(arrays)],
            do_sample_frames=False,
            input_data_format="channels_first",
            return_tensors="pt",
            **options,
        )
        pixels = pixel_values(output)[0]
        if pixels.ndim != 4:
            raise ValueError(f"the `video_processor` of `{name}` cuts videos into patches; expected whole frames")
        return pixels.float().numpy()

    def _audio_tensors(
        self, name: str, samples: dict[str, Any], options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        extractor = self._need_sub_processor(name, "feature_extractor", next(iter(samples)))
        given_rate = options.pop("sampling_rate", None)
        changed = {key: options.pop(key) for key in SETTINGS["audio"] if key in options}
        if changed:
            extractor = type(extractor)(**{**extractor.to_dict(), **changed})
        clips = []
        for where, sample in samples.items():
            sound, rate = load_sound(where, sample)
            rate = given_rate if rate is None else rate
            if rate is None:
                logger.warning_once(
                    "Sound is given as an array without a sampling rate and taken to have "
                    f"{extractor.sampling_rate} Hz. Give `sampling_rate=...`, or dicts of `array` and `sampling_rate`."
                )
                rate = extractor.sampling_rate
            clips.append(resample(where, sound, rate, extractor.sampling_rate))
        parameters = inspect.signature(extractor.__call__).parameters
        if "return_attention_mask" in parameters:
            options.setdefault("return_attention_mask", True)
        if "padding" in parameters and parameters["padding"].default in (False, None):
            options.setdefault("padding", True)  # a batch is one tensor
        features = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="np", **options)
        mask = next((features[key] for key in features if key.endswith("mask")), None)
        return features[extractor.model_input_names[0]], mask

    def _series_tensors(
        self, name: str, samples: dict[str, Any], options: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        mean, std = options.get("mean"), options.get("std")
        series = []
        for where, sample in samples.items():
            values = load_series(where, sample, options.get("num_channels", 1))
            # In double precision: large numbers that differ little, such as times, would become equal.
            values = (values - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
            if np.abs(values).max() > np.finfo(np.float32).max:
                raise ValueError(f"{where} has values beyond the range of float32")
            series.append(values.astype(np.float32))
        if options.get("max_length") is not None:
            series = [values[: options["max_length"]] for values in series]
        return pad_rows(series)

    def to_dict(self) -> dict[str, Any]:
        """As in any processor; `modalities` is a list, since JSON files with sorted keys lose a dict's order."""
        output = super().to_dict()
        for settings in (output, *(part for part in output.values() if isinstance(part, dict))):
            settings.pop("auto_map", None)  # goes with the code: see `save_code`
        output["modalities"] = [
            {"name": name, **settings, **self._own_sub_processors(name)}
            for name, settings in output["modalities"].items()
        ]
        return output

    def _own_sub_processors(self, name: str) -> dict[str, Any]:
        """A modality's own sub-processors, as they are saved; tokenizers have folders of their own."""
        parts = [part for part in SUB_PROCESSORS if part != "tokenizer" and hasattr(self, f"{name}_{part}")]
        return {part: getattr(self, f"{name}_{part}").to_dict() for part in parts}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs) -> list[Any]:
        """The sub-processors that were saved, in the order of `__init__`, and None for the others."""
        saved = processor_dict or {}
        if not saved.get("modalities"):
            raise OSError(
                f"there is no CrossFuse processor in {pretrained_model_name_or_path}: it has no processor_config.json "
                "with modalities. Make one with `CrossFuseProcessor.from_config(config, ...)`, and save it there"
            )
        subfolder = kwargs.pop("subfolder", "")
        arguments = dict.fromkeys(SUB_PROCESSORS)
        arguments["tokenizer"] = cls._find_tokenizer(pretrained_model_name_or_path, subfolder, kwargs)
        kwargs["subfolder"] = subfolder
        if "image_processor" in saved:
            # The same pictures give the same numbers whether torchvision is there or not.
            ours = saved["image_processor"].get("image_processor_type") == CrossFuseVideoImageProcessor.__name__
            loader, backend = (CrossFuseVideoImageProcessor, {}) if ours else (AutoImageProcessor, {"backend": "pil"})
            arguments["image_processor"] = loader.from_pretrained(
                pretrained_model_name_or_path, **{**backend, **kwargs}
            )
        if "video_processor" in saved:
            arguments["video_processor"] = AutoVideoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if "feature_extractor" in saved:
            # Ours is found without its registration, and so also where this code came with the model.
            ours = saved["feature_extractor"].get("feature_extractor_type") == CrossFuseFeatureExtractor.__name__
            loader = CrossFuseFeatureExtractor if ours else AutoFeatureExtractor
            arguments["feature_extractor"] = loader.from_pretrained(pretrained_model_name_or_path, **kwargs)
        for settings in saved.get("modalities") or ():
            check_modality_name(settings.get("name"))  # it becomes part of a path
            if settings.get("kind") == "text":
                folder = f"{subfolder}/{settings['name']}_tokenizer".lstrip("/")
                settings["tokenizer"] = cls._find_tokenizer(pretrained_model_name_or_path, folder, kwargs)
            for part in SUB_PROCESSORS:
                if isinstance(settings.get(part), dict):
                    settings[part] = cls._build_sub_processor(part, settings[part])
        return list(arguments.values())

    @classmethod
    def _find_tokenizer(cls, folder_or_id: str, subfolder: str, kwargs: dict[str, Any]) -> Any:
        """The tokenizer saved in a folder, or None where there is none."""
        hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
        found = cached_file(
            folder_or_id,
            "tokenizer_config.json",
            subfolder=subfolder,
            _raise_exceptions_for_missing_entries=False,
            **{key: kwargs[key] for key in hub if kwargs.get(key) is not None},
        )
        kwargs = {key: value for key, value in kwargs.items() if key != "subfolder"}
        return None if found is None else AutoTokenizer.from_pretrained(folder_or_id, subfolder=subfolder, **kwargs)

    @classmethod
    def _build_sub_processor(cls, part: str, settings: dict[str, Any]) -> Any:
        """A modality's own sub-processor, from what was saved of it."""
        name = settings.get("feature_extractor_type" if part == "feature_extractor" else f"{part}_type", "")
        if name == CrossFuseFeatureExtractor.__name__:
            return CrossFuseFeatureExtractor(**settings)
        if part == "image_processor":  # the same pictures give the same numbers whether torchvision is there or not
            name = f"{name}Pil" if hasattr(transformers, f"{name}Pil") else name
        return cls.get_possibly_dynamic_module(name)(**settings)


def _convert(data: dict[str, Any], return_tensors: str | None) -> dict[str, Any]:
    if return_tensors is None:
        # Tokens and masks as lists, as tokenizers give them.
        return {
            key: value.tolist() if getattr(value, "dtype", None) == np.int64 else value for key, value in data.items()
        }
    for name, value in data.items():
        if isinstance(value, list):
            raise ValueError(f"`{name}` has rows of different lengths; use `padding=True`, or `return_tensors=None`")
    if return_tensors == "np":
        return data
    return {key: torch.from_numpy(value) for key, value in data.items()}


__all__ = ["CrossFuseProcessor"]
