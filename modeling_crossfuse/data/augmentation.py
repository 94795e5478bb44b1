# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Random changes to the batches of training: of images by kornia, of log-mel features by noise and masks."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..extras import needs


# The natural logarithm of a power that is one decibel.
_LOG_PER_DB = math.log(10) / 10


class ImageAugmentation:
    """
    A chain of kornia's augmentations. Each is drawn anew for each image.

    Args:
        steps (`list[dict[str, dict]]`): names of classes in `kornia.augmentation` with their arguments, such as
            `[{"RandomAffine": {"degrees": 15}}, {"RandomGrayscale": {"p": 0.1}}]`.
        mean, std (`list[float]`): how the image processor normalised the images; kornia works on `[0, 1]`.
    """

    def __init__(self, steps: list[dict[str, dict[str, Any]]], mean: list[float], std: list[float]):
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise ValueError(
                f"`augmentation` has {steps!r} for images; expected a list such as [{{'RandomAffine': {{}}}}]"
            )
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.steps = [self._build(name, arguments or {}) for step in steps for name, arguments in step.items()]

    @staticmethod
    def _build(name: str, arguments: dict[str, Any]):
        try:
            import kornia.augmentation
        except ImportError as error:
            raise needs("augmenting images needs kornia", "train") from error
        arguments = {
            key: torch.tensor(value, dtype=torch.float) if key == "fill_value" else value
            for key, value in arguments.items()
        }
        try:
            return getattr(kornia.augmentation, name)(**arguments)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"`augmentation` has the step {name!r} with {arguments!r}: {error}") from error

    def __call__(self, pixel_values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised images `(..., channels, height, width)` to the same shape. A mask changes nothing."""
        images = (pixel_values.flatten(0, -4) * self.std + self.mean).clamp(0, 1)
        for step in self.steps:
            images = step(images)
        return ((images.clamp(0, 1) - self.mean) / self.std).reshape(pixel_values.shape)


@dataclass
class AudioAugmentation:
    """
    Noise, loudness and masks on log-mel features.

    The masks are those of SpecAugment (Park et al., 2019). The noise is white or tilted; its power is added to that of
    each band.

    Args:
        log_scale (`float`): factor from the natural logarithm of the power to the feature; the extractor's
            `(log10(power) + 4) / 4` has `1 / (4 * ln 10)`.
        noise_probability (`float`, defaults to 0.5): share of the clips that get noise.
        noise_db (`tuple[float, float]`, defaults to `(-5, 25)`): the range of the signal-to-noise ratio, in decibels.
        gain_db (`float`, defaults to 6): the most decibels by which the loudness rises or falls.
        max_time_mask (`float`, defaults to 0.1): the largest share of the frames that one mask covers.
        max_band_mask (`float`, defaults to 0.2): the largest share of the bands that one mask covers.
    """

    log_scale: float = 0.25 / math.log(10)
    noise_probability: float = 0.5
    noise_db: tuple[float, float] = (-5.0, 25.0)
    gain_db: float = 6.0
    max_time_mask: float = 0.1
    max_band_mask: float = 0.2

    def __call__(self, input_features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features `(batch, bands, frames)` with their mask `(batch, frames)` to the same shape."""
        features = self._add_noise(input_features, mask)
        gain = self._uniform(features, -self.gain_db, self.gain_db) * _LOG_PER_DB
        features = features + gain * self.log_scale
        floor = features.amin((1, 2), keepdim=True)
        features = torch.where(self._span(features, 2, self.max_time_mask), floor, features)
        return torch.where(self._span(features, 1, self.max_band_mask), floor, features)

    def _uniform(self, features: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty(features.shape[0], 1, 1).uniform_(low, high)

    def _add_noise(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        chosen = torch.rand(features.shape[0]) < self.noise_probability
        logs, kept = features[chosen] / self.log_scale, mask[chosen, None].to(features.dtype)
        bands = logs.shape[1]
        # The mask of a missing clip keeps no frame.
        signal = (logs.exp() * kept).sum((1, 2), keepdim=True) / (kept.sum((1, 2), keepdim=True).clamp(min=1) * bands)
        # The power of noise in one band and frame scatters exponentially around its mean.
        scatter = torch.rand_like(logs).clamp(min=1e-6).log().neg().log()
        tilt = self._uniform(logs, -2, 2) * torch.linspace(-1, 1, bands)[None, :, None]
        ratio = self._uniform(logs, *self.noise_db) * _LOG_PER_DB
        noise = signal.clamp(min=1e-10).log() - ratio + tilt + scatter
        return features.index_put((chosen,), torch.logaddexp(logs, noise) * self.log_scale)

    def _span(self, features: torch.Tensor, axis: int, largest: float) -> torch.Tensor:
        """One random span along an axis for each clip, as booleans."""
        size = features.shape[axis]
        width = self._uniform(features, 0, largest * size)
        start = torch.rand_like(width) * (size - width)
        steps = torch.arange(size)[None, None]
        span = (steps >= start) & (steps < start + width)
        return span if axis == 2 else span.mT


class BatchAugmentation:
    """
    Augments the batches of a collator. For each modality by name, `settings` has the steps of [`ImageAugmentation`] or
    the arguments of [`AudioAugmentation`]; `modalities` are those of the model's config.
    """

    def __init__(self, processor, modalities, settings: dict[str, Any]):
        self.modalities = modalities
        self.steps = {name: self._build(name, arguments, processor) for name, arguments in settings.items()}

    def _build(self, name: str, arguments: Any, processor) -> ImageAugmentation | AudioAugmentation:
        if name not in self.modalities:
            raise ValueError(f"`augmentation` names the modality {name!r}; there are {', '.join(self.modalities)}")
        part = self.modalities[name]
        if part.kind == "image":
            images = processor.sub_processor(name, "image_processor")
            mean, std = (images.image_mean, images.image_std) if images.do_normalize else ([0.0], [1.0])
            return ImageAugmentation(arguments, mean, std)
        if part.kind != "audio":
            raise ValueError(f"`augmentation` names {name!r} of kind {part.kind!r}; expected image or audio")
        if tuple(part.layout) != ("num_mel_bins", "frames"):
            raise ValueError(
                f"`augmentation` names {name!r}, whose encoder takes audio as ({', '.join(part.layout)}); expected "
                "(num_mel_bins, frames)"
            )
        try:
            return AudioAugmentation(**arguments)
        except TypeError as error:
            raise ValueError(f"`augmentation` has {arguments!r} for {name!r}: {error}") from error

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, step in self.steps.items():
            names = self.modalities.tensor_names_of(name)
            if names.values in batch:
                batch[names.values] = step(batch[names.values], batch.get(names.mask))
        return batch
