# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of images and audio: what may change and what may not."""

import sys

import numpy as np
import pytest
import torch

from modeling_crossfuse.data.augmentation import AudioAugmentation, BatchAugmentation, ImageAugmentation
from modeling_crossfuse.processing_crossfuse import CrossFuseProcessor

from .helpers import assert_same, tiny_config, tiny_inputs


MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
LOG_SCALE = 0.25 / np.log(10)  # of the extractor's features, (log10(power) + 4) / 4
STEPS = [
    {"RandomAffine": {"degrees": 30, "p": 1.0, "padding_mode": "fill", "fill_value": [1, 1, 1]}},
    {"ColorJiggle": {"brightness": 0.5, "p": 1.0}},
    {"RandomHorizontalFlip": None},
]


def make_images(*shape: int) -> torch.Tensor:
    pixels = torch.rand(*shape, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def make_features(power: torch.Tensor) -> torch.Tensor:
    return (power.log10() + 4) / 4


def power_of(features: torch.Tensor) -> torch.Tensor:
    return 10 ** (4 * features - 4)


# Images


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_images_keep_shape_and_range(shape):
    images = make_images(*shape)
    before = images.clone()
    torch.manual_seed(0)
    changed = ImageAugmentation(STEPS, MEAN, STD)(images)
    assert changed.shape == images.shape and changed.dtype == images.dtype
    assert torch.equal(images, before) and not torch.allclose(changed, images, atol=0.1)
    pixels = changed * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5


def test_images_without_steps():
    images = make_images(2)
    assert_same(ImageAugmentation([], MEAN, STD)(images), images)


def test_each_image_is_drawn_anew_and_seeds_repeat():
    step = ImageAugmentation([{"RandomAffine": {"degrees": 90, "p": 1.0}}], MEAN, STD)
    images = make_images(1).repeat(2, 1, 1, 1)
    torch.manual_seed(1)
    first = step(images)
    second = step(images)
    torch.manual_seed(1)
    assert torch.equal(step(images), first)
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first, second)


def test_probability_is_a_share_of_the_images():
    images = make_images(400)
    torch.manual_seed(0)
    changed = ImageAugmentation([{"RandomHorizontalFlip": {"p": 0.25}}], MEAN, STD)(images)
    flipped = (changed - images).abs().flatten(1).amax(1) > 1e-4
    assert 0.17 < flipped.float().mean() < 0.33
    assert_same(changed[flipped], images[flipped].flip(-1))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"RandomAfine": {"degrees": 3}}], "the step 'RandomAfine'.*RandomAfine"),
        ([{"RandomAffine": {"degree": 3}}], "the step 'RandomAffine'.*degree"),
        ({"RandomAffine": {"degrees": 3}}, "expected a list"),
        (["RandomAffine"], "expected a list"),
    ],
)
def test_steps_that_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(steps, MEAN, STD)


def test_without_kornia(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(ImportError, match=r"pip install .crossfuse\[train\]"):
        ImageAugmentation(STEPS, MEAN, STD)


# Audio

QUIET = {"noise_probability": 0.0, "gain_db": 0.0, "max_time_mask": 0.0, "max_band_mask": 0.0}


def test_audio_that_nothing_changes():
    features, mask = torch.randn(3, 8, 20), torch.ones(3, 20)
    assert_same(AudioAugmentation(**QUIET)(features, mask), features)


def test_audio_keeps_shape_and_seeds_repeat():
    features, mask = torch.randn(3, 8, 20), torch.ones(3, 20)
    before, step = features.clone(), AudioAugmentation()
    torch.manual_seed(0)
    first = step(features, mask)
    torch.manual_seed(0)
    assert torch.equal(step(features, mask), first) and not torch.equal(step(features, mask), first)
    assert first.shape == features.shape and first.dtype == features.dtype and first.isfinite().all()
    assert torch.equal(features, before)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0])
def test_noise_has_its_power(snr_db):
    # Signal of power 1 in each band and frame; the noise of white clips scatters exponentially around its mean.
    features, mask = make_features(torch.ones(200, 20, 50)), torch.ones(200, 50)
    settings = {**QUIET, "noise_probability": 1.0, "noise_db": (snr_db, snr_db)}
    torch.manual_seed(0)
    noise = power_of(AudioAugmentation(**settings)(features, mask)) - 1
    # The tilt, even on both sides, of exp(t * x) for t in [-2, 2] and x in [-1, 1] has this mean.
    t, x = np.meshgrid(np.linspace(-2, 2, 401), np.linspace(-1, 1, 20))
    expected = 10 ** (-snr_db / 10) * np.exp(t * x).mean()
    assert noise.mean().item() == pytest.approx(expected, rel=0.05)
    middle = noise[:, 9:11]
    assert middle.std().item() == pytest.approx(middle.mean().item(), rel=0.1)


def test_noise_goes_by_the_power_of_each_clip_without_its_padding():
    power = torch.ones(2, 20, 400)
    power[1] *= 100
    power[0, :, 200:] = 1e6  # padding, whatever stands there
    mask = torch.ones(2, 400)
    mask[0, 200:] = 0
    torch.manual_seed(0)
    settings = {**QUIET, "noise_probability": 1.0, "noise_db": (0.0, 0.0)}
    ratio = power_of(AudioAugmentation(**settings)(make_features(power), mask)) / power
    assert 1.5 < ratio[0, 9:11, :200].mean() < 2.5 and 1.5 < ratio[1, 9:11].mean() < 2.5


def test_noise_probability():
    features, mask = make_features(torch.ones(600, 4, 5)), torch.ones(600, 5)
    torch.manual_seed(0)
    changed = AudioAugmentation(**{**QUIET, "noise_probability": 0.3})(features, mask)
    share = ((changed - features).abs().flatten(1).amax(1) > 1e-6).float().mean()
    assert 0.22 < share < 0.38


def test_gain():
    features, mask = make_features(torch.ones(500, 4, 5)), torch.ones(500, 5)
    torch.manual_seed(0)
    changed = AudioAugmentation(**{**QUIET, "gain_db": 6.0})(features, mask)
    decibels = 10 * power_of(changed).log10()
    assert_same(decibels, decibels[:, :1, :1].expand_as(decibels), atol=1e-3)  # one gain for a clip
    assert -6.01 < decibels.min() < -5.5 and 5.5 < decibels.max() < 6.01 and decibels.mean().abs() < 0.5


@pytest.mark.parametrize(("axis", "setting"), [(2, "max_time_mask"), (1, "max_band_mask")])
def test_masks_cover_one_span_with_the_floor(axis, setting):
    features = torch.rand(300, 40, 40) + 1
    torch.manual_seed(0)
    changed = AudioAugmentation(**{**QUIET, setting: 0.25})(features, torch.ones(300, 40))
    covered = changed != features
    lines = covered.any(3 - axis)
    # Whole frames, or whole bands, but for the floor itself
    assert covered.sum() >= lines.sum() * 40 - 300
    assert lines.sum(1).max() <= 11 and 3 < lines.sum(1).float().mean() < 7
    assert (lines.int().diff(dim=1).abs().sum(1) <= 2).all()
    floor = features.amin((1, 2), keepdim=True).expand_as(features)
    assert torch.equal(changed[covered], floor[covered])


def test_a_missing_clip_stays_harmless():
    features, mask = torch.zeros(2, 8, 20), torch.ones(2, 20)
    features[0], mask[1] = torch.randn(8, 20), 0
    changed = AudioAugmentation(noise_probability=1.0)(features, mask)
    assert changed.isfinite().all()


def test_log_scale_is_that_of_the_extractor():
    config = tiny_config("audio")
    processor = CrossFuseProcessor.from_config(config)
    clip = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * 0.1
    clips = [{"array": clip * factor, "sampling_rate": 16_000} for factor in (1.0, 2.0)]
    features = processor(audio=clips, return_tensors="pt")["input_features"]
    louder = AudioAugmentation().log_scale * 2 * np.log(2)  # twice the amplitude has four times the power
    assert_same(features[1] - features[0], torch.full_like(features[0], louder), atol=1e-3)


# Batches


@pytest.fixture(scope="module")
def config():
    return tiny_config("text", "image", "audio")


@pytest.fixture(scope="module")
def processor(config):
    return CrossFuseProcessor.from_config(config)


def test_a_batch(config, processor):
    augment = BatchAugmentation(processor, config.modalities, {"image": STEPS, "audio": {"noise_probability": 1.0}})
    inputs = tiny_inputs(config)
    inputs["feature_attention_mask"] = torch.ones(2, 6, dtype=torch.long)
    changed = augment(dict(inputs))
    assert set(changed) == set(inputs)
    for name, value in inputs.items():
        assert changed[name].shape == value.shape
        assert torch.equal(changed[name], value) == (name not in ("pixel_values", "input_features"))


def test_a_batch_that_lacks_a_modality(config, processor):
    augment = BatchAugmentation(processor, config.modalities, {"image": STEPS, "audio": {}})
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    assert augment(dict(inputs)) == inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smell": {}}, "names the modality 'smell'; there are text, image, audio"),
        ({"text": {}}, "'text' of kind 'text'; expected image or audio"),
        ({"audio": {"noise": 3}}, "for 'audio'.*noise"),
        ({"image": {"RandomAffine": {}}}, "expected a list"),
    ],
)
def test_settings_that_are_refused(config, processor, settings, message):
    with pytest.raises(ValueError, match=message):
        BatchAugmentation(processor, config.modalities, settings)


def test_the_settings_of_the_image_processor(config):
    for do_normalize in (True, False):
        processor = CrossFuseProcessor.from_config(config)
        images = processor.image_processor
        images.do_normalize = do_normalize
        step = BatchAugmentation(processor, config.modalities, {"image": []}).steps["image"]
        expected = images.image_mean if do_normalize else [0.0]
        assert step.mean.flatten().tolist() == pytest.approx(expected)
