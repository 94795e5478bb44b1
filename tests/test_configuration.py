# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The configuration: what it accepts, what it refuses and how, and what it writes."""

import copy
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.modeling_utils import PreTrainedModel

from modeling_crossfuse import (
    CrossFuseAudioConfig,
    CrossFuseConfig,
    CrossFuseDecoderConfig,
    CrossFuseFusionConfig,
    CrossFuseImageConfig,
    CrossFuseModel,
    CrossFuseSeriesConfig,
    CrossFuseTextConfig,
    CrossFuseVideoConfig,
)

from .helpers import MODALITIES, tiny_config, tiny_model


CONFIG_OF_KIND = {
    "text": CrossFuseTextConfig,
    "image": CrossFuseImageConfig,
    "video": CrossFuseVideoConfig,
    "audio": CrossFuseAudioConfig,
    "series": CrossFuseSeriesConfig,
}


def parts(config: CrossFuseConfig) -> list:
    return [*config.modalities.values(), config.fusion, config.decoder]


# What it accepts


@pytest.mark.parametrize("kind", CONFIG_OF_KIND)
def test_a_name_that_is_a_kind_needs_no_kind(kind):
    modality = CrossFuseConfig(modalities={kind: {}}).modalities[kind]
    assert isinstance(modality, CONFIG_OF_KIND[kind])
    assert modality.kind == kind


@pytest.mark.parametrize("kind", CONFIG_OF_KIND)
def test_any_name_with_a_kind(kind):
    assert isinstance(CrossFuseConfig(modalities={"wrist": {"kind": kind}}).modalities["wrist"], CONFIG_OF_KIND[kind])


def test_defaults_are_one_text_modality():
    config = CrossFuseConfig()
    assert config.modalities.keys() == ["text"]
    assert config.fusion.type == "concat"
    assert config.is_encoder_decoder


def test_short_forms_of_a_text_only_model():
    config = CrossFuseConfig(src_vocab_size=100, tgt_vocab_size=200)
    assert config.modalities["text"].vocab_size == 100
    assert config.decoder.vocab_size == config.vocab_size == 200
    assert "src_vocab_size" not in config.to_dict() and "tgt_vocab_size" not in config.to_dict()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 8),
        ("num_key_value_heads", 2),
        ("intermediate_size", 96),
        ("mlp_type", "gelu"),
        ("norm_type", "layernorm"),
        ("norm_eps", 1e-5),
        ("dropout", 0.1),
        ("attention_dropout", 0.2),
        ("position_embedding_type", "sinusoidal"),
        ("rope_theta", 500.0),
        ("initializer_range", 0.01),
    ],
)
def test_layer_settings_reach_every_part_unless_it_says_otherwise(key, value):
    config = CrossFuseConfig(modalities={"text": {}, "image": {}}, **{key: value})
    assert [getattr(part, key) for part in parts(config)] == [value] * 4
    default = getattr(CrossFuseTextConfig(), key)
    config = CrossFuseConfig(modalities={"text": {key: default}, "image": {}}, **{key: value})
    assert [getattr(part, key) for part in parts(config)] == [default, value, value, value]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": {"decoder_cam": {"kind": "image"}}}, "given as `decoder_cam_pixel_values`"),
        ({"modalities": {"decoder": {"kind": "text"}}}, "given as `decoder_input_ids`"),
        ({"modalities": {"modality": {"kind": "series"}}}, "given as `modality_mask`"),
        ({"modalities": {"past_key": {"kind": "series"}}}, "given as `past_key_values`"),
        (
            {"tgt_vocab_size": 20, "decoder": {"vocab_size": 50}},
            "`tgt_vocab_size=20` and the `vocab_size` of `decoder`",
        ),
        ({"pad_token_id": -5}, "`pad_token_id=-5` is not a token of the decoder"),
        ({"decoder_start_token_id": 99, "tgt_vocab_size": 50}, "`decoder_start_token_id=99`.*below `vocab_size=50`"),
        ({"eos_token_id": [2, 99], "tgt_vocab_size": 50}, r"`eos_token_id=\[2, 99\]`"),
        (
            {"d_model": 32, "num_attention_heads": 8, "modalities": {"video": {}}},
            "leaves heads of 4 channels; rotary positions of kind 'video' need at least 6",
        ),
    ],
)
def test_settings_that_do_not_fit_together(settings, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CrossFuseConfig(**settings)


def test_narrow_heads_with_sinusoidal_positions():
    narrow = {"d_model": 32, "num_attention_heads": 8, "modalities": {"video": {}}}
    assert CrossFuseConfig(**narrow, position_embedding_type="sinusoidal").modalities["video"].hidden_size == 32


def test_widths_and_depths_reach_the_parts():
    config = CrossFuseConfig(
        d_model=64,
        num_hidden_layers=3,
        modalities={"text": {"hidden_size": 32}, "image": {"num_hidden_layers": 5}},
        decoder={"num_hidden_layers": 2},
    )
    assert config.hidden_size == config.d_model == 64
    assert [part.hidden_size for part in parts(config)] == [32, 64, 64, 64]
    assert [part.num_hidden_layers for part in config.modalities.values()] == [3, 5]
    assert config.decoder.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("mlp_type", "width", "expected"), [("swiglu", 96, 256), ("gelu", 96, 384), ("gelu", 64, 256)]
)
def test_feed_forward_width_follows_the_parts_own_width(mlp_type, width, expected):
    config = CrossFuseConfig(d_model=128, modalities={"text": {"hidden_size": width}}, mlp_type=mlp_type)
    assert config.modalities["text"].intermediate_size == expected


def test_what_the_user_passed_in_is_left_alone():
    modalities = copy.deepcopy(MODALITIES)
    decoder = {"vocab_size": 50}
    CrossFuseConfig(d_model=32, num_attention_heads=2, modalities=modalities, decoder=decoder)
    assert modalities == MODALITIES
    assert decoder == {"vocab_size": 50}


def test_ready_sub_configs_are_accepted():
    config = CrossFuseConfig(
        d_model=64,
        modalities={"eye": CrossFuseImageConfig(patch_size=8)},
        fusion=CrossFuseFusionConfig(type="joint", hidden_size=64),
        decoder=CrossFuseDecoderConfig(vocab_size=50, hidden_size=64),
    )
    assert config.modalities["eye"].patch_size == 8
    assert (config.fusion.type, config.decoder.vocab_size) == ("joint", 50)


def test_modalities_are_a_mapping_in_order():
    modalities = tiny_config("wrist", "image", "text").modalities
    assert list(modalities) == modalities.keys() == ["wrist", "image", "text"]
    assert len(modalities) == 3
    assert "image" in modalities and "video" not in modalities
    assert [name for name, _ in modalities.items()] == ["wrist", "image", "text"]
    with pytest.raises(KeyError, match=r"no modality named 'video'; this config has wrist, image, text"):
        modalities["video"]


@pytest.mark.parametrize(
    ("name", "kind", "value_name", "mask_name", "embeds_name"),
    [
        ("text", "text", "input_ids", "attention_mask", "inputs_embeds"),
        ("question", "text", "question_input_ids", "question_attention_mask", "question_inputs_embeds"),
        ("image", "image", "pixel_values", "image_mask", None),
        ("left_eye", "image", "left_eye_pixel_values", "left_eye_image_mask", None),
        ("video", "video", "pixel_values_videos", "video_mask", None),
        ("clip", "video", "clip_pixel_values_videos", "clip_video_mask", None),
        ("audio", "audio", "input_features", "feature_attention_mask", None),
        ("speech", "audio", "speech_input_features", "speech_feature_attention_mask", None),
        ("series", "series", "series_values", "series_mask", None),
        ("wrist", "series", "wrist_values", "wrist_mask", None),
        ("image", "audio", "image_input_features", "image_feature_attention_mask", None),
    ],
)
def test_tensor_names(name, kind, value_name, mask_name, embeds_name):
    modalities = CrossFuseConfig(modalities={name: {"kind": kind}}).modalities
    assert modalities.value_name(name) == value_name
    assert modalities.mask_name(name) == mask_name
    assert modalities.embeds_name(name) == embeds_name
    hidden_states_name = modalities.hidden_states_name(name)
    assert hidden_states_name == f"{name}_hidden_states"
    encoded = {hidden_states_name, f"{hidden_states_name}_mask"}
    assert set(modalities.tensor_names) == {value_name, mask_name, embeds_name} - {None} | encoded


def test_text_config_is_the_decoders():
    config = tiny_config("image", "text")
    assert config.get_text_config() is config.decoder
    assert config.get_text_config(decoder=True) is config.decoder
    assert config.get_text_config(encoder=True) is config.modalities["text"]


def test_vocab_size_and_use_cache_are_the_decoders():
    config = tiny_config()
    config.vocab_size, config.use_cache = 60, False
    assert (config.decoder.vocab_size, config.decoder.use_cache) == (60, False)


# What it refuses: the message names the key, the value and what is allowed

WRONG_SETTINGS = {
    "unknown key": ({"d_modell": 64}, ["`d_modell=64`", "Did you mean `d_model`?", "Allowed keys: ", "modalities"]),
    "unknown key, nothing close": ({"zzz": 1}, ["`zzz=1`", "Allowed keys: "]),
    "unknown key of a modality": (
        {"modalities": {"image": {"patchsize": 8}}},
        ["`modalities['image']`", "`patchsize=8`", "Did you mean `patch_size`?", "image_size"],
    ),
    "unknown key of the fusion": (
        {"fusion": {"num_latent": 4}},
        ["`fusion`", "`num_latent=4`", "Did you mean `num_latents`?"],
    ),
    "unknown key of the decoder": (
        {"decoder": {"vocabsize": 4}},
        ["`decoder`", "`vocabsize=4`", "Did you mean `vocab_size`?"],
    ),
    "key of another kind": ({"modalities": {"text": {"patch_size": 8}}}, ["`modalities['text']`", "`patch_size=8`"]),
    "type of d_model": ({"d_model": "256"}, ["d_model", "int", "'256'"]),
    "type of a modality's key": (
        {"modalities": {"image": {"patch_size": 8.0}}},
        ["`modalities['image']`", "patch_size", "int", "8.0"],
    ),
    "type of the fusion's key": ({"fusion": {"num_layers": None}}, ["`fusion`", "num_layers", "int", "None"]),
    "type of a modality": ({"modalities": {"image": 8}}, ["`modalities['image']`", "8", "dict"]),
    "type of modalities": ({"modalities": ["text"]}, ["modalities", "['text']", "dict"]),
    "type of fusion": ({"fusion": "joint"}, ["fusion", "'joint'", "dict"]),
    "type of decoder": ({"decoder": 4}, ["decoder", "4", "dict"]),
    "size of d_model": ({"d_model": 0}, ["d_model", "at least 1", "got 0"]),
    "size of num_hidden_layers": ({"num_hidden_layers": -1}, ["num_hidden_layers", "at least 0", "got -1"]),
    "size of dropout": ({"dropout": 1.0}, ["dropout", "at least 0 and below 1", "got 1.0"]),
    "size of modality_dropout": ({"modality_dropout": -0.1}, ["modality_dropout", "at least 0", "got -0.1"]),
    "size of norm_eps": ({"norm_eps": 0.0}, ["norm_eps", "above 0", "got 0.0"]),
    "size of a vocabulary": ({"src_vocab_size": 0}, ["`modalities['text']`", "vocab_size", "at least 1", "got 0"]),
    "size of the decoder": ({"decoder": {"num_hidden_layers": 0}}, ["`decoder`", "num_hidden_layers", "at least 1"]),
    "choice of mlp_type": ({"mlp_type": "relu"}, ["mlp_type", "relu", "'swiglu'", "'gelu'"]),
    "choice of norm_type": ({"norm_type": "batch"}, ["norm_type", "batch", "'rmsnorm'", "'layernorm'"]),
    "choice of positions": (
        {"position_embedding_type": "learned"},
        ["position_embedding_type", "learned", "'rotary'", "'sinusoidal'"],
    ),
    "heads that do not divide": (
        {"d_model": 32, "num_attention_heads": 3},
        ["`hidden_size=32`", "multiple of `num_attention_heads=3`"],
    ),
    "heads of an odd width": ({"d_model": 12, "num_attention_heads": 4}, ["`hidden_size=12`", "3 channels", "even"]),
    "key heads that do not divide": (
        {"num_attention_heads": 4, "num_key_value_heads": 3},
        ["`num_attention_heads=4`", "multiple of `num_key_value_heads=3`"],
    ),
    "patch of the convolutional stem": (
        {"modalities": {"image": {"stem_type": "conv", "patch_size": 6}}},
        ["`modalities['image']`", "`patch_size=6`", "power of two", "`stem_type='conv'`"],
    ),
    "kind": (
        {"modalities": {"wrist": {"kind": "sensor"}}},
        ["`modalities['wrist']`", "`kind='sensor'`", "text, image, video, audio, series"],
    ),
    "kind left out": (
        {"modalities": {"wrist": {}}},
        ["`modalities['wrist']`", "`kind='wrist'`", "text, image, video, audio, series", "without `kind`"],
    ),
    "no modalities": ({"modalities": {}}, ["`modalities` is empty", "at least one"]),
    "name of a modality, not an identifier": (
        {"modalities": {"left eye": {"kind": "image"}}},
        ["'left eye'", "Python identifier"],
    ),
    "name of a modality, private": ({"modalities": {"_x": {"kind": "image"}}}, ["'_x'", "Python identifier"]),
    "name of a modality, not a string": ({"modalities": {3: {"kind": "image"}}}, ["3", "Python identifier"]),
    "name of a modality, taken by the config": (
        {"modalities": {"to_dict": {"kind": "image"}}},
        ["'to_dict'", "not an attribute of a config"],
    ),
    "two modalities of one tensor": (
        {"modalities": {"left": {"kind": "image"}, "left_pixel": {"kind": "series"}}},
        ["`modalities`", "`left_pixel_values`", "rename"],
    ),
    "src_vocab_size beside modalities": (
        {"src_vocab_size": 10, "modalities": {"image": {}}},
        ["`src_vocab_size=10`", '`modalities={"text": {"vocab_size": ...}}`'],
    ),
    "fusion": (
        {"fusion": {"type": "sum"}},
        ["`type='sum'`", "concat, joint, bottleneck, latent", "`register_fusion`"],
    ),
    "latent without layers": (
        {"fusion": {"type": "latent", "num_layers": 0}},
        ["`fusion`", "`num_layers=0`", "'latent'", "at least 1"],
    ),
    "width of the decoder": (
        {"d_model": 64, "decoder": {"hidden_size": 32}},
        ["`decoder`", "`hidden_size=32`", "`d_model=64`"],
    ),
    "width of the fusion": (
        {"d_model": 64, "fusion": {"hidden_size": 32}},
        ["`fusion`", "`hidden_size=32`", "`d_model=64`"],
    ),
}


@pytest.mark.parametrize(("settings", "expected"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_wrong_settings_are_refused_by_name(settings, expected):
    # The keys of the config itself are checked by huggingface_hub, as in every config of transformers 5.
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        CrossFuseConfig(**settings)
    missing = [text for text in expected if text not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


@pytest.mark.parametrize("name", ["forward", "config", "training", "parameters"])
def test_a_name_that_a_model_has_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}'.*attribute"):
        CrossFuseModel(tiny_config(modalities={name: {"kind": "series"}}))


def test_a_config_of_something_else_is_refused_as_a_modality():
    with pytest.raises(ValueError, match=r"`modalities\['image'\]` is a CrossFuseFusionConfig; expected an encoder"):
        CrossFuseConfig(modalities={"image": CrossFuseFusionConfig()})


def test_unknown_key_in_a_file_is_refused(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "widht": 3}))
    with pytest.raises(ValueError, match="`widht=3`"):
        CrossFuseConfig.from_pretrained(tmp_path)


# What it writes

ROUND_TRIPS = {
    "defaults": {},
    "seed": {"src_vocab_size": 100, "tgt_vocab_size": 200},
    "every kind, in an order of its own": {"modalities": dict(reversed(MODALITIES.items()))},
    "several of a kind": {"modalities": {"right_eye": {"kind": "image"}, "left_eye": {"kind": "image"}}},
    "settings that differ from a part's default": {"modalities": {"text": {"hidden_size": 64}}, "mlp_type": "gelu"},
    "settings of a part": {
        "dropout": 0.1,
        "decoder": {"dropout": 0.0},
        "fusion": {"type": "latent", "num_latents": 4},
    },
    "options": {"fusion": {"options": {"a": [1, 2], "b": None}}},
    "special tokens": {"pad_token_id": 5, "eos_token_id": [6, 7], "bos_token_id": None, "tie_word_embeddings": False},
    "labels": {"num_labels": 5},
    "losses": {"modality_dropout": 0.3, "num_answers": 7, "label_smoothing": 0.1},
}


@pytest.mark.parametrize("load", [CrossFuseConfig.from_pretrained, AutoConfig.from_pretrained], ids=["own", "auto"])
@pytest.mark.parametrize("settings", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip_through_a_file(settings, load, tmp_path):
    config = CrossFuseConfig(**settings)
    config.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is CrossFuseConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert loaded.modalities.keys() == config.modalities.keys()
    written = (tmp_path / "config.json").read_text()
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == written


def test_file_has_every_setting_of_every_part(tmp_path):
    config = CrossFuseConfig(modalities={"image": {}})
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["modalities"]["image"]["patch_size"] == 16
    assert written["modalities"]["image"]["kind"] == "image"
    assert written["fusion"]["type"] == "concat"
    assert written["decoder"]["vocab_size"] == 32_000


def test_order_survives_sorted_keys():
    config = tiny_config("wrist", "text", "image")
    loaded = CrossFuseConfig(**json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    assert loaded.modalities.keys() == ["wrist", "text", "image"]


@pytest.mark.parametrize("names", [["text"], ["text", "video"], ["text", "image", "image"]])
def test_names_that_do_not_fit_the_settings_are_refused(names):
    modalities = tiny_config("text", "image").to_dict()["modalities"]
    with pytest.raises(ValueError, match=r"`modalities` has `names=.*settings for text, image"):
        CrossFuseConfig(**{**tiny_config().to_dict(), "modalities": {**modalities, "names": names}})


def test_copies_are_equal_and_independent():
    config = tiny_config("text", "image")
    copied = copy.deepcopy(config)
    assert copied.to_dict() == config.to_dict()
    copied.modalities["text"].vocab_size = 99
    assert config.modalities["text"].vocab_size == 40


def test_it_prints():
    assert '"wrist"' in repr(tiny_config("text", "wrist"))


# Attention implementation and dtype reach every part


def configs_in(model: PreTrainedModel) -> list:
    return [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]


def implementations(model) -> set[str]:
    return {config._attn_implementation for config in [*configs_in(model), *parts(model.config)]}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_reaches_every_part(implementation):
    config = tiny_config(*MODALITIES, fusion="joint", attn_implementation=implementation)
    assert {part._attn_implementation for part in parts(config)} == {implementation}
    model = tiny_model(config)
    assert implementations(model) == {implementation}


def test_attention_implementation_can_be_switched():
    model = tiny_model(tiny_config(*MODALITIES, fusion="joint"))
    for implementation in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert implementations(model) == {implementation}


def test_attention_implementation_from_pretrained(tmp_path):
    tiny_model(tiny_config("text", "image")).save_pretrained(tmp_path)
    model = CrossFuseModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert implementations(model) == {"eager"}


def test_attention_implementation_of_one_part():
    model = tiny_model(tiny_config("text", "image"))
    model.set_attn_implementation({"": "sdpa", "decoder": "eager"})
    assert model.config.decoder._attn_implementation == "eager"
    assert {part._attn_implementation for part in model.config.modalities.values()} == {"sdpa"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_reaches_every_part(dtype, tmp_path):
    config = tiny_config(*MODALITIES, dtype=dtype)
    assert {part.dtype for part in parts(config)} == {dtype}
    tiny_model(config).save_pretrained(tmp_path)
    model = CrossFuseModel.from_pretrained(tmp_path, dtype=dtype)
    assert {part.dtype for part in [model.config, *parts(model.config)]} == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_dtype_of_the_file_is_kept_with_auto(tmp_path):
    tiny_model(tiny_config("text", "image")).to(torch.bfloat16).save_pretrained(tmp_path)
    model = CrossFuseModel.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {part.dtype for part in parts(model.config)} == {torch.bfloat16}


def test_parts_of_a_model_hold_the_configs_of_its_config():
    model = tiny_model(tiny_config("text", "image"), CrossFuseModel)
    assert model.decoder.config is model.config.decoder
    assert model.encoder.fusion.config is model.config.fusion
    for name, part in model.config.modalities.items():
        assert model.encoder.encoders[name].config is part


# Special tokens, which the decoder's config keeps


TOKENS = {"pad_token_id": 5, "bos_token_id": 6, "eos_token_id": [7, 8], "decoder_start_token_id": 9}


def tokens_of(config) -> dict:
    return {name: getattr(config, name) for name in TOKENS}


def test_the_decoder_has_the_special_tokens(tmp_path):
    config = CrossFuseConfig(**TOKENS)
    decoder = config.get_text_config(decoder=True)
    assert tokens_of(config) == tokens_of(decoder) == TOKENS
    decoder.eos_token_id, config.pad_token_id = None, 3
    assert tokens_of(config) == tokens_of(decoder) == {**TOKENS, "eos_token_id": None, "pad_token_id": 3}
    copied = copy.deepcopy(config)
    copied.eos_token_id = 4
    assert (config.eos_token_id, copied.decoder.eos_token_id) == (None, 4)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert tokens_of(CrossFuseConfig.from_pretrained(tmp_path)) == tokens_of(config)
    assert written["pad_token_id"] == 3 and not written["decoder"].keys() & TOKENS.keys()
    loaded = CrossFuseConfig.from_pretrained(tmp_path, eos_token_id=11)
    assert (loaded.eos_token_id, loaded.decoder.eos_token_id) == (11, 11)


def test_special_tokens_of_a_decoder_that_is_given():
    assert tokens_of(CrossFuseConfig(decoder=TOKENS)) == TOKENS
    decoder = CrossFuseDecoderConfig(**TOKENS)
    assert tokens_of(CrossFuseConfig(decoder=decoder)) == TOKENS
    assert CrossFuseConfig(decoder=decoder, eos_token_id=3).decoder.eos_token_id == 3
    with pytest.raises(ValueError, match=r"`eos_token_id=3`, and `eos_token_id=\[7, 8\]` of `decoder`; drop one"):
        CrossFuseConfig(decoder=TOKENS, eos_token_id=3)


def test_a_special_token_of_the_wrong_type():
    with pytest.raises(StrictDataclassError, match="eos_token_id"):
        CrossFuseConfig(eos_token_id="end")
    config = CrossFuseConfig()
    with pytest.raises(StrictDataclassError, match="eos_token_id"):
        config.eos_token_id = "end"


def test_generation_config_has_the_special_tokens():
    generation_config = tiny_model(tiny_config(**TOKENS)).generation_config
    assert tokens_of(generation_config) == TOKENS


# Rotary positions, as transformers names them


def rope(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


@pytest.mark.parametrize(
    "settings", [{"rope_parameters": rope(500.0)}, {"rope_parameters": {"rope_theta": 500.0}}, {"rope_theta": 500.0}]
)
def test_rope_parameters(settings, tmp_path):
    config = tiny_config("text", "image", **settings)
    for part in (config, *parts(config)):
        assert part.rope_parameters == rope(500.0) and part.rope_theta == 500.0
    assert config.rope_parameters is not config.decoder.rope_parameters
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == written["decoder"]["rope_theta"] == 500.0 and "rope_parameters" not in written
    assert CrossFuseConfig.from_pretrained(tmp_path).decoder.rope_parameters == rope(500.0)


@pytest.mark.parametrize("settings", [{"rope_parameters": rope(7.0)}, {"rope_theta": 7.0}])
def test_rope_parameters_of_a_part(settings):
    config = tiny_config("image", rope_theta=500.0, decoder={"vocab_size": 50, **settings})
    assert config.decoder.rope_theta == 7.0 and config.modalities["image"].rope_theta == 500.0
    config = tiny_config("image", rope_theta=500.0, decoder={"vocab_size": 50, "rope_parameters": {}})
    assert config.decoder.rope_theta == 500.0


def test_rope_parameters_can_be_set():
    config = CrossFuseTextConfig()
    config.rope_theta = 5
    assert config.rope_parameters == rope(5)
    config.rope_parameters["rope_theta"] = 6
    assert config.rope_theta == 6 and config.to_dict()["rope_theta"] == 6
    config.rope_parameters = rope(7)
    assert config.rope_theta == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "`rope_type='yarn'`; expected 'default'"),
        ({"rope_parameters": {"factor": 2.0}}, "`rope_parameters` has the key `factor`; expected rope_type, rope_th"),
        ({"rope_parameters": rope(5.0), "rope_theta": 6.0}, r"`rope_theta=6.0` and `rope_parameters=.* differ"),
        ({"rope_parameters": rope(-1.0)}, "`rope_theta=-1.0`; expected a number above 0"),
        ({"rope_theta": "long"}, "`rope_theta='long'`; expected a number above 0"),
        ({"rope_parameters": 5}, "rope_parameters"),
        ({"rope_thet": 5.0}, "Did you mean `rope_theta`"),
    ],
)
def test_rope_parameters_that_are_refused(settings, message):
    for config_class in (CrossFuseConfig, CrossFuseDecoderConfig):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            config_class(**settings)
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CrossFuseConfig(decoder=settings)


def test_a_rope_type_that_is_set_later_is_refused():
    config = tiny_config()
    config.decoder.rope_parameters = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(ValueError, match="`rope_type='linear'`"):
        tiny_model(config)


def test_names_of_labels_say_their_numbers():
    config = tiny_config(id2label={0: "walk", 1: "run"})
    assert config.label2id == {"walk": 0, "run": 1}
    assert CrossFuseConfig.from_dict(config.to_dict()).label2id == config.label2id
