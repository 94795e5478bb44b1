# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The model: every kind of modality, sizes, layer settings, attention implementations, training and the loss."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator, cpu_offload
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, DynamicCache, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from modeling_crossfuse import (
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseModel,
)
from modeling_crossfuse.decoder_cache import CACHE

from .helpers import (
    FUSIONS,
    MODALITIES,
    assert_same,
    checkpoint_activations,
    count_calls,
    take_rows,
    tiny_config,
    tiny_inputs,
    tiny_labels,
    tiny_model,
)


def logits_of(model, inputs, labels=None):
    with torch.no_grad():
        return model(**inputs, labels=tiny_labels() if labels is None else labels).logits


# Every kind, alone and together


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modalities", [(name,) for name in MODALITIES] + [tuple(MODALITIES)], ids="-".join)
def test_forward_and_backward(modalities, fusion):
    config = tiny_config(*modalities, fusion=fusion)
    model = tiny_model(config).train()
    outputs = model(**tiny_inputs(config), labels=tiny_labels())
    assert outputs.logits.shape == (2, 4, 50)
    outputs.loss.backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or p.grad.eq(0).all()
    ]
    assert not without


@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality_matters_to_the_answer(name):
    config = tiny_config(*MODALITIES)
    model, inputs = tiny_model(config), tiny_inputs(config)
    value_name = config.modalities.value_name(name)
    other = {**inputs, value_name: tiny_inputs(config, seed=1)[value_name]}
    assert (logits_of(model, inputs) - logits_of(model, other)).abs().max() > 1e-3


@pytest.mark.parametrize("stem", [{}, {"stem_type": "conv", "stem_depth": 0}, {"stem_type": "conv", "stem_width": 4}])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 8), (9, 14), (3, 1)])
def test_images_of_any_size(height, width, stem):
    config = tiny_config(modalities={"image": {**MODALITIES["image"], **stem}})
    outputs = tiny_model(config, CrossFuseModel).encoder(pixel_values=torch.randn(2, 3, height, width))
    assert outputs.last_hidden_state.shape == (2, math.ceil(height / 4) * math.ceil(width / 4), 32)


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 8, 8), (1, 8, 8), (5, 9, 14)])
def test_videos_of_any_size(frames, height, width):
    model = tiny_model(tiny_config("video"), CrossFuseModel)
    outputs = model.encoder(pixel_values_videos=torch.randn(2, frames, 3, height, width))
    cells = math.ceil(frames / 2) * math.ceil(height / 4) * math.ceil(width / 4)
    assert outputs.last_hidden_state.shape == (2, cells, 32)


@pytest.mark.parametrize(("frames", "layers", "length"), [(6, 1, 3), (7, 1, 4), (7, 2, 2), (1, 2, 1)])
def test_audio_of_any_length(frames, layers, length):
    config = tiny_config(modalities={"audio": {"num_mel_bins": 6, "num_conv_layers": layers}})
    outputs = tiny_model(config, CrossFuseModel).encoder(input_features=torch.randn(2, 6, frames))
    assert outputs.last_hidden_state.shape == (2, length, 32)


@pytest.mark.parametrize(("steps", "patch_length", "length"), [(5, 1, 5), (5, 2, 3), (1, 4, 1)])
def test_series_of_any_length(steps, patch_length, length):
    config = tiny_config(modalities={"wrist": {**MODALITIES["wrist"], "patch_length": patch_length}})
    outputs = tiny_model(config, CrossFuseModel).encoder(wrist_values=torch.randn(2, steps, 3))
    assert outputs.last_hidden_state.shape == (2, length, 32)


def test_several_images_of_a_sample():
    config = tiny_config("image", "text")
    model = tiny_model(config)
    inputs = {**tiny_inputs(config), "pixel_values": torch.randn(2, 3, 3, 8, 8)}
    both = logits_of(model, {**inputs, "image_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])})
    # One image in a row of three is the same as that image alone, with or without the dimension for several.
    labels = tiny_labels()[1:]
    second = take_rows(inputs, slice(1, 2))
    assert_same(both[1:], logits_of(model, {**second, "pixel_values": second["pixel_values"][:, :1]}, labels))
    assert_same(both[1:], logits_of(model, {**second, "pixel_values": second["pixel_values"][:, 0]}, labels))
    # Every image counts, and so does their order.
    first = take_rows(inputs, slice(0, 1))
    swapped = {**first, "pixel_values": first["pixel_values"].flip(1)}
    assert (both[:1] - logits_of(model, swapped, tiny_labels()[:1])).abs().max() > 1e-3


def test_padding_images_are_not_encoded():
    """They cost nothing, and batch norm's running statistics are those of the images alone."""
    config = tiny_config(modalities={"image": {**MODALITIES["image"], "stem_type": "conv"}})
    pixel_values = torch.randn(2, 3, 3, 8, 8)
    padded = {"pixel_values": pixel_values, "image_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    alone = {"pixel_values": pixel_values[[0, 0, 1], [0, 1, 0]]}
    statistics, rows = [], []
    for inputs in (padded, alone):
        encoder = tiny_model(config, CrossFuseModel).train().encoder
        rows.append(count_calls(encoder.encoders["image"].stem))
        encoder(**inputs)
        statistics.append({name: value for name, value in encoder.named_buffers() if "running" in name})
    assert rows == [[3], [3]]
    assert statistics[0] and statistics[0].keys() == statistics[1].keys()
    for name, value in statistics[0].items():
        assert_same(value, statistics[1][name])


def test_two_modalities_of_one_kind():
    config = tiny_config(modalities={name: {**MODALITIES["image"], "kind": "image"} for name in ("left", "right")})
    model, inputs = tiny_model(config), tiny_inputs(config)
    assert set(inputs) == {"left_pixel_values", "right_pixel_values"}
    swapped = {"left_pixel_values": inputs["right_pixel_values"], "right_pixel_values": inputs["left_pixel_values"]}
    assert (logits_of(model, inputs) - logits_of(model, swapped)).abs().max() > 1e-3


def test_modalities_of_other_widths_are_projected():
    modalities = {"text": {"vocab_size": 40, "hidden_size": 16}, "image": {**MODALITIES["image"], "hidden_size": 64}}
    config = tiny_config(modalities=modalities)
    outputs = tiny_model(config, CrossFuseModel).encoder(**tiny_inputs(config))
    assert outputs.last_hidden_state.shape == (2, 5 + 4, 32)


@pytest.mark.parametrize("value", [255, 2, -1])
def test_whatever_integer_is_not_zero_is_kept(value):
    model = tiny_model(tiny_config("text", "wrist"))
    inputs, mask = tiny_inputs(model.config), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    names = ("attention_mask", "wrist_mask", "decoder_attention_mask")
    tokens = {"decoder_input_ids": tiny_labels(2, length=5)}
    actual = model(**inputs, **tokens, **dict.fromkeys(names, mask * value)).logits
    kept = mask.bool()
    assert_same(actual[kept], model(**inputs, **tokens, **dict.fromkeys(names, mask)).logits[kept])


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float32])
def test_masks_of_any_dtype(dtype):
    config = tiny_config("text", "wrist")
    model, inputs = tiny_model(config), tiny_inputs(config)
    masks = {
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
        "wrist_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        "modality_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    cast = {name: mask.to(dtype) for name, mask in masks.items()}
    assert_same(logits_of(model, {**inputs, **cast}), logits_of(model, {**inputs, **masks}))


# Settings of the layers

LAYERS = {
    "rotary": {"position_embedding_type": "rotary"},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "layernorm": {"norm_type": "layernorm"},
    "gelu": {"mlp_type": "gelu"},
    "grouped-query": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "no layers": {"num_hidden_layers": 0},
    "all": {"norm_type": "layernorm", "mlp_type": "gelu", "num_key_value_heads": 1, "rope_theta": 100},
}


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_layer_settings(settings):
    config = tiny_config(*MODALITIES, fusion="joint", **settings)
    model, inputs = tiny_model(config), tiny_inputs(config)
    outputs = model(**inputs, labels=tiny_labels())
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    # Whatever the layers are made of, a sample is the same alone and in a batch.
    alone = logits_of(model, take_rows(inputs, slice(1, 2)), tiny_labels()[1:])
    assert_same(outputs.logits[1:].detach(), alone)


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_order_matters(positions, name):
    """Nothing is a bag: turning a modality's content round changes the answer."""
    config = tiny_config(name, position_embedding_type=positions)
    model, inputs = tiny_model(config), tiny_inputs(config)
    value_name = config.modalities.value_name(name)
    axes = {"text": [1], "image": [2, 3], "video": [1, 3, 4], "audio": [2], "wrist": [1]}[name]
    for axis in axes:
        turned = {value_name: inputs[value_name].roll(1 if name != "image" and name != "video" else 4, axis)}
        if name == "video" and axis == 1:
            turned = {value_name: inputs[value_name].roll(2, axis)}
        assert (logits_of(model, inputs) - logits_of(model, turned)).abs().max() > 1e-3, f"axis {axis}"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"labels": torch.tensor([[3, 99]] * 2)}, ValueError, "`labels` of sample 0 has the token 99"),
        ({"labels": torch.tensor([[3, 4]])}, ValueError, "decoder's input has 1 samples and the memory has 2"),
        ({"decoder_attention_mask": torch.ones(2, 1)}, ValueError, r"has shape \(2, 1\); expected \(2, 3\)"),
        ({"decoder_attention_mask": torch.ones(1, 3)}, ValueError, r"has shape \(1, 3\); expected \(2, 3\)"),
        ({"decoder_attention_mask": torch.ones(3)}, ValueError, r"has shape \(3,\); expected \(2, 3\)"),
        ({"wrist_values": [[[1.0, 2.0, 3.0]]] * 2}, TypeError, "`wrist_values` is list; expected a torch.Tensor"),
        ({"wrist_mask": torch.full((2, 5), 0.9)}, ValueError, "`wrist_mask` has values other than 1, to keep, and 0"),
        ({"wrist_valus": np.zeros((2, 5, 3))}, ValueError, "`wrist_valus` is not an input of this model"),
        ({"inputs_embeds": torch.full((2, 5, 32), math.nan)}, ValueError, "`inputs_embeds` of sample 0 has values"),
    ],
)
def test_wrong_tensors(given, error, message):
    config = tiny_config("text", "wrist")
    tensors = {**tiny_inputs(config), "decoder_input_ids": torch.ones(2, 3, dtype=torch.long), **given}
    if "inputs_embeds" in given:
        del tensors["input_ids"]
    if "labels" in given:
        del tensors["decoder_input_ids"]
    with pytest.raises(error, match=message):
        tiny_model(config)(**tensors)


def test_the_decoder_is_causal():
    config = tiny_config()
    model, inputs = tiny_model(config), tiny_inputs(config)
    ids = tiny_labels()
    changed = ids.clone()
    changed[:, 2] = (ids[:, 2] + 1) % 50
    with torch.no_grad():
        before = model(**inputs, decoder_input_ids=ids).logits
        after = model(**inputs, decoder_input_ids=changed).logits
    assert_same(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("key", ["dropout", "attention_dropout"])
def test_dropout_is_for_training_only(key):
    config = tiny_config("text", "image", fusion="joint", attn_implementation="eager", **{key: 0.5})
    model, inputs = tiny_model(config), tiny_inputs(config)
    assert torch.equal(logits_of(model, inputs), logits_of(model, inputs))
    assert torch.equal(
        logits_of(model, inputs),
        logits_of(tiny_model(tiny_config("text", "image", fusion="joint", attn_implementation="eager")), inputs),
    )
    model.train()
    assert not torch.equal(logits_of(model, inputs), logits_of(model, inputs))


@torch.no_grad()
@pytest.mark.parametrize("model_class", [CrossFuseForConditionalGeneration, CrossFuseForSequenceClassification])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_offloaded_weights(fusion, model_class):
    """accelerate fetches the weights of a module when it is called."""
    config = tiny_config("text", "image", fusion=fusion, num_labels=3)
    model, inputs = tiny_model(config, model_class), tiny_inputs(config)
    expected = model(**inputs).logits
    cpu_offload(model, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same(model(**inputs).logits, expected)


# Attention implementations, data types, compilation


def ragged_masks() -> dict[str, torch.Tensor]:
    """Masks for two samples of the modalities text, image, video, audio and wrist, and a target of four tokens."""
    return {
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
        "wrist_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]),
        "modality_mask": torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]]),
        "decoder_attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
    }


def assert_agrees_with_eager(implementation: str, **settings):
    # flex attention takes heads of at least 16 channels.
    config = tiny_config(*MODALITIES, **{"d_model": 64, "num_attention_heads": 4, **settings})
    model, inputs = tiny_model(config), tiny_inputs(config) | ragged_masks()
    kept = inputs["decoder_attention_mask"].bool()
    model.set_attn_implementation("eager")
    expected = logits_of(model, inputs)
    model.set_attn_implementation(implementation)
    assert_same(logits_of(model, inputs)[kept], expected[kept])


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_sdpa_agrees_with_eager(fusion, num_key_value_heads):
    assert_agrees_with_eager("sdpa", fusion=fusion, num_key_value_heads=num_key_value_heads)


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_flex_attention_agrees_with_eager(fusion, num_key_value_heads):
    # The same mathematics without the minute that compiling its kernels takes.
    with torch.compiler.set_stance("force_eager"):
        assert_agrees_with_eager("flex_attention", fusion=fusion, num_key_value_heads=num_key_value_heads)


@pytest.mark.slow
def test_compiled_flex_attention_agrees_with_eager():
    assert_agrees_with_eager("flex_attention", fusion="joint", num_key_value_heads=2)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16(fusion):
    config = tiny_config(*MODALITIES, fusion=fusion)
    model, inputs = tiny_model(config), tiny_inputs(config)
    expected = logits_of(model, inputs)
    model.to(torch.bfloat16)
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    outputs = model(**inputs, labels=tiny_labels())
    assert outputs.logits.dtype == torch.bfloat16
    outputs.loss.backward()
    error = (outputs.logits.float() - expected).abs().mean()
    assert error < 0.1 * expected.std()


HEADS = [
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseForRetrieval,
]
WIDTHS = {"equal": MODALITIES, "other": {name: {**part, "hidden_size": 16} for name, part in MODALITIES.items()}}


def assert_near(actual, expected):
    assert (actual.float() - expected).abs().mean() < 0.2 * expected.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("model_class", HEADS)
def test_parts_with_another_dtype(model_class, widths, dtype):
    """Each encoder, frozen; all of them with the fusion; and what was encoded before."""
    config = tiny_config(modalities=WIDTHS[widths], fusion="bottleneck", num_labels=3)
    model, modalities = tiny_model(config, model_class), tiny_inputs(config)
    answer = {"decoder_input_ids": torch.tensor([[1, 4], [1, 5]])} if hasattr(model, "lm_head") else {}
    inputs = {**modalities, **answer}
    expected, memory = model(**inputs).logits.detach(), model.get_encoder()(**modalities)
    for name in config.modalities:
        model = tiny_model(config, model_class)
        model.freeze_modalities(name)
        model.get_encoder().encoders[name].to(dtype)
        assert_near(model(**inputs).logits, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(model.train()(**inputs).logits, expected)
    model = tiny_model(config, model_class)
    model.get_encoder().to(dtype)
    assert_near(model(**inputs).logits, expected)
    if model_class is CrossFuseForConditionalGeneration:
        assert model.generate(**modalities, max_new_tokens=3, num_beams=2).shape[0] == 2
        model.to(dtype)
        assert model.generate(encoder_outputs=memory, max_new_tokens=3).shape[0] == 2
        embeds = torch.randn(2, 3, 32)
        assert model(encoder_outputs=memory, decoder_inputs_embeds=embeds).logits.dtype == dtype
    if model_class in HEADS[:2]:
        assert_near(model.to(dtype)(encoder_outputs=memory, **answer).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden_size", [32, 24])
def test_an_encoder_of_transformers_with_another_dtype(hidden_size, dtype):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37, "initializer_range": 0.2}
    bert = BertConfig(vocab_size=40, hidden_size=hidden_size, **sizes)
    model = CrossFuseForConditionalGeneration.from_encoders(
        {"text": bert}, decoder={"vocab_size": 50}, d_model=32, num_attention_heads=2, freeze=("text",)
    ).eval()
    inputs = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]])}
    expected = logits_of(model, inputs)
    encoder = model.get_encoder()
    states, mask = encoder.encode_modality("text", inputs["input_ids"], torch.ones(2, 3, dtype=torch.long))
    model.get_encoder().encoders["text"].to(dtype)
    encoded = {"text_hidden_states": states.to(dtype), "text_hidden_states_mask": mask}
    for given in (inputs, encoded):
        assert_near(logits_of(model, given), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(logits_of(model.train(), given), expected)
        model.eval()
    encoded = {name: value.float() if value.is_floating_point() else value for name, value in encoded.items()}
    assert_near(logits_of(model.to(dtype), encoded), expected)


@pytest.mark.parametrize("model_class", HEADS)
def test_what_accelerate_unwraps(model_class):
    """It takes off every decorator of `forward`; a model is to work without them, as those of transformers do."""
    config = tiny_config("text", "image", num_labels=3)
    model, inputs = tiny_model(config, model_class), tiny_inputs(config)
    expected = model(**inputs)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    unwrapped = accelerator.unwrap_model(accelerator.prepare(model), keep_fp32_wrapper=False)
    outputs = unwrapped(**inputs, return_dict=True)
    assert type(outputs) is type(expected) and torch.equal(outputs.logits, expected.logits)
    if model_class is CrossFuseForConditionalGeneration:
        answers = tiny_model(config).generate(**inputs, max_new_tokens=4, num_beams=2)
        assert torch.equal(unwrapped.generate(**inputs, max_new_tokens=4, num_beams=2), answers)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_autocast(fusion):
    config = tiny_config(*MODALITIES, fusion=fusion)
    model, inputs = tiny_model(config).train(), tiny_inputs(config)
    inputs["modality_mask"] = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]])
    expected = logits_of(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs, labels=tiny_labels())
    outputs.loss.backward()
    assert (outputs.logits.float() - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradient_checkpointing_gives_equal_gradients(fusion):
    config = tiny_config(*MODALITIES, fusion=fusion, dropout=0.0)
    model, inputs = tiny_model(config).train(), tiny_inputs(config)
    model(**inputs, labels=tiny_labels()).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    checkpoint_activations(model)
    model(**inputs, labels=tiny_labels()).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_compiled_equals_eager(fusion):
    torch.compiler.reset()
    config = tiny_config("text", "wrist", fusion=fusion)
    model, inputs = tiny_model(config), tiny_inputs(config)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert_same(logits_of(compiled, inputs), logits_of(model, inputs))
    masks = {
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
        "modality_mask": torch.tensor([[1, 0], [1, 1]]),
    }
    assert_same(logits_of(compiled, inputs | masks), logits_of(model, inputs | masks))


@pytest.mark.slow
def test_compiled_by_inductor_equals_eager():
    torch.compiler.reset()
    config = tiny_config(*MODALITIES, fusion="bottleneck")
    model, inputs = tiny_model(config), tiny_inputs(config) | ragged_masks()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    kept = inputs["decoder_attention_mask"].bool()
    assert_same(logits_of(compiled, inputs)[kept], logits_of(model, inputs)[kept])


# Embeddings


def test_embeddings_in_place_of_tokens():
    config = tiny_config("text", "image")
    model, inputs = tiny_model(config), tiny_inputs(config)
    expected = logits_of(model, inputs)
    embeds = model.model.encoder.get_input_embeddings()(inputs.pop("input_ids"))
    assert_same(logits_of(model, {**inputs, "inputs_embeds": embeds}), expected)


def test_decoder_embeddings_in_place_of_tokens():
    config = tiny_config()
    model, inputs = tiny_model(config), tiny_inputs(config)
    ids = tiny_labels()
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=ids).logits
        embeds = model.get_input_embeddings()(ids)
        assert_same(model(**inputs, decoder_inputs_embeds=embeds).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings(tied):
    model = tiny_model(tiny_config(tie_word_embeddings=tied))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("size", [47, 60])
@pytest.mark.parametrize("tied", [True, False])
def test_resize_token_embeddings(tied, size):
    config = tiny_config("text", "image", tie_word_embeddings=tied)
    model, inputs = tiny_model(config), tiny_inputs(config)
    labels = tiny_labels(vocab_size=40)
    before = logits_of(model, inputs, labels)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.config.decoder.vocab_size == size
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (size, 32)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    after = model(**inputs, labels=labels)
    kept = min(size, 50)
    assert_same(after.logits[..., :kept].detach(), before[..., :kept])
    after.loss.backward()


@pytest.mark.parametrize("tied", [True, False])
def test_parts_that_share_the_vocabulary_are_not_resized(tied):
    """The head would keep its size, and the saved model could not be loaded."""
    model = tiny_model(tiny_config("text", tie_word_embeddings=tied))
    for part in (model.get_decoder(), model.model):
        with pytest.raises(ValueError, match=r"call `model.resize_token_embeddings` of the whole model"):
            part.resize_token_embeddings(60)
        assert part.resize_token_embeddings() is model.get_input_embeddings()


@pytest.mark.parametrize(
    "find", [lambda model: model.get_encoder(), lambda model: model.get_encoder().encoders["text"]]
)
def test_resizing_a_text_encoder(find, tmp_path):
    model = tiny_model(tiny_config("image", "text"))
    find(model).resize_token_embeddings(61)
    assert model.config.modalities["text"].vocab_size == 61 and model.config.vocab_size == 50
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.tensor([[60, 3], [4, 5]])}
    expected = logits_of(model, inputs)
    assert torch.equal(logits_of(CrossFuseForConditionalGeneration.from_pretrained(tmp_path), inputs), expected)


# Outputs


def test_outputs_of_every_layer():
    config = tiny_config("text", "image", fusion="joint", attn_implementation="eager", num_hidden_layers=2)
    model, inputs = tiny_model(config), tiny_inputs(config)
    outputs = model(**inputs, labels=tiny_labels(), output_attentions=True, output_hidden_states=True)
    text, image, memory, target = 5, 4, 9, 4
    # The input of the first layer, then the output of every layer, the fusion's last.
    lengths = [text] * 3 + [image] * 2 + [memory]
    assert [state.shape for state in outputs.encoder_hidden_states] == [(2, length, 32) for length in lengths]
    lengths = [text] * 2 + [image] * 2 + [memory]
    assert [weights.shape for weights in outputs.encoder_attentions] == [(2, 2, length, length) for length in lengths]
    assert [state.shape for state in outputs.decoder_hidden_states] == [(2, target, 32)] * 3
    assert [weights.shape for weights in outputs.decoder_attentions] == [(2, 2, target, target)] * 2
    assert [weights.shape for weights in outputs.cross_attentions] == [(2, 2, target, memory)] * 2
    for weights in (*outputs.encoder_attentions, *outputs.decoder_attentions, *outputs.cross_attentions):
        assert_same(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_tuple_output_equals_the_dict():
    config = tiny_config("text", "image")
    model, inputs = tiny_model(config), tiny_inputs(config)
    outputs = model(**inputs, labels=tiny_labels(), use_cache=False)
    loss, logits, *_ = model(**inputs, labels=tiny_labels(), use_cache=False, return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("convert", [lambda memory: memory.to_tuple(), dict, lambda memory: memory])
def test_encoder_outputs_of_any_type(convert, num_beams):
    """The tuple leaves out the fields without a value: the mask is its second."""
    model = tiny_model(tiny_config("text", "wrist"))
    inputs = {**tiny_inputs(model.config), "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])}
    memory, tokens = convert(model.get_encoder()(**inputs)), torch.tensor([[1, 5], [1, 7]])
    assert_same(
        model(encoder_outputs=memory, decoder_input_ids=tokens).logits,
        model(**inputs, decoder_input_ids=tokens).logits,
    )
    settings = {"max_new_tokens": 3, "num_beams": num_beams}
    assert torch.equal(model.generate(encoder_outputs=memory, **settings), model.generate(**inputs, **settings))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_a_memory_without_a_mask(settings):
    model = tiny_model(tiny_config("wrist"))
    memory = BaseModelOutput(torch.randn(2, 5, 32))
    rows = 2 * settings.get("num_return_sequences", 1)
    assert model.generate(encoder_outputs=memory, max_new_tokens=3, **settings).shape[0] == rows


def test_a_cache_for_a_decoder_alone():
    model = tiny_model(tiny_config())
    tokens = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(TypeError, match="is a DynamicCache; expected an EncoderDecoderCache"):
        model(input_ids=tokens, decoder_input_ids=tokens, **{CACHE: DynamicCache()})


def test_replicas_of_data_parallel_have_no_parameters():
    encoder = tiny_model(tiny_config("wrist")).get_encoder()
    values = torch.randn(2, 5, 3)
    expected = encoder(wrist_values=values).last_hidden_state
    for module in list(encoder.modules()):  # as `torch.nn.parallel.replicate` leaves them
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                object.__setattr__(module, name, parameter.detach())
    assert not list(encoder.parameters())
    assert_same(encoder(wrist_values=values).last_hidden_state, expected)


def test_there_is_no_token_embedding_without_text():
    encoder = tiny_model(tiny_config("wrist")).get_encoder()
    for use in (encoder.get_input_embeddings, lambda: encoder.set_input_embeddings(nn.Embedding(3, 32))):
        with pytest.raises(NotImplementedError, match="no modality of kind 'text'"):
            use()


@pytest.mark.parametrize("labels", [torch.ones(2, 3), torch.ones(2, dtype=torch.long), torch.ones(2, 0).long()])
def test_labels_are_tokens_of_each_sample(labels):
    model = tiny_model(tiny_config())
    with pytest.raises(ValueError, match=r"`labels` have shape .* expected integers of shape"):
        model(input_ids=torch.ones(2, 3, dtype=torch.long), labels=labels)


@pytest.mark.parametrize("name", ["pixel_values", "input_values", "image_mask", "inputs_embeds", "modality_mask"])
def test_forward_names_the_tensors_that_trainer_is_to_keep(name):
    for model_class in (CrossFuseForConditionalGeneration, CrossFuseModel, CrossFuseForSequenceClassification):
        assert name in inspect.signature(model_class.forward).parameters


def test_pooled_output_leaves_the_targets_padding_out():
    config = tiny_config()
    model, inputs = tiny_model(config, CrossFuseModel), tiny_inputs(config)
    mask = torch.tensor([[1, 1, 0, 0], [1] * 4])
    outputs = model(**inputs, decoder_input_ids=tiny_labels(), decoder_attention_mask=mask)
    assert_same(outputs.pooler_output[0], outputs.last_hidden_state[0, :2].mean(0))
    assert_same(outputs.pooler_output[1], outputs.last_hidden_state[1].mean(0))


@pytest.mark.parametrize("model_class", [CrossFuseModel, CrossFuseForConditionalGeneration])
def test_neither_labels_nor_decoder_inputs(model_class):
    config = tiny_config()
    model, inputs = tiny_model(config, model_class), tiny_inputs(config)
    start = torch.full((2, 1), config.decoder_start_token_id)
    assert_same(model(**inputs)[0], model(**inputs, decoder_input_ids=start)[0])
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(**inputs)


# The loss


def hand_made_loss(logits, labels):
    """Minus the mean log probability of the labels that are not -100."""
    chosen = [
        logits[row, column].log_softmax(-1)[labels[row, column]]
        for row in range(labels.shape[0])
        for column in range(labels.shape[1])
        if labels[row, column] != -100
    ]
    return -torch.stack(chosen).mean()


def test_loss_is_the_cross_entropy_of_the_labels():
    config = tiny_config("text", "image")
    model, inputs = tiny_model(config), tiny_inputs(config)
    labels = tiny_labels()
    labels[0, 2:] = -100
    # The start token first, then the labels; padding where the loss ignores them.
    decoder_input_ids = torch.cat([torch.tensor([[1], [1]]), labels[:, :-1]], dim=1)
    decoder_input_ids[decoder_input_ids == -100] = 0
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), decoder_input_ids)
    outputs = model(**inputs, labels=labels)
    assert_same(outputs.logits, model(**inputs, decoder_input_ids=decoder_input_ids).logits)
    assert_same(outputs.loss, hand_made_loss(outputs.logits, labels))


def test_loss_beside_decoder_input_ids_does_not_shift_again():
    config = tiny_config()
    model, inputs, labels = tiny_model(config), tiny_inputs(config), tiny_labels()
    outputs = model(**inputs, decoder_input_ids=tiny_labels(seed=1), labels=labels)
    assert_same(outputs.loss, hand_made_loss(outputs.logits, labels))


def test_what_the_loss_ignores_changes_nothing_else():
    config = tiny_config()
    model, inputs, labels = tiny_model(config), tiny_inputs(config), tiny_labels()
    longer = torch.cat([labels, torch.full((2, 3), -100)], dim=1)
    assert_same(model(**inputs, labels=longer).loss, model(**inputs, labels=labels).loss)


def ragged_data(config, size: int = 8) -> list[dict]:
    """Samples whose labels have one to four tokens, so that micro-batches have different numbers of them."""
    inputs, labels = tiny_inputs(config, size), tiny_labels(size)
    for row in range(size):
        labels[row, row % 4 + 1 :] = -100
    return [{**{name: value[row] for name, value in inputs.items()}, "labels": labels[row]} for row in range(size)]


def stack(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("as_tensor", [True, False])
def test_gradients_accumulate_to_those_of_one_batch(as_tensor):
    config = tiny_config("text", "wrist")
    model, rows = tiny_model(config), ragged_data(config)
    model(**stack(rows)).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    count = sum((row["labels"] != -100).sum() for row in rows)
    for start in (0, 1, 4):
        batch = stack(rows[start : {0: 1, 1: 4, 4: 8}[start]])
        model(**batch, num_items_in_batch=count if as_tensor else count.item()).loss.backward()
    for name, p in model.named_parameters():
        assert_same(p.grad, expected[name], atol=1e-6)


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def train_one_step(config, rows, output_dir, batch_size: int, steps: int) -> dict[str, torch.Tensor]:
    """The weights after one step of a real Trainer: plain gradient descent, so that they show the gradient's size."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        max_steps=1,
        learning_rate=1.0,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    model = tiny_model(config)
    Trainer(model, arguments, train_dataset=Rows(rows), data_collator=stack).train()
    return model.state_dict()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_trainer_accumulates_to_the_gradient_of_one_batch(batch_size, tmp_path):
    config = tiny_config("text", "wrist")
    rows = ragged_data(config)
    expected = train_one_step(config, rows, tmp_path, batch_size=8, steps=1)
    start = tiny_model(config).state_dict()
    actual = train_one_step(config, rows, tmp_path, batch_size=batch_size, steps=8 // batch_size)
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-2
    for name in expected:
        assert_same(actual[name], expected[name])


def test_a_few_steps_learn_a_batch_by_heart():
    config = tiny_config("text", "image", "wrist", fusion="bottleneck", initializer_range=0.05)
    model, inputs, labels = tiny_model(config).train(), tiny_inputs(config, 4), tiny_labels(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    answers = model.eval().generate(**inputs, max_new_tokens=4, eos_token_id=None)
    assert torch.equal(answers[:, 1:], labels)


def test_same_seed_same_weights():
    config = tiny_config(*MODALITIES, fusion="latent")
    first, second = (tiny_model(config, CrossFuseForConditionalGeneration, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
