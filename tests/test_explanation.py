# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What each modality and each position contributed: `explain`."""

import dataclasses
import itertools
import math
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import BertConfig

from modeling_crossfuse import (
    CrossFuseConfig,
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseFusion,
    CrossFuseModel,
    CrossFuseProcessor,
    Memory,
    explain,
    plot_explanation,
    register_fusion,
)
from modeling_crossfuse.evaluation.attention import modality_shares
from modeling_crossfuse.evaluation.plots import save_figure
from modeling_crossfuse.explanation import plot
from modeling_crossfuse.training import train_tokenizer

from .helpers import FUSIONS, TINY, assert_same, take_rows, tiny_config, tiny_inputs, tiny_model


IDS = torch.tensor([[1, 7, 9, 11, 2], [1, 8, 2, 0, 0]])  # the second answer is shorter


def assert_adds_up(explanation):
    assert_same(explanation.baselines + explanation.modality_values.sum(1), explanation.scores)
    total = explanation.answer_baseline + explanation.answer_values.sum().item()
    assert total == pytest.approx(explanation.answer_score, abs=1e-5)
    for name, positions in explanation.positions.items():
        index = explanation.modalities.index(name)
        assert_same(positions.values.flatten(1).sum(1), explanation.modality_values[:, index])
        assert_same(positions.answer_values.sum(), explanation.answer_values[index])


# Modalities


@pytest.mark.parametrize(
    ("fusion", "names"),
    [
        *((fusion, ("text", "image", "audio")) for fusion in FUSIONS),
        ("concat", ("wrist",)),
        ("latent", ("text", "image")),
        ("joint", ("text", "image", "video", "audio")),
    ],
)
def test_contributions_add_up_to_the_score(fusion, names):
    config = tiny_config(*names, fusion=fusion)
    model = tiny_model(config)
    inputs = tiny_inputs(config)
    explanations = explain(model, inputs, IDS, max_positions=8, num_orders=1, batch_size=5)
    assert [len(explanation.targets) for explanation in explanations] == [4, 2]
    logits = model(**inputs, decoder_input_ids=IDS[:, :-1]).logits
    for row, explanation in enumerate(explanations):
        assert_adds_up(explanation)
        assert explanation.targets.tolist() == IDS[row, 1 : 1 + len(explanation.targets)].tolist()
        probabilities = logits[row].softmax(-1)[range(len(explanation.targets)), explanation.targets]
        assert_same(explanation.scores, probabilities)
        assert explanation.answer_score == pytest.approx(probabilities.log().mean().exp().item(), abs=1e-5)
        assert list(explanation.positions) == list(names)


def test_values_are_those_of_the_definition():
    """Each modality's marginal contribution, averaged over all orders, by leaving modalities out of the inputs."""
    config = tiny_config("text", "image", "wrist", fusion="joint")
    model = tiny_model(config)
    inputs = take_rows(tiny_inputs(config), [0])
    explanation = explain(model, inputs, IDS[:1], max_positions=0)[0]
    assert not explanation.positions

    def score(coalition):
        if not coalition:
            return explanation.baselines
        mask = torch.tensor([[int(index in coalition) for index in range(3)]])
        logits = model(**inputs, modality_mask=mask, decoder_input_ids=IDS[:1, :-1]).logits[0]
        return logits.softmax(-1)[range(4), IDS[0, 1:]]

    for index in range(3):
        gains = []
        for order in itertools.permutations(range(3)):
            before = set(order[: order.index(index)])
            gains.append(score(before | {index}) - score(before))
        assert_same(explanation.modality_values[:, index], sum(gains) / len(gains))


def test_missing_modalities_contribute_nothing_and_are_not_read():
    config = tiny_config("text", "image", "wrist")
    model = tiny_model(config)
    inputs = {**tiny_inputs(config), "modality_mask": torch.tensor([[1, 0, 1], [0, 1, 0]])}
    explanations = explain(model, inputs, IDS, max_positions=4, num_orders=1)
    inputs["pixel_values"][0], inputs["wrist_values"][1] = math.nan, math.nan
    again = explain(model, inputs, IDS, max_positions=4, num_orders=1)
    for explanation, other, present in zip(explanations, again, [["text", "wrist"], ["image"]]):
        assert_adds_up(explanation)
        assert torch.equal(explanation.modality_values, other.modality_values)
        assert list(explanation.positions) == present
        for index, name in enumerate(config.modalities):
            assert bool(explanation.modality_values[:, index].abs().sum()) == (name in present)


def test_samples_are_explained_as_if_alone():
    config = tiny_config("text", "image", "audio")
    model = tiny_model(config)
    inputs = tiny_inputs(config)
    inputs["attention_mask"] = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    inputs["feature_attention_mask"] = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    together = explain(model, inputs, IDS, num_orders=2)[1]
    alone = explain(model, take_rows(inputs, [1]), IDS[1:], num_orders=2, batch_size=3)[0]
    assert_same(together.modality_values, alone.modality_values)
    assert together.positions["text"].values.shape == (2, 3) and together.positions["audio"].values.shape == (2, 3)
    for name in config.modalities:
        assert_same(together.positions[name].values, alone.positions[name].values)


def test_equal_modalities_contribute_equally():
    series = {"kind": "series", "num_channels": 3}
    model = tiny_model(CrossFuseConfig(**{**TINY, "modalities": {"left": series, "right": series}}))
    encoder = model.get_encoder()
    encoder.encoders["right"].load_state_dict(encoder.encoders["left"].state_dict())
    embeddings = encoder.modality_embeddings
    embeddings.right_embedding.load_state_dict(embeddings.left_embedding.state_dict())
    values = torch.randn(1, 5, 3)
    explanation = explain(model, {"left_values": values, "right_values": values}, IDS[:1], max_positions=0)[0]
    assert explanation.modality_values.abs().min() > 0
    assert_same(explanation.modality_values[:, 0], explanation.modality_values[:, 1])


class TextOnlyFusion(CrossFuseFusion):
    """Hands on the text, and a vector of zeros where there is none."""

    def forward(self, streams, **kwargs):
        text = [stream for stream in streams if stream.modality_id == 0]
        empty = torch.zeros(len(streams[0].attention_mask), 1, 32)
        hidden_states = torch.cat([stream.hidden_states for stream in text] + [empty], dim=1)
        mask = torch.cat([stream.attention_mask for stream in text] + [torch.ones(len(empty), 1)], dim=1)
        mask[:, -1] = mask[:, :-1].sum(1) == 0
        return Memory(hidden_states, mask, torch.tensor([0] * (mask.shape[1] - 1) + [-1]))


def test_a_modality_without_effect_contributes_nothing():
    register_fusion("text_only", TextOnlyFusion)
    config = tiny_config("text", "image", fusion={"type": "text_only"})
    explanation = explain(tiny_model(config), tiny_inputs(config), IDS, num_orders=1)[0]
    assert explanation.modality_values[:, 0].abs().min() > 1e-4
    assert explanation.modality_values[:, 1].abs().max() < 1e-6
    assert explanation.positions["image"].values.abs().max() < 1e-6


@pytest.mark.parametrize("fusion", FUSIONS)
def test_attention_shares(fusion):
    config = tiny_config("text", "image", fusion=fusion)
    model, inputs = tiny_model(config), tiny_inputs(config)
    shares = modality_shares(model, inputs, IDS)
    for row, explanation in enumerate(explain(model, inputs, IDS, max_positions=0)):
        assert_same(explanation.attention_shares.mean(0), shares[row])


def test_generates_the_answer_by_itself():
    config = tiny_config("text", "image")
    model, inputs = tiny_model(config), tiny_inputs(config)
    model.generation_config.max_new_tokens = 6
    ids = model.generate(**inputs)
    explanations = explain(model, {**inputs, "labels": ids}, max_positions=0)  # a collator's batch has labels
    for explanation, own in zip(explanations, explain(model, inputs, ids, max_positions=0)):
        assert torch.equal(explanation.targets, own.targets)
        assert torch.equal(explanation.modality_values, own.modality_values)


def test_the_model_stays_as_it_was():
    config = tiny_config("text", "image")
    model = tiny_model(config).train()
    model.get_encoder().encoders["text"].config._attn_implementation = "eager"
    model.get_decoder().config._attn_implementation = "sdpa"
    state = torch.get_rng_state()
    explain(model, tiny_inputs(config), IDS, num_orders=1)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert model.get_encoder().encoders["text"].config._attn_implementation == "eager"
    assert model.get_decoder().config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="2 rows"):
        explain(model, tiny_inputs(config), IDS[:1])
    assert model.training


def test_hidden_states_and_a_wrapped_encoder():
    bert = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    modalities = {"text": {"encoder": bert}, "wrist": {"kind": "series", "num_channels": 3}}
    model = tiny_model(tiny_config(modalities=modalities))
    inputs = take_rows(tiny_inputs(tiny_config("text", "wrist")), [0])
    explanation = explain(model, inputs, IDS[:1], num_orders=1)[0]
    assert_adds_up(explanation)
    assert explanation.positions["text"].values.shape == (4, 5)
    assert explanation.positions["text"].tokens.tolist() == inputs["input_ids"][0].tolist()
    states, _ = model.get_encoder().encode_modality("text", inputs.pop("input_ids"), torch.ones(1, 5))
    encoded = explain(model, {**inputs, "text_hidden_states": states}, IDS[:1], num_orders=1)[0]
    assert_adds_up(encoded)
    assert_same(encoded.modality_values, explanation.modality_values)
    assert encoded.positions["text"].values.shape == (4, 5) and encoded.positions["text"].tokens is None


# A model that learnt where to look: each token of the answer is in one position of one modality.

STEP, PATCH, TOKEN = 3, (0, 4), 2


def planted_batch(size: int, generator: torch.Generator):
    """Inputs, and answers of three tokens: of the time step, the patch and the token that have been planted."""
    classes = torch.randint(0, 6, (size, 3), generator=generator)
    wrist = torch.randn(size, 8, 3, generator=generator) * 0.1
    wrist[:, STEP] += torch.cat([torch.eye(3), -torch.eye(3)])[classes[:, 0]] * 2
    pixels = torch.randn(size, 3, 8, 8, generator=generator) * 0.1
    colors = torch.cat([torch.eye(3), -torch.eye(3)])[classes[:, 1]] * 2
    pixels[:, :, PATCH[0] : PATCH[0] + 4, PATCH[1] : PATCH[1] + 4] += colors[:, :, None, None]
    tokens = torch.randint(20, 40, (size, 5), generator=generator)
    tokens[:, TOKEN] = 5 + classes[:, 2]
    noise = torch.randn(size, 8, 3, generator=generator)
    inputs = {"input_ids": tokens, "pixel_values": pixels, "wrist_values": wrist, "noise_values": noise}
    end = torch.full((size, 1), 2)
    return inputs, torch.cat([classes + torch.tensor([5, 15, 25]), end], dim=1)


@pytest.fixture(scope="module")
def planted():
    modalities = {
        "text": {"vocab_size": 40},
        "image": {"image_size": 8, "patch_size": 4},
        "wrist": {"kind": "series", "num_channels": 3},
        "noise": {"kind": "series", "num_channels": 3},
    }
    modalities = {name: {**part, "num_hidden_layers": 0, "modality_dropout": 0.3} for name, part in modalities.items()}
    config = CrossFuseConfig(**{**TINY, "modalities": modalities, "initializer_range": 0.05})
    torch.manual_seed(0)
    model = CrossFuseForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        inputs, labels = planted_batch(64, generator)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs, labels = planted_batch(4, torch.Generator().manual_seed(1))
    return model.eval(), inputs, labels


@pytest.mark.slow
def test_noise_contributes_about_nothing(planted):
    model, inputs, labels = planted
    for explanation, answer in zip(explain(model, inputs, max_positions=0), labels):
        assert explanation.targets.tolist() == answer.tolist()
        values = dict(zip(explanation.modalities, explanation.modality_values.T))
        for place, name in enumerate(["wrist", "image", "text"]):
            gain = explanation.scores[place] - explanation.baselines[place]
            assert values[name][place] > 0.8 * gain
            others = [values[other][place].abs().item() for other in values if other != name]
            assert max(others) < 0.1, (name, others)
        assert abs(explanation.answer_values[3]) < 0.1 * explanation.answer_score
        assert explanation.shares()["noise"] < 0.1 and sum(explanation.shares().values()) == pytest.approx(1)


def test_the_planted_positions_count_most(planted):
    model, inputs, _ = planted
    for explanation in explain(model, take_rows(inputs, [0, 1]), max_positions=8):
        assert_adds_up(explanation)
        wrist, image, text = (explanation.positions[name] for name in ("wrist", "image", "text"))
        assert wrist.values[0].argmax() == STEP
        assert text.values[2].argmax() == TOKEN
        assert image.edges == {"images": [0, 1], "height": [0, 4, 8], "width": [0, 4, 8]}
        assert image.values[1, 0].argmax() == 1  # the upper right one
        top = explanation.top_positions(3)
        assert {position.modality: position.where for position in top} == {
            "wrist": {"steps": (STEP, STEP + 1)},
            "image": {"images": (0, 1), "height": (0, 4), "width": (4, 8)},
            "text": {"length": (TOKEN, TOKEN + 1)},
        }
        assert top[0].value >= top[1].value >= top[2].value > 0


# Positions


@pytest.mark.parametrize(
    ("name", "tensors", "max_positions", "edges"),
    [
        ("text", {"input_ids": torch.ones(1, 7, dtype=torch.long)}, 3, {"length": [0, 2, 5, 7]}),
        ("audio", {"input_features": torch.ones(1, 6, 4)}, 9, {"frames": [0, 1, 2, 3, 4]}),
        (
            "image",  # the third is padding
            {"pixel_values": torch.ones(1, 3, 3, 8, 6), "image_mask": torch.tensor([[1, 1, 0]])},
            8,
            {"images": [0, 1, 2], "height": [0, 4, 8], "width": [0, 3, 6]},
        ),
        (
            "video",
            {"pixel_values_videos": torch.ones(1, 4, 3, 8, 8)},
            8,
            {"frames": [0, 2, 4], "height": [0, 4, 8], "width": [0, 4, 8]},
        ),
    ],
)
def test_positions_are_cut(name, tensors, max_positions, edges):
    model = tiny_model(tiny_config(name))
    explanation = explain(model, tensors, IDS[:1], max_positions=max_positions, num_orders=1)[0]
    positions = explanation.positions[name]
    assert positions.edges == edges
    assert positions.values.shape == (4, *(len(axis) - 1 for axis in edges.values()))
    assert_adds_up(explanation)


@pytest.fixture(scope="module")
def processor():
    """Of texts, 8 x 8 images, videos, audio of 6 mel bands, and wrist of 3 channels."""
    config = tiny_config("text", "image", "video", "audio", "wrist")
    return CrossFuseProcessor.from_config(config, tokenizer=train_tokenizer(["a red cat"], vocab_size=280))


CLIP = {"array": np.sin(np.arange(8000) / 9), "sampling_rate": 16_000}


def test_padding_at_the_start_contributes_nothing():
    config = tiny_config("text", "wrist")
    inputs = take_rows(tiny_inputs(config), [0])
    inputs["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1]])
    explanation = explain(tiny_model(config), inputs, IDS[:1])[0]
    assert_adds_up(explanation)
    values = explanation.positions["text"].values.abs()
    rounding = torch.finfo(torch.float32).eps  # of probabilities; what padding gives is their difference
    assert values[:, :2].max() < rounding
    assert values[:, 2:].max() > 1000 * rounding


def test_top_positions_in_words_and_seconds(processor):
    batch = processor(text="a red cat", audio=CLIP, return_tensors="pt")
    config = tiny_config("text", "audio")
    config.modalities["text"].vocab_size = len(processor.tokenizer)
    batch.pop("modality_mask")
    explanation = explain(tiny_model(config), batch, IDS[:1], max_positions=5, num_orders=1)[0]
    found = explanation.top_positions(100, processor)
    assert len(found) == 5 + len(explanation.positions["text"].answer_values)
    words = sorted((position for position in found if position.modality == "text"), key=lambda p: p.where["length"])
    assert "".join(position.text for position in words).replace(" ", "") == "aredcat</s>"
    seconds = [position.seconds for position in found if position.modality == "audio"]
    assert min(seconds)[0] == 0 and max(seconds)[1] == pytest.approx(0.51)  # 51 frames of 10 ms


# Classifiers


@pytest.mark.parametrize(
    ("fusion", "problem_type", "activation", "num_targets"),
    [
        ("concat", None, lambda logits: logits.softmax(-1), 1),
        ("joint", "single_label_classification", lambda logits: logits.softmax(-1), 1),
        ("bottleneck", "multi_label_classification", torch.sigmoid, 3),
        ("latent", "regression", lambda logits: logits, 3),
    ],
)
def test_classifiers(fusion, problem_type, activation, num_targets):
    names = {0: "rest", 1: "walk", 2: "run"}
    config = tiny_config("text", "image", "wrist", fusion=fusion, problem_type=problem_type, id2label=names)
    model = tiny_model(config, CrossFuseForSequenceClassification)
    inputs = {**tiny_inputs(config), "modality_mask": torch.tensor([[1, 1, 1], [0, 1, 0]])}
    logits = model(**inputs).logits
    for row, explanation in enumerate(explain(model, inputs, max_positions=4, num_orders=1)):
        assert_adds_up(explanation)
        assert len(explanation.targets) == num_targets
        assert explanation.labels == [names[label] for label in explanation.targets.tolist()]
        assert_same(explanation.scores, activation(logits[row])[explanation.targets])
        assert explanation.answer_score == pytest.approx(explanation.scores.mean().item())
        if fusion in ("concat", "joint"):
            assert_same(explanation.attention_shares.sum(1), torch.ones(num_targets))
    assert explanation.modality_values[:, [0, 2]].abs().max() == 0  # which the second sample lacks


def test_classes_of_choice():
    config = tiny_config("text", "image", num_labels=3)
    model = tiny_model(config, CrossFuseForSequenceClassification)
    inputs = tiny_inputs(config)
    one = explain(model, inputs, labels=torch.tensor([2, 0]), max_positions=0)
    all_of_them = explain(model, inputs, labels=torch.tensor([[0, 1, 2]] * 2), max_positions=0)
    assert [explanation.targets.tolist() for explanation in one] == [[2], [0]]
    assert_same(all_of_them[0].modality_values[2], one[0].modality_values[0])
    assert_same(all_of_them[0].modality_values.sum(0), torch.zeros(2))  # probabilities add up to 1, whatever is given


# explanation/plot.py


@pytest.fixture(scope="module")
def sample():
    """The raw value of each modality."""
    return {
        "text": "a red cat " * 8,  # several lines
        "image": [Image.new("RGB", (12, 10), "red"), Image.new("L", (8, 8))],
        "video": np.zeros((6, 8, 8, 3), dtype=np.uint8),
        "audio": CLIP,
        "wrist": np.ones((5, 3)),
    }


@pytest.fixture(scope="module")
def explanation(sample, processor):
    config = tiny_config(*sample)
    config.modalities["text"].vocab_size = config.decoder.vocab_size = len(processor.tokenizer)
    batch = processor(**{name: [value] for name, value in sample.items()}, return_tensors="pt")
    return explain(tiny_model(config), batch, IDS[:1], max_positions=8, num_orders=1)[0]


def texts_of(figure) -> list[str]:
    texts = [text for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]
    return [text.get_text() for text in [*figure.texts, *texts]]


def test_plot_explanation(sample, explanation, processor, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: figures.append(figure) or save_figure(figure, path))
    path = plot_explanation(explanation, sample, processor, tmp_path / "all.png", title="costs $5")
    assert Image.open(path).format == "PNG" and [file.name for file in tmp_path.iterdir()] == ["all.png"]
    texts = texts_of(figures[0])
    assert r"costs \$5" in texts and "whole answer" in texts
    for name, value in zip(explanation.modalities, explanation.answer_values):
        assert f"{name}  {value:+.2f}" in texts


def test_plot_explanation_of_one_image_and_of_a_class(processor, tmp_path):
    config = tiny_config("image", id2label={0: "rest", 1: "walk"})
    sample = {"image": np.zeros((8, 8), dtype=np.uint8)}
    batch = processor(**sample, return_tensors="pt")
    batch.pop("modality_mask")
    explanation = explain(tiny_model(config, CrossFuseForSequenceClassification), batch, max_positions=4)[0]
    assert plot_explanation(explanation, sample, processor, tmp_path / "class.png").exists()
    wrapped = {"image": pa.scalar(sample["image"].tolist())}
    assert plot_explanation(explanation, wrapped, processor, tmp_path / "arrow.png").exists()


def test_plot_explanation_without_positions(explanation, processor, tmp_path):
    bars = dataclasses.replace(explanation, positions={})
    assert plot_explanation(bars, {}, processor, tmp_path / "bars.png").exists()


def test_plot_explanation_leaves_out_hidden_states(sample, explanation, processor, tmp_path):
    encoded = dataclasses.replace(explanation.positions["text"], tokens=None)
    explanation = dataclasses.replace(explanation, positions={**explanation.positions, "text": encoded})
    assert plot_explanation(explanation, {**sample, "text": None}, processor, tmp_path / "others.png").exists()


def test_plot_explanation_refuses(sample, explanation, processor, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`sample` lacks 'audio', whose positions are explained"):
        plot_explanation(explanation, {**sample, "audio": None}, processor, tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install .crossfuse\[plot\]"):
        plot_explanation(explanation, sample, processor, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_positions": -1}, "`max_positions=-1`; expected at least 0"),
        ({"num_orders": 0}, "`num_orders=0`; expected at least 1"),
        ({"batch_size": 0}, "`batch_size=0`; expected at least 1"),
        ({"generated_ids": IDS[:, :1]}, "`generated_ids` has shape \\(2, 1\\); expected 2 rows of a start token and"),
        ({"labels": torch.tensor([1, 1])}, "give a model that generates its answer as `generated_ids`"),
        ({"inputs": {"pixels": torch.ones(2)}}, "`pixels` is not an input of this model"),
        ({"inputs": {}}, "no modality is given"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    config = tiny_config("text")
    with pytest.raises(ValueError, match=message):
        explain(tiny_model(config), **{"inputs": tiny_inputs(config), "generated_ids": IDS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generated_ids": IDS}, "give a classifier its classes as `labels`"),
        ({"labels": torch.tensor([0, 3])}, "integers of at least 0 and below `num_labels=3`"),
        ({"labels": torch.tensor([0.0, 1.0])}, "integers of at least 0"),
        ({"labels": torch.tensor([0])}, "expected 2 rows of classes"),
    ],
)
def test_a_classifier_refuses_wrong_arguments(arguments, message):
    config = tiny_config("text", num_labels=3)
    with pytest.raises(ValueError, match=message):
        explain(tiny_model(config, CrossFuseForSequenceClassification), tiny_inputs(config), **arguments)


def test_refuses_a_model_without_a_head():
    config = tiny_config("text")
    with pytest.raises(TypeError, match="`model` is CrossFuseModel; expected CrossFuseForConditionalGeneration or"):
        explain(tiny_model(config, CrossFuseModel), tiny_inputs(config))


def test_refuses_more_than_eight_modalities():
    modalities = {f"sensor_{index}": {"kind": "series"} for index in range(9)}
    config = CrossFuseConfig(**{**TINY, "modalities": modalities})
    inputs = tiny_inputs(config)
    inputs["modality_mask"] = torch.ones(2, 9, dtype=torch.long)
    inputs["modality_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="sample 1 of the batch has 9 modalities; expected 8 at most"):
        explain(tiny_model(config), inputs, IDS)
    inputs["modality_mask"][1, 3] = 0
    explanations = explain(tiny_model(config), inputs, IDS, max_positions=0)
    assert_adds_up(explanations[0])
    assert explanations[1].modality_values[:, 3].abs().max() == 0


def test_without_captum(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    config = tiny_config("text")
    model, inputs = tiny_model(config), tiny_inputs(config)
    with pytest.raises(ImportError, match=r"pip install .crossfuse\[explain\]"):
        explain(model, inputs, IDS)
    assert_adds_up(explain(model, inputs, IDS, max_positions=0)[0])
