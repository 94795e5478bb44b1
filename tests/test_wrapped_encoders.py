# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers as encoders of modalities: found, bit-equal, saved, masked, frozen, or refused."""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CONFIG_MAPPING,
    ASTConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BrosConfig,
    CLIPConfig,
    CsmConfig,
    GraniteSpeechEncoderConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    ResNetConfig,
    RobertaConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    SwinConfig,
    T5Config,
    T5EncoderModel,
    TimesformerConfig,
    VideoMAEConfig,
    ViltConfig,
    ViTConfig,
    ViTMAEConfig,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    XCLIPConfig,
)
from transformers.models.csm.modeling_csm import CsmBackboneModel
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from modeling_crossfuse import (
    CrossFuseConfig,
    CrossFuseForConditionalGeneration,
    CrossFuseModel,
    CrossFuseProcessor,
    CrossFuseWrappedEncoderConfig,
)
from modeling_crossfuse.encoder_probe import DecoderError
from modeling_crossfuse.encoder_search import JointError

from .helpers import FUSIONS, assert_same, count_calls, take_rows, tiny_labels
from .test_processor import make_tokenizer
from .test_saving import assert_equal_states


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
TOKENS = {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BERT = BertConfig(vocab_size=99, **SIZES)
CLIP = CLIPConfig(text_config={**SIZES, **TOKENS}, vision_config={**SIZES, "image_size": 16, "patch_size": 8})
T5 = T5Config(vocab_size=99, d_model=32, num_layers=1, num_heads=2, d_kv=16, d_ff=37)
VIT = ViTConfig(image_size=16, patch_size=8, **SIZES)
WHISPER = WhisperConfig(
    **{**TOKENS, "decoder_start_token_id": 1},
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=37,
    decoder_ffn_dim=37,
    max_source_positions=10,
    num_mel_bins=16,
)
CONVOLUTIONS = {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
WAV2VEC2 = Wav2Vec2Config(
    **CONVOLUTIONS,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    apply_spec_augment=False,
    feat_extract_norm="layer",
    **SIZES,
)

# Name of a case to the kind, the config, the class of the encoder that is found in it, and the shape of two samples.
CASES = {
    "bert": ("text", BERT, "BertModel", (2, 6)),
    "roberta": ("text", RobertaConfig(**SIZES, **TOKENS), "RobertaModel", (2, 6)),
    "encoder of t5": ("text", T5, "T5Stack", (2, 6)),
    "text tower of clip": ("text", CLIP, "CLIPTextModel", (2, 6)),
    "vit": ("image", VIT, "ViTModel", (2, 3, 16, 16)),
    "vision tower of clip": ("image", CLIP, "CLIPVisionModel", (2, 3, 16, 16)),
    "feature maps of resnet": (
        "image",
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        "ResNetModel",
        (2, 3, 32, 32),
    ),
    "stages of swin": (
        "image",
        SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
        "SwinModel",
        (2, 3, 16, 16),
    ),
    "videomae": (
        "video",
        VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, **SIZES),
        "VideoMAEModel",
        (2, 4, 3, 16, 16),
    ),
    "vit on frames": ("video", VIT, "ViTModel", (2, 3, 3, 16, 16)),
    "encoder of whisper": ("audio", WHISPER, "WhisperEncoder", (2, 16, 20)),
    "wav2vec2": ("audio", WAV2VEC2, "Wav2Vec2Model", (2, 400)),
    "spectrogram transformer": (
        "audio",
        ASTConfig(max_length=32, num_mel_bins=16, patch_size=8, time_stride=8, frequency_stride=8, **SIZES),
        "ASTModel",
        (2, 32, 16),
    ),
}
DECODER = {"vocab_size": 50, "num_hidden_layers": 1}
SETTINGS = {"d_model": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "initializer_range": 0.2}
WRIST = {"kind": "series", "num_channels": 3}


def source_model(config, seed: int = 1):
    torch.manual_seed(seed)
    model = AutoModel.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():  # of the usual size, an untrained encoder would give almost the same for everything
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def compose(encoders, model_class=CrossFuseForConditionalGeneration, **kwargs):
    torch.manual_seed(0)
    return model_class.from_encoders(encoders, decoder=DECODER, **{**SETTINGS, **kwargs}).eval()


def values_of(shape, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 2 and shape[1] < 100:
        return torch.randint(3, 99, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def case_with_series(case, **kwargs):
    """A model of the case's encoder and a series, and inputs for it."""
    kind, config, _, shape = CASES[case]
    model = compose({kind: source_model(config), "wrist": WRIST}, **kwargs)
    generator = torch.Generator().manual_seed(1)
    wrist = torch.randn(2, 5, 3, generator=generator)
    return model, {model.config.modalities.value_name(kind): values_of(shape), "wrist_values": wrist}


def logits_of(model, inputs, rows=slice(None)):
    with torch.no_grad():
        return model(**inputs, labels=tiny_labels()[rows]).logits


def wrapped(model, name):
    return model.get_encoder().encoders[name].model


def names_only(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


# Finding the encoder, and its weights


@pytest.mark.parametrize("case", CASES)
def test_the_encoder_within_a_model_is_found_with_its_weights(case):
    kind, config, architecture, _ = CASES[case]
    source = source_model(config)
    encoder = wrapped(compose({kind: source}), kind)
    assert type(encoder).__name__ == architecture
    found = next(part for part in source.modules() if type(part).__name__ == architecture).state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("case", CASES)
def test_the_encoder_gives_what_it_gave_by_itself(case):
    kind, config, architecture, shape = CASES[case]
    source = source_model(config)
    model, values = compose({kind: source}), values_of(shape)
    found = next(part for part in source.modules() if type(part).__name__ == architecture)
    with torch.no_grad():
        if model.config.modalities[kind].encodes_images and kind == "video":
            expected = found(values.flatten(0, 1)).last_hidden_state.unflatten(0, shape[:2])[:, 0]
        else:
            expected = found(values).last_hidden_state
        expected = expected.flatten(2).transpose(1, 2) if expected.dim() == 4 else expected
        mask = torch.ones(shape[:2] if kind != "audio" else (2, shape[{"ASTModel": 1}.get(architecture, -1)]))
        values = values.unsqueeze(1) if kind == "image" else values
        mask = mask[:, :1] if kind == "image" else mask
        actual, _ = model.get_encoder().encode_modality(kind, values, mask.long())
    assert_same(actual[:, : expected.shape[1]], expected)
    assert actual.shape[-1] == model.config.modalities[kind].hidden_size


@pytest.mark.parametrize("case", CASES)
def test_it_is_saved_and_loaded(case, tmp_path):
    model, inputs = case_with_series(case)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal_states(loaded, model)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
    written = json.loads((tmp_path / "config.json").read_text())
    assert CrossFuseConfig.from_dict(written).to_dict() == model.config.to_dict()


@pytest.mark.parametrize("case", CASES)
def test_it_trains_and_generates(case):
    model, inputs = case_with_series(case)
    model.train()
    model(**inputs, labels=tiny_labels()).loss.backward()
    kind = CASES[case][0]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped(model, kind).parameters())
    model.eval()
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, num_beams=2).shape == (2, 4)


def test_every_way_to_name_an_encoder(tmp_path):
    source = source_model(BERT)
    source.save_pretrained(tmp_path)
    for encoder in (tmp_path, str(tmp_path), source, {"encoder": str(tmp_path), "modality_dropout": 0.5}):
        model = compose({"text": encoder}, CrossFuseModel)
        for key, value in wrapped(model, "text").state_dict().items():
            assert torch.equal(value, source.state_dict()[key]), key
        part = model.config.modalities["text"]
        assert part.modality_dropout == (0.5 if isinstance(encoder, dict) else 0.0)
        assert part.source == (None if encoder is source else tmp_path.name)  # not where it lies on this machine
    assert type(wrapped(compose({"text": BERT}), "text")).__name__ == "BertModel"


def test_the_config_says_the_revision(tmp_path, monkeypatch):
    """In a cache as the Hub's client fills it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--me--bert"
    source_model(BERT).save_pretrained(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    model = compose({"text": "me/bert"}, cache_dir=tmp_path, local_files_only=True)
    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())["modalities"]["text"]
    assert (written["source"], written["revision"]) == ("me/bert", commit)


def test_the_users_model_stays_as_it_is():
    source = source_model(BERT)
    before, attention = copy.deepcopy(source.state_dict()), source.config._attn_implementation
    compose({"text": source}, freeze=("text",)).train()
    assert source.config._attn_implementation == attention
    assert source.pooler is not None and not source.training
    assert source.state_dict().keys() == before.keys()


def test_the_models_attention_implementation_is_kept_or_chosen():
    source = AutoModel.from_config(BERT, attn_implementation="eager")
    assert wrapped(compose({"text": source}), "text").config._attn_implementation == "eager"
    model = compose({"text": source}, attn_implementation="sdpa")
    assert wrapped(model, "text").config._attn_implementation == "sdpa"


def test_models_with_heads_and_parts_without_poolers():
    torch.manual_seed(0)
    bert, ctc = BertForMaskedLM(BERT), Wav2Vec2ForCTC(WAV2VEC2)
    model = compose({"text": bert, "audio": ctc})
    for key, value in wrapped(model, "text").state_dict().items():
        assert torch.equal(value, bert.bert.state_dict()[key]), key
    assert type(wrapped(model, "audio")).__name__ == "Wav2Vec2Model"


def test_one_model_for_two_modalities(tmp_path):
    source = source_model(BERT)
    model = compose({"question": source, "context": source}, freeze=("question",))
    first, second = (dict(wrapped(model, name).named_parameters()) for name in ("question", "context"))
    assert all(torch.equal(first[key], second[key]) and first[key] is not second[key] for key in first)
    assert not any(parameter.requires_grad for parameter in first.values())
    assert all(parameter.requires_grad for parameter in second.values())
    assert all(parameter.requires_grad for parameter in source.parameters())
    model.save_pretrained(tmp_path)
    assert_equal_states(CrossFuseForConditionalGeneration.from_pretrained(tmp_path), model)


def test_what_is_fixed_in_the_source_stays_fixed(tmp_path):
    source, speech = source_model(WHISPER), source_model(WAV2VEC2)
    speech.freeze_feature_encoder()
    model = compose({"audio": source, "speech": {"kind": "audio", "encoder": speech}})
    for composed in (model, CrossFuseForConditionalGeneration.from_pretrained(_saved(model, tmp_path))):
        composed.freeze_modalities("audio")
        composed.unfreeze_modalities("audio")
        encoder = wrapped(composed, "audio")
        assert not encoder.embed_positions.weight.requires_grad
        assert encoder.conv1.weight.requires_grad
    assert not any(p.requires_grad for p in wrapped(model, "speech").feature_extractor.parameters())
    assert all(p.requires_grad for p in wrapped(model, "speech").encoder.parameters())


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder


def test_both_towers_of_a_dual_model_in_one():
    source = source_model(CLIP)
    model = compose({"text": source, "image": source})
    assert type(wrapped(model, "text")).__name__ == "CLIPTextModel"
    assert type(wrapped(model, "image")).__name__ == "CLIPVisionModel"


def test_tied_weights_stay_tied(tmp_path):
    torch.manual_seed(0)
    model = compose({"text": T5EncoderModel(T5)})
    model.save_pretrained(tmp_path)
    for composed in (model, CrossFuseForConditionalGeneration.from_pretrained(tmp_path)):
        encoder = wrapped(composed, "text")
        assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    assert torch.equal(wrapped(model, "text").shared.weight, encoder.shared.weight)


def test_weights_of_another_dtype_are_copied():
    source = source_model(BERT).to(torch.bfloat16)
    model = compose({"text": source})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in source.parameters()} == {torch.bfloat16}
    key = "encoder.layer.0.output.dense.weight"
    assert torch.equal(wrapped(model, "text").state_dict()[key], source.state_dict()[key].float())


def test_a_dtype_for_all():
    model = compose({"text": source_model(BERT), "image": VIT}, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_settings_for_all_modalities_hold_for_wrapped_encoders_too():
    model = compose({"text": BERT, "image": {"encoder": VIT, "modality_dropout": 0.1}}, modality_dropout=0.4)
    assert [part.modality_dropout for part in model.config.modalities.values()] == [0.4, 0.1]
    assert {p.dtype for p in compose({"text": BERT}, dtype="bfloat16").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("vocab_size", [2, 5, 8, 12, 16])
def test_small_vocabularies_are_no_decoders(vocab_size):
    config = BertConfig(vocab_size=vocab_size, initializer_range=0.001, **SIZES)
    assert compose({"text": config}).config.modalities["text"].architecture == "BertModel"


def test_resizing_leaves_the_decoder_as_it_is(tmp_path):
    model = compose({"text": BERT})
    model.get_encoder().resize_token_embeddings(120)
    assert (model.config.modalities["text"].vocab_size, model.config.vocab_size) == (120, 50)
    assert_equal_states(CrossFuseForConditionalGeneration.from_pretrained(_saved(model, tmp_path)), model)


def test_a_modality_of_any_name_has_the_encoders_kind():
    model = compose({"left": VIT, "speech": WAV2VEC2, "clip": CASES["videomae"][1], "question": BERT})
    kinds = {name: part.kind for name, part in model.config.modalities.items()}
    assert kinds == {"left": "image", "speech": "audio", "clip": "video", "question": "text"}
    assert model.config.modalities.value_name("speech") == "speech_input_values"


def test_a_text_that_is_longer_than_the_encoder_s_positions(spoken):
    encoders = {"text": BertConfig(max_position_embeddings=16, vocab_size=99, **SIZES)}
    model, tokenizer = compose(encoders), make_tokenizer()
    text = ["what is " * 9]
    batch = CrossFuseProcessor.from_encoders(encoders, tokenizer=tokenizer)(text=text, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 16) and model.generate(**batch, max_new_tokens=2).shape == (1, 3)
    assert "`text` of sample 0 has 18 tokens, and is cut to 16" in spoken().pop()
    batch = CrossFuseProcessor(tokenizer=tokenizer, modalities={"text": {}})(text=text, return_tensors="pt")
    with pytest.raises(ValueError, match=r"`input_ids` of shape \(1, 18\) .* 16 positions; cut texts"):
        model(**batch)


@pytest.mark.parametrize(
    ("special", "lacking"),
    [({}, "pad_token"), ({"pad_token": "[PAD]"}, "eos_token"), ({"eos_token": "[EOS]"}, None)],
)
def test_a_tokenizer_without_special_tokens(special, lacking):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, **special)
    given = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    if lacking is None:  # as GPT-2's, which has one for all
        config = compose({"text": BERT}, tokenizer=tokenizer).config
        assert {config.bos_token_id, *(getattr(config, name) for name in given)} == {tokenizer.eos_token_id}
    else:
        with pytest.raises(ValueError, match=f"`tokenizer` has no token for `{lacking}_id`; set its `{lacking}`, or"):
            compose({"text": BERT}, tokenizer=tokenizer)
    model = compose({"text": BERT}, tokenizer=tokenizer, **given)
    assert {name: getattr(model.config, name) for name in given} == given


def test_special_tokens_of_the_answers_tokenizer():
    tokenizer = make_tokenizer()
    model = CrossFuseForConditionalGeneration.from_encoders({"text": BERT}, tokenizer=tokenizer, **SETTINGS)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


# Missing modalities, several of a kind, padding


@pytest.mark.parametrize(("case", "fusion"), zip(CASES, itertools.cycle(FUSIONS)))
def test_a_missing_modality_is_never_read_and_costs_nothing(case, fusion):
    model, inputs = case_with_series(case, fusion={"type": fusion, "num_layers": 1, "num_latents": 3})
    kind = CASES[case][0]
    value_name = model.config.modalities.value_name(kind)
    present = torch.tensor([[1, 1], [0, 1]])
    expected = logits_of(model, {"wrist_values": inputs["wrist_values"][1:]}, slice(1, None))
    rows = []
    wrapped(model, kind).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(max(len(v) for v in kwargs.values())), with_kwargs=True
    )
    if inputs[value_name].is_floating_point():
        inputs[value_name][1] = float("nan")
    actual = logits_of(model, {**inputs, "modality_mask": present})
    assert_same(actual[1:], expected)
    frames = CASES[case][3][1] if case == "vit on frames" else 1
    assert rows == [frames]


@pytest.mark.parametrize("case", ["bert", "roberta", "encoder of t5", "text tower of clip", "wav2vec2"])
def test_padding_changes_nothing(case):
    model, inputs = case_with_series(case)
    kind = CASES[case][0]
    value_name, mask_name = model.config.modalities.value_name(kind), model.config.modalities.mask_name(kind)
    values = inputs[value_name]
    length = values.shape[1] * 3 // 4
    mask = torch.ones_like(values, dtype=torch.long)
    mask[1, length:] = 0
    values[1, length:] = 0 if values.is_floating_point() else 98
    together = logits_of(model, {**inputs, mask_name: mask})
    alone = take_rows(inputs, slice(1, None))
    assert_same(together[1:], logits_of(model, {**alone, value_name: values[1:, :length]}, slice(1, None)), atol=1e-4)


def test_frames_of_a_video_that_are_padding_are_not_read():
    model, inputs = case_with_series("videomae")
    videos, mask = inputs["pixel_values_videos"], torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    videos[1, 2:] = 100.0
    together = logits_of(model, {**inputs, "video_mask": mask})
    alone = {"pixel_values_videos": videos[1:, :2], "wrist_values": inputs["wrist_values"][1:]}
    assert_same(together[1:], logits_of(model, alone, slice(1, None)))
    with pytest.raises(
        ValueError, match=r"`pixel_values` of shape \(2, 6, .* is not what the encoder VideoMAEModel takes"
    ):
        logits_of(model, {**inputs, "pixel_values_videos": videos.repeat(1, 2, 1, 1, 1)[:, :6]})


def test_masks_of_what_is_not_given():
    model, inputs = case_with_series("bert")
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 3:] = 0
    with torch.no_grad():
        states, _ = model.get_encoder().encode_modality("text", inputs["input_ids"], mask)
    tokens = inputs.pop("input_ids")
    with pytest.raises(ValueError, match="`attention_mask` is given without `input_ids`"):
        model(**inputs, text_hidden_states=states, attention_mask=mask)
    with pytest.raises(ValueError, match="`text_hidden_states_mask` is given without `text_hidden_states`"):
        model(**inputs, input_ids=tokens, text_hidden_states_mask=mask)
    states[0, 0] = float("nan")
    with pytest.raises(ValueError, match="`text_hidden_states` of sample 0 has values that are not finite"):
        model(**inputs, text_hidden_states=states)


@pytest.mark.parametrize(("case", "kept"), [("encoder of whisper", [10, 4]), ("wav2vec2", [39, 19])])
def test_masks_follow_the_shorter_output(case, kept):
    """Whisper halves the frames; Wav2Vec2's convolutions of 10 by 5 and 3 by 2 leave (L - 10) // 5 + 1 and so on."""
    model, inputs = case_with_series(case)
    values = inputs[model.config.modalities.value_name("audio")]
    mask = torch.ones(2, values.shape[-1], dtype=torch.long)
    mask[1, {20: 8, 400: 200}[values.shape[-1]] :] = 0
    with torch.no_grad():
        hidden_states, output_mask = model.get_encoder().encode_modality("audio", values, mask)
    assert output_mask.shape == hidden_states.shape[:2]
    assert output_mask.sum(1).tolist() == kept


def test_a_long_clip_is_read_window_by_window():
    """Whisper reads 20 frames here. Of 60, the first sample has 50; the second has 14, and so two empty windows."""
    model, _ = case_with_series("encoder of whisper")
    encoder, encode = model.get_encoder().encoders["audio"], model.get_encoder().encode_modality
    values = torch.randn(2, 16, 60, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(60) < torch.tensor([[50], [14]])).long()
    calls = count_calls(encoder.model.conv1)
    with torch.no_grad():
        together, kept = encode("audio", values, mask)
        assert calls == [4]
        for window in range(3):
            frames, states = slice(20 * window, 20 * window + 20), slice(10 * window, 10 * window + 10)
            alone, alone_kept = encode("audio", values[:1, :, frames], mask[:1, frames])
            assert_same(together[:1, states], alone)
            assert torch.equal(kept[:1, states], alone_kept)
        assert_same(together[1:, :10], encode("audio", values[1:, :, :20], mask[1:, :20])[0])
    assert kept.sum(1).tolist() == [25, 7]
    with pytest.raises(ValueError, match="windows of 20 frames"):
        encode("audio", values[:, :, :50], mask[:, :50])


def test_several_modalities_of_one_kind_and_several_images():
    model = compose({"left": source_model(VIT, 1), "right": source_model(VIT, 2), "image": VIT})
    generator = torch.Generator().manual_seed(0)
    inputs = {f"{name}_pixel_values": torch.randn(2, 3, 16, 16, generator=generator) for name in ("left", "right")}
    inputs["pixel_values"] = torch.randn(2, 3, 3, 16, 16, generator=generator)
    inputs["image_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0]])
    together = logits_of(model, inputs)
    alone = take_rows(inputs, slice(1, None)) | {"pixel_values": inputs["pixel_values"][1:, :1]}
    alone.pop("image_mask")
    assert_same(together[1:], logits_of(model, alone, slice(1, None)))
    swapped = {**inputs, "left_pixel_values": inputs["right_pixel_values"]}
    assert not torch.allclose(logits_of(model, swapped), together)


@pytest.mark.parametrize("case", ["bert", "feature maps of resnet", "encoder of whisper"])
def test_hidden_states_in_place_of_values(case):
    model, inputs = case_with_series(case)
    kind = CASES[case][0]
    name = model.config.modalities.value_name(kind)
    expected = logits_of(model, inputs)
    values = inputs.pop(name)
    mask = torch.ones(2, {"text": 6, "image": 1, "audio": 20}[kind], dtype=torch.long)
    with torch.no_grad():
        states, mask = model.get_encoder().encode_modality(
            kind, values.unsqueeze(1) if kind == "image" else values, mask
        )
    encoded = {f"{kind}_hidden_states": states, f"{kind}_hidden_states_mask": mask}
    calls = count_calls(model.get_encoder().encoders[kind])
    assert torch.equal(logits_of(model, {**inputs, **encoded}), expected)
    assert calls == []
    assert model.generate(**inputs, **encoded, max_new_tokens=2, min_new_tokens=2).shape == (2, 3)
    with pytest.raises(ValueError, match="both"):
        model(**inputs, **encoded, **{name: values}, labels=tiny_labels())


def test_embeddings_in_place_of_tokens():
    model, inputs = case_with_series("bert")
    embeds = model.get_encoder().get_input_embeddings()(inputs["input_ids"])
    expected = logits_of(model, inputs)
    inputs.pop("input_ids")
    assert_same(logits_of(model, {**inputs, "inputs_embeds": embeds}), expected)


# Encoders with code of their own


CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_of_my_own"

    def __init__(self, hidden_size=8, **kwargs):
        self.hidden_size = hidden_size
        super().__init__(**kwargs)


class TinyEncoder(PreTrainedModel):
    config_class = TinyConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Conv2d(3, config.hidden_size, 8, stride=8)
        self.post_init()

    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=self.layer(pixel_values))
"""


@pytest.mark.slow
def test_an_encoder_with_code_of_its_own(tmp_path):
    """In processes of their own, since its type is known once it has been loaded."""
    folder, saved = tmp_path / "tiny", tmp_path / "saved"
    folder.mkdir()
    (folder / "modeling_tiny.py").write_text(CODE)
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyEncoder"}
    config = {"model_type": "tiny_of_my_own", "hidden_size": 8, "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {"layer.weight": torch.randn(8, 3, 8, 8), "layer.bias": torch.zeros(8)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    compose = (
        "import sys; from modeling_crossfuse import CrossFuseForConditionalGeneration\n"
        "model = CrossFuseForConditionalGeneration.from_encoders({'image': sys.argv[1]}, trust_remote_code=True)\n"
        "model.save_pretrained(sys.argv[2])"
    )
    load = (
        "import sys; from modeling_crossfuse import CrossFuseForConditionalGeneration\n"
        "trust = {'trust_remote_code': True} if sys.argv[3] == 'trusted' else {}\n"
        "model = CrossFuseForConditionalGeneration.from_pretrained(sys.argv[2], **trust)\n"
        "print(type(model.get_encoder().encoders.image.model).__name__)"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}

    def run(program, *arguments):
        command = [sys.executable, "-c", program, "./tiny", str(saved), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    done = run(compose)
    assert done.returncode == 0, done.stderr
    refused = run(load, "untrusted")
    assert "`model_type='tiny_of_my_own'`, which is no model type" in refused.stderr
    assert "trust_remote_code=True" in refused.stderr
    loaded = run(load, "trusted")
    assert loaded.stdout.strip().endswith("TinyEncoder"), loaded.stderr


# Freezing


def frozen_model(**kwargs):
    encoders = {"text": source_model(BERT), "image": source_model(CASES["feature maps of resnet"][1]), "wrist": WRIST}
    model = compose(encoders, **kwargs)
    inputs = {
        "input_ids": values_of((2, 6)),
        "pixel_values": values_of((2, 3, 32, 32)),
        "wrist_values": values_of((2, 5, 3)),
    }
    return model, inputs


def encoder_of(model, name):
    return model.get_encoder().encoders[name]


def test_frozen_encoders_do_not_change(tmp_path):
    model, inputs = frozen_model(freeze=("text", "image"))
    before = copy.deepcopy(model.state_dict())
    rows = [{**take_rows(inputs, row), "labels": tiny_labels()[row]} for row in range(2)] * 4
    arguments = Seq2SeqTrainingArguments(
        tmp_path, max_steps=3, report_to="none", use_cpu=True, remove_unused_columns=False, learning_rate=0.1
    )
    Seq2SeqTrainer(model, arguments, train_dataset=rows).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = ("model.encoder.encoders.text.", "model.encoder.encoders.image.")
    assert changed and not any(name.startswith(frozen) for name in changed)
    assert any(name.startswith("model.encoder.encoders.wrist.") for name in changed)


def test_frozen_encoders_stay_in_evaluation_mode_and_build_no_graph():
    model, inputs = frozen_model(freeze=("text", "image"))
    model.train()
    for name in ("text", "image"):
        assert not any(part.training for part in encoder_of(model, name).modules())
        assert not any(parameter.requires_grad for parameter in encoder_of(model, name).parameters())
    assert encoder_of(model, "wrist").training and model.training
    states, _ = model.get_encoder().encode_modality("text", inputs["input_ids"], torch.ones(2, 6, dtype=torch.long))
    assert states.grad_fn is None
    statistics = encoder_of(model, "image").model.embedder.embedder.normalization.running_mean.clone()
    model(**inputs, labels=tiny_labels()).loss.backward()
    assert torch.equal(encoder_of(model, "image").model.embedder.embedder.normalization.running_mean, statistics)
    assert all(parameter.grad is None for parameter in encoder_of(model, "text").parameters())


def test_freezing_is_saved_and_undone(tmp_path):
    model, _ = frozen_model()
    model.freeze_modalities("text", "wrist")
    model.save_pretrained(tmp_path)
    loaded = CrossFuseForConditionalGeneration.from_pretrained(tmp_path).train()
    for name, frozen in (("text", True), ("wrist", True), ("image", False)):
        assert loaded.config.modalities[name].frozen == frozen
        assert encoder_of(loaded, name).training != frozen
        assert {p.requires_grad for p in encoder_of(loaded, name).parameters()} == {not frozen}
    loaded.unfreeze_modalities("text", "wrist")
    assert all(part.training for part in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_config_freezes_built_in_encoders_too():
    config = CrossFuseConfig(
        modalities={"wrist": {**WRIST, "frozen": True, "dropout": 0.5}}, decoder=DECODER, **SETTINGS
    )
    model = CrossFuseForConditionalGeneration(config).train()
    assert not encoder_of(model, "wrist").training
    assert not any(parameter.requires_grad for parameter in encoder_of(model, "wrist").parameters())


def test_freezing_what_is_not_there():
    model, _ = frozen_model()
    with pytest.raises(ValueError, match="'texts' is no modality of this model; it has text, image, wrist"):
        model.freeze_modalities("image", "texts")
    assert not model.config.modalities["image"].frozen


# Wrong inputs


WRONG = {
    "wrong kind": ({"text": VIT}, r"`encoders\['text'\]`.*ViTModel takes `pixel_values`; expected.*`input_ids`"),
    "decoder": ({"text": LlamaConfig(vocab_size=99, **SIZES)}, "LlamaModel reads from left to right"),
    "decoder of another name": ({"text": BertConfig(vocab_size=99, is_decoder=True, **SIZES)}, "from left to right"),
    "no dict": (VIT, "expected a dict of at least one modality"),
    "nothing": ({}, "expected a dict of at least one modality"),
    "no encoder": ({"image": 3}, r"`encoders\['image'\]` is int; expected a Hub id"),
    "bad name": ({"my image": VIT}, "'my image'"),
    "kind of a dual model": ({"eye": CLIP}, "does not say what kind of values it is for"),
    "unknown setting": ({"image": {"encoder": VIT, "freeze": True}}, "`freeze=True` is not a key"),
    "unknown frozen modality": ({"image": VIT}, "'text' is no modality"),
    "unknown kind": ({"eye": {"kind": "picture", "encoder": VIT}}, r"encoders\['eye'\].*kind"),
}


@pytest.mark.parametrize(("encoders", "message"), WRONG.values(), ids=WRONG)
def test_wrong_encoders(encoders, message):
    with pytest.raises(ValueError, match=message):
        compose(encoders, freeze=("text",))


def test_wrong_arguments_beside_the_encoders(tmp_path):
    with pytest.raises(ValueError, match="`dtype='int8'`; expected a floating point dtype"):
        compose({"text": BERT}, dtype="int8")
    with pytest.raises(TypeError, match="`tokenizer` is str; expected a tokenizer"):
        compose({"text": BERT}, tokenizer="bert")
    with pytest.raises(OSError, match="`encoders\\['text'\\]='me/bert'`: there is no such folder"):
        compose({"text": Path("me/bert")})


def test_an_encoder_with_adapters():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(source_model(BERT), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="merge its adapters first"):
        compose({"text": adapted})
    assert type(wrapped(compose({"text": adapted.merge_and_unload()}), "text")).__name__ == "BertModel"


def test_values_that_the_encoder_does_not_take():
    model, inputs = case_with_series("vit")
    with pytest.raises(ValueError, match=r"`pixel_values` of shape \(2, 3, 24, 24\) is not what the encoder ViTModel"):
        model(**{**inputs, "pixel_values": torch.zeros(2, 3, 24, 24)}, labels=tiny_labels())


def test_an_id_that_does_not_exist(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for encoder in ("nobody/nothing", str(tmp_path / "nowhere")):
        with pytest.raises(OSError, match=r"`encoders\['text'\]=.*(nothing|nowhere)"):
            compose({"text": encoder})


def test_weights_that_are_only_a_pickle(tmp_path):
    source = source_model(BERT)
    source.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"`encoders\['text'\]=.* has no weights in safetensors.*convert them"):
        compose({"text": tmp_path})


WRONG_CONFIGS = {
    "no config": ({"encoder": 3}, "encoder"),
    "unknown type": ({"encoder": {"model_type": "berd"}}, "`model_type='berd'`, which is no model type"),
    "no kind": ({"encoder": BERT, "kind": None}, "kind"),
    "series": ({"encoder": BERT, "kind": "series"}, "kind"),
    "class of another model": ({"encoder": VIT, "architecture": "BertModel"}, "no model for a ViTConfig"),
    "what is no model": ({"encoder": VIT, "architecture": "torch"}, "no model for a ViTConfig"),
}


def test_a_config_that_does_not_say_how_to_call_its_encoder():
    config = CrossFuseConfig(modalities={"text": {"encoder": BERT.to_dict(), "hidden_size": 32}}, **SETTINGS)
    before = config.to_dict()
    message = "BertConfig: it lacks `architecture`, `values_argument`, `encoder_layout`. .*from_encoders"
    with pytest.raises(ValueError, match=message):
        CrossFuseModel(config)
    assert config.to_dict() == before
    part = compose({"text": config.modalities["text"].encoder}).config.modalities["text"]
    again = CrossFuseModel(CrossFuseConfig(modalities={"text": part.to_dict()}, **SETTINGS))
    assert type(wrapped(again, "text")).__name__ == "BertModel"


@pytest.mark.parametrize(("settings", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_wrong_configs(settings, message):
    complete = {"values_argument": "input_ids", "encoder_layout": ["length"], "hidden_size": 32}
    with pytest.raises(ValueError, match=message):
        CrossFuseModel(CrossFuseConfig(modalities={"text": {**complete, **settings}}))


def test_a_wrapped_config_by_itself():
    config = CrossFuseWrappedEncoderConfig(kind="text", encoder=BERT, architecture="BertModel")
    assert CrossFuseWrappedEncoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert (config.vocab_size, config.frozen) == (99, False)


# Audio: encoders that give it back packed, and frames of another width than the mel bands


AUDIO_SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 37,
    "num_mel_bins": 16,
    "output_dim": 24,
}
AUDIO_TYPES = {
    "qwen3_asr_encoder": ({**AUDIO_SIZES, "downsample_hidden_size": 8}, "input_features_mask", True, (2, 16, 200)),
    "muse_spark_audio": ({"hidden_sizes": [8] * 4}, None, False, (2, 3840)),
    "fun_asr_nano_encoder": (
        {**SIZES, "num_mel_bins": 8, "num_timestamp_prediction_layers": 1, "num_hidden_layers": 2},
        "input_features_mask",
        False,
        (2, 30, 56),
    ),
    "granite_speech5_encoder": ({**SIZES, "num_mel_bins": 6, "vocab_size": 50}, "attention_mask", False, (2, 32, 24)),
}


@pytest.mark.parametrize("model_type", AUDIO_TYPES)
def test_audio_of_different_lengths(model_type):
    fields, mask_argument, one_by_one, shape = AUDIO_TYPES[model_type]
    # In double precision, since in single precision a sum comes out otherwise when it is one of several.
    model = compose({"audio": source_model(CONFIG_MAPPING[model_type](**fields))}).double()
    part = model.config.modalities["audio"]
    assert (part.mask_argument, part.one_by_one) == (mask_argument, one_by_one)
    names = model.config.modalities.value_name("audio"), model.config.modalities.mask_name("audio")
    axis = 1 + next(i for i, name in enumerate(part.layout) if name in ("frames", "samples"))
    mask = torch.ones(2, shape[axis], dtype=torch.long)
    mask[1, shape[axis] // 2 :] = 0
    inputs = dict(zip(names, (values_of(shape).double(), mask)))
    together = logits_of(model, inputs)
    assert torch.isfinite(together).all()
    assert_same(logits_of(model, take_rows(inputs, slice(1)), slice(1)), together[:1])
    if mask_argument is not None:
        inputs[names[0]].narrow(axis, shape[axis] // 2, shape[axis] // 2)[1] = 9.0
        assert_same(logits_of(model, inputs), together)


def test_packed_audio():
    """Of a part of a model that is no type of its own: clips one after the other, with their lengths."""
    config = Qwen2_5OmniAudioEncoderConfig(**AUDIO_SIZES, n_window=10, max_source_positions=20)
    torch.manual_seed(0)
    model = compose({"audio": Qwen2_5OmniAudioEncoder(config)})
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 20:] = 0
    clips = values_of((2, 16, 40))
    with torch.no_grad():
        states, kept = model.get_encoder().encode_modality("audio", clips, mask)
        packed = torch.cat([clips[0], clips[1, :, :20]], dim=1)
        expected = wrapped(model, "audio")(packed, feature_lens=torch.tensor([40, 20])).last_hidden_state
    assert kept.sum(1).tolist() == [10, 5]
    assert_same(torch.cat([states[0], states[1, :5]]), expected)


# Encoders that need more than values, or take another kind of them


def test_an_image_for_an_encoder_of_videos():
    config = TimesformerConfig(image_size=16, patch_size=8, num_frames=2, **SIZES)
    model = compose({"image": source_model(config)})
    images = values_of((2, 3, 16, 16))
    with torch.no_grad():
        states, _ = model.get_encoder().encode_modality("image", images[:, None], torch.ones(2, 1, dtype=torch.long))
        expected = wrapped(model, "image")(images[:, None].expand(-1, 2, -1, -1, -1)).last_hidden_state
    assert_same(states, expected)


def test_frames_that_are_images_of_a_batch():
    """X-CLIP's tower takes the frames of a video as images of a batch, and lets them exchange messages."""
    vision = {**SIZES, "image_size": 16, "patch_size": 8, "num_frames": 4, "mit_hidden_size": 32}
    config = XCLIPConfig(text_config={**SIZES, **TOKENS}, vision_config=vision)
    model = compose({"image": source_model(config)})
    images = values_of((2, 3, 16, 16))
    with torch.no_grad():
        states, _ = model.get_encoder().encode_modality("image", images[:, None], torch.ones(2, 1, dtype=torch.long))
        expected = wrapped(model, "image")(images.repeat_interleave(4, 0)).last_hidden_state
    assert_same(states, expected.flatten(0, 1).unflatten(0, (2, -1)))


def test_texts_that_are_on_no_page():
    config = BrosConfig(vocab_size=99, **{**SIZES, "hidden_size": 64})
    model, inputs = compose({"text": source_model(config)}), {"input_ids": values_of((2, 6))}
    assert model.config.modalities["text"].constant_arguments == ["bbox"]
    with torch.no_grad():
        states, _ = model.get_encoder().encode_modality("text", inputs["input_ids"], torch.ones(2, 6).long())
        expected = wrapped(model, "text")(**inputs, bbox=torch.zeros(2, 6, 4)).last_hidden_state
    assert_same(states, expected)


def test_patches_that_pretraining_would_mix():
    config = ViTMAEConfig(image_size=16, patch_size=8, **SIZES)
    model, images = compose({"image": source_model(config)}), values_of((2, 3, 16, 16))
    assert model.config.modalities["image"].constant_arguments == ["noise"]
    inputs = {"pixel_values": images}
    assert torch.equal(logits_of(model, inputs), logits_of(model, inputs))
    with torch.no_grad():
        encoder = wrapped(model, "image")
        states = encoder(images, noise=torch.arange(4.0).expand(2, -1))
        assert torch.equal(states.ids_restore, torch.arange(4).expand(2, -1))


def test_an_encoder_whose_first_argument_is_called_hidden_states():
    config = GraniteSpeechEncoderConfig(
        input_dim=16,
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        dim_head=16,
        output_dim=10,
        context_size=8,
        max_pos_emb=8,
    )
    torch.manual_seed(0)
    model = compose({"audio": GraniteSpeechCTCEncoder(config)})
    part = model.config.modalities["audio"]
    assert (part.values_argument, part.layout) == ("hidden_states", ("frames", "num_mel_bins"))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_is_taken_only_together_is_refused(kind):
    config = ViltConfig(vocab_size=99, image_size=16, patch_size=8, **SIZES)
    with pytest.raises(JointError, match="ViltModel takes it only together with another kind"):
        compose({kind: config})


def test_a_decoder_with_experts_is_called_a_decoder():
    """What its experts add up may differ in the last digits; a change of the last token makes none beyond these."""
    config = Qwen3MoeConfig(vocab_size=99, head_dim=16, num_experts=4, moe_intermediate_size=16, **SIZES)
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    noise = iter([1e-7, 0.0, 2e-7, 1e-7])
    model.norm.register_forward_hook(lambda module, args, output: output + next(noise))
    with pytest.raises(DecoderError, match="reads from left to right"):
        compose({"text": model})


def test_a_decoder_that_fails_is_called_a_decoder():
    """Its tokens are of several codebooks, but its attention says that it is causal."""
    sizes = {**SIZES, "codebook_size": 20, "num_codebooks": 4, "head_dim": 16, "num_key_value_heads": 1}
    with pytest.raises(DecoderError, match="reads from left to right"):
        compose({"text": CsmBackboneModel(CsmConfig(vocab_size=99, **sizes))})
