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
"""From raw samples (text, pictures, videos, sound, series) to the tensors of a CrossFuse model."""

import copy
import difflib
import io
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoVideoProcessor, ViTImageProcessorPil
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessorMixin
from transformers.utils import cached_file, is_torchvision_available, logging

from .configuration_crossfuse import CrossFuseConfig, CrossFuseModalitiesConfig


logger = logging.get_logger(__name__)


@lru_cache(maxsize=8)
def _mel_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """Mel bands `(n_fft // 2 + 1, num_mel_bins)`, as Whisper's."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


@lru_cache(maxsize=64)
def _tensor_names(modalities: tuple[tuple[str, str], ...]) -> dict[str, tuple[str, str]]:
    """Names and kinds of modalities to the keyword arguments of the model's `forward` for values and mask of each."""
    config = CrossFuseModalitiesConfig(
        names=[name for name, _ in modalities], **{name: {"kind": kind} for name, kind in modalities}
    )
    return {name: (config.value_name(name), config.mask_name(name)) for name in config}


def _padded_length(lengths: list[int], padding, max_length: int | None, pad_to_multiple_of: int | None) -> int:
    """The length that a batch of sequences of these lengths is padded to."""
    length = max(lengths)
    if padding == "max_length":
        if max_length is None:
            raise ValueError("`padding='max_length'` needs `max_length`")
        length = max(length, max_length)
    return -(-length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)


class CrossFuseFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Sound to log-mel frames, scaled as Whisper's (Radford et al., 2022) but of any length.

    Each clip's frames are computed before it is padded, so that a clip gives the same features alone and in any batch.

    Args:
        feature_size (`int`, defaults to 80): mel bands per frame.
        sampling_rate (`int`, defaults to 16000): samples per second, in hertz.
        n_fft (`int`, defaults to 400): samples per frame (25 ms).
        hop_length (`int`, defaults to 160): samples from one frame to the next (10 ms).
        padding_value (`float`, defaults to 0.0): what stands in the padding.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_crossfuse import CrossFuseFeatureExtractor

    >>> extractor = CrossFuseFeatureExtractor()
    >>> batch = extractor([np.zeros(16_000), np.zeros(8_000)], sampling_rate=16_000, return_tensors="pt")
    >>> batch["input_features"].shape
    torch.Size([2, 80, 101])
    >>> batch["feature_attention_mask"].sum(-1)
    tensor([101,  51])
    ```
    """

    model_input_names = ["input_features", "feature_attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        n_fft: int = 400,
        hop_length: int = 160,
        padding_value: float = 0.0,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft = n_fft
        self.hop_length = hop_length

    def _log_mel(self, clip: torch.Tensor) -> torch.Tensor:
        """Log-mel frames `(feature_size, 1 + samples // hop_length)` of one clip `(samples,)`."""
        window = torch.hann_window(self.n_fft)
        # Around the clip is silence; a reflection would need a clip longer than half a frame.
        spectrum = torch.stft(
            clip, self.n_fft, self.hop_length, window=window, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = (_mel_filters(self.feature_size, self.n_fft, self.sampling_rate).T @ power).clamp(min=1e-10).log10()
        return (log_mel.clamp(min=log_mel.max() - 8.0) + 4.0) / 4.0

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech (`np.ndarray`, `torch.Tensor` of shape `(samples,)`, or a list of these): one or more clips, one
                channel each.
            sampling_rate (`int`, *optional*): of the clips, in hertz; checked against the extractor's.
            padding (`bool` or `str`, defaults to `True`): to the longest of the batch, or to `"max_length"`.
            max_length (`int`, *optional*): frames to keep of a clip.
            truncation (`bool`, *optional*): whether longer clips are cut; `True` where `max_length` is given.
            pad_to_multiple_of (`int`, *optional*): pads the number of frames to a multiple.
            return_tensors (`str`, *optional*): `"pt"`, or NumPy arrays otherwise.

        Returns:
            [`BatchFeature`]: `input_features` `(batch, feature_size, frames)` and `feature_attention_mask`
            `(batch, frames)`.

        Raises:
            ValueError: if a clip is empty, has more than one channel or another sampling rate.
        """
        if sampling_rate is None:
            logger.warning_once(f"No `sampling_rate` is given: the sound is taken to have {self.sampling_rate} Hz.")
        elif sampling_rate != self.sampling_rate:
            raise ValueError(f"`sampling_rate={sampling_rate}`; this extractor expects {self.sampling_rate} Hz")
        is_batch = isinstance(raw_speech, (list, tuple)) and not all(isinstance(value, Number) for value in raw_speech)
        clips = [torch.tensor(np.asarray(clip, np.float32)) for clip in (raw_speech if is_batch else [raw_speech])]
        for index, clip in enumerate(clips):
            if clip.dim() != 1 or len(clip) == 0:
                raise ValueError(f"clip {index} has shape {tuple(clip.shape)}; expected `(samples,)`, not empty")
        with torch.no_grad():
            frames = [self._log_mel(clip) for clip in clips]
        if max_length is not None and truncation is not False:
            frames = [clip[:, :max_length] for clip in frames]
        length = _padded_length([clip.shape[1] for clip in frames], padding, max_length, pad_to_multiple_of)
        features = torch.full((len(frames), self.feature_size, length), self.padding_value)
        mask = torch.zeros(len(frames), length, dtype=torch.long)
        for row, clip in enumerate(frames):
            features[row, :, : clip.shape[1]] = clip
            mask[row, : clip.shape[1]] = 1
        tensors = {"input_features": features, "feature_attention_mask": mask}
        return BatchFeature(tensors if return_tensors == "pt" else {key: x.numpy() for key, x in tensors.items()})


# Options of a call, and of a modality's settings, per kind. What would change the layout of the tensors is left out.
_NOT_OPTIONS = {"data_format", "device", "disable_grouping", "input_data_format", "return_tensors"}
_OPTIONS = {
    "text": {"add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side", "truncation"},
    "image": set(ImagesKwargs.__annotations__) - _NOT_OPTIONS,
    "video": set(ImagesKwargs.__annotations__) - _NOT_OPTIONS | {"do_sample_frames", "num_frames"},
    "audio": {"max_length", "pad_to_multiple_of", "padding", "sampling_rate", "truncation"},
    "series": set(),
}
# What only a modality's settings may hold.
_SETTINGS = {
    "text": set(),
    "image": {"num_channels"},
    "video": {"num_channels"},
    "audio": {"feature_size", "hop_length", "n_fft"},
    "series": {"max_length", "mean", "num_channels", "std"},
}
_KWARGS_NAMES = {"text": "text_kwargs", "image": "images_kwargs", "video": "videos_kwargs", "audio": "audio_kwargs"}
# The names that ProcessorMixin's callers use.
_ALIASES = {"text": "text", "images": "image", "videos": "video", "audio": "audio"}
_SUB_PROCESSORS = {
    "tokenizer": "text",
    "image_processor": "image",
    "video_processor": "video",
    "feature_extractor": "audio",
}


def _close_match(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def _to_array(where: str, value: Any) -> np.ndarray:
    """Numbers of any container as a NumPy array, or an error that says where they are wrong."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} is not an array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{where} is {type(value).__name__} of dtype {array.dtype}; expected numbers")
    if array.size == 0:
        raise ValueError(f"{where} is empty (shape {array.shape})")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{where} has values that are NaN or infinite")
    return array


def _open_file(where: str, sample: Any) -> io.BytesIO | str:
    """A path, bytes, or a dict of either as `datasets` gives it, to what the readers of files take."""
    if isinstance(sample, dict):
        if not {"bytes", "path"} & set(sample):
            raise TypeError(f"{where} is a dict of {', '.join(map(str, sample))}; expected `bytes` or `path`")
        sample = sample["bytes"] if sample.get("bytes") is not None else sample.get("path")
        if sample is None:
            raise ValueError(f"{where} has neither `bytes` nor `path`")
    if isinstance(sample, (bytes, bytearray)):
        return io.BytesIO(sample)
    path = os.fspath(sample)
    if not os.path.isfile(path):
        raise ValueError(f"{where}: there is no file {path!r}")
    return path


def _named_file(file: io.BytesIO | str) -> str:
    return f" ({file})" if file and isinstance(file, str) else ""


def _is_list(sample: Any) -> bool:
    return isinstance(sample, Sequence) and not isinstance(sample, (str, bytes, bytearray))


def _is_file(sample: Any) -> bool:
    return isinstance(sample, (str, os.PathLike, bytes, bytearray, dict))


def _load_picture(where: str, sample: Any, num_channels: int, do_rescale: bool) -> Image.Image | np.ndarray:
    """A picture in `num_channels` channels: a PIL image, or an array `(channels, height, width)` of 0 to 255."""
    if not _is_file(sample) and not isinstance(sample, Image.Image):
        return _read_pixels(where, _to_array(where, sample), num_channels, do_rescale)
    file = "" if isinstance(sample, Image.Image) else _open_file(where, sample)
    try:
        image = ImageOps.exif_transpose(Image.open(file) if file else sample)
        image.load()
    except Exception as error:  # corrupt files make Pillow's decoders fail in many ways
        raise ValueError(f"{where}{_named_file(file)} is not a readable picture: {error}") from error
    image = _convert_picture(where, image, num_channels)
    return _read_pixels(where, image, num_channels, do_rescale) if isinstance(image, np.ndarray) else image


def _convert_picture(where: str, image: Image.Image, num_channels: int) -> Image.Image | np.ndarray:
    if 0 in image.size:
        raise ValueError(f"{where} is empty (size {image.size})")
    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        return np.asarray(image) / 65535
    if image.mode in ("I", "F"):
        return np.asarray(image)
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if num_channels not in modes:
        raise ValueError(f"{where} is a picture of mode {image.mode}; `num_channels={num_channels}` needs an array")
    if num_channels != 4 and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(modes[num_channels])


def _read_pixels(where: str, array: np.ndarray, num_channels: int, do_rescale: bool) -> np.ndarray:
    """Pixels with channels first, last or absent, to `(num_channels, height, width)` of 0 to 255."""
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    # The axis of `num_channels` is the channels', the first of two; failing that, one of size 1: a picture in grey.
    axis = next((axis for size in (num_channels, 1) for axis in (0, -1) if array.shape[axis] == size), None)
    if array.ndim != 3 or axis is None:
        raise ValueError(
            f"{where} has shape {shape}; expected `(height, width)`, `({num_channels}, height, width)` or "
            f"`(height, width, {num_channels})`"
        )
    array = np.moveaxis(array, axis, 0)
    if len(array) != num_channels:
        array = np.repeat(array, num_channels, axis=0)
    if array.dtype == np.uint8 or not do_rescale:
        return array
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise ValueError(f"{where} has pixels from {low:g} to {high:g}; expected 0 to 255, or floats from 0 to 1")
    return array.astype(np.float32) * (255 if array.dtype.kind == "f" and high <= 1 else 1)


def _target_size(size: Any) -> tuple[int, int] | None:
    """Height and width that an image processor resizes to, where its `size` fixes both."""
    if isinstance(size, int):
        return size, size
    height, width = (dict(size or {}).get(key) for key in ("height", "width"))
    return (height, width) if height and width else None


def _size_of(picture: Image.Image | np.ndarray) -> tuple[int, int]:
    return picture.shape[-2:] if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def _is_beyond_pillow(picture: Image.Image | np.ndarray) -> bool:
    """Whether Pillow, with which image processors resize, can't hold a picture: floats in colour, or six channels."""
    return isinstance(picture, np.ndarray) and (picture.dtype != np.uint8 or len(picture) not in (1, 3))


def _resize_array(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    values = torch.from_numpy(np.array(array, dtype=np.float32))[None]
    return torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True)[0].numpy()


# What counts as 1.0 in sound of integers; that of uint8 is centred at 128.
_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31, np.dtype(np.uint8): 2.0**7}


def _load_sound(where: str, sample: Any) -> tuple[np.ndarray, int | None]:
    """Sound as floats `(samples,)`, and its sampling rate where it says one."""
    rate = None
    if isinstance(sample, dict) and sample.get("array") is not None:
        sample, rate = sample["array"], sample.get("sampling_rate")
    elif hasattr(sample, "get_all_samples"):  # a torchcodec decoder, as `datasets` gives where torchcodec is installed
        decoded = sample.get_all_samples()
        sample, rate = decoded.data, decoded.sample_rate
    elif _is_file(sample):
        sample, rate = _read_sound_file(where, _open_file(where, sample))
    array = _to_array(where, sample)
    if array.dtype in _FULL_SCALE:
        array = array / _FULL_SCALE[array.dtype] - (array.dtype == np.uint8)
    elif array.dtype.kind != "f":
        raise TypeError(f"{where} is of dtype {array.dtype}; expected floats from -1 to 1, or int16, int32 or uint8")
    if array.ndim == 2 and min(array.shape) <= 32:
        array = array.mean(int(np.argmin(array.shape)))
    if array.ndim != 1:
        raise ValueError(f"{where} has shape {array.shape}; expected `(samples,)`, or two axes for several channels")
    return array.astype(np.float32, copy=False), rate


def _read_sound_file(where: str, file: io.BytesIO | str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("reading sound files needs soundfile: `pip install crossfuse[audio]`") from error
    try:
        return soundfile.read(file, dtype="float32")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise ValueError(f"{where}{_named_file(file)} is not a readable sound file: {error}") from error


def _resample(where: str, sound: np.ndarray, rate: int, target: int) -> np.ndarray:
    if not isinstance(rate, Number) or rate <= 0:
        raise ValueError(f"{where} has `sampling_rate={rate!r}`; expected hertz")
    if rate == target:
        return sound
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"{where} has {rate} Hz where {target} Hz are expected; to resample, `pip install crossfuse[audio]`"
        ) from error
    sound = soxr.resample(sound, rate, target)
    if len(sound) == 0:
        raise ValueError(f"{where} is too short: no sample is left at {target} Hz")
    return sound


def _load_frames(where: str, sample: Any, num_frames: int | None) -> list[Any]:
    """Frames of a video, `num_frames` of them at equal distances where it has more."""
    if _is_file(sample):
        return _read_video_file(where, _open_file(where, sample), num_frames)
    frames = sample if _is_list(sample) else _to_array(where, sample)
    if not _is_list(frames) and frames.ndim != 4:
        raise ValueError(f"{where} has shape {frames.shape}; expected frames and three more axes, or a list of frames")
    if len(frames) == 0:
        raise ValueError(f"{where} has no frame")
    return [frames[i] for i in _uniform_indices(len(frames), num_frames)]


def _uniform_indices(total: int, number: int | None) -> list[int]:
    if number is None or total <= number:
        return list(range(total))
    return np.linspace(0, total - 1, number).round().astype(int).tolist()


def _read_video_file(where: str, file: io.BytesIO | str, num_frames: int | None) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs PyAV: `pip install crossfuse[audio]`") from error

    def decode(container):
        container.seek(0)
        return container.decode(video=0)

    try:
        with av.open(file) as container:
            # Counted by decoding: what a header says is often missing or wrong.
            wanted = set(_uniform_indices(sum(1 for _ in decode(container)), num_frames))
            frames = [frame.to_image() for i, frame in enumerate(decode(container)) if i in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{where}{_named_file(file)} is not a readable video: {error}") from error
    if not frames:
        raise ValueError(f"{where}{_named_file(file)} has no frame")
    return frames


def _load_series(where: str, sample: Any, num_channels: int) -> np.ndarray:
    """A series as doubles `(steps, num_channels)`."""
    array = _to_array(where, sample)
    if array.ndim == 0 or (array.ndim == 1 and num_channels == 1):
        array = array.reshape(-1, 1)
    elif array.ndim == 1:  # a table row or an embedding: one step
        array = array[None]
    if array.ndim != 2 or array.shape[1] != num_channels:
        raise ValueError(f"{where} has shape {np.shape(sample)}; expected `(steps, {num_channels})`")
    return array.astype(np.float64)


def _pad_rows(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays `(steps, ...)` to one array `(rows, longest, ...)` and its mask `(rows, longest)`."""
    length = max(map(len, rows))
    values = np.zeros((len(rows), length, *rows[0].shape[1:]), dtype=rows[0].dtype)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for index, row in enumerate(rows):
        values[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return values, mask


class _SubProcessorNames:
    """
    `get_attributes()`: of the class, the sub-processors that it may have; of an instance, those that it has, so that
    `ProcessorMixin` saves and prints no others.
    """

    def __get__(self, instance, owner):
        # Without torchvision, transformers has no video processor that could be loaded.
        possible = [name for name in _SUB_PROCESSORS if name != "video_processor" or is_torchvision_available()]
        return lambda: [name for name in possible if instance is None or hasattr(instance, name)]


class CrossFuseProcessor(ProcessorMixin):
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
            for `series`, `num_channels`, `mean`, `std` and `max_length` (in steps). Defaults to one modality for each
            sub-processor.
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
        for name, sub_processor in zip(_SUB_PROCESSORS, given):
            if sub_processor is not None:
                self.check_argument_for_proper_class(name, sub_processor)
                setattr(self, name, sub_processor)
        self.chat_template = chat_template
        self.modalities = self._check_modalities(modalities)

    def _check_modalities(self, modalities: dict[str, dict] | list[dict] | None) -> dict[str, dict]:
        if modalities is None:
            modalities = {kind: {} for name, kind in _SUB_PROCESSORS.items() if hasattr(self, name)}
        if isinstance(modalities, list):  # as saved: JSON with sorted keys would lose a dict's order
            modalities = {
                settings["name"]: {key: value for key, value in settings.items() if key != "name"}
                for settings in modalities
            }
        modalities = {name: {"kind": name, **settings} for name, settings in copy.deepcopy(modalities).items()}
        for name, settings in modalities.items():
            self._check_settings(name, settings)
        return modalities

    def _check_settings(self, name: str, settings: dict[str, Any]):
        kind = settings["kind"]
        if kind not in _OPTIONS:
            raise ValueError(f"`modalities[{name!r}]` has `kind={kind!r}`; expected one of {', '.join(_OPTIONS)}")
        reserved = {"images", "videos", "return_tensors", "common_kwargs", *_KWARGS_NAMES.values()}
        if name in reserved.union(*self._flat_options().values()):
            raise ValueError(
                f"`modalities` has the name {name!r}, which is an argument of the processor; choose another"
            )
        allowed = {"kind", *self._options(kind), *_SETTINGS[kind]}
        for key in settings:
            if key not in allowed:
                raise ValueError(
                    f"`modalities[{name!r}]` has `{key}={settings[key]!r}`.{_close_match(key, allowed)} Allowed for "
                    f"{kind!r}: {', '.join(sorted(allowed))}."
                )
        for key in ("mean", "std"):
            if kind == "series" and settings.get(key) is not None:
                self._check_statistics(name, key, settings)

    def _options(self, kind: str) -> set[str]:
        """Names of a call's options for a kind; an image processor may have some of its own."""
        if kind not in ("image", "video") or not hasattr(self, "image_processor"):
            return _OPTIONS[kind]
        return _OPTIONS[kind] | set(self.image_processor.valid_kwargs.__annotations__) - _NOT_OPTIONS

    def _flat_options(self) -> dict[str, set[str]]:
        # By itself, `max_length=64` means tokens: sound is cut only by `audio_kwargs` or a modality's settings.
        return {kind: self._options(kind) for kind in _OPTIONS} | {"audio": {"sampling_rate"}}

    @staticmethod
    def _check_statistics(name: str, key: str, settings: dict[str, Any]):
        num_channels = settings.get("num_channels", 1)
        values = _to_array(f"`modalities[{name!r}]['{key}']`", settings[key])
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
        """
        pictures = [part for part in config.modalities.values() if part.kind in ("image", "video")]
        sounds = [part for part in config.modalities.values() if part.kind == "audio"]
        image_processor = feature_extractor = None
        if pictures:
            image_processor = ViTImageProcessorPil(
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
            steps = _load_series(f"`{name}` of sample {index}", sample, num_channels)
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
        return _tensor_names(tuple((name, settings["kind"]) for name, settings in self.modalities.items()))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call can give."""
        return [name for pair in self._tensor_names.values() for name in pair] + ["modality_mask"]

    def __call__(self, text=None, images=None, audio=None, **kwargs) -> BatchFeature:
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
        batches = {name: self._as_batch(name, value) for name, value in inputs.items()}
        modality_mask = self._modality_mask(batches)
        data = {}
        tensor_names = self._tensor_names
        for column, (name, settings) in enumerate(self.modalities.items()):
            rows = modality_mask[:, column].nonzero()[0].tolist()
            if not rows:
                continue
            kind = settings["kind"]
            samples = {f"`{name}` of sample {row}": batches[name][row] for row in rows}
            merged = {**self._defaults(kind), **settings, **options[kind]}
            merged.pop("kind")
            values, mask = getattr(self, f"_{kind}_tensors")(samples, merged)
            fill = (self.tokenizer.pad_token_id or 0) if kind == "text" else 0
            value_name, mask_name = tensor_names[name]
            data[value_name] = _spread(values, rows, len(modality_mask), fill)
            data[mask_name] = _spread(mask, rows, len(modality_mask), 0)
        return BatchFeature(_convert({**data, "modality_mask": modality_mask}, return_tensors))

    def _sort_arguments(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A call's arguments as modalities by name, and options by kind."""
        arguments = {**(arguments.pop("common_kwargs", None) or {}), **arguments}
        options = {"return_tensors": arguments.pop("return_tensors", None)}
        if options["return_tensors"] not in (None, "pt", "np"):
            raise ValueError(f"`return_tensors={options['return_tensors']!r}`; expected 'pt', 'np' or None")
        nested = {kind: dict(arguments.pop(key, None) or {}) for kind, key in _KWARGS_NAMES.items()}
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
                name = self._modality_of(key)
                if name in inputs:
                    raise ValueError(f"modality `{name}` is given twice, once as `{key}`")
                inputs[name] = value
        return inputs, options

    def _check_nested(self, kind: str, chosen: dict[str, Any], flat: dict[str, Any]):
        for key in chosen:
            if key not in self._options(kind):
                raise ValueError(
                    f"`{_KWARGS_NAMES[kind]}` has `{key}`.{_close_match(key, self._options(kind))} Allowed: "
                    f"{', '.join(sorted(self._options(kind)))}."
                )
            if key in flat:
                raise ValueError(f"`{key}` is given twice: by itself and in `{_KWARGS_NAMES[kind]}`")

    def _modality_of(self, argument: str) -> str:
        """The modality that an argument's name stands for."""
        if argument in self.modalities:
            return argument
        kind = _ALIASES.get(argument)
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
            f"`{argument}` is not a modality of this processor.{_close_match(argument, self.modalities)} "
            f"It has: {known}."
        )

    def _as_batch(self, name: str, value: Any) -> list[Any]:
        """A list of samples from what the user gave."""
        kind = self.modalities[name]["kind"]
        if isinstance(value, (np.ndarray, torch.Tensor)):
            sample_axes = {"image": 3, "video": 4, "audio": 1, "series": 2}.get(kind, 0)
            if kind == "audio" and value.ndim == 2:
                raise ValueError(
                    f"`{name}` is one array of shape {tuple(value.shape)}, which could be a batch or channels; "
                    "expected a list of clips"
                )
            return list(value) if value.ndim > sample_axes else [value]
        if not _is_list(value):
            return [value]
        samples = list(value)
        if not samples:
            raise ValueError(f"`{name}` is an empty list; expected at least one sample")
        first = next((sample for sample in samples if sample is not None), None)
        is_frame = isinstance(first, Image.Image) or getattr(first, "ndim", 4) in (2, 3)
        if (kind == "video" and is_frame) or (kind == "audio" and isinstance(first, Number)):
            return [samples]
        return samples

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
            mask[:, column] = [not self._is_missing(name, sample) for sample in batches.get(name, [None] * len(mask))]
        without = (mask.sum(1) == 0).nonzero()[0]
        if len(without):
            raise ValueError(
                f"sample {without[0]} of the batch has no modality; expected at least one of "
                + ", ".join(self.modalities)
            )
        return mask

    def _is_missing(self, name: str, sample: Any) -> bool:
        if self.modalities[name]["kind"] == "image" and _is_list(sample):
            return all(picture is None for picture in sample)
        return sample is None

    def _defaults(self, kind: str) -> dict[str, Any]:
        """Options where neither the call nor a modality's settings give any: the class's, then the tokenizer's own."""
        defaults = dict(getattr(self, _KWARGS_NAMES.get(kind, ""), {}))
        if kind == "text" and hasattr(self, "tokenizer"):
            defaults |= {key: value for key, value in self.tokenizer.init_kwargs.items() if key in _OPTIONS["text"]}
        return defaults

    def _text_tensors(self, samples: dict[str, str], options: dict[str, Any]) -> tuple[Any, Any]:
        if not hasattr(self, "tokenizer"):
            raise ValueError(f"{next(iter(samples))} is given, but this processor has no `tokenizer`")
        for where, text in samples.items():
            if not isinstance(text, str):
                raise TypeError(f"{where} is {type(text).__name__}; expected a str")
            if not text.strip():
                raise ValueError(f"{where} is empty; expected text, or None where the sample has none")
        if options.get("max_length") is not None:
            options.setdefault("truncation", True)
        tokens = self.tokenizer(list(samples.values()), return_attention_mask=True, **options)
        for where, mask in zip(samples, tokens["attention_mask"]):
            if not any(mask):
                raise ValueError(f"{where} gives no token: {samples[where]!r}")
        return tokens["input_ids"], tokens["attention_mask"]

    def _image_tensors(self, samples: dict[str, Any], options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        # One array may hold several pictures, too.
        samples = {
            where: list(sample) if getattr(sample, "ndim", 0) == 4 else sample for where, sample in samples.items()
        }
        several = any(_is_list(sample) for sample in samples.values())
        lists = {where: sample if _is_list(sample) else [sample] for where, sample in samples.items()}
        pictures = [
            (f"{where}, picture {index}" if several else where, picture)
            for where, sample in lists.items()
            for index, picture in enumerate(sample)
            if picture is not None
        ]
        pixels = self._pixels(pictures, options)
        number = max(map(len, lists.values()))
        mask = np.array([[int(i < len(s) and s[i] is not None) for i in range(number)] for s in lists.values()])
        if not several:
            return pixels, mask
        values = np.zeros((*mask.shape, *pixels.shape[1:]), dtype=pixels.dtype)
        values[mask == 1] = pixels
        return values, mask

    def _pixels(self, pictures: list[tuple[str, Any]], options: dict[str, Any]) -> np.ndarray:
        """Pixel values `(pictures, channels, height, width)`."""
        if not hasattr(self, "image_processor"):
            raise ValueError(f"{pictures[0][0]} is given, but this processor has no `image_processor`")
        options = dict(options)
        num_channels = options.pop("num_channels", 3)
        do_rescale = options.get("do_rescale", getattr(self.image_processor, "do_rescale", True))
        do_resize = options.pop("do_resize", getattr(self.image_processor, "do_resize", True))
        size = _target_size(options.get("size", getattr(self.image_processor, "size", None)))
        loaded = [_load_picture(where, picture, num_channels, do_rescale) for where, picture in pictures]
        if do_resize and size is not None:
            loaded = [_resize_array(x, size) if _is_beyond_pillow(x) and _size_of(x) != size else x for x in loaded]
        # Pictures that have the size already are left as they are: resizing to the same size costs most of the time.
        resized = [do_resize and _size_of(picture) != size for picture in loaded]
        pixels: list[np.ndarray | None] = [None] * len(loaded)
        for resize in set(resized):
            rows = [row for row, value in enumerate(resized) if value == resize]
            output = self.image_processor(
                [loaded[row] for row in rows],
                do_resize=resize,
                input_data_format="channels_first",
                **options,
            )["pixel_values"]
            for row, picture in zip(rows, output):
                pixels[row] = np.asarray(picture, dtype=np.float32)
        shapes = {picture.shape for picture in pixels}
        if len(shapes) > 1:
            raise ValueError(
                f"{pictures[0][0]} and others have different shapes after the image processor: "
                f"{', '.join(map(str, sorted(shapes)))}; set `size={{'height': ..., 'width': ...}}`"
            )
        return np.stack(pixels)

    def _video_tensors(self, samples: dict[str, Any], options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        num_frames = options.pop("num_frames", None)
        if not options.pop("do_sample_frames", True):
            num_frames = None
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"`num_frames={num_frames}`; expected at least 1")
        videos = [_load_frames(where, sample, num_frames) for where, sample in samples.items()]
        named = [
            [(f"{where}, frame {index}", frame) for index, frame in enumerate(frames)]
            for where, frames in zip(samples, videos)
        ]
        if hasattr(self, "video_processor"):
            rows = [self._video_pixels(frames, dict(options)) for frames in named]
        else:
            pixels = self._pixels([frame for frames in named for frame in frames], options)
            rows = np.split(pixels, np.cumsum([len(frames) for frames in videos])[:-1])
        return _pad_rows(rows)

    def _video_pixels(self, frames: list[tuple[str, Any]], options: dict[str, Any]) -> np.ndarray:
        num_channels = options.pop("num_channels", 3)
        loaded = [_load_picture(where, frame, num_channels, do_rescale=True) for where, frame in frames]
        arrays = [x if isinstance(x, np.ndarray) else np.moveaxis(np.atleast_3d(np.asarray(x)), -1, 0) for x in loaded]
        output = self.video_processor(
            [np.stack(arrays)],
            do_sample_frames=False,
            input_data_format="channels_first",
            return_tensors="pt",
            **options,
        )
        return output["pixel_values_videos"][0].float().numpy()

    def _audio_tensors(self, samples: dict[str, Any], options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        if not hasattr(self, "feature_extractor"):
            raise ValueError(f"{next(iter(samples))} is given, but this processor has no `feature_extractor`")
        given_rate = options.pop("sampling_rate", None)
        changed = {key: options.pop(key) for key in _SETTINGS["audio"] if key in options}
        extractor = self.feature_extractor
        if changed:
            extractor = type(extractor)(**{**extractor.to_dict(), **changed})
        clips = []
        for where, sample in samples.items():
            sound, rate = _load_sound(where, sample)
            rate = given_rate if rate is None else rate
            if rate is None:
                logger.warning_once(
                    "Sound is given as an array without a sampling rate and taken to have "
                    f"{extractor.sampling_rate} Hz. Give `sampling_rate=...`, or dicts of `array` and `sampling_rate`."
                )
                rate = extractor.sampling_rate
            clips.append(_resample(where, sound, rate, extractor.sampling_rate))
        features = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="np", **options)
        values = features[extractor.model_input_names[0]]
        mask = features.get("feature_attention_mask", features.get("attention_mask"))
        return values, np.ones((len(values), values.shape[-1]), dtype=np.int64) if mask is None else mask

    def _series_tensors(self, samples: dict[str, Any], options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        mean, std = options.get("mean"), options.get("std")
        series = []
        for where, sample in samples.items():
            values = _load_series(where, sample, options.get("num_channels", 1))
            # In double precision: large numbers that differ little, such as times, would become equal.
            values = (values - (0.0 if mean is None else mean)) / (1.0 if std is None else std)
            if np.abs(values).max() > np.finfo(np.float32).max:
                raise ValueError(f"{where} has values beyond the range of float32")
            series.append(values.astype(np.float32))
        if options.get("max_length") is not None:
            series = [values[: options["max_length"]] for values in series]
        return _pad_rows(series)

    def to_dict(self) -> dict[str, Any]:
        """As in any processor; `modalities` is a list, since JSON files with sorted keys lose a dict's order."""
        output = super().to_dict()
        output["modalities"] = [{"name": name, **settings} for name, settings in output["modalities"].items()]
        return output

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs) -> list[Any]:
        """The sub-processors that were saved, in the order of `__init__`, and None for the others."""
        saved = processor_dict or {}
        hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        tokenizer_config = cached_file(
            pretrained_model_name_or_path,
            "tokenizer_config.json",
            _raise_exceptions_for_missing_entries=False,
            **{key: kwargs[key] for key in hub if kwargs.get(key) is not None},
        )
        arguments = dict.fromkeys(_SUB_PROCESSORS)
        if tokenizer_config is not None:
            subfolder = kwargs.get("subfolder", "")
            others = {key: value for key, value in kwargs.items() if key != "subfolder"}
            arguments["tokenizer"] = cls._load_tokenizer_from_pretrained(
                "tokenizer", pretrained_model_name_or_path, subfolder=subfolder, **others
            )
        if "image_processor" in saved:
            # The same pictures give the same numbers whether torchvision is there or not.
            arguments["image_processor"] = AutoImageProcessor.from_pretrained(
                pretrained_model_name_or_path, **{"backend": "pil", **kwargs}
            )
        if "video_processor" in saved:
            arguments["video_processor"] = AutoVideoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if "feature_extractor" in saved:
            # Ours is found without its registration, and so also where this code came with the model.
            ours = saved["feature_extractor"].get("feature_extractor_type") == CrossFuseFeatureExtractor.__name__
            loader = CrossFuseFeatureExtractor if ours else AutoFeatureExtractor
            arguments["feature_extractor"] = loader.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return list(arguments.values())


def _spread(values: Any, rows: list[int], batch_size: int, fill: int) -> Any:
    """Values of the samples that have a modality, to all samples of the batch."""
    if isinstance(values, list):
        lengths = {len(row) for row in values}
        if len(lengths) > 1:  # tokens without padding
            spread = [[] for _ in range(batch_size)]
            for row, value in zip(rows, values):
                spread[row] = value
            return spread
        values = np.array(values, dtype=np.int64)
    if len(rows) == batch_size:
        return values
    spread = np.full((batch_size, *values.shape[1:]), fill, dtype=values.dtype)
    spread[rows] = values
    return spread


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


__all__ = ["CrossFuseFeatureExtractor", "CrossFuseProcessor"]
