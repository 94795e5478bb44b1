# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw inputs made worse on purpose, by a level from 0 to 1 that every kind of modality has."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..media import is_missing, load_series, plain
from ..media_audio import load_audio
from ..media_image import has_several, images_of, load_images
from ..media_video import load_frames


def cover(image: Image.Image | np.ndarray, level: float) -> Image.Image | np.ndarray:
    """
    A copy of an image, a PIL image or an array `(channels, height, width)` from 0 to 255, whose right part is white:
    the share `level` of its width.
    """
    _check_level(level)
    covered = image.copy()
    width = covered.width if isinstance(covered, Image.Image) else covered.shape[-1]
    kept = width - round(width * level)
    if isinstance(covered, np.ndarray):
        covered[..., kept:] = 255
    elif kept < width:
        covered.paste("white", (kept, 0, *covered.size))
    return covered


def hide_characters(text: str, level: float, generator: np.random.Generator) -> str:
    """
    Puts `_` for the share `level` of a text's characters. Generators with the same seed hide the same characters at a
    higher level, and more of them.
    """
    _check_level(level)
    hidden = set(generator.permutation(len(text))[: round(len(text) * level)].tolist())
    return "".join("_" if place in hidden else character for place, character in enumerate(text))


def mix_noise(
    values: np.ndarray, level: float, generator: np.random.Generator, mean: Any = 0.0, std: Any = None
) -> np.ndarray:
    """
    Mixes a signal with white Gaussian noise, in the proportion `1 - level` to `level`, and keeps its strength. The
    signal-to-noise ratio is `20 * log10((1 - level) / level)` dB: 0 dB at level 0.5, nothing but noise at level 1.

    By default, the signal has mean 0, and the noise its root mean square; `mean` and `std` are for both, floats or
    arrays that broadcast to `values`. The result is float64: times would lose digits in less.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_crossfuse.evaluation.degradation import mix_noise

    >>> clip = np.sin(np.arange(16_000) / 10)
    >>> noisy = mix_noise(clip, level=0.5, generator=np.random.default_rng(0))
    >>> round(float((noisy**2).mean() / (clip**2).mean()), 1)
    1.0
    ```
    """
    _check_level(level)
    values = np.asarray(values, dtype=np.float64)
    if std is None:
        std = np.sqrt((values**2).mean()) if values.size else 0.0
    noise = std * generator.standard_normal(values.shape)
    mixed = (1 - level) * (values - mean) + level * noise
    return mean + mixed / np.hypot(1 - level, level)


def _check_level(level: float):
    """Raises a `ValueError` if a level is not between 0 and 1."""
    if not 0 <= level <= 1:
        raise ValueError(f"`level={level}` is not between 0 and 1")


@dataclass
class Degradation:
    """
    Makes raw inputs worse, in the same way each time: what is drawn depends on `seed` and the input alone. The level
    goes from 0, which changes nothing, to 1, which leaves nothing, and is for each kind:

    | kind | level |
    | --- | --- |
    | image, video | share of the width that is hidden, see [`cover`] |
    | text | share of the characters that is hidden, see [`hide_characters`] |
    | audio | share of the amplitude that is noise, see [`mix_noise`]; the noise is as strong as the clip |
    | series | the same; the noise has the mean and standard deviation that the processor knows of each channel |

    Args:
        modalities (`Mapping[str, dict]`): name of each modality to its settings, as [`CrossFuseProcessor`] has them.
        level (`float`): how much worse.
        seed (`int`, defaults to 0): of what is drawn.

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_crossfuse.evaluation.degradation import Degradation

    >>> degrade = Degradation({"eye": {"kind": "image"}, "text": {"kind": "text"}}, level=1.0)
    >>> degrade("eye", Image.new("RGB", (4, 1), "red")).getpixel((0, 0)), degrade("text", "left")
    ((255, 255, 255), '____')
    ```
    """

    modalities: Mapping[str, dict[str, Any]]
    level: float
    seed: int = 0

    def __post_init__(self):
        _check_level(self.level)

    def __call__(self, name: str, value: Any) -> Any:
        """A raw input of a modality, made worse; raises a `ValueError` if it can't be read. None stays None."""
        if is_missing(value) or self.level == 0:
            return value
        value = plain(value)
        settings = self.modalities[name]
        return getattr(self, f"_degrade_{settings['kind']}")(f"`{name}`", settings, value)

    def _generator(self, content: bytes) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(content)])

    def _degrade_image(self, where: str, settings: dict[str, Any], value: Any) -> Any:
        covered = iter(self._cover(images_of(where, value), settings))
        if not has_several(value):
            return next(covered)
        return [None if is_missing(image) else next(covered) for image in value]

    def _degrade_video(self, where: str, settings: dict[str, Any], value: Any) -> list[Any]:
        frames = load_frames(where, value, settings.get("num_frames"))
        return self._cover([(f"{where}, frame {index}", frame) for index, frame in enumerate(frames)], settings)

    def _cover(self, images: list[tuple[str, Any]], settings: dict[str, Any]) -> list[Image.Image | np.ndarray]:
        layout = settings.get("input_data_format")
        loaded = load_images(images, settings.get("num_channels", 3), input_data_format=layout)
        if not settings.get("do_rescale", True) and any(isinstance(image, np.ndarray) for image in loaded):
            raise ValueError(
                f"{images[0][0]} has pixels that the processor does not rescale (`do_rescale=False`), so that what is "
                "white in it is not known; expected an image of 8 bits"
            )
        covered = [cover(image, self.level) for image in loaded]
        if layout != "channels_last":
            return covered
        return [np.moveaxis(image, 0, -1) if isinstance(image, np.ndarray) else image for image in covered]

    def _degrade_text(self, where: str, settings: dict[str, Any], value: str) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{where} is {type(value).__name__}; expected a str")
        content = value.encode(errors="surrogatepass")
        return hide_characters(value, self.level, self._generator(content))

    def _degrade_audio(self, where: str, settings: dict[str, Any], value: Any) -> dict[str, Any]:
        audio, sampling_rate = load_audio(where, value)
        noisy = mix_noise(audio, self.level, self._generator(audio.tobytes()))
        return {"array": noisy, "sampling_rate": sampling_rate}

    def _degrade_series(self, where: str, settings: dict[str, Any], value: Any) -> np.ndarray:
        series = load_series(where, value, settings.get("num_channels", 1))
        mean, std = (np.asarray(settings.get(key, default)) for key, default in (("mean", 0.0), ("std", 1.0)))
        return mix_noise(series, self.level, self._generator(series.tobytes()), mean, std)


__all__ = ["Degradation", "cover", "hide_characters", "mix_noise"]
