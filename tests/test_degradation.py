# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw inputs made worse: each kind by one level, the more the higher, in the same way in every run."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from modeling_crossfuse import CrossFuseProcessor
from modeling_crossfuse.evaluation.degradation import Degradation, cover, hide_characters, mix_noise

from .helpers import MODALITIES, tiny_config


GENERATOR = np.random.default_rng(0)
SAMPLES = {
    "text": "what is on the image?",
    "image": Image.fromarray(GENERATOR.integers(0, 200, (8, 10, 3), dtype=np.uint8)),
    "video": GENERATOR.integers(0, 200, (3, 8, 10, 3), dtype=np.uint8),
    "audio": np.sin(np.arange(4000) / 7).astype(np.float32),
    "wrist": GENERATOR.normal([5, 0, -2], [1, 10, 0.1], (50, 3)),
}


@pytest.fixture(scope="module")
def modalities():
    image_only = CrossFuseProcessor.from_config(tiny_config("image", "video", "audio", "wrist"))
    image_only.fit_series("wrist", [SAMPLES["wrist"]])
    return {**image_only.modalities, "text": {"kind": "text"}}


def numbers(sample) -> np.ndarray:
    """A sample of any kind as numbers."""
    if isinstance(sample, str):
        return np.array([ord(character) for character in sample], dtype=float)
    if isinstance(sample, dict):
        sample = sample["array"]
    if isinstance(sample, list):
        return np.stack([numbers(frame) for frame in sample])
    array = np.asarray(sample, dtype=float)
    return array.transpose(2, 0, 1) if isinstance(sample, Image.Image) else array


def distance(name: str, worse) -> float:
    original = SAMPLES[name].transpose(0, 3, 1, 2) if name == "video" else SAMPLES[name]
    return np.abs(numbers(worse) - numbers(original)).mean()


@pytest.mark.parametrize("name", MODALITIES)
def test_a_higher_level_is_worse(modalities, name):
    degrade = {level: Degradation(modalities, level) for level in (0, 0.25, 0.5, 0.75, 1)}
    assert degrade[0](name, SAMPLES[name]) is SAMPLES[name]
    distances = [distance(name, degrade[level](name, SAMPLES[name])) for level in (0.25, 0.5, 0.75, 1)]
    assert 0 < distances[0] < distances[1] < distances[2] < distances[3]


@pytest.mark.parametrize("name", MODALITIES)
def test_it_is_the_same_in_every_run(modalities, name):
    first, again = (numbers(Degradation(modalities, 0.5)(name, SAMPLES[name])) for _ in range(2))
    other = numbers(Degradation(modalities, 0.5, seed=1)(name, SAMPLES[name]))
    assert (first == again).all()
    assert (first == other).all() == (name in ("image", "video"))  # nothing is drawn for these


def test_a_missing_modality_stays_missing(modalities):
    assert Degradation(modalities, 0.5)("audio", None) is None


@pytest.mark.parametrize("level", [-0.1, 1.5, float("nan")])
def test_level_out_of_range(modalities, level):
    generator = np.random.default_rng(0)
    for degrade in (
        lambda: Degradation(modalities, level),
        lambda: cover(SAMPLES["image"], level),
        lambda: hide_characters("hello", level, generator),
        lambda: mix_noise(np.ones(5), level, generator),
    ):
        with pytest.raises(ValueError, match="`level="):
            degrade()


def test_cover_hides_the_right_half_and_leaves_the_image_alone():
    image = Image.new("RGB", (10, 4), "red")
    pixels = np.asarray(cover(image, 0.5))
    assert (pixels[:, 5:] == 255).all() and (pixels[:, :5] == (255, 0, 0)).all()
    assert np.asarray(image)[0, 9].tolist() == [255, 0, 0]
    assert (np.asarray(cover(image, 0)) == np.asarray(image)).all()
    assert (np.asarray(cover(image, 1)) == 255).all()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_noise_has_the_ratio_of_the_level(level):
    clip = SAMPLES["audio"].astype(float)
    noisy = mix_noise(clip, level, np.random.default_rng(1))
    assert (noisy**2).mean() == pytest.approx((clip**2).mean(), rel=0.05)  # as loud as before
    signal = clip * (1 - level) / np.hypot(1 - level, level)
    ratio = 10 * np.log10((signal**2).mean() / ((noisy - signal) ** 2).mean())
    assert ratio == pytest.approx(20 * np.log10((1 - level) / level), abs=0.3)
    assert not mix_noise(np.zeros(10), level, np.random.default_rng(1)).any()  # silence stays silent


def test_noise_of_a_series_has_the_scale_of_its_channels(modalities):
    noise = Degradation(modalities, level=1)("wrist", np.tile(SAMPLES["wrist"], (40, 1)))
    np.testing.assert_allclose(noise.mean(0), modalities["wrist"]["mean"], atol=0.7)
    np.testing.assert_allclose(noise.std(0), modalities["wrist"]["std"], rtol=0.1)


@pytest.mark.parametrize("images", [list, np.stack], ids=["list", "array"])
def test_several_images(modalities, images):
    images = Degradation(modalities, 1)("image", images([np.asarray(SAMPLES["image"])] * 2))
    assert len(images) == 2 and all((np.asarray(image) == 255).all() for image in images)


def test_images_that_are_missing_in_a_list_stay_missing(modalities):
    degrade = Degradation(modalities, 1)
    first, second, third = degrade("image", [None, SAMPLES["image"], float("nan")])
    assert first is None and third is None and (np.asarray(second) == 255).all()
    assert degrade("image", [None]) == [None] and degrade("image", []) == []
    with pytest.raises(ValueError, match="`image`, image 1 is not a readable image"):
        degrade("image", [None, b"no image"])


def test_a_layout_stays(modalities):
    last = {"image": {"kind": "image", "input_data_format": "channels_last"}}
    covered = Degradation(last, 0.5)("image", np.zeros((3, 10, 3), np.uint8))
    assert covered.shape == (3, 10, 3) and (covered[:, 5:] == 255).all() and not covered[:, :5].any()


def test_a_dark_frame_has_the_scale_of_the_video(modalities):
    video = np.stack([np.full((8, 10, 3), shade) for shade in (200.0, 1.0)])
    assert [frame[0, 0, 0] for frame in Degradation(modalities, 0.5)("video", video)] == [200, 1]


def test_times_keep_their_digits():
    times = 1.7e9 + np.arange(4)[:, None] / 2
    clock = {"clock": {"kind": "series", "mean": [1.7e9], "std": [1.0]}}
    worse = Degradation(clock, 1e-6)("clock", times)
    np.testing.assert_allclose(worse - 1.7e9, times - 1.7e9, atol=1e-4)


def test_scalars_of_arrow_are_degraded(modalities):
    assert Degradation(modalities, 1)("text", pa.scalar("left")) == "____"


@pytest.mark.parametrize(
    ("name", "sample", "message"),
    [
        ("text", 3, "`text` is int; expected a str"),
        ("image", Image.new("RGB", (0, 4)), "`image` is empty"),
        ("video", [], "`video` has no frame"),
        ("audio", np.zeros(0), "`audio` is empty"),
        ("wrist", np.zeros((0, 3)), "`wrist` is empty"),
    ],
)
def test_what_can_not_be_degraded(modalities, name, sample, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Degradation(modalities, 0.5)(name, sample)


def test_pixels_of_an_unknown_scale(modalities):
    settings = {**modalities, "image": {**modalities["image"], "do_rescale": False}}
    with pytest.raises(ValueError, match="`image` has pixels that the processor does not rescale"):
        Degradation(settings, 0.5)("image", np.zeros((8, 8, 3), np.float32))
    assert Degradation(settings, 0.5)("image", SAMPLES["image"]).getpixel((0, 0)) is not None
