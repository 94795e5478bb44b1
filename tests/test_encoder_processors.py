# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Processors put together from the encoders' own tokenizers, image processors and feature extractors."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModel,
    AutoProcessor,
    BertTokenizer,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    VideoMAEConfig,
    VideoMAEImageProcessorPil,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.utils import is_torchvision_available

from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration, CrossFuseProcessor

from .test_wrapped_encoders import BERT, CLIP, DECODER, SETTINGS, SIZES, T5, VIT, WAV2VEC2, WHISPER, WRIST


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "apple", "what", "is", "this", "?"]
AST = ASTConfig(max_length=32, num_mel_bins=16, patch_size=8, time_stride=8, frequency_stride=8, **SIZES)
# Of one second, to which its feature extractor pads.
LONGER_WHISPER = WhisperConfig(**{**WHISPER.to_dict(), "max_source_positions": 50})
VIDEOMAE = VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, **SIZES)
VIDEO_PROCESSOR = (
    {"video_processor": "VideoMAEVideoProcessor"}
    if is_torchvision_available()
    else {"video_image_processor": "VideoMAEImageProcessorPil"}
)


def bert_tokenizer(folder) -> BertTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizer(str(folder / "vocab.txt"), model_max_length=8)


def answers_tokenizer(extra: int = 0) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", "rot", "apfel", *map(str, range(extra))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save(folder, config, *parts):
    """A model of random weights and what belongs to it, as they lie on the Hub."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def square(size: int) -> dict:
    return {"size": {"height": size, "width": size}}


@pytest.fixture
def folders(tmp_path):
    return {
        "text": save(tmp_path / "bert", BERT, bert_tokenizer(tmp_path / "bert")),
        "image": save(tmp_path / "vit", VIT, ViTImageProcessorPil(**square(16))),
        "eye": save(
            tmp_path / "clip",
            CLIP,
            CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        ),
        "video": save(
            tmp_path / "videomae", VIDEOMAE, VideoMAEImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
        ),
        "audio": save(tmp_path / "whisper", LONGER_WHISPER, WhisperFeatureExtractor(feature_size=16, chunk_length=1)),
        "speech": save(tmp_path / "wav2vec2", WAV2VEC2, Wav2Vec2FeatureExtractor()),
        "noise": save(tmp_path / "ast", AST, ASTFeatureExtractor(num_mel_bins=16, max_length=32)),
    }


def encoders_of(folders):
    return {**folders, "eye": {"kind": "image", "encoder": folders["eye"]}, "wrist": WRIST}


def an_image(colour: str = "red", size=(40, 20)) -> Image.Image:
    return Image.new("RGB", size, colour)


def sample(seed: int = 0) -> dict:
    generator = np.random.default_rng(seed)
    audio = {"array": generator.standard_normal(1600).astype(np.float32) / 4, "sampling_rate": 16_000}
    return {
        "text": "what is this ?",
        "image": an_image(),
        "eye": an_image("green"),
        "video": [an_image("red"), an_image("green"), an_image("blue")],
        "audio": audio,
        "speech": audio,
        "noise": audio,
        "wrist": generator.standard_normal((5, 3)),
    }


def test_every_modality_gets_what_its_encoder_was_trained_with(folders):
    processor = CrossFuseProcessor.from_encoders(encoders_of(folders))
    assert type(processor.tokenizer).__name__.startswith("Bert")
    classes = {name: type(getattr(processor, name)).__name__ for name in processor.get_attributes()}
    assert classes.pop("tokenizer").startswith("Bert")
    assert classes == {
        "image_processor": "ViTImageProcessorPil",
        "eye_image_processor": "CLIPImageProcessorPil",
        **VIDEO_PROCESSOR,
        "feature_extractor": "WhisperFeatureExtractor",
        "speech_feature_extractor": "Wav2Vec2FeatureExtractor",
        "noise_feature_extractor": "ASTFeatureExtractor",
    }
    assert processor.modalities["text"]["max_length"] == 8


def test_what_it_gives_is_what_each_part_gives_by_itself(folders):
    processor = CrossFuseProcessor.from_encoders(encoders_of(folders))
    given = sample()
    batch = processor(**given, return_tensors="pt")
    expected = {
        "input_ids": processor.tokenizer([given["text"]], return_tensors="pt")["input_ids"],
        "pixel_values": processor.image_processor(given["image"], return_tensors="pt")["pixel_values"],
        "eye_pixel_values": processor.eye_image_processor(given["eye"], return_tensors="pt")["pixel_values"],
        "input_features": processor.feature_extractor(
            given["audio"]["array"], sampling_rate=16_000, return_tensors="pt"
        )["input_features"],
        "speech_input_values": processor.speech_feature_extractor(
            given["speech"]["array"], sampling_rate=16_000, return_tensors="pt"
        )["input_values"],
        "noise_input_values": processor.noise_feature_extractor(
            given["noise"]["array"], sampling_rate=16_000, return_tensors="pt"
        )["input_values"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value, atol=1e-5, rtol=1e-5, msg=name)
    assert batch["pixel_values_videos"].shape == (1, 3, 3, 16, 16)
    assert batch["feature_attention_mask"].sum() == 10


def test_model_and_processor_of_the_same_encoders_fit(folders, tmp_path):
    encoders = encoders_of(folders)
    tokenizer = answers_tokenizer()
    processor = CrossFuseProcessor.from_encoders(encoders, tokenizer=tokenizer)
    model = CrossFuseForConditionalGeneration.from_encoders(encoders, tokenizer=tokenizer, **SETTINGS).eval()
    lacking = {name: [value, None] for name, value in sample().items()} | {"text": ["a red apple", "green apple"]}
    batch = processor(**lacking, return_tensors="pt")
    answers = model.generate(**batch, max_new_tokens=3)
    assert len(processor.batch_decode(answers, skip_special_tokens=True)) == 2
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.get_attributes() == processor.get_attributes()
    assert loaded.modalities == processor.modalities
    again = loaded(**lacking, return_tensors="pt")
    assert again.keys() == batch.keys()
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_questions_and_answers_may_have_different_tokenizers(folders, tmp_path):
    processor = CrossFuseProcessor.from_encoders({"text": folders["text"]}, tokenizer=answers_tokenizer())
    assert processor(text="red apple", return_tensors="pt")["input_ids"].tolist() == [[2, 6, 8, 3]]
    assert processor.batch_decode([[4, 5, 2]], skip_special_tokens=True) == ["rot apfel"]
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert loaded(text="red apple", return_tensors="pt")["input_ids"].tolist() == [[2, 6, 8, 3]]
    assert loaded.batch_decode([[4, 5, 2]], skip_special_tokens=True) == ["rot apfel"]


def test_a_bert_tokenizer_ends_answers_with_its_separator(folders):
    processor = CrossFuseProcessor.from_encoders({"text": folders["text"]})
    assert processor.tokenizer.eos_token == "[SEP]"
    model = CrossFuseForConditionalGeneration.from_encoders(
        {"text": folders["text"]}, tokenizer=processor.tokenizer, **SETTINGS
    )
    tokens = (model.config.pad_token_id, model.config.decoder_start_token_id, model.config.eos_token_id)
    assert tokens == (0, 2, 3)


def test_long_texts_are_cut_to_what_the_encoder_has_positions_for(folders):
    processor = CrossFuseProcessor.from_encoders({"text": folders["text"]})
    assert processor(text="red apple " * 20, return_tensors="pt")["input_ids"].shape == (1, 8)


def test_equal_parts_are_shared(folders):
    left, right = ({"kind": "image", "encoder": folders["image"]} for _ in range(2))
    processor = CrossFuseProcessor.from_encoders({"left": left, "right": right})
    assert processor.get_attributes() == ["image_processor"]


def test_models_and_configs_in_place_of_folders(folders):
    model = AutoModel.from_pretrained(folders["eye"])
    processor = CrossFuseProcessor.from_encoders({"image": model, "video": VIDEOMAE})
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    batch = processor(image=an_image(), video=[an_image()] * 2, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert batch["pixel_values_videos"].shape == (1, 2, 3, 16, 16)


def test_a_part_of_ones_own(folders):
    own = ViTImageProcessorPil(**square(16), image_mean=[0.0] * 3, image_std=[1.0] * 3)
    entry = {"encoder": folders["image"], "image_processor": own}
    processor = CrossFuseProcessor.from_encoders({"image": entry})
    assert processor(image=an_image("white"), return_tensors="pt")["pixel_values"].unique().tolist() == [1.0]
    model = CrossFuseForConditionalGeneration.from_encoders({"image": entry}, decoder=DECODER, **SETTINGS)
    assert model.config.modalities["image"].architecture == "ViTModel"


def test_an_encoder_of_patches_gets_whole_images(tmp_path):
    vision = {"embed_dim": 32, "hidden_size": 32, "num_heads": 2, "depth": 1, "patch_size": 4, "spatial_merge_size": 2}
    text = {**SIZES, "vocab_size": 99, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    config = Qwen2VLConfig(vision_config=vision, text_config=text)
    folder = save(tmp_path / "qwen", config, Qwen2VLImageProcessorPil(patch_size=4, merge_size=2))
    processor = CrossFuseProcessor.from_encoders({"image": folder})
    batch = processor(image=an_image(), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 128, 128)
    model = CrossFuseForConditionalGeneration.from_encoders({"image": folder}, decoder=DECODER, **SETTINGS).eval()
    states, _ = model.get_encoder().encode_modality("image", batch["pixel_values"][None], torch.ones(1, 1).long())
    # The same as the source's own processor and tower make of it.
    source = AutoModel.from_pretrained(folder).eval()
    own = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, do_resize=False)(
        an_image().resize((128, 128)), return_tensors="pt"
    )
    with torch.no_grad():
        expected = source.visual(own["pixel_values"], own["image_grid_thw"]).last_hidden_state
    torch.testing.assert_close(states[0], expected, atol=1e-4, rtol=1e-4)


# Wrong inputs


def test_a_tokenizer_with_more_tokens_than_the_encoder(tmp_path):
    folder = save(tmp_path / "bert", BERT)
    with pytest.raises(ValueError, match=r"`tokenizer` has 206 tokens, and `encoders\['text'\]=.*`vocab_size=99`"):
        CrossFuseProcessor.from_encoders({"text": folder}, tokenizer=answers_tokenizer(200))


def test_a_tokenizer_with_more_tokens_than_a_tower(tmp_path):
    folder = save(tmp_path / "clip", CLIP)
    with pytest.raises(ValueError, match=r"`tokenizer` has 206 tokens, and .*`vocab_size=99`"):
        CrossFuseProcessor.from_encoders({"text": folder}, tokenizer=answers_tokenizer(200))


def test_parts_of_another_kind(folders):
    part = ViTImageProcessorPil()
    with pytest.raises(ValueError, match="has a `image_processor`, which is not for values of kind 'text'"):
        CrossFuseProcessor.from_encoders({"text": {"encoder": folders["text"], "image_processor": part}})
    with pytest.raises(TypeError, match="`tokenizer` is str; expected a tokenizer"):
        CrossFuseProcessor.from_encoders({"text": {"encoder": folders["text"], "tokenizer": "bert"}})


def test_tokenizers_that_differ_in_more_than_their_words(tmp_path):
    tokenizers = {name: bert_tokenizer(tmp_path / name) for name in ("lower", "cased")}
    tokenizers["cased"] = BertTokenizer(str(tmp_path / "cased" / "vocab.txt"), do_lower_case=False)
    encoders = {
        name: {"kind": "text", "encoder": save(tmp_path / name, BERT, tokenizer)}
        for name, tokenizer in tokenizers.items()
    }
    processor = CrossFuseProcessor.from_encoders(encoders)
    batch = processor(lower="RED apple", cased="RED apple", return_tensors="pt")
    assert batch["lower_input_ids"].tolist() == [[2, 6, 8, 3]]
    assert batch["cased_input_ids"].tolist() == [[2, 1, 8, 3]]


def test_an_encoder_without_a_tokenizer(tmp_path):
    folder = save(tmp_path / "t5", T5)
    for encoder in (folder, T5):
        with pytest.raises(ValueError, match="comes without a tokenizer; give one as `tokenizer`"):
            CrossFuseProcessor.from_encoders({"text": encoder})
    assert CrossFuseProcessor.from_encoders({"text": folder}, tokenizer=answers_tokenizer()).modalities["text"]


def test_an_encoder_without_an_image_processor(tmp_path):
    folder = save(tmp_path / "vit", VIT)
    with pytest.raises(OSError, match=r"`encoders\['image'\]=.*no ImageProcessor can be loaded"):
        CrossFuseProcessor.from_encoders({"image": folder})
    entry = {"encoder": folder, "image_processor": ViTImageProcessorPil(**square(16))}
    batch = CrossFuseProcessor.from_encoders({"image": entry})(image=an_image(), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 16, 16)


def test_a_config_with_an_encoder_of_transformers():
    config = CrossFuseConfig(modalities={"image": {"encoder": VIT}})
    with pytest.raises(ValueError, match=r"`modalities\['image'\]` has the encoder ViTConfig .*from_encoders"):
        CrossFuseProcessor.from_config(config)


def test_what_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for encoder in ("nobody/nothing", str(tmp_path / "nowhere")):
        with pytest.raises(OSError, match=r"`encoders\['text'\]=.*(nothing|nowhere)"):
            CrossFuseProcessor.from_encoders({"text": encoder})
    with pytest.raises(TypeError, match="'tokeniser'"):
        CrossFuseProcessor.from_encoders({"text": BERT}, tokeniser=answers_tokenizer())
