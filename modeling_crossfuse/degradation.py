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
"""Raw inputs made worse on purpose: pictures half hidden, sound in noise."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .media import load_sound


def cover(picture: Image.Image, share: float = 0.5) -> Image.Image:
    """
    Hides the right part of a picture behind white.

    Args:
        picture (`PIL.Image.Image`): left as it is.
        share (`float`, defaults to 0.5): share of the width that is hidden, from 0 to 1.

    Returns:
        `PIL.Image.Image`: an RGB picture of the same size.

    Raises:
        ValueError: if `share` is not between 0 and 1.

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_crossfuse.degradation import cover

    >>> half = cover(Image.new("RGB", (4, 1), "red"))
    >>> [half.getpixel((x, 0)) for x in range(4)]
    [(255, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255)]
    ```
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share={share}` is not between 0 and 1")
    covered = picture.convert("RGB")
    width, height = covered.size
    hidden = round(width * share)
    if hidden:
        ImageDraw.Draw(covered).rectangle((width - hidden, 0, width, height), fill="white")
    return covered


def add_noise(clip: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """
    Adds white noise to a waveform.

    Args:
        clip (`np.ndarray` of shape `(samples,)`): the waveform, left as it is.
        snr_db (`float`): signal-to-noise ratio in dB, both as mean power over the clip: at 0 the noise is as strong as
            the signal. Silence stays silent.
        generator (`np.random.Generator`): draws the noise.

    Returns:
        `np.ndarray` of shape `(samples,)`: float32, not clipped.

    Raises:
        ValueError: if the clip has not one dimension, or `snr_db` is not finite.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_crossfuse.degradation import add_noise

    >>> clip = np.sin(np.arange(16_000) / 10)
    >>> noise = add_noise(clip, snr_db=0, generator=np.random.default_rng(0)) - clip
    >>> round(float((noise**2).mean() / (clip**2).mean()), 4)
    1.0
    ```
    """
    clip = np.asarray(clip, dtype=np.float64)
    if clip.ndim != 1:
        raise ValueError(f"`clip` has shape {clip.shape}; expected (samples,)")
    if not np.isfinite(snr_db):
        raise ValueError(f"`snr_db={snr_db}` is not a finite number")
    if clip.size == 0:
        return clip.astype(np.float32)
    noise = generator.standard_normal(clip.shape)
    power = (clip**2).mean() / 10 ** (snr_db / 10)
    return (clip + noise * np.sqrt(power / (noise**2).mean())).astype(np.float32)


@dataclass
class Degradation:
    """
    Makes raw inputs worse, each time in the same way: the noise of a clip depends on `seed` and the clip alone.

    Args:
        cover (`float`, *optional*): share of every picture to hide, see [`cover`].
        noise_db (`float`, *optional*): signal-to-noise ratio of every clip in dB, see [`add_noise`].
        seed (`int`, defaults to 0): of the noise.
    """

    cover: float | None = None
    noise_db: float | None = None
    seed: int = 0

    def __call__(self, kind: str, value: Any) -> Any:
        """
        `value`, a raw input of a modality of that kind, made worse; kinds other than image and audio stay as they are.

        Raises:
            ValueError: if it can't be read, or a setting is out of range.
        """
        if value is None:
            return None
        if kind == "image" and self.cover is not None:
            if isinstance(value, list):
                return [self(kind, picture) for picture in value]
            if not isinstance(value, Image.Image):
                raise ValueError(f"a picture to cover is {type(value).__name__}; expected a PIL image")
            return cover(value, self.cover)
        if kind == "audio" and self.noise_db is not None:
            sound, sampling_rate = load_sound("a sound to add noise to", value)
            generator = np.random.default_rng([self.seed, zlib.crc32(sound.tobytes())])
            return {"array": add_noise(sound, self.noise_db, generator), "sampling_rate": sampling_rate}
        return value


__all__ = ["Degradation", "add_noise", "cover"]
