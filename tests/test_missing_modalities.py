# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Missing modalities and wrong inputs: an answer is the same alone and in any batch, or there is one clear error."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseModel, CrossFuseProcessor

from .helpers import (
    FUSIONS,
    MODALITIES,
    assert_same,
    count_calls,
    tiny_config,
    tiny_inputs,
    tiny_labels,
    tiny_model,
)


NAMES = ("text", "image", "audio", "wrist")
PATTERNS = [pattern for pattern in itertools.product([0, 1], repeat=len(NAMES)) if any(pattern)]
GARBAGE = {"random": None, "huge": 1e30, "NaN": float("nan"), "infinite": float("inf")}


def logits_of(model, inputs):
    batch_size = next(iter(inputs.values())).shape[0]
    with torch.no_grad():
        return model(**inputs, decoder_input_ids=tiny_labels(1).expand(batch_size, -1)).logits


def garbage_like(values: torch.Tensor, garbage: float | None) -> torch.Tensor:
    if not values.is_floating_point():  # token ids, where -1 and 10 ** 9 are outside any vocabulary
        return torch.full_like(values, {None: 3, 1e30: 10**9}.get(garbage, -1))
    return torch.randn_like(values) * 100 if garbage is None else torch.full_like(values, garbage)


def only(inputs, config, pattern, row: int):
    """One sample, given only the modalities that it has."""
    names = [config.modalities.value_name(name) for name, kept in zip(config.modalities, pattern) if kept]
    return {name: inputs[name][row : row + 1] for name in names}


# The same alone and in any batch


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_pattern_answers_alone_as_in_a_batch_of_all(fusion, implementation):
    config = tiny_config(*NAMES, fusion={"type": fusion, "num_layers": 2}, attn_implementation=implementation)
    model, inputs = tiny_model(config), tiny_inputs(config, len(PATTERNS))
    together = logits_of(model, {**inputs, "modality_mask": torch.tensor(PATTERNS)})
    for row, pattern in enumerate(PATTERNS):
        assert_same(together[row : row + 1], logits_of(model, only(inputs, config, pattern, row)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_missing_modality_can_not_change_the_answer(fusion):
    """Whatever stands in its place."""
    config = tiny_config(*NAMES, fusion=fusion)
    model, inputs = tiny_model(config), tiny_inputs(config, len(PATTERNS))
    modality_mask = torch.tensor(PATTERNS)
    expected = logits_of(model, {**inputs, "modality_mask": modality_mask})
    for garbage in GARBAGE.values():
        spoilt = {}
        for column, name in enumerate(NAMES):
            value_name = config.modalities.value_name(name)
            spoilt[value_name] = inputs[value_name].clone()
            missing = modality_mask[:, column] == 0
            spoilt[value_name][missing] = garbage_like(inputs[value_name][missing], garbage)
        logits = logits_of(model, {**spoilt, "modality_mask": modality_mask})
        for pattern, row, wanted in zip(PATTERNS, logits, expected):
            assert torch.equal(row, wanted), (pattern, garbage)


def masks_of(config, lengths: dict[str, int]) -> dict[str, torch.Tensor]:
    """Masks that keep, in the second of two samples, the first so many steps of each modality."""
    sizes = {"text": 5, "image": 3, "video": 4, "audio": 6, "wrist": 5}
    return {
        config.modalities.mask_name(name): (torch.arange(sizes[name]) < torch.tensor([[sizes[name]], [length]])).long()
        for name, length in lengths.items()
    }


LENGTHS = {"text": 2, "image": 1, "video": 2, "audio": 3, "wrist": 3}


def padded_inputs(config):
    inputs = tiny_inputs(config)
    return {**inputs, "pixel_values": torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_is_never_read(fusion, garbage):
    config = tiny_config(*MODALITIES, fusion=fusion)
    model, inputs, masks = tiny_model(config), padded_inputs(config), masks_of(tiny_config(*MODALITIES), LENGTHS)
    expected = logits_of(model, {**inputs, **masks})
    for name in MODALITIES:
        value_name, mask_name = config.modalities.value_name(name), config.modalities.mask_name(name)
        values = inputs[value_name].transpose(1, 2).clone() if name == "audio" else inputs[value_name].clone()
        padding = masks[mask_name] == 0
        values[padding] = garbage_like(values[padding], garbage)
        inputs[value_name] = values.transpose(1, 2) if name == "audio" else values
    assert torch.equal(logits_of(model, {**inputs, **masks}), expected)


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in MODALITIES), ("audio", {"num_conv_layers": 2}), ("wrist", {"patch_length": 2})],
    ids=str,
)
def test_a_padded_sample_is_the_same_as_without_its_padding(name, settings, positions):
    config = tiny_config(modalities={name: {**MODALITIES[name], **settings}}, position_embedding_type=positions)
    model, length = tiny_model(config), LENGTHS[name]
    value_name = config.modalities.value_name(name)
    values = padded_inputs(tiny_config(*MODALITIES))[value_name]
    together = logits_of(model, {value_name: values, **masks_of(config, {name: length})})
    short = values[1:, ..., :length] if name == "audio" else values[1:, :length]
    assert_same(together[1:], logits_of(model, {value_name: short}))


@pytest.mark.parametrize("name", ["text", "wrist"])
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_padding_on_the_left_is_the_same_as_on_the_right(name, positions):
    config = tiny_config(name, position_embedding_type=positions)
    model, inputs = tiny_model(config), tiny_inputs(config)
    value_name, mask_name = config.modalities.value_name(name), config.modalities.mask_name(name)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    right = logits_of(model, {**inputs, mask_name: mask})
    left = logits_of(model, {value_name: inputs[value_name].roll(2, 1), mask_name: mask.roll(2, 1)})
    assert_same(left, right)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_are_the_same_whatever_stands_in_the_padding(fusion):
    config = tiny_config(*MODALITIES, fusion=fusion)
    inputs, masks = padded_inputs(config), masks_of(config, LENGTHS)
    masks["modality_mask"] = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    spoilt = {**inputs, "wrist_values": inputs["wrist_values"].clone()}
    spoilt["wrist_values"][0] = float("nan")
    spoilt["wrist_values"][1, 3:] = float("nan")
    gradients = []
    for given in (inputs, spoilt):
        model = tiny_model(config).train()
        model(**given, **masks, labels=tiny_labels()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


# How missing is said


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_zeros_is_the_same_as_the_modality_mask(name, fusion):
    config = tiny_config(*NAMES, fusion=fusion)
    model, inputs = tiny_model(config), tiny_inputs(config)
    modality_mask = torch.tensor([[1] * 4, [int(other != name) for other in NAMES]])
    length = {"text": 5, "image": 1, "audio": 6, "wrist": 5}[name]
    mask = torch.tensor([[1] * length, [0] * length])
    by_mask = logits_of(model, {**inputs, config.modalities.mask_name(name): mask})
    assert torch.equal(by_mask, logits_of(model, {**inputs, "modality_mask": modality_mask}))


def test_a_modality_that_is_not_given_is_missing_whatever_the_modality_mask_says():
    config = tiny_config("text", "wrist")
    model, inputs = tiny_model(config), tiny_inputs(config)
    text = {"input_ids": inputs["input_ids"]}
    assert_same(logits_of(model, {**text, "modality_mask": torch.ones(2, 2)}), logits_of(model, text))
    assert_same(logits_of(model, {**text, "wrist_values": None}), logits_of(model, text))


def test_a_mask_of_text_without_text_is_ignored():
    """`generate` and data collators hand an attention mask on even where there is no text."""
    config = tiny_config("text", "wrist")
    model = tiny_model(config)
    inputs = {"wrist_values": tiny_inputs(config)["wrist_values"]}
    assert_same(logits_of(model, {**inputs, "attention_mask": torch.ones(2, 5)}), logits_of(model, inputs))


@pytest.mark.parametrize("modalities", [("audio",), ("text", "audio")])
def test_a_text_mask_without_text_may_not_leave_anything_out(modalities):
    model = tiny_model(tiny_config(*modalities))
    inputs = {"input_features": torch.randn(2, 6, 6)}
    assert_same(logits_of(model, {**inputs, "attention_mask": torch.ones(2, 6)}), logits_of(model, inputs))
    with pytest.raises(ValueError, match="`attention_mask` is"):
        logits_of(model, {**inputs, "attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3])})


# What missing costs


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_missing_modality_costs_no_encoder_compute(fusion):
    config = tiny_config(*NAMES, fusion=fusion)
    model, inputs = tiny_model(config), tiny_inputs(config, 4)
    rows = {name: count_calls(model.model.encoder.encoders[name]) for name in NAMES}
    logits_of(
        model, {**inputs, "modality_mask": torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]])}
    )
    assert rows == {"text": [4], "image": [], "audio": [1], "wrist": [2]}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_modality_missing_in_all_samples_gets_no_gradient(fusion):
    config = tiny_config("text", "wrist", fusion=fusion)
    model, inputs = tiny_model(config).train(), tiny_inputs(config)
    model(**inputs, modality_mask=torch.tensor([[1, 0], [1, 0]]), labels=tiny_labels()).loss.backward()
    assert all(p.grad is None for p in model.model.encoder.encoders["wrist"].parameters())
    assert all(p.grad is not None for p in model.model.encoder.encoders["text"].parameters())


# Dropping modalities in training


def patterns_of_training(config, inputs, draws: int) -> torch.Tensor:
    """Which modalities were there, `(draws * batch, modalities)`, over many forward passes in training."""
    model = tiny_model(config, CrossFuseModel).train()
    seen = []
    for _ in range(draws):
        memory = model.encoder(**inputs)
        places = [memory.modality_ids == index for index in range(len(config.modalities))]
        seen.append(torch.stack([(memory.attention_mask * place).any(1) for place in places], dim=1))
    return torch.cat(seen)


def test_modality_dropout_drops_and_never_the_last():
    config = tiny_config("text", "image", "wrist", modality_dropout=0.5, num_hidden_layers=0)
    inputs = tiny_inputs(config, 64)
    torch.manual_seed(0)
    seen = patterns_of_training(config, inputs, draws=30)
    assert seen.any(1).all()
    # All seven patterns; each modality stays in half of the samples, and in a third of those that would have lost all.
    assert len(seen.unique(dim=0)) == 7
    expected = 0.5 + 0.5**3 / 3
    assert seen.float().mean(0).tolist() == pytest.approx([expected] * 3, abs=0.05)


def test_modality_dropout_keeps_what_a_sample_has():
    config = tiny_config("text", "image", "wrist", modality_dropout=0.9, num_hidden_layers=0)
    mask = torch.tensor([[0, 1, 0], [1, 0, 1]]).repeat(32, 1)
    seen = patterns_of_training(config, {**tiny_inputs(config, 64), "modality_mask": mask}, draws=10)
    mask = mask.bool().repeat(10, 1)
    assert not (seen & ~mask).any()
    assert seen.any(1).all()
    assert torch.equal(seen[::2], mask[::2])


@pytest.mark.parametrize("modality_dropout", [0.0, 0.9])
def test_modality_dropout_is_for_training_only(modality_dropout):
    config = tiny_config("text", "wrist", modality_dropout=modality_dropout)
    model, inputs = tiny_model(config), tiny_inputs(config, 16)
    assert torch.equal(logits_of(model, inputs), logits_of(tiny_model(tiny_config("text", "wrist")), inputs))


# Wrong inputs: one clear error each


def wrong(**changes):
    config = tiny_config(*MODALITIES)
    return {**tiny_inputs(config), **changes}


def spoilt(name: str, index, value: float):
    values = wrong()[name].clone()
    values[index] = value
    return wrong(**{name: values})


NONE = dict.fromkeys(wrong())
WRONG_INPUTS = {
    "no modality": (NONE, "no modality is given.*`input_ids`, `pixel_values`.*`wrist_values`"),
    "no modality but masks": ({"modality_mask": torch.ones(2, 5)}, "no modality is given"),
    "sample without any, by the modality mask": (
        wrong(modality_mask=torch.tensor([[1] * 5, [0] * 5])),
        "sample 1 of the batch has no modality.*text, image, video, audio, wrist",
    ),
    "sample without any, by its mask": (
        {**NONE, "input_ids": torch.ones(2, 5).long(), "attention_mask": torch.tensor([[0] * 5, [1] * 5])},
        "sample 0 of the batch has no modality",
    ),
    "channels of images": (wrong(pixel_values=torch.randn(2, 4, 8, 8)), r"`pixel_values`.*4, 8, 8.*`num_channels=3`"),
    "channels of videos": (
        wrong(pixel_values_videos=torch.randn(2, 4, 1, 8, 8)),
        r"`pixel_values_videos`.*4, 1, 8, 8.*`num_channels=3`",
    ),
    "mel bins": (wrong(input_features=torch.randn(2, 7, 6)), r"`input_features`.*\(2, 7, 6\).*`num_mel_bins=6`"),
    "channels of series": (wrong(wrist_values=torch.randn(2, 5, 4)), r"`wrist_values`.*\(2, 5, 4\).*`num_channels=3`"),
    "width of embeddings": (
        wrong(input_ids=None, inputs_embeds=torch.randn(2, 5, 16)),
        r"`inputs_embeds`.*\(2, 5, 16\).*`hidden_size=32`",
    ),
    "dimensions of text": (wrong(input_ids=torch.ones(5).long()), r"`input_ids`.*\(5,\).*2 dimensions"),
    "dimensions of images": (wrong(pixel_values=torch.randn(3, 8, 8)), r"`pixel_values`.*\(3, 8, 8\).*dimensions"),
    "dimensions of videos": (
        wrong(pixel_values_videos=torch.randn(4, 3, 8, 8)),
        r"`pixel_values_videos`.*\(4, 3, 8, 8\).*5 dimensions",
    ),
    "dimensions of audio": (wrong(input_features=torch.randn(2, 6)), r"`input_features`.*\(2, 6\).*3 dimensions"),
    "dimensions of series": (wrong(wrist_values=torch.randn(2, 5)), r"`wrist_values`.*\(2, 5\).*3 dimensions"),
    "empty text": (wrong(input_ids=torch.ones(2, 0).long()), r"`input_ids`.*\(2, 0\).*no empty dimension"),
    "empty audio": (wrong(input_features=torch.randn(2, 6, 0)), r"`input_features`.*\(2, 6, 0\).*no empty dimension"),
    "empty series": (wrong(wrist_values=torch.randn(2, 0, 3)), r"`wrist_values`.*\(2, 0, 3\).*no empty dimension"),
    "NaN in an image": (spoilt("pixel_values", (1, 0, 0, 0), float("nan")), r"`pixel_values` of sample 1.*not finite"),
    "NaN in audio": (spoilt("input_features", (0, 2, 5), float("nan")), r"`input_features` of sample 0.*not finite"),
    "infinity in a series": (
        spoilt("wrist_values", (1, 4, 2), float("inf")),
        r"`wrist_values` of sample 1.*not finite",
    ),
    "NaN in a video": (spoilt("pixel_values_videos", (1, 3), float("nan")), r"`pixel_values_videos` of sample 1"),
    "token beyond the vocabulary": (spoilt("input_ids", (1, 2), 40), r"`input_ids` of sample 1.*40.*`vocab_size=40`"),
    "token below zero": (spoilt("input_ids", (0, 2), -100), r"`input_ids` of sample 0.*-100.*`vocab_size=40`"),
    "tokens that are no integers": (wrong(input_ids=torch.rand(2, 5)), r"`input_ids`.*float32.*integers"),
    "images that are no floats": (
        wrong(pixel_values=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        r"`pixel_values`.*uint8.*floating point",
    ),
    "shape of the text's mask": (wrong(attention_mask=torch.ones(2, 4)), r"`attention_mask`.*\(2, 4\).*\(2, 5\)"),
    "shape of the image mask": (wrong(image_mask=torch.ones(2, 2)), r"`image_mask`.*\(2, 2\).*\(2, 1\)"),
    "shape of the video mask": (wrong(video_mask=torch.ones(2, 3)), r"`video_mask`.*\(2, 3\).*\(2, 4\)"),
    "shape of the audio mask": (
        wrong(feature_attention_mask=torch.ones(1, 6)),
        r"`feature_attention_mask`.*\(1, 6\).*\(2, 6\)",
    ),
    "shape of the series mask": (wrong(wrist_mask=torch.ones(2, 5, 3)), r"`wrist_mask`.*\(2, 5, 3\).*\(2, 5\)"),
    "shape of the modality mask": (
        wrong(modality_mask=torch.ones(2, 4)),
        r"`modality_mask`.*\(2, 4\).*\(2, 5\).*text, image, video, audio, wrist",
    ),
    "mask without values": (wrong(wrist_values=None, wrist_mask=torch.ones(2, 5)), "`wrist_mask`.*`wrist_values`"),
    "tokens beside embeddings": (wrong(inputs_embeds=torch.randn(2, 5, 32)), "both `input_ids` and `inputs_embeds`"),
    "batch sizes": (
        wrong(wrist_values=torch.randn(3, 5, 3)),
        "different batch sizes.*'input_ids': 2.*'wrist_values': 3",
    ),
    "unknown tensor": (wrong(ankle_values=torch.randn(2, 5, 3)), "`ankle_values` is not an input.*wrist_values"),
}


@pytest.fixture(scope="module")
def model_of_all():
    return tiny_model(tiny_config(*MODALITIES))


@pytest.mark.parametrize(("inputs", "message"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_wrong_inputs_are_refused_by_name(model_of_all, inputs, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model_of_all(**inputs, labels=tiny_labels())


@pytest.mark.parametrize(
    "case", ["no modality", "channels of series", "NaN in an image", "batch sizes", "unknown tensor"]
)
def test_generate_refuses_them_too(model_of_all, case):
    inputs, message = WRONG_INPUTS[case]
    with pytest.raises(ValueError, match=f"(?s){message}|`model_kwargs` are not used"):
        model_of_all.generate(**inputs, max_new_tokens=2)


def test_nan_in_a_batch_leaves_the_model_usable():
    config = tiny_config("text", "wrist")
    model, inputs = tiny_model(config), tiny_inputs(config)
    expected = logits_of(model, inputs)
    with pytest.raises(ValueError, match="not finite"):
        logits_of(model, {**inputs, "wrist_values": torch.full((2, 5, 3), float("nan"))})
    assert torch.equal(logits_of(model, inputs), expected)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_weights_file_is_refused(kept, tmp_path):
    tiny_model(tiny_config("text", "image")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|truncated|corrupt"):
        CrossFuseForConditionalGeneration.from_pretrained(tmp_path)


def test_a_modality_mask_in_another_order():
    """As of a processor whose modalities are in another order than the model's."""
    model = tiny_model(tiny_config("image", "wrist"))
    processor = CrossFuseProcessor.from_config(tiny_config("wrist", "image"))
    samples = {"wrist": [np.ones((4, 3))] * 2, "image": [Image.new("RGB", (8, 8)), None]}
    batch = processor(**samples, return_tensors="pt")
    message = (
        "sample 1 has image, which is not given, and lacks wrist, which is; expected .* image, wrist, in this order"
    )
    for use in (model.get_encoder(), model.generate):
        with pytest.raises(ValueError, match=message):
            use(**batch)
    model.generate(**processor.fit_modalities(model.config)(**samples, return_tensors="pt"), max_new_tokens=2)
