# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Frames of videos to pixels."""

from transformers import ViTImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature


class CrossFuseVideoImageProcessor(ViTImageProcessorPil):
    r"""
    The image processor of a model with videos and without images: it takes images for the frames of one video. The
    pipeline `video-classification` loads it, where transformers' video processors would need torchvision.

    The arguments are those of [`ViTImageProcessor`].

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_crossfuse import CrossFuseVideoImageProcessor

    >>> frame_processor = CrossFuseVideoImageProcessor(size={"height": 16, "width": 16})
    >>> frame_processor([Image.new("RGB", (40, 30))] * 4, return_tensors="pt")["pixel_values_videos"].shape
    torch.Size([1, 4, 3, 16, 16])
    ```
    """

    model_input_names = ["pixel_values_videos"]

    def preprocess(self, images, *args, **kwargs) -> BatchFeature:
        """
        Args:
            images (list of images): the frames; anything that an image processor takes.
            kwargs: options, those of [`ViTImageProcessor`].

        Returns:
            [`BatchFeature`]: `pixel_values_videos` `(1, frames, channels, height, width)`.
        """
        frames = super().preprocess(images, *args, **kwargs)["pixel_values"]
        return BatchFeature({"pixel_values_videos": [frames] if isinstance(frames, list) else frames[None]})


__all__ = ["CrossFuseVideoImageProcessor"]
