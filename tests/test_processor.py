# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""CrossFuseProcessor and CrossFuseFeatureExtractor: raw samples to tensors, their errors, saving and loading."""

import copy
import io
import json

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoProcessor,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from modeling_crossfuse import (
    CrossFuseConfig,
    CrossFuseFeatureExtractor,
    CrossFuseForConditionalGeneration,
    CrossFuseProcessor,
)

from .helpers import tiny_config, tiny_model


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "what", "is", "it", "and", "this", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def processor():
    """One modality of each kind: text, 8 x 8 images, videos of 4 frames, audio of 6 mel bands, wrist of 3 channels."""
    config = tiny_config("text", "image", "video", "audio", "wrist")
    return CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer())


def make_image(color="red", size=(12, 10), mode="RGB") -> Image.Image:
    return Image.new(mode, size, color)


def noise_image(seed=0, size=(10, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def tone(seconds=0.1, frequency=440.0, rate=16_000) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate).astype(np.float32) / 2


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def wav(clip: np.ndarray, rate=16_000) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


# The feature extractor


def test_features_have_the_frames_and_bands_they_should():
    extractor = CrossFuseFeatureExtractor(feature_size=40)
    batch = extractor([tone(1.0), tone(0.25)], sampling_rate=16_000, return_tensors="pt")
    assert batch["input_features"].shape == (2, 40, 101)
    assert batch["attention_mask"].sum(1).tolist() == [101, 26]
    assert batch["input_features"][1, :, 26:].abs().max() == 0


def test_features_are_the_same_alone_and_in_any_batch():
    extractor = CrossFuseFeatureExtractor()
    short, long = tone(0.13), 0.001 * np.random.default_rng(0).standard_normal(9_000).astype(np.float32)
    alone = extractor(short, sampling_rate=16_000, return_tensors="pt")["input_features"][0]
    batch = extractor([long, short], sampling_rate=16_000, return_tensors="pt")["input_features"][1]
    assert torch.equal(batch[:, : alone.shape[1]], alone)


def test_features_equal_whisper_where_no_edge_is_near():
    clip = np.random.default_rng(0).standard_normal(16_000 * 30).astype(np.float32) / 10
    ours = CrossFuseFeatureExtractor()(clip, sampling_rate=16_000, return_tensors="np")["input_features"]
    theirs = WhisperFeatureExtractor()(clip, sampling_rate=16_000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(ours[..., 2:2998], theirs[..., 2:2998], atol=1e-3)


def test_a_tone_is_loudest_in_its_band():
    extractor = CrossFuseFeatureExtractor()
    low, high = (
        extractor(tone(0.5, f), sampling_rate=16_000)["input_features"][0].mean(1).argmax() for f in (300, 3_000)
    )
    assert low < high


def test_features_of_a_clip_shorter_than_a_frame():
    assert CrossFuseFeatureExtractor()(np.ones(1), sampling_rate=16_000)["input_features"].shape == (1, 80, 1)


def test_features_can_be_cut_and_padded():
    extractor = CrossFuseFeatureExtractor(feature_size=4)
    cut = extractor(tone(1.0), sampling_rate=16_000, max_length=30)
    assert cut["input_features"].shape == (1, 4, 30)
    padded = extractor(tone(0.1), sampling_rate=16_000, padding="max_length", max_length=30)
    assert padded["input_features"].shape == (1, 4, 30) and padded["attention_mask"].sum() == 11
    assert extractor(tone(0.1), sampling_rate=16_000, pad_to_multiple_of=8)["input_features"].shape[-1] == 16
    with pytest.raises(ValueError, match="max_length"):
        extractor(tone(0.1), sampling_rate=16_000, padding="max_length")


def test_features_refuse_another_sampling_rate_and_empty_clips():
    with pytest.raises(ValueError, match="expects 16000"):
        CrossFuseFeatureExtractor()(tone(), sampling_rate=8_000)
    with pytest.raises(ValueError, match="clip 1"):
        CrossFuseFeatureExtractor()([tone(), np.zeros(0)], sampling_rate=16_000)


def test_the_processor_gives_what_its_feature_extractor_gives(processor):
    clips = [tone(0.1), tone(0.2)]
    expected = processor.feature_extractor(clips, sampling_rate=16_000, return_tensors="pt")
    batch = processor(audio=clips, sampling_rate=16_000, return_tensors="pt")
    assert torch.equal(batch["input_features"], expected["input_features"])
    assert torch.equal(batch["feature_attention_mask"], expected["attention_mask"])


def test_features_without_a_mask():
    features = CrossFuseFeatureExtractor()(tone(), sampling_rate=16_000, return_attention_mask=False)
    assert list(features) == ["input_features"]


def test_feature_extractor_saves_and_loads(tmp_path):
    extractor = CrossFuseFeatureExtractor(feature_size=12, sampling_rate=8_000, n_fft=256, hop_length=80)
    extractor.save_pretrained(tmp_path)
    for loader in (CrossFuseFeatureExtractor, AutoFeatureExtractor):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, CrossFuseFeatureExtractor)
        assert loaded.to_dict() == extractor.to_dict() | {"feature_extractor_type": "CrossFuseFeatureExtractor"}
        clip = tone(rate=8_000)
        expected = extractor(clip, sampling_rate=8_000)["input_features"]
        assert np.array_equal(loaded(clip, sampling_rate=8_000)["input_features"], expected)


# Batches


def test_every_kind_gives_the_tensors_that_the_model_takes(processor):
    batch = processor(
        text=["what is it?", "and this"],
        image=[noise_image(), None],
        video=[None, [noise_image(i) for i in range(9)]],
        audio=[tone(0.2), None],
        wrist=[np.ones((5, 3)), np.ones((2, 3))],
        sampling_rate=16_000,
        return_tensors="pt",
    )
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "input_ids": (2, 4),
        "attention_mask": (2, 4),
        "pixel_values": (2, 3, 8, 8),
        "image_mask": (2, 1),
        "pixel_values_videos": (2, 4, 3, 8, 8),
        "video_mask": (2, 4),
        "input_features": (2, 6, 21),
        "feature_attention_mask": (2, 21),
        "wrist_values": (2, 5, 3),
        "wrist_mask": (2, 5),
        "modality_mask": (2, 5),
    }
    assert set(batch) == set(processor.model_input_names)
    assert batch["modality_mask"].tolist() == [[1, 1, 0, 1, 1], [1, 0, 1, 0, 1]]
    assert batch["wrist_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["image_mask"].tolist() == [[1], [0]]
    assert batch["video_mask"].tolist() == [[0] * 4, [1] * 4]
    model = tiny_model(tiny_config("text", "image", "video", "audio", "wrist"))
    assert torch.isfinite(model(**batch, labels=torch.ones(2, 3, dtype=torch.long)).loss)


def test_answers_are_the_same_alone_and_in_a_batch(processor):
    config = tiny_config("text", "image", "video", "audio", "wrist")
    model = tiny_model(config)
    samples = [
        {"text": "what is it?", "image": noise_image(), "audio": tone(0.07)},
        {"text": "it", "wrist": np.ones((2, 3))},
        {"video": [noise_image(3)] * 2, "audio": tone(0.2), "wrist": np.zeros((4, 3))},
    ]
    names = {name for sample in samples for name in sample}
    options = {"sampling_rate": 16_000, "return_tensors": "pt"}
    together = processor(**{name: [sample.get(name) for sample in samples] for name in names}, **options)
    target = torch.tensor([[3, 4]])
    logits = model(**together, decoder_input_ids=target.expand(3, -1)).logits
    for index, sample in enumerate(samples):
        alone = model(**processor(**sample, **options), decoder_input_ids=target).logits
        torch.testing.assert_close(logits[index], alone[0], atol=1e-5, rtol=1e-4)


def test_names_of_second_modalities_have_a_prefix():
    image = {"image_size": 8, "patch_size": 4}
    config = CrossFuseConfig(
        d_model=32,
        modalities={
            "right": {"kind": "image", **image},
            "left": {"kind": "image", **image},
            "question": {"kind": "text", "vocab_size": 20},
        },
    )
    modalities = config.modalities
    processor = CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer())
    batch = processor(
        left=[make_image(), None], right=[None, make_image()], question=["it", "this"], return_tensors="pt"
    )
    names = [method(name) for name in config.modalities for method in (modalities.value_name, modalities.mask_name)]
    assert set(batch) == {*names, "modality_mask"}
    assert batch["modality_mask"].tolist() == [[0, 1, 1], [1, 0, 1]]
    assert processor("it", left=make_image(), return_tensors="pt")["question_input_ids"].shape == (1, 1)


def test_a_modality_that_all_samples_lack_is_left_out(processor):
    batch = processor(text=["it", "this"], image=[None, None], audio=None, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "modality_mask"}
    assert batch["modality_mask"].tolist() == [[1, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("text", "what is it?"),
        ("image", make_image()),
        ("image", np.zeros((10, 12, 3), dtype=np.uint8)),
        ("video", [make_image(), make_image()]),
        ("video", np.zeros((2, 10, 12, 3), dtype=np.uint8)),
        ("audio", tone()),
        ("audio", tone().tolist()),
        ("wrist", np.zeros((4, 3))),
        ("wrist", torch.zeros(4, 3, dtype=torch.bfloat16)),
    ],
)
def test_one_sample_is_a_batch_of_one(processor, name, sample):
    alone = processor(**{name: sample}, return_tensors="np")
    batch = processor(**{name: [sample]}, return_tensors="np")
    assert alone["modality_mask"].shape == (1, 5)
    assert all(np.array_equal(alone[key], batch[key]) for key in batch)


def test_arrays_with_an_axis_more_are_batches(processor):
    assert processor(image=np.zeros((2, 3, 9, 9), np.uint8), return_tensors="pt")["pixel_values"].shape[0] == 2
    assert processor(wrist=torch.zeros(2, 5, 3), return_tensors="pt")["wrist_values"].shape == (2, 5, 3)
    assert processor(video=np.zeros((2, 5, 9, 9, 3), np.uint8), return_tensors="pt")["video_mask"].shape == (2, 4)
    with pytest.raises(ValueError, match="list of clips"):
        processor(audio=np.zeros((2, 1_000)), sampling_rate=16_000)


def test_return_tensors(processor):
    arguments = {"text": ["what is it?", "it"], "wrist": [None, np.ones((2, 3))]}
    tensors, arrays = (processor(**arguments, return_tensors=kind) for kind in ("pt", "np"))
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert all(np.array_equal(arrays[key], tensors[key].numpy()) for key in tensors)
    assert tensors["input_ids"].dtype == tensors["modality_mask"].dtype == torch.long
    plain = processor(**arguments, padding=False)
    assert plain["input_ids"] == [[4, 5, 6, 9], [6]] and plain["modality_mask"] == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 1]]
    with pytest.raises(ValueError, match="padding=True"):
        processor(**arguments, padding=False, return_tensors="pt")
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        processor(**arguments, return_tensors="tf")


# Text


def test_text_is_padded_and_cut(processor):
    batch = processor(["what is it?", "it"], padding="max_length", max_length=3, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[4, 5, 6], [6, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    batch = processor(["what is it?"], text_kwargs={"max_length": 2}, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[4, 5]]


def test_missing_text_is_padding(processor):
    batch = processor(text=["it", None], wrist=[None, np.ones((1, 3))], return_tensors="pt")
    assert batch["input_ids"].tolist() == [[6], [0]] and batch["attention_mask"].tolist() == [[1], [0]]


def test_a_modality_has_its_own_maximum():
    modalities = {"question": {"kind": "text", "max_length": 2}, "context": {"kind": "text"}}
    processor = CrossFuseProcessor(tokenizer=make_tokenizer(), modalities=modalities)
    batch = processor(question=["what is it?"], context=["what is it?"], return_tensors="pt")
    assert batch["question_input_ids"].shape == (1, 2) and batch["context_input_ids"].shape == (1, 4)


def test_decoding(processor):
    ids = processor("what is it ?", return_tensors="pt")["input_ids"]
    assert processor.batch_decode(ids) == ["what is it ?"] and processor.decode(ids[0]) == "what is it ?"


# Images


def red_pixels(processor, sample) -> np.ndarray:
    """The colour of an image of one colour, 0 to 255."""
    pixels = processor(image=[sample], return_tensors="np")["pixel_values"][0]
    assert np.ptp(pixels, axis=(1, 2)).max() < 1e-6
    return ((pixels[:, 0, 0] + 1) * 127.5).round().astype(int).tolist()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (make_image("red"), [255, 0, 0]),
        (make_image(100, mode="L"), [100] * 3),
        (make_image("red").convert("P"), [255, 0, 0]),
        (make_image((255, 0, 0, 0), mode="RGBA"), [255] * 3),
        (make_image((255, 0, 0, 255), mode="RGBA"), [255, 0, 0]),
        (make_image((0, 0), mode="LA"), [255] * 3),
        (Image.fromarray(np.full((9, 9), 257 * 200, dtype=np.uint16)), [200] * 3),
        (np.full((9, 11), 7, dtype=np.uint8), [7] * 3),
        (np.full((1, 9, 11), 7, dtype=np.uint8), [7] * 3),
        (np.full((3, 9, 11), 7, dtype=np.uint8), [7] * 3),
        (np.full((9, 11, 3), 7, dtype=np.int64), [7] * 3),
        (np.full((9, 11, 3), 0.2), [51] * 3),
        (torch.full((3, 9, 11), 51.0), [51] * 3),
        (np.full((8, 8, 3), 0.2, dtype=np.float32), [51] * 3),
        (np.full((1, 9, 3), [7, 8, 9], dtype=np.uint8), [7, 8, 9]),
    ],
)
def test_images_of_every_mode(processor, sample, expected):
    assert red_pixels(processor, sample) == expected


def test_transparency_of_a_palette_is_white(processor):
    image = Image.new("P", (9, 9), 0)
    image.putpalette([255, 0, 0])
    image.info["transparency"] = 0
    assert red_pixels(processor, image) == [255] * 3


def test_image_files(processor, tmp_path):
    expected = processor(image=noise_image(), return_tensors="np")["pixel_values"]
    data, path = png(noise_image()), tmp_path / "image.png"
    path.write_bytes(data)
    samples = [path, str(path), data, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    for sample in [*samples, np.asarray(noise_image()), torch.tensor(np.asarray(noise_image()))]:
        assert np.array_equal(processor(image=sample, return_tensors="np")["pixel_values"], expected)


def test_a_photo_is_turned_as_its_camera_says(processor):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    image.save(file, "png", exif=exif)
    turned = processor(image=[file.getvalue()], return_tensors="np")["pixel_values"]
    assert np.array_equal(turned, processor(image=[image.rotate(180)], return_tensors="np")["pixel_values"])


def test_images_are_resized_and_scaled_as_the_image_processor_does(processor):
    images = [noise_image(0), noise_image(1, (8, 8)), noise_image(2, (20, 5))]
    expected = processor.image_processor(images, return_tensors="np")["pixel_values"]
    assert np.array_equal(processor(image=images, return_tensors="np")["pixel_values"], expected)
    plain = processor(image=images[1], do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    assert np.array_equal(plain[0], np.moveaxis(np.asarray(images[1]), -1, 0))
    assert processor(image=images, size={"height": 4, "width": 6})["pixel_values"].shape == (3, 3, 4, 6)


def test_several_images_per_sample(processor):
    a, b, c = (noise_image(seed) for seed in range(3))
    batch = processor(image=[[a, b], None, [c], [None, a], []], text=["it"] * 5, return_tensors="pt")
    assert batch["pixel_values"].shape == (5, 2, 3, 8, 8)
    assert batch["image_mask"].tolist() == [[1, 1], [0, 0], [1, 0], [0, 1], [0, 0]]
    assert batch["modality_mask"][:, 1].tolist() == [1, 0, 1, 1, 0]
    single = processor(image=[a], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(batch["pixel_values"][0, 0], single) and torch.equal(batch["pixel_values"][3, 1], single)
    assert batch["pixel_values"][3, 0].abs().max() == 0
    array = np.stack([np.asarray(a), np.asarray(b)])
    assert torch.equal(processor(image=[array], return_tensors="pt")["pixel_values"][0], batch["pixel_values"][0])


@pytest.mark.parametrize("num_channels", [1, 4, 6])
def test_other_numbers_of_channels(num_channels):
    config = CrossFuseConfig(
        d_model=32, modalities={"image": {"image_size": 8, "patch_size": 4, "num_channels": num_channels}}
    )
    processor = CrossFuseProcessor.from_config(config)
    arrays = [np.full((num_channels, 8, 8), 51, np.uint8), np.full((9, 10, num_channels), 51, np.uint8)]
    pixels = processor(image=arrays, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((2, num_channels, 8, 8), -0.6))
    if num_channels == 6:
        with pytest.raises(ValueError, match="needs an array"):
            processor(image=make_image())
    else:
        assert processor(image=make_image(), return_tensors="pt")["pixel_values"].shape == (1, num_channels, 8, 8)


def test_image_processors_without_a_fixed_size():
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, do_center_crop=False)
    processor = CrossFuseProcessor(image_processor=image_processor)
    assert processor(image=make_image(size=(16, 8)), return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 16)
    with pytest.raises(ValueError, match="different shapes"):
        processor(image=[make_image(size=(16, 8)), make_image(size=(8, 8))])


# Videos


def test_frames_are_sampled_uniformly(processor):
    frames = np.stack([np.full((8, 8, 3), 10 * i, dtype=np.uint8) for i in range(10)])
    batch = processor(video=[frames, frames[:2]], return_tensors="pt")
    shades = ((batch["pixel_values_videos"][:, :, 0, 0, 0] + 1) * 127.5).round()
    assert shades[0].tolist() == [0, 30, 60, 90] and shades[1, :2].tolist() == [0, 10]
    assert batch["video_mask"].tolist() == [[1] * 4, [1, 1, 0, 0]]
    assert processor(videos=frames, num_frames=7)["pixel_values_videos"].shape[1] == 7
    assert processor(videos=frames, do_sample_frames=False)["pixel_values_videos"].shape[1] == 10


@pytest.mark.parametrize("values", ["pixel_values", "pixel_values_videos"])
def test_a_video_processor_gets_whole_videos(values):
    """A stand-in: transformers' own need torchvision. That of VideoMAE and others says `pixel_values`."""
    shapes = []

    def video_processor(videos, **options):
        shapes.append((videos[0].shape, options["do_sample_frames"]))
        return {values: torch.from_numpy(videos[0][None, :, :, :4, :4]) / 255}

    processor = CrossFuseProcessor(modalities={"video": {"num_frames": 3}})
    processor.video_processor = video_processor
    frames = [Image.new("RGB", (8, 6), (50 * index, 0, 0)) for index in range(5)]
    batch = processor(video=[frames, frames[:2]], return_tensors="pt")
    assert shapes == [((3, 3, 6, 8), False), ((2, 3, 6, 8), False)]
    reds = (batch["pixel_values_videos"][:, :, 0, 0, 0] * 255).round()
    assert reds.tolist() == [[0, 100, 200], [0, 50, 0]]
    assert batch["video_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    floats = processor(video=np.full((2, 6, 8, 3), 0.5), do_rescale=False, return_tensors="pt")["pixel_values_videos"]
    assert (floats * 255).unique().tolist() == [0.5]  # as they are


def test_a_video_processor_that_cuts_videos_into_patches():
    processor = CrossFuseProcessor(modalities={"video": {"num_frames": 3}})
    processor.video_processor = lambda videos, **options: {"pixel_values_videos": torch.zeros(6, 12)}
    with pytest.raises(ValueError, match="patches; expected whole frames"):
        processor(video=[[Image.new("RGB", (8, 6))]])


@pytest.mark.parametrize("name", ["LlavaOnevisionVideoProcessor", "VideoMAEVideoProcessor"])
def test_a_video_processor_of_transformers(name, tmp_path):
    pytest.importorskip("torchvision")
    videos = getattr(transformers, name)(size={"height": 8, "width": 8}, do_center_crop=False)
    processor = CrossFuseProcessor(video_processor=videos, modalities={"video": {"num_frames": 3}})
    frames = [Image.new("RGB", (16, 12), (50 * index, 0, 0)) for index in range(5)]
    batch = processor(video=[frames, frames[:2]], return_tensors="pt")
    assert batch["pixel_values_videos"].shape == (2, 3, 3, 8, 8)
    assert batch["video_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    processor.save_pretrained(tmp_path)
    loaded = CrossFuseProcessor.from_pretrained(tmp_path)(video=[frames, frames[:2]], return_tensors="pt")
    assert torch.equal(loaded["pixel_values_videos"], batch["pixel_values_videos"])


def test_video_files(processor, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20 * index, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    batch = processor(video=[path, path.read_bytes()], return_tensors="pt")
    shades = ((batch["pixel_values_videos"][:, :, 0, 0, 0] + 1) * 127.5).round()
    assert shades.tolist() == [[0, 60, 120, 180]] * 2
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"`video` of sample 0.*not a readable video"):
        processor(video=str(path))


# Audio


def test_audio_files_and_dicts(processor, tmp_path):
    clip = tone()
    expected = processor(audio=[clip], sampling_rate=16_000, return_tensors="np")["input_features"]
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(clip))
    samples = [str(path), path, wav(clip), {"bytes": wav(clip), "path": None}, {"path": str(path)}]
    samples += [{"array": clip, "sampling_rate": 16_000}, torch.from_numpy(clip), clip.astype(np.float64)]
    for sample in samples:
        features = processor(audio=[sample], sampling_rate=16_000, return_tensors="np")["input_features"]
        np.testing.assert_allclose(features, expected, atol=1e-5)


def test_channels_are_averaged_and_integers_scaled(processor):
    clip = tone()
    expected = processor(audio=[clip], sampling_rate=16_000, return_tensors="np")["input_features"]
    stereo = np.stack([2 * clip, 0 * clip])
    integers = [(clip * 2**15).round().astype(np.int16), (clip.astype(float) * 2**31).astype(np.int32)]
    for sample in (stereo, stereo.T, wav(stereo.T), *integers):
        features = processor(audio=[sample], sampling_rate=16_000, return_tensors="np")["input_features"]
        np.testing.assert_allclose(features, expected, atol=0.2)
    silence = processor(audio=[np.full(1_000, 128, np.uint8)], sampling_rate=16_000)["input_features"]
    assert np.ptp(silence) == 0
    with pytest.raises(TypeError, match="int64"):
        processor(audio=[[1, 2, 3]], sampling_rate=16_000)


def test_other_sampling_rates_are_resampled(processor):
    pytest.importorskip("soxr")
    expected = processor(audio=[tone(1.0)], sampling_rate=16_000, return_tensors="np")["input_features"]
    faster = tone(1.0, rate=48_000)
    for sample, rate in (
        (faster, 48_000),
        (wav(faster, 48_000), None),
        ({"array": faster, "sampling_rate": 48_000}, 1),
    ):
        features = processor(audio=[sample], sampling_rate=rate, return_tensors="np")["input_features"]
        assert features.shape == expected.shape
        np.testing.assert_allclose(features[..., 5:-5], expected[..., 5:-5], atol=0.2)


def test_an_array_without_a_rate_is_warned_about(processor, monkeypatch):
    messages = []
    monkeypatch.setattr("modeling_crossfuse.processing_tensors.logger.warning_once", messages.append)
    processor(audio=[{"array": tone(), "sampling_rate": 16_000}])
    processor(audio=[tone()], sampling_rate=16_000)
    assert not messages
    processor(audio=[tone()])
    assert "16000 Hz" in messages[0] and len(messages) == 1


@pytest.mark.filterwarnings("error")
def test_read_only_arrays(processor):
    arrays = {"image": np.full((9, 9, 3), 0.5), "audio": tone(), "wrist": np.ones((2, 3), np.float32)}
    for array in arrays.values():
        array.flags.writeable = False
    batch = processor(**arrays, sampling_rate=16_000, return_tensors="pt")
    given = [name in arrays for name in processor.modalities]
    assert batch["modality_mask"].bool().tolist() == [given]


def test_torchcodec_decoders(processor):
    class Samples:
        data, sample_rate = torch.from_numpy(tone())[None], 16_000

    class Decoder:
        def get_all_samples(self):
            return Samples

    expected = processor(audio=[tone()], sampling_rate=16_000)["input_features"]
    assert np.array_equal(processor(audio=[Decoder()])["input_features"], expected)


def test_audio_of_two_kinds_of_features():
    config = CrossFuseConfig(
        d_model=32,
        modalities={"near": {"kind": "audio", "num_mel_bins": 6}, "far": {"kind": "audio", "num_mel_bins": 9}},
    )
    processor = CrossFuseProcessor.from_config(config)
    batch = processor(near=[tone()], far=[tone()], audio_kwargs={"sampling_rate": 16_000}, return_tensors="pt")
    assert batch["near_input_features"].shape == (1, 6, 11) and batch["far_input_features"].shape == (1, 9, 11)
    processor.modalities["near"]["max_length"] = 4
    processor.modalities["far"]["sampling_rate"] = 8_000
    batch = processor(near=[{"array": tone(), "sampling_rate": 16_000}], far=[tone()], return_tensors="pt")
    assert batch["near_input_features"].shape == (1, 6, 4) and batch["far_input_features"].shape == (1, 9, 21)


def test_a_feature_extractor_of_transformers():
    processor = CrossFuseProcessor(feature_extractor=WhisperFeatureExtractor(feature_size=10, chunk_length=1))
    batch = processor(audio=[tone(), tone(0.5)], sampling_rate=16_000, return_tensors="pt")
    assert batch["input_features"].shape == (2, 10, 100)
    assert batch["feature_attention_mask"].shape == (2, 100)


SECONDS = [("whisper", 1.0, 2.5), ("ours", 0.3, 1.0), ("ast", 0.32, 1.0), ("wav2vec2", 0.2, 0.5)]


@pytest.mark.parametrize(("name", "kept", "length"), SECONDS)
def test_what_is_cut_of_audio_is_said_once(name, kept, length, spoken):
    extractor, settings = {
        "whisper": (WhisperFeatureExtractor(feature_size=10, chunk_length=1), {}),
        "ours": (CrossFuseFeatureExtractor(feature_size=10), {"max_length": 30}),
        "ast": (ASTFeatureExtractor(num_mel_bins=16, max_length=32), {}),
        "wav2vec2": (Wav2Vec2FeatureExtractor(), {"max_length": 3_200}),
    }[name]
    processor = CrossFuseProcessor(feature_extractor=extractor, modalities={"speech": {"kind": "audio", **settings}})
    clips = [{"array": tone(seconds), "sampling_rate": 16_000} for seconds in (kept, length)]
    processor(speech=clips[:1])
    assert spoken() == []
    for _ in range(2):
        processor(speech=clips)
    (message,) = spoken()
    assert f"`speech` of sample 1 has {length:g} s, and is cut to {kept:g} s" in message
    processor.set_max_lengths({"speech": 0.1})  # which is less than any window
    shorter = [{"array": tone(0.1), "sampling_rate": 16_000}] * 2
    clips[0] = shorter[0]
    name = f"speech_{extractor.model_input_names[0]}"
    values = [processor(speech=samples)[name] for samples in (clips, shorter)]
    np.testing.assert_array_equal(*values)


def test_audio_in_several_windows(spoken):
    extractor = WhisperFeatureExtractor(feature_size=10, chunk_length=1)
    for settings, windows in (({"truncation": False}, 3), ({"max_seconds": 1.5}, 2), ({"max_seconds": 0.5}, 1)):
        processor = CrossFuseProcessor(feature_extractor=extractor, modalities={"audio": settings})
        batch = processor(audio=[tone(2.5), tone(0.2)], sampling_rate=16_000, return_tensors="pt")
        assert batch["input_features"].shape == (2, 10, 100 * windows)
        kept = round(100 * settings.get("max_seconds", 2.5))
        assert batch["feature_attention_mask"].sum(1).tolist() == [kept, 20]
    assert ["cut to 1.5 s" in message for message in spoken()] == [True, False]


@pytest.mark.parametrize(("option", "value"), [("max_length", 10), ("truncation", False)])
def test_options_that_a_feature_extractor_would_not_read(option, value):
    extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=32)
    processor = CrossFuseProcessor(feature_extractor=extractor, modalities={"audio": {option: value}})
    with pytest.raises(ValueError, match=f"ASTFeatureExtractor has no option `{option}`"):
        processor(audio=[tone()], sampling_rate=16_000)


def test_what_is_cut_of_texts_and_series_is_said_once(spoken):
    processor = CrossFuseProcessor(
        tokenizer=make_tokenizer(),
        modalities={"text": {"max_length": 2}, "wrist": {"kind": "series", "max_length": 3}},
    )
    samples = {"text": ["what is", "what is it"], "wrist": [[1.0] * 3, [1.0] * 4]}
    for _ in range(2):
        processor(**samples, sample_names=["row 7", "row 8"])
    text, wrist = spoken()
    assert "`text` of row 8 has 3 tokens, and is cut to 2" in text and "`--max_lengths`" in text
    assert "`wrist` of row 8 has 4 steps, and is cut to 3" in wrist
    processor.set_max_lengths({"text": 3, "wrist": 4})(**samples)
    assert len(spoken()) == 2
    for truncation in (False, "do_not_truncate"):
        whole = copy.deepcopy(processor)(text=["what is it and"], truncation=truncation)
        assert whole["input_ids"] == [[4, 5, 6, 7]]
    assert len(spoken()) == 2


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"text": 0}, "has `max_length=0`; expected an integer of at least 1"),
        ({"text": 2.5}, "has `max_length=2.5`; expected an integer"),
        ({"audio": 0.0}, "has `max_seconds=0.0`; expected a number above 0"),
        ({"audio": float("nan")}, "has `max_seconds=nan`"),
        ({"image": 3}, "`max_lengths` has 'image', whose kind 'image' has no length"),
        ({"speech": 3}, "`speech` is not a modality of this processor"),
    ],
)
def test_lengths_that_can_not_be(processor, lengths, message):
    before = copy.deepcopy(processor.modalities)
    with pytest.raises(ValueError, match=message):
        processor.set_max_lengths({"wrist": 3, **lengths})
    assert processor.modalities == before


@pytest.mark.parametrize("text", ["\ud800", "what \udcff"])
def test_half_of_a_character(processor, text):
    message = rf"`text` of row 3 has half of a character, '\\ud.*', at place {len(text) - 1}; expected text"
    with pytest.raises(ValueError, match=message):
        processor(text=["what", text], sample_names=["row 2", "row 3"])


# Series


def test_series_of_every_shape():
    modalities = {name: {"kind": "series", "num_channels": n} for name, n in (("steps", 1), ("row", 3))}
    processor = CrossFuseProcessor(modalities=modalities)
    batch = processor(steps=[[1.0, 2.0], np.array(5), [[7]]], row=[[1, 2, 3], torch.zeros(2, 3), [[1, 2, 3]]])
    assert batch["steps_values"].tolist() == [[[1.0], [2.0]], [[5.0], [0.0]], [[7.0], [0.0]]]
    assert batch["row_mask"] == [[1, 0], [1, 1], [1, 0]]


def test_series_are_cut():
    processor = CrossFuseProcessor(modalities={"wrist": {"kind": "series", "max_length": 3}})
    assert processor(wrist=[np.arange(5.0)])["wrist_values"].shape == (1, 3, 1)


def test_fit_series(tmp_path):
    processor = CrossFuseProcessor(modalities={"wrist": {"kind": "series", "num_channels": 3}})
    generator = np.random.default_rng(0)
    values = [generator.normal([1.7e9, 5, 7], [2, 3, 0], (n, 3)) for n in (1, 20, 300)]
    assert processor.fit_series("wrist", [*values, None]) is processor
    joined = np.concatenate(values)
    np.testing.assert_allclose(processor.modalities["wrist"]["mean"], joined.mean(0), rtol=1e-12)
    np.testing.assert_allclose(processor.modalities["wrist"]["std"][:2], joined.std(0)[:2], rtol=1e-6)
    processor.save_pretrained(tmp_path)
    tensor = CrossFuseProcessor.from_pretrained(tmp_path)(wrist=[joined], return_tensors="pt")["wrist_values"][0]
    torch.testing.assert_close(tensor.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(tensor.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_fit_series_refuses_what_it_cannot_use(processor):
    with pytest.raises(ValueError, match=r"'image' is not a modality of kind 'series'.*wrist"):
        processor.fit_series("image", [])
    with pytest.raises(ValueError, match="no sample"):
        processor.fit_series("wrist", [None])
    with pytest.raises(ValueError, match="sample 1 has values that are NaN"):
        processor.fit_series("wrist", [np.zeros((1, 3)), np.full((1, 3), np.nan)])


# Names and options


def test_aliases():
    modalities = {"photo": {"kind": "image"}, "clip": {"kind": "video"}, "voice": {"kind": "audio"}}
    processor = CrossFuseProcessor(
        image_processor=ViTImageProcessorPil(size=8),
        feature_extractor=CrossFuseFeatureExtractor(),
        modalities=modalities,
    )
    batch = processor(images=[make_image()], videos=[[make_image()]], audio=[tone()], sampling_rate=16_000)
    assert batch["modality_mask"] == [[1, 1, 1]]
    with pytest.raises(ValueError, match="`photo` is given twice"):
        processor(images=make_image(), photo=make_image())


def test_an_alias_of_two_modalities_is_refused():
    modalities = {"left": {"kind": "image"}, "right": {"kind": "image"}}
    processor = CrossFuseProcessor(image_processor=ViTImageProcessorPil(size=8), modalities=modalities)
    with pytest.raises(ValueError, match=r"`images` could be any of the modalities `left`, `right`"):
        processor(images=make_image())


def test_modalities_default_to_the_sub_processors():
    processor = CrossFuseProcessor(tokenizer=make_tokenizer(), image_processor=ViTImageProcessorPil(size=8))
    assert processor.modalities == {"text": {"kind": "text"}, "image": {"kind": "image"}}
    assert processor.get_attributes() == ["tokenizer", "image_processor"]


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"lidar": {}}, "kind='lidar'"),
        ({"wrist": {"kind": "series", "num_chanels": 3}}, "Did you mean `num_channels`"),
        ({"wrist": {"kind": "series", "num_channels": 3, "mean": [1.0]}}, "`mean` of shape"),
        ({"wrist": {"kind": "series", "std": [0.0]}}, "above 0"),
        ({"max_length": {"kind": "text"}}, "argument of the processor"),
        ({"image_kwargs": {"kind": "image"}, "images_kwargs": {"kind": "image"}}, "argument of the processor"),
        ({"text": {"num_channels": 3}}, "`num_channels=3`"),
    ],
)
def test_settings_out_of_range(modalities, message):
    with pytest.raises(ValueError, match=message):
        CrossFuseProcessor(modalities=modalities)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "it", "max_length": 3, "text_kwargs": {"max_length": 4}}, "`max_length` is given twice"),
        ({"text": "it", "text_kwargs": {"max_lenght": 4}}, "Did you mean `max_length`"),
        ({"text": "it", "paddin": True}, "`paddin` is not a modality"),
        ({"text": "it", "imgae": make_image()}, "Did you mean `image`"),
        ({"text": "it", "return_token_type_ids": True}, "not a modality"),
    ],
)
def test_wrong_options(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_options_in_common(processor):
    batch = processor(
        "it", common_kwargs={"return_tensors": "pt", "max_length": 3}, text_kwargs={"padding": "max_length"}
    )
    assert batch["input_ids"].shape == (1, 3)


# Wrong inputs


@pytest.mark.parametrize("array", [np.float64, torch.float64])
def test_series_of_large_numbers_keep_their_digits(array):
    processor = CrossFuseProcessor(modalities={"clock": {"kind": "series", "num_channels": 1}})
    steps = np.array([[16777217.0], [16777218.0]])
    processor.fit_series("clock", [torch.from_numpy(steps) if array is torch.float64 else steps])
    assert processor.modalities["clock"]["std"] == [0.5]


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"wrist": {"kind": "series", "max_length": 0}}, r"has `max_length=0`; expected an integer of at least 1"),
        ({"wrist": {"kind": "series", "max_length": -1}}, "has `max_length=-1`"),
        ({"wrist": {"kind": "series", "num_channels": "3"}}, "has `num_channels='3'`"),
        ({"my wrist": {"kind": "series"}}, "has the name 'my wrist'; expected a Python identifier"),
    ],
)
def test_wrong_settings(modalities, message):
    with pytest.raises(ValueError, match=message):
        CrossFuseProcessor(modalities=modalities)


def test_clips_are_padded_or_refused():
    with pytest.raises(ValueError, match="`padding=False`; clips become one tensor"):
        CrossFuseFeatureExtractor()([np.zeros(400, np.float32)], sampling_rate=16_000, padding=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "no modality is given; expected at least one of `text`"),
        ({"text": []}, ValueError, "`text` is an empty list"),
        ({"text": ["it", None]}, ValueError, "sample 1 has no modality"),
        (
            {"text": ["it", "it"], "image": [make_image()]},
            ValueError,
            "different numbers of samples.*'text': 2.*'image': 1",
        ),
        ({"text": ["it", " "]}, ValueError, "`text` of sample 1 is empty"),
        ({"text": ["it", 3]}, TypeError, "`text` of sample 1 is int"),
        ({"image": [make_image(), b"no image"]}, ValueError, "`image` of sample 1 is not a readable image"),
        (
            {"image": [png(noise_image(0, (99, 99)))[:900]]},
            ValueError,
            "`image` of sample 0 is not a readable image",
        ),
        ({"image": ["/nowhere/a.png"]}, ValueError, "`image` of sample 0: there is no file '/nowhere/a.png'"),
        ({"image": [{"bytes": None, "path": None}]}, ValueError, "neither `bytes` nor `path`"),
        ({"image": [{"url": "a"}]}, TypeError, "`image` of sample 0 is a dict of url"),
        ({"image": [np.zeros((5, 9, 9), np.uint8)]}, ValueError, r"shape \(5, 9, 9\); expected"),
        ({"image": [np.zeros((0, 9, 3), np.uint8)]}, ValueError, "`image` of sample 0 is empty"),
        ({"image": [Image.new("RGB", (0, 9))]}, ValueError, "`image` of sample 0"),
        ({"image": [np.full((9, 9, 3), np.nan)]}, ValueError, "NaN or infinite"),
        ({"image": [np.full((9, 9, 3), -2.0)]}, ValueError, "pixels from -2 to -2"),
        ({"image": [np.full((9, 9, 3), 4000)]}, ValueError, "pixels from 4000"),
        (
            {"image": [np.full((9, 9, 3), 40, np.uint16)]},
            ValueError,
            "has dtype uint16, whose full scale is not known",
        ),
        ({"image": [object()]}, TypeError, "`image` of sample 0"),
        ({"image": [3.0]}, ValueError, r"`image` of sample 0 has shape \(\); expected"),
        ({"image": [np.full((9, 9, 3), 1.2)]}, ValueError, "pixels up to 1.2; clip"),
        ({"image": [[make_image(), b"no"]]}, ValueError, "`image` of sample 0, image 1"),
        ({"video": [[]]}, ValueError, "`video` of sample 0 has no frame"),
        ({"video": [[make_image(), b"no"]]}, ValueError, "`video` of sample 0, frame 1"),
        ({"video": np.zeros((9, 9, 3), np.uint8)}, ValueError, "expected frames"),
        ({"video": [[make_image()]], "num_frames": 0}, ValueError, "num_frames=0"),
        ({"audio": [np.zeros(0)]}, ValueError, "`audio` of sample 0 is empty"),
        ({"audio": [[]]}, ValueError, "`audio` of sample 0 is empty"),
        ({"audio": [np.array([0.0, np.inf])]}, ValueError, "`audio` of sample 0 has values that are NaN or infinite"),
        ({"audio": [np.zeros((3, 4, 5))]}, ValueError, r"`audio` of sample 0 has shape \(3, 4, 5\)"),
        ({"audio": [b"no audio"]}, ValueError, "`audio` of sample 0 is not a readable audio file"),
        ({"audio": ["/nowhere/a.wav"]}, ValueError, "there is no file"),
        ({"audio": [{"array": tone(), "sampling_rate": 0}]}, ValueError, "sampling_rate=0"),
        ({"audio": [{"array": tone(), "sampling_rate": np.nan}]}, ValueError, "sampling_rate=nan"),
        ({"audio": [{"array": tone(), "sampling_rate": np.inf}]}, ValueError, "sampling_rate=inf"),
        ({"audio": [tone() * 32767]}, ValueError, "`audio` of sample 0 has floats up to"),
        (
            {"wrist": [np.zeros((5, 2))]},
            ValueError,
            r"`wrist` of sample 0 has shape \(5, 2\); expected `\(steps, 3\)`",
        ),
        ({"wrist": [np.zeros((0, 3))]}, ValueError, "`wrist` of sample 0 is empty"),
        ({"wrist": [np.full((2, 3), np.nan)]}, ValueError, "`wrist` of sample 0 has values that are NaN"),
        ({"wrist": [np.full((2, 3), 1e300)]}, ValueError, "beyond the range"),
        ({"wrist": [[1.0, None, 2.0]]}, ValueError, "`wrist` of sample 0 has 1 missing of 3 values"),
        ({"wrist": [[[1.0, 2.0, 3.0], [1.0]]]}, ValueError, "`wrist` of sample 0 is not an array"),
        ({"wrist": ["abc"]}, TypeError, "expected numbers"),
    ],
)
def test_wrong_inputs(processor, arguments, error, message):
    if "audio" in arguments:
        pytest.importorskip("soundfile")
    with pytest.raises(error, match=message):
        processor(**arguments, sampling_rate=16_000, return_tensors="pt")


@pytest.mark.parametrize(
    ("sample", "missing"),
    [
        ({"text": "it"}, "tokenizer"),
        ({"image": make_image()}, "image_processor"),
        ({"video": [make_image()]}, "image_processor"),
        ({"audio": tone()}, "feature_extractor"),
    ],
)
def test_a_modality_without_its_sub_processor(sample, missing):
    processor = CrossFuseProcessor(modalities={"text": {}, "image": {}, "video": {}, "audio": {}})
    with pytest.raises(ValueError, match=f"no `{missing}`"):
        processor(**sample)


def test_a_missing_package_is_named(processor, monkeypatch):
    clip = wav(tone())
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install .crossfuse\[audio\]"):
        processor(audio=[clip])
    monkeypatch.setitem(__import__("sys").modules, "soxr", None)
    with pytest.raises(ImportError, match=r"pip install .crossfuse\[audio\]"):
        processor(audio=[tone()], sampling_rate=8_000)


# Saving and loading


@pytest.mark.parametrize("loader", [CrossFuseProcessor, AutoProcessor])
@pytest.mark.parametrize(
    "kinds", [(), ("text",), ("image",), ("audio",), ("text", "audio"), ("image", "audio"), ("text", "image", "audio")]
)
def test_save_and_load(tmp_path, loader, kinds):
    config = tiny_config(*kinds, "wrist")
    processor = CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer() if "text" in kinds else None)
    processor.fit_series("wrist", [np.random.default_rng(0).normal(size=(9, 3))])
    processor.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert isinstance(loaded, CrossFuseProcessor)
    assert loaded.to_dict() == processor.to_dict() and list(loaded.modalities) == list(processor.modalities)
    assert loaded.get_attributes() == processor.get_attributes()
    samples = {"text": "what is it?", "image": noise_image(), "audio": tone(), "wrist": np.ones((2, 3))}
    samples = {name: samples[name] for name in (*kinds, "wrist")}
    expected = processor(**samples, sampling_rate=16_000, return_tensors="np")
    batch = loaded(**samples, sampling_rate=16_000, return_tensors="np")
    assert batch.keys() == expected.keys() and all(np.array_equal(batch[key], expected[key]) for key in batch)


def test_the_order_of_modalities_is_kept(tmp_path):
    modalities = {name: {"kind": "series"} for name in ("zebra", "ant", "mole", "bee")}
    CrossFuseProcessor(modalities=modalities).save_pretrained(tmp_path)
    assert list(CrossFuseProcessor.from_pretrained(tmp_path).modalities) == ["zebra", "ant", "mole", "bee"]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert [settings["name"] for settings in saved["modalities"]] == ["zebra", "ant", "mole", "bee"]


def test_loading_with_a_sub_processor_or_a_setting_changed(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    other = ViTImageProcessorPil(size=6)
    assert CrossFuseProcessor.from_pretrained(tmp_path, image_processor=other).image_processor is other
    assert CrossFuseProcessor.from_pretrained(tmp_path, do_normalize=False).image_processor.do_normalize is False


def test_the_code_travels_with_the_processor(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(CrossFuseProcessor, "_auto_class", "AutoProcessor")
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"]["AutoProcessor"] == "processing_crossfuse.CrossFuseProcessor"
    travelled = {path.name for path in tmp_path.iterdir()}
    assert {"processing_crossfuse.py", "configuration_crossfuse.py"} <= travelled
    assert {
        "feature_extraction_crossfuse.py",
        "media.py",
        "media_audio.py",
        "media_image.py",
        "media_video.py",
        "processing_options.py",
        "processing_tensors.py",
    } <= travelled


def test_printing(processor):
    assert "CrossFuseProcessor" in repr(processor) and "CrossFuseFeatureExtractor" in repr(processor)


def test_generation_from_raw_samples(processor):
    model = tiny_model(tiny_config("text", "image", "video", "audio", "wrist"), CrossFuseForConditionalGeneration)
    batch = processor(text=["what is it?", None], image=[None, noise_image()], return_tensors="pt")
    answers = model.generate(**batch, max_new_tokens=3, min_new_tokens=3)
    assert len(processor.batch_decode(answers, skip_special_tokens=True)) == 2


def test_a_model_without_a_processor(tmp_path):
    tiny_model(tiny_config("text", "image")).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"there is no CrossFuse processor in .*: it has no processor_config.json"):
        AutoProcessor.from_pretrained(tmp_path)


def test_errors_call_the_samples_by_their_names(processor):
    names = ["row 10", "row 11"]
    with pytest.raises(ValueError, match="`image` of row 11: there is no file"):
        processor(image=[noise_image(), "nowhere.png"], sample_names=names)
    with pytest.raises(ValueError, match="row 10 has no modality"):
        processor(image=[None, noise_image()], sample_names=names)
    with pytest.raises(ValueError, match="`sample_names` has 2 names for 1 samples"):
        processor(image=[noise_image()], sample_names=names)


def test_modalities_of_another_config(tmp_path):
    """What was known stays as it was; what is new has sub-processors of its own, which are saved."""
    processor = CrossFuseProcessor.from_config(tiny_config("image", "wrist"))
    processor.fit_series("wrist", [np.arange(12.0).reshape(4, 3)])
    known, picture = copy.deepcopy(processor.modalities), noise_image()
    expected = processor(image=picture, return_tensors="pt")["pixel_values"]
    other = {"kind": "image", "image_size": 16, "patch_size": 4}
    config = tiny_config(modalities={"other": other, "wrist": {"kind": "series", "num_channels": 3}, "image": {}})
    processor.fit_modalities(config).save_pretrained(tmp_path)
    for fitted in (processor, CrossFuseProcessor.from_pretrained(tmp_path)):
        assert list(fitted.modalities) == ["other", "wrist", "image"]
        assert {name: fitted.modalities[name] for name in known} == known
        batch = fitted(image=picture, other=picture, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected)
        assert batch["other_pixel_values"].shape[-2:] == (16, 16)


# One schema for all batches


KINDS = {
    "text": ["what is it", "it"],
    "image": [noise_image(0), noise_image(1)],
    "video": [[noise_image(2)] * 3, [noise_image(3)] * 2],
    "audio": [tone(0.1), tone(0.05)],
    "wrist": [np.ones((4, 3)), np.zeros((2, 3))],
}


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
@pytest.mark.parametrize("lacking", KINDS)
def test_all_modalities_have_tensors(processor, lacking, return_tensors):
    options = {"sampling_rate": 16_000, "return_tensors": return_tensors}
    whole = processor(**KINDS, **options)
    others = {name: samples for name, samples in KINDS.items() if name != lacking}
    batch = processor(**others, all_modalities=True, **options)
    assert set(batch) == set(whole)
    for name, expected in whole.items():
        actual, expected = np.asarray(batch[name]), np.asarray(expected)
        assert actual.dtype == expected.dtype and actual.ndim == expected.ndim and len(actual) == 2
        assert type(batch[name]) is type(whole[name])
    names = processor._model_arguments(lacking)
    assert not np.asarray(batch[names.mask]).any()
    assert not np.asarray(batch["modality_mask"])[:, list(KINDS).index(lacking)].any()
    if return_tensors == "pt":
        model = tiny_model(tiny_config(*KINDS))
        start = torch.ones(2, 1, dtype=torch.long)
        alone = processor(**others, **options)
        with torch.no_grad():
            logits = [model(**tensors, decoder_input_ids=start).logits for tensors in (batch, alone)]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


def test_all_modalities_keep_fixed_shapes(processor):
    lengths = {"text_kwargs": 7, "audio_kwargs": 30}
    options = {name: {"padding": "max_length", "max_length": length} for name, length in lengths.items()}
    options |= {"return_tensors": "pt", "all_modalities": True}
    batch = processor(wrist=KINDS["wrist"], **options)
    assert batch["input_ids"].shape == (2, 7) and batch["input_features"].shape == (2, 6, 30)
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    batch = processor(wrist=KINDS["wrist"], image=[[None], []], **options)
    assert batch["pixel_values"].shape == (2, 1, 3, 8, 8), "as batches of lists of images have it"


def test_a_data_set_is_mapped_to_one_schema(processor):
    """Whole batches lack a modality; the columns train the model."""
    rows = datasets.Dataset.from_dict(
        {
            "text": ["what is it", "it", None, None, None, None],
            "image": [None, None, {"path": None, "bytes": png(make_image())}, None, None, None],
            "audio": [None, None, None, {"array": tone(0.1).tolist(), "sampling_rate": 16_000}, None, None],
            "wrist": [None, None, None, None, np.ones((4, 3)).tolist(), np.ones((4, 3)).tolist()],
        }
    ).cast_column("image", datasets.Image())
    options = {"batched": True, "remove_columns": rows.column_names}
    kwargs = {"all_modalities": True, "padding": "max_length", "max_length": 5}
    mapped = rows.map(processor, batch_size=2, fn_kwargs=kwargs, **options)
    by_hand = rows.map(
        lambda batch: processor(text=batch["text"], image=batch["image"], audio=batch["audio"], wrist=batch["wrist"]),
        batch_size=6,
        **options,
    )
    assert set(by_hand.column_names) < set(mapped.column_names), "no row has a video"
    assert mapped["modality_mask"][:] == by_hand["modality_mask"][:]
    model = tiny_model(tiny_config(*KINDS)).train()
    torch_rows = mapped.with_format("torch")
    for start in range(0, 6, 2):
        batch = {name: torch.stack([row[name] for row in torch_rows.select([start, start + 1])]) for name in mapped[0]}
        model(**batch, labels=torch.ones(2, 3, dtype=torch.long)).loss.backward()


def test_a_dict_of_modalities(processor):
    batch = processor({"text": ["it"]}, image=[noise_image(0)], return_tensors="pt")
    assert {"input_ids", "pixel_values"} <= set(batch)
    with pytest.raises(ValueError, match="`label` is not a modality"):
        processor({"text": ["it"], "label": [1]})
    with pytest.raises(TypeError, match="multiple values for keyword argument 'image'"):
        processor({"text": ["it"], "image": [noise_image(0)]}, image=[noise_image(0)])


# Errors of libraries


@pytest.mark.parametrize("error", [KeyError("size"), RuntimeError("no kernel"), ValueError("no pixels")])
def test_errors_of_libraries_name_the_sample(processor, error, monkeypatch):
    process = type(processor.image_processor).__call__

    def failing(self, images, *args, **kwargs):
        if any(np.asarray(image).max() == 0 for image in images):
            raise error
        return process(self, images, *args, **kwargs)

    monkeypatch.setattr(type(processor.image_processor), "__call__", failing)
    images = [noise_image(0), noise_image(1), Image.new("RGB", (8, 8))]
    names = ["row 4", "row 5", "row 6"]
    with pytest.raises(ValueError, match=f"^`image` of row 6 can't be processed: {error}"):
        processor(image=images, sample_names=names)
    images = [noise_image(0), Image.new("RGB", (8, 8)), noise_image(1)]
    with pytest.raises(ValueError, match=f"^`image` of row 5 can't be processed: {error}"):
        processor(image=images, sample_names=names)


def test_errors_of_tokenizers_name_the_sample(processor, monkeypatch):
    def failing(self, texts, **kwargs):
        raise TypeError("TextEncodeInput must be Union")

    monkeypatch.setattr(type(processor.tokenizer), "__call__", failing)
    with pytest.raises(ValueError, match=r"^`text` of row 4 can't be processed: TextEncodeInput"):
        processor(text=["it", "this"], sample_names=["row 4", "row 5"])
