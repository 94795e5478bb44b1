# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Encoders that take images as patches: how these are cut, and an encoder of each layout."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseWrappedEncoderConfig
from modeling_crossfuse.encoder_patches import patch_arguments

from .helpers import assert_same
from .test_wrapped_encoders import SIZES, compose, wrapped


LINE_BY_LINE = "batch times rows merged_rows columns merged_columns"
WHOLE = ["batch times rows columns", "merged_rows height", "merged_columns width", "num_channels"]
STRIP = ["one", "num_channels", "height", "batch rows merged_rows columns merged_columns width"]

# Type of an encoder to the fields of a tiny config, beside `SIZES`, and the number of axes of the patches it takes.
FAMILIES = {
    "qwen3_5_vision": (
        {"depth": 1, "num_heads": 2, "patch_size": 4, "num_position_embeddings": 16, "out_hidden_size": 24},
        2,
    ),
    "siglip2_vision_model": ({"num_patches": 16, "patch_size": 4}, 3),
    "kimi_k25_vision": ({"patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2}, 4),
    "minicpm_ocr_vision": ({"image_size": 32, "patch_size": 4, "num_hidden_layers": 2, "insert_layer_id": 0}, 4),
    "inkling2_vision": ({"patch_size": 4, "posemb_grid_size": 4, "projection_hidden_dim": 32}, 4),
    "muse_glimmer_vision": ({"patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4}, 2),
}
NEWER = {"inkling2_vision"}  # than the lowest transformers that is allowed


def images_of_numbers(rows: int, columns: int) -> torch.Tensor:
    """Two images of patches of 2 by 2 pixels, each pixel of which is the number of its patch."""
    numbers = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    image = numbers.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return torch.stack([image, image + 100])[:, None]


def patches_of(layout, grid_arguments, images, merge):
    encoder = CONFIG_MAPPING["qwen2_vl_vision"](patch_size=2, spatial_merge_size=merge, temporal_patch_size=1)
    config = CrossFuseWrappedEncoderConfig(
        kind="image", encoder=encoder, patch_layout=layout, grid_arguments=grid_arguments
    )
    return patch_arguments(images, config)


def test_patches_that_are_merged_lie_beside_each_other():
    given = patches_of(None, ["grid_thw"], images_of_numbers(2, 4), merge=2)
    assert given["patches"][:8, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert given["grid_thw"].tolist() == [[1, 2, 4]] * 2


def test_patches_line_by_line():
    layout = [LINE_BY_LINE, "num_channels", "height", "width"]
    given = patches_of(layout, ["grid_thw"], images_of_numbers(2, 4), merge=2)
    assert given["patches"].shape == (16, 1, 2, 2)
    assert given["patches"][:, 0, 0, 0].tolist() == [*range(8), *range(100, 108)]


def test_patches_that_are_merged_as_one():
    images = images_of_numbers(2, 4)
    given = patches_of(WHOLE, ["image_grid_thw"], images, merge=2)
    assert given["patches"].shape == (4, 4, 4, 1)
    assert given["patches"][1, :, :, 0].tolist() == images[0, 0, :, 4:].tolist()
    assert given["image_grid_thw"].tolist() == [[1, 1, 2]] * 2


def test_patches_in_a_strip():
    given = patches_of(STRIP, ["target_sizes"], images_of_numbers(2, 3), merge=1)
    assert given["patches"].shape == (1, 1, 2, 24)
    assert given["patches"][0, 0, 0, ::2].tolist() == [*range(6), *range(100, 106)]
    assert given["target_sizes"].tolist() == [[2, 3]] * 2
    with pytest.raises(ValueError, match="no several times"):
        patches_of(STRIP, ["target_sizes"], torch.zeros(2, 3, 1, 4, 6), merge=1)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name in CONFIG_MAPPING or name not in NEWER])
def test_each_image_gives_the_same_beside_others(model_type, tmp_path):
    fields, axes = FAMILIES[model_type]
    config = CONFIG_MAPPING[model_type](**{**SIZES, **fields})
    torch.manual_seed(0)
    model = compose({"image": AutoModel.from_config(config)})
    part, taken = model.config.modalities["image"], []
    wrapped(model, "image").register_forward_pre_hook(
        lambda module, args, kwargs: taken.append(kwargs[part.values_argument].dim()), with_kwargs=True
    )
    images = torch.randn(2, 3, 32, 32)
    labels = torch.tensor([[3, 4], [5, 6]])
    with torch.no_grad():
        together = model(pixel_values=images, labels=labels).logits
        alone = model(pixel_values=images[1:], labels=labels[1:]).logits
    assert_same(together[1:], alone)
    assert taken == [axes] * 2
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.modalities["image"].patch_layout == part.patch_layout
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=images, labels=labels).logits, together)
