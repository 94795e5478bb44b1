# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The fusions: shapes, masks and modality ids of the memory, and a fifth one of the user's own."""

import pytest
import torch

from modeling_crossfuse import (
    CrossFuseConfig,
    CrossFuseFusion,
    CrossFuseModel,
    Memory,
    register_fusion,
)
from modeling_crossfuse import configuration_crossfuse as configuration
from modeling_crossfuse import fusion as fusion_module

from .helpers import FUSIONS, MODALITIES, assert_same, take_rows, tiny_config, tiny_inputs, tiny_model


TEXT, WRIST = [0] * 5, [1] * 5
SHARED = [-1] * 3


def memory_of(config: CrossFuseConfig, inputs, **masks):
    with torch.no_grad():
        return tiny_model(config, CrossFuseModel).encoder(**inputs, **masks)


@pytest.mark.parametrize(
    ("fusion", "modality_ids"),
    [("concat", TEXT + WRIST), ("joint", TEXT + WRIST), ("bottleneck", TEXT + WRIST + SHARED), ("latent", SHARED)],
)
def test_memory(fusion, modality_ids):
    config = tiny_config("text", "wrist", fusion=fusion)
    memory = memory_of(config, tiny_inputs(config))
    assert memory.last_hidden_state.shape == (2, len(modality_ids), 32)
    assert memory.attention_mask.tolist() == [[1] * len(modality_ids)] * 2
    assert memory.modality_ids.tolist() == [modality_ids] * 2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_mask_of_the_memory(fusion):
    config = tiny_config("text", "wrist", fusion=fusion)
    text_mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    modality_mask = torch.tensor([[1, 1], [1, 0]])
    memory = memory_of(config, tiny_inputs(config), attention_mask=text_mask, modality_mask=modality_mask)
    streams = [[1, 1, 1, 0, 0] + [1] * 5, [1] * 5 + [0] * 5]
    expected = {
        "concat": streams,
        "joint": streams,
        "bottleneck": [mask + [1] * 3 for mask in streams],
        "latent": [[1] * 3] * 2,
    }[fusion]
    assert memory.attention_mask.tolist() == expected


@pytest.mark.parametrize("fusion", FUSIONS)
def test_modality_ids_are_places_in_the_config(fusion):
    """Also where a modality before is not given at all."""
    config = tiny_config("text", "image", "wrist", fusion=fusion)
    inputs = tiny_inputs(config)
    del inputs["input_ids"]
    ids = memory_of(config, inputs).modality_ids[0].tolist()
    assert ids == {"concat": [1] * 4 + [2] * 5, "bottleneck": [1] * 4 + [2] * 5 + SHARED, "latent": SHARED}.get(
        fusion, [1] * 4 + [2] * 5
    )


@pytest.mark.parametrize("length", [1, 7, 30])
def test_latent_memory_has_a_constant_length(length):
    config = tiny_config("text", "wrist", fusion="latent")
    inputs = {**tiny_inputs(config), "wrist_values": torch.randn(2, length, 3)}
    assert memory_of(config, inputs).last_hidden_state.shape == (2, 3, 32)


@pytest.mark.parametrize(
    ("fusion", "num_layers"),
    [(fusion, layers) for fusion in FUSIONS for layers in (0, 1, 2) if (fusion, layers) != ("latent", 0)],
)
def test_number_of_layers(fusion, num_layers):
    config = tiny_config("text", "wrist", fusion={"type": fusion, "num_layers": num_layers, "num_latents": 2})
    memory = memory_of(config, tiny_inputs(config)).last_hidden_state
    assert memory.isfinite().all()


@pytest.mark.parametrize(
    ("fusion", "fuses"), [("concat", False), ("joint", True), ("bottleneck", True), ("latent", True)]
)
def test_what_the_memory_of_one_modality_knows_of_another(fusion, fuses):
    """All but `concat` carry something from each modality to the rest of the memory."""
    config = tiny_config("text", "wrist", fusion={"type": fusion, "num_layers": 2, "num_latents": 2})
    inputs = tiny_inputs(config)
    other = {**inputs, "wrist_values": torch.randn(2, 5, 3)}
    before, after = (memory_of(config, given) for given in (inputs, other))
    elsewhere = before.modality_ids[0] != 1
    change = (before.last_hidden_state - after.last_hidden_state)[:, elsewhere].abs().max()
    assert (change > 1e-3) == fuses


def test_a_bottleneck_of_one_layer_passes_through_the_shared_positions_only():
    config = tiny_config("text", "wrist", fusion="bottleneck")
    inputs = tiny_inputs(config)
    other = {**inputs, "wrist_values": torch.randn(2, 5, 3)}
    before, after = (memory_of(config, given).last_hidden_state for given in (inputs, other))
    assert_same(before[:, :5], after[:, :5])
    assert (before[:, -3:] - after[:, -3:]).abs().max() > 1e-3


def test_bottleneck_ignores_missing_modalities():
    """The shared positions are the mean over the present modalities only, in each sample."""
    config = tiny_config("text", "image", "wrist", fusion={"type": "bottleneck", "num_layers": 2, "num_latents": 2})
    inputs = tiny_inputs(config, 3)
    modality_mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]])
    shared = memory_of(config, inputs, modality_mask=modality_mask).last_hidden_state[:, -2:]
    second, third = (take_rows(inputs, slice(row, row + 1)) for row in (1, 2))
    assert_same(shared[1:2], memory_of(config, {"input_ids": second["input_ids"]}).last_hidden_state[:, -2:])
    del third["input_ids"]
    assert_same(shared[2:], memory_of(config, third).last_hidden_state[:, -2:])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_permuted_samples_give_permuted_memories(fusion):
    config = tiny_config(*MODALITIES, fusion=fusion)
    inputs = tiny_inputs(config, 3)
    inputs["modality_mask"] = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1] * 5])
    order = [2, 0, 1]
    memory, permuted = memory_of(config, inputs), memory_of(config, take_rows(inputs, order))
    kept = permuted.attention_mask.bool()
    assert torch.equal(permuted.attention_mask, memory.attention_mask[order])
    assert_same(permuted.last_hidden_state[kept], memory.last_hidden_state[order][kept])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_duplicated_samples_give_duplicated_memories(fusion):
    config = tiny_config("text", "wrist", fusion=fusion)
    inputs = take_rows(tiny_inputs(config), [0, 0, 1])
    memory = memory_of(config, inputs).last_hidden_state
    assert_same(memory[0], memory[1])
    assert (memory[0] - memory[2]).abs().max() > 1e-3


def test_concat_memories_follow_the_order_of_the_config():
    forth, back = tiny_config("text", "wrist"), tiny_config("wrist", "text")
    assert memory_of(forth, tiny_inputs(forth)).modality_ids[0].tolist() == TEXT + WRIST
    assert memory_of(back, tiny_inputs(back)).modality_ids[0].tolist() == [0] * 5 + [1] * 5
    assert list(back.modalities) == ["wrist", "text"]


# A fusion of the user's own


class MeanFusion(CrossFuseFusion):
    """The mean of each stream: one position per modality."""

    def forward(self, streams, **kwargs):
        masks = torch.stack([stream.attention_mask.amax(1) for stream in streams], dim=1)
        counts = [stream.attention_mask.sum(1, keepdim=True).clamp(min=1) for stream in streams]
        means = torch.stack([stream.hidden_states.sum(1) / count for stream, count in zip(streams, counts)], dim=1)
        scale = (self.config.options or {}).get("scale", 1)
        return Memory(means * scale, masks, torch.tensor([stream.modality_id for stream in streams]))


@pytest.fixture
def registry():
    """The registered fusions, put back after the test."""
    saved, types = dict(fusion_module.FUSIONS), list(configuration.FUSION_TYPES)
    yield
    fusion_module.FUSIONS.clear()
    fusion_module.FUSIONS.update(saved)
    configuration.FUSION_TYPES[:] = types


def test_a_registered_fusion_works_like_the_others(registry, tmp_path):
    with pytest.raises(ValueError, match="`type='mean'`"):
        tiny_config("text", "wrist", fusion={"type": "mean"})
    register_fusion("mean", MeanFusion)
    config = tiny_config("text", "wrist", fusion={"type": "mean", "options": {"scale": 2}})
    inputs = {**tiny_inputs(config), "modality_mask": torch.tensor([[1, 1], [0, 1]])}
    memory = memory_of(config, inputs)
    assert memory.last_hidden_state.shape == (2, 2, 32)
    assert memory.attention_mask.tolist() == [[1, 1], [0, 1]]
    model = tiny_model(config)
    answers = model.generate(**inputs, max_new_tokens=3, eos_token_id=None)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=3, eos_token_id=None), answers)
    assert loaded.config.fusion.options == {"scale": 2}


def test_registering_the_same_again_is_fine(registry):
    register_fusion("mean", MeanFusion)
    register_fusion("mean", MeanFusion)
    assert configuration.FUSION_TYPES.count("mean") == 1


def test_a_taken_name_is_refused(registry):
    with pytest.raises(ValueError, match=r"`name='joint'` is already the fusion JointFusion; choose another"):
        register_fusion("joint", MeanFusion)


@pytest.mark.parametrize("wrong", [torch.nn.Linear, MeanFusion.forward, "mean"])
def test_only_fusions_can_be_registered(registry, wrong):
    with pytest.raises(TypeError, match="is not a subclass of CrossFuseFusion"):
        register_fusion("mean", wrong)


def test_a_fusion_without_forward_says_so(registry):
    class Empty(CrossFuseFusion):
        pass

    register_fusion("empty", Empty)
    config = tiny_config(fusion={"type": "empty"})
    with pytest.raises(TypeError, match=r"Empty has to implement `forward\(streams\) -> Memory`"):
        memory_of(config, tiny_inputs(config))
