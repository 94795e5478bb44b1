# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The retrieval head: embeddings of any subset of modalities, and the losses that train them."""

import pytest
import torch
import torch.multiprocessing as multiprocessing
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForZeroShotImageClassification

from modeling_crossfuse import CrossFuseForRetrieval

from .helpers import FUSIONS, assert_same, take_rows, tiny_config, tiny_inputs, tiny_model


GROUPS = {"picture": ["image", "wrist"], "name": ["text"]}


def retriever(*modalities, **settings):
    return tiny_model(tiny_config(*modalities, projection_dim=8, **settings), CrossFuseForRetrieval)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_embeds_any_subset(fusion):
    model = retriever("text", "image", "audio", "video", "wrist", fusion=fusion)
    inputs = tiny_inputs(model.config)
    features = model.get_fused_features(**inputs)
    assert features.pooler_output.shape == (2, 8)
    assert_same(features.pooler_output.norm(dim=1), torch.ones(2))
    for kind, name in [
        ("text", "input_ids"),
        ("image", "pixel_values"),
        ("video", "pixel_values_videos"),
        ("audio", "input_features"),
    ]:
        of_kind = getattr(model, f"get_{kind}_features")
        alone = model.get_fused_features(**{name: inputs[name]}).pooler_output
        assert_same(of_kind(**inputs).pooler_output, alone)
        assert (alone - features.pooler_output).abs().max() > 1e-3


def clip_loss(first, second, scale, items=None):
    logits = first @ second.t() * scale
    items = torch.arange(len(first)) if items is None else items
    targets = (items[:, None] == items[None]).float()
    targets = targets / targets.sum(1, keepdim=True)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(logits, targets) + cross_entropy(logits.t(), targets)) / 2


def test_softmax_loss():
    model = retriever("text", "image", "wrist", contrastive_groups=GROUPS)
    inputs = tiny_inputs(model.config, 4)
    outputs = model(**inputs)
    first = model.get_fused_features(pixel_values=inputs["pixel_values"], wrist_values=inputs["wrist_values"])
    second = model.get_text_features(input_ids=inputs["input_ids"])
    assert_same(outputs.first_embeds, first.pooler_output)
    assert_same(outputs.second_embeds, second.pooler_output)
    assert_same(outputs.logits, first.pooler_output @ second.pooler_output.t() / 0.07)
    assert_same(outputs.loss, clip_loss(outputs.first_embeds, outputs.second_embeds, 1 / 0.07))
    assert torch.equal(outputs.logits_per_image, outputs.logits)
    assert torch.equal(outputs.logits_per_text, outputs.logits.t())


def test_sigmoid_loss():
    model = retriever("text", "image", contrastive_loss="sigmoid")
    outputs = model(**tiny_inputs(model.config, 3))
    logits = outputs.first_embeds @ outputs.second_embeds.t() * 10 - 10
    assert_same(outputs.logits, logits)
    signs = 2 * torch.eye(3) - 1
    assert_same(outputs.loss, -nn.functional.logsigmoid(signs * logits).sum() / 3)


def test_samples_of_one_item_belong_together():
    model = retriever("text", "image")
    inputs, items = tiny_inputs(model.config, 3), torch.tensor([7, 2, 7])
    outputs = model(**inputs, item_ids=items)
    assert_same(outputs.loss, clip_loss(outputs.first_embeds, outputs.second_embeds, 1 / 0.07, items))
    assert outputs.loss != model(**inputs).loss


def test_samples_without_a_group_are_no_pairs():
    model = retriever("text", "image", "wrist", contrastive_groups=GROUPS)
    inputs = tiny_inputs(model.config, 4)
    # The second has no name, the third neither picture nor movement, the last no movement.
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]])
    outputs = model(**inputs, modality_mask=mask)
    pairs = model(**take_rows(inputs, [0, 3]), modality_mask=mask[[0, 3]])
    assert_same(outputs.loss, pairs.loss)
    assert_same(outputs.first_embeds[[0, 3]], pairs.first_embeds)
    assert (outputs.first_embeds[2] == 0).all() and (outputs.second_embeds[1] == 0).all()


def test_compares_any_number_of_names():
    model = retriever("text", "image")
    inputs = {**tiny_inputs(model.config, 5), "pixel_values": torch.randn(2, 3, 8, 8)}
    outputs = model(**inputs, return_loss=False)
    assert outputs.logits.shape == (2, 5) and outputs.loss is None
    assert model(**inputs).loss is None
    model.train()
    with pytest.raises(ValueError, match="the group of image has 2 samples and the group of text 5; expected as many"):
        model(**inputs)


def test_outputs_are_tuples_on_request():
    model = retriever("text", "image")
    inputs, features = tiny_inputs(model.config), model.get_fused_features(**tiny_inputs(model.config))
    logits = model(**inputs).logits
    assert_same(model.get_text_features(**inputs, return_dict=False)[0], model.get_text_features(**inputs)[0])
    model.config.return_dict = False
    assert_same(model.get_fused_features(**inputs)[1], features.pooler_output)
    assert_same(model(**inputs)[1], logits)


def test_without_pairs_the_loss_is_zero():
    model = retriever("text", "image")
    loss = model(**tiny_inputs(model.config), modality_mask=torch.tensor([[1, 0], [0, 1]])).loss
    assert loss == 0


def test_the_order_of_the_groups_does_not_turn_logits_per_image():
    model = retriever("text", "image", contrastive_groups={"name": ["text"], "picture": ["image"]})
    inputs = {**tiny_inputs(model.config, 5), "pixel_values": torch.randn(2, 3, 8, 8)}
    outputs = model(**inputs, return_loss=False)
    assert outputs.logits.shape == (5, 2) and outputs.logits_per_image.shape == (2, 5)


def test_from_pretrained_refuses_groups_of_no_modality(tmp_path):
    retriever("text", "image").save_pretrained(tmp_path)
    with pytest.raises(
        (ValueError, StrictDataclassError), match="expected each of text, image once at most, and nothing else"
    ):
        CrossFuseForRetrieval.from_pretrained(tmp_path, contrastive_groups={"a": ["text"], "b": ["smell"]})


def test_refuses():
    with pytest.raises(ValueError, match=r"`contrastive_groups` is missing, .* two groups of text$"):
        retriever("text")
    for groups in ({"a": ["text"]}, {"a": ["text"], "b": []}):
        with pytest.raises(
            (ValueError, StrictDataclassError), match="expected two groups of at least one modality each"
        ):
            tiny_config("text", "image", contrastive_groups=groups)
    for groups in ({"a": ["text"], "b": ["text"]}, {"a": ["text"], "b": ["smell"]}):
        with pytest.raises(
            (ValueError, StrictDataclassError), match="expected each of text, image once at most, and nothing else"
        ):
            tiny_config("text", "image", contrastive_groups=groups)
    with pytest.raises(
        (ValueError, StrictDataclassError), match="`contrastive_loss='triplet'`; expected 'softmax' or 'sigmoid'"
    ):
        tiny_config("text", contrastive_loss="triplet")
    model = retriever("text", "image")
    with pytest.raises(ValueError, match=r"the group of text is not given; .* use `get_fused_features`"):
        model(pixel_values=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="`pixels` is not an input of this model"):
        model(**tiny_inputs(model.config), pixels=torch.zeros(2))


def test_saves_and_loads(tmp_path):
    model = retriever("text", "image", contrastive_loss="sigmoid")
    model.logit_scale.data.fill_(2.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)
    inputs = tiny_inputs(model.config)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def _gradients(model, inputs, items) -> dict[str, torch.Tensor]:
    model(**inputs, item_ids=items).loss.backward()
    module = getattr(model, "module", model)
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _train_rank(rank: int, loss: str, folder: str):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = retriever("text", "image", contrastive_loss=loss).train()
    inputs, items = tiny_inputs(model.config, 5), torch.tensor([0, 1, 2, 0, 3])
    rows = [0, 1, 2] if rank == 0 else [3, 4]  # not as many on each
    gradients = _gradients(DistributedDataParallel(model), take_rows(inputs, rows), items[rows])
    torch.save(gradients, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_processes_compare_with_each_other(loss, tmp_path):
    multiprocessing.spawn(_train_rank, args=(loss, str(tmp_path)), nprocs=2)
    model = retriever("text", "image", contrastive_loss=loss).train()
    expected = _gradients(model, tiny_inputs(model.config, 5), torch.tensor([0, 1, 2, 0, 3]))
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt")
        for name, gradient in expected.items():
            assert_same(gradients[name], gradient)
