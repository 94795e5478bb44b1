# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Made-up values for what has to run before there is data: probing an encoder, tracing a graph, checking a model."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch


def made_up_values(
    layout: Iterable[str], sizes: Mapping[str, int], batch_size: int = 2, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Values `(batch_size, *layout)` of a modality: tokens where the layout is `("length",)`, and noise otherwise.

    Args:
        layout (`Iterable[str]`): the names of the dimensions, as the `layout` of a modality's config has them.
        sizes (`Mapping[str, int]`): the size of each dimension and, for tokens, the `vocab_size`.
        batch_size (`int`, defaults to 2): number of samples.
        generator (`torch.Generator`, *optional*): without one, the values are the same each time.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    shape = [batch_size, *(sizes[dimension] for dimension in layout)]
    if "length" not in layout:
        return torch.randn(shape, generator=generator)
    # Vocabularies begin with special tokens, so these are the last ones. No token is the same as the one before.
    number = max(2, min(50, sizes["vocab_size"] - 10))
    return sizes["vocab_size"] - 1 - torch.arange(shape[0] * shape[1]).view(shape) % number


def made_up_sample(modalities: Mapping[str, Any], length: int) -> dict[str, Any]:
    """A raw sample for a processor: about `length` positions of each modality, but no more than two images."""
    noise = np.random.default_rng(length)
    return {name: _made_up_input(part, length, noise) for name, part in modalities.items()}


def _made_up_input(part: Any, length: int, noise: np.random.Generator) -> Any:
    if part.kind == "text":
        return " ".join(["word"] * length)
    if part.kind in ("image", "video"):
        number = min(length, 2) if part.kind == "image" else length * part.temporal_patch_size
        return list(noise.integers(0, 256, (number, 32, 32, part.num_channels or 3), dtype=np.uint8))
    if part.kind == "audio":
        # Each convolution halves the number of frames of 10 ms. Encoders of transformers make about one for 20 ms.
        frames = length * 2 ** getattr(part, "num_conv_layers", 2)
        return {"array": noise.standard_normal(160 * frames) / 10, "sampling_rate": 16_000}
    steps = length * getattr(part, "patch_length", 1)  # encoders of transformers have none
    return noise.standard_normal((steps, part.num_channels))
