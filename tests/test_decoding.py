# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Fast decoding: what a token costs, the products of few rows, and the cache that grows and that beams share."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, EncoderDecoderCache

from modeling_crossfuse import CrossFuseForConditionalGeneration
from modeling_crossfuse.decoder_cache import CACHE, GrowingLayer, MemoryCache, make_cache
from modeling_crossfuse.layers import CrossFuseLinear

from .helpers import assert_same, count_calls, tiny_config, tiny_inputs, tiny_model


SETTINGS = [
    {},
    {"num_key_value_heads": 1},
    {"mlp_type": "gelu", "norm_type": "layernorm"},
    {"position_embedding_type": "sinusoidal", "dropout": 0.1, "attention_dropout": 0.1},
]


def make_model(**settings):
    decoder = {"vocab_size": 50, "num_hidden_layers": 2}
    settings = {"tie_word_embeddings": False, "initializer_range": 0.4, **settings}
    config = tiny_config("text", "wrist", decoder=decoder, eos_token_id=None, **settings)
    inputs = tiny_inputs(config, batch_size=3)
    inputs["attention_mask"] = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    return tiny_model(config), inputs


def answer(model, inputs, **options):
    options = {"max_new_tokens": 20, "return_dict_in_generate": True, "output_logits": True, **options}
    outputs = model.generate(**inputs, **options)
    return outputs.sequences, torch.stack(outputs.logits)


def without_cache_of_ours(model, inputs, **options):
    """With the cache of transformers, and a memory for each beam."""
    return answer(model, inputs, **{CACHE: EncoderDecoderCache(DynamicCache(), DynamicCache())}, **options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_answers_and_logits(settings, options):
    model, inputs = make_model(**settings)
    sequences, logits = answer(model, inputs, **options)
    expected, expected_logits = without_cache_of_ours(model, inputs, **options)
    assert torch.equal(sequences, expected)
    assert_same(logits, expected_logits, atol=1e-4)


def test_sampling_shares_the_memory():
    model, inputs = make_model()
    memories = count_calls(model.model.decoder.layers[0].cross_attn.k_proj)
    torch.manual_seed(0)
    sequences, _ = answer(model, inputs, do_sample=True, num_return_sequences=4)
    assert memories == [3] and sequences.shape[0] == 12
    torch.manual_seed(0)
    assert torch.equal(sequences, without_cache_of_ours(model, inputs, do_sample=True, num_return_sequences=4)[0])


def test_cross_attentions_of_beams():
    model, inputs = make_model()
    model.set_attn_implementation("eager")
    options = {"num_beams": 2, "output_attentions": True, "max_new_tokens": 3, "return_dict_in_generate": True}
    outputs = model.generate(**inputs, **options)
    assert outputs.cross_attentions[0][0].shape == (6, 2, 1, 10)
    assert_same(outputs.cross_attentions[1][0].sum(-1), torch.ones(6, 2, 1))


def test_hooks_and_other_layers_are_obeyed():
    model, inputs = make_model()
    expected, _ = answer(model, inputs)
    layer = model.model.decoder.layers[0]
    hook = layer.mlp.register_forward_hook(lambda module, args, output: output * -3)
    hooked, _ = answer(model, inputs)
    assert not torch.equal(hooked, expected)
    hook.remove()

    class Tripled(torch.nn.Linear):
        def forward(self, states):
            return -3 * super().forward(states)

    layer.mlp.down_proj.__class__ = Tripled
    assert torch.equal(answer(model, inputs)[0], hooked)


@pytest.mark.parametrize("part", ["", "model", "model.decoder"])
def test_hooks_of_what_is_around_the_layers_are_obeyed(part):
    model, inputs = make_model()
    calls = []
    hook = model.get_submodule(part).register_forward_hook(lambda *args: calls.append(1))
    expected, _ = answer(model, inputs)
    assert len(calls) == 20
    hook.remove()
    assert torch.equal(answer(model, inputs)[0], expected) and len(calls) == 20


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_subclass_with_a_forward_of_its_own(options):
    class Reversed(CrossFuseForConditionalGeneration):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = -outputs.logits
            return outputs

    model, inputs = make_model()
    expected = answer(model, inputs, **options)[0]
    model.__class__ = Reversed
    reversed_answers = answer(model, inputs, **options)[0]
    assert not torch.equal(reversed_answers, expected)
    assert torch.equal(reversed_answers, without_cache_of_ours(model, inputs, **options)[0])


class TestLinear:
    """The same numbers, whichever way they are multiplied."""

    @pytest.fixture(autouse=True)
    def count_small_weights_as_large(self, monkeypatch):
        monkeypatch.setattr("modeling_crossfuse.layers.LARGE_WEIGHT", 0)

    @torch.no_grad()
    @pytest.mark.parametrize("shape", [(1,), (2,), (5,), (40,), (1, 1), (3, 1), (2, 4), (0,), (2, 3, 2)], ids=str)
    @pytest.mark.parametrize("features", [7, 12, 64])
    @pytest.mark.parametrize("bias", [False, True])
    def test_products(self, shape, features, bias):
        linear, states = CrossFuseLinear(6, features, bias=bias), torch.randn(*shape, 6)
        expected = torch.nn.functional.linear(states, linear.weight, linear.bias)
        assert linear(states).shape == expected.shape
        assert_same(linear(states), expected)
        assert_same(linear(states.unsqueeze(0).transpose(0, -2).squeeze(-2)[..., :6]).sum(), expected.sum(), atol=1e-4)

    def test_gradients(self):
        linear, states = CrossFuseLinear(6, 8), torch.randn(2, 6, requires_grad=True)
        linear(states).sum().backward()
        assert_same(states.grad, linear.weight.sum(0).expand(2, -1))

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        linear, states = CrossFuseLinear(6, 8).to(dtype), torch.randn(2, 6, dtype=dtype)
        assert torch.equal(linear(states), torch.nn.functional.linear(states, linear.weight, linear.bias))

    def test_stays_when_the_vocabulary_grows(self):
        model, inputs = make_model()
        expected = answer(model, inputs)[0]
        model.resize_token_embeddings(60, mean_resizing=False)
        assert type(model.lm_head) is CrossFuseLinear and model.lm_head.out_features == 60
        outputs = answer(model, inputs, suppress_tokens=list(range(50, 60)))
        assert torch.equal(outputs[0], expected)

    def test_adapters(self):
        """PEFT takes it for the `nn.Linear` that it is."""
        model, inputs = make_model()
        expected = answer(model, inputs)[0]
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj", "down_proj", "lm_head"]))
        assert torch.equal(answer(adapted, inputs)[0], expected)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        changed, logits = answer(adapted, inputs)
        merged, merged_logits = answer(adapted.merge_and_unload(), inputs)
        assert not torch.equal(changed, expected)
        assert torch.equal(changed, merged)
        assert_same(logits, merged_logits, atol=1e-3)

    def test_int8_weights(self):
        """torchao as well; a weight that is quantised is multiplied its own way."""
        torchao = pytest.importorskip("torchao.quantization")
        model, inputs = make_model()
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig(version=2))
        assert type(model.lm_head) is CrossFuseLinear and type(model.lm_head.weight) is not torch.nn.Parameter
        sequences, logits = answer(model, inputs)
        expected, expected_logits = answer(model, inputs, use_cache=False)
        assert torch.equal(sequences, expected)
        assert_same(logits, expected_logits, atol=1e-3)


@pytest.mark.parametrize("settings", SETTINGS[::2], ids=str)
def test_autocast(settings):
    model, inputs = make_model(**settings, initializer_range=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = answer(model, inputs, max_new_tokens=2)[1]
        expected = without_cache_of_ours(model, inputs, max_new_tokens=2)[1]
    assert_same(logits.float(), expected.float(), atol=0.02)


def test_offloaded_layers():
    """accelerate puts a `forward` of its own on modules, which fetches their weights."""
    model, inputs = make_model()
    expected, _ = answer(model, inputs)
    cpu_offload(model.model.decoder, execution_device="cpu")
    assert model.model.decoder.layers[0].mlp.up_proj.weight.is_meta
    assert torch.equal(answer(model, inputs)[0], expected)


def test_a_cache_with_gradients():
    model, inputs = make_model(dropout=0.5)
    outputs = model(**inputs, decoder_input_ids=torch.ones(3, 1, dtype=torch.long), use_cache=True)
    outputs = model(
        encoder_outputs=(outputs.encoder_last_hidden_state,),
        decoder_input_ids=torch.ones(3, 1, dtype=torch.long),
        **{CACHE: outputs[CACHE]},
    )
    outputs.logits.sum().backward()
    assert model.model.decoder.layers[0].self_attn.k_proj.weight.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_going_on_from_a_returned_cache(options):
    """Also by rows of one's choice: a row of the memory goes with each row of the answer."""
    model, inputs = make_model()
    rows = torch.tensor([0, 2, 1])
    first = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, num_return_sequences=1, **options)
    cache, beams = first[CACHE], options.get("num_beams", 1)
    assert cache.cross_attention_cache.rows == cache.self_attention_cache.layers[0].keys.shape[0] == 3 * beams
    if beams == 1:
        whole, _ = answer(model, inputs)
        cache.batch_select_indices(rows)
        chosen = {name: values[rows] for name, values in inputs.items()}
        going = {"decoder_input_ids": first.sequences[rows], CACHE: cache, "max_new_tokens": 12}
        assert torch.equal(answer(model, chosen, **going)[0], whole[rows])


@torch.no_grad()
def test_rows_of_a_returned_beam_cache():
    """The keys and values of the memory are those of the row's sample."""
    model, inputs = make_model()
    outputs = model.generate(**inputs, max_new_tokens=4, num_beams=2, return_dict_in_generate=True)
    memory = outputs[CACHE].cross_attention_cache
    alone = model(**inputs, decoder_input_ids=torch.ones(3, 1, dtype=torch.long), use_cache=True)[CACHE]
    outputs[CACHE].batch_select_indices(torch.tensor([0, 2, 3]))
    for layer, expected in zip(memory.layers, alone.cross_attention_cache.layers):
        assert_same(layer.keys, expected.keys[[0, 1, 1]])
    assert torch.equal(memory.mask, alone.cross_attention_cache.mask[[0, 1, 1]])
    assert outputs[CACHE].self_attention_cache.layers[0].keys.shape[0] == memory.rows == 3


class TestGrowingLayer:
    def states(self, length: int, rows: int = 2) -> torch.Tensor:
        return torch.randn(rows, 3, length, 4)

    @torch.no_grad()
    def test_appends_in_place_as_the_base_class_does(self):
        ours, theirs = GrowingLayer(), DynamicCache().layer_class_to_replicate()
        for length in (3, 1, 1, 20, 1, 1):
            new = self.states(length), self.states(length)
            for mine, other in zip(ours.update(*new), theirs.update(*new)):
                assert torch.equal(mine, other)
        place = ours.keys.data_ptr()
        ours.update(self.states(1), self.states(1))
        assert ours.keys.data_ptr() == place

    @torch.no_grad()
    @pytest.mark.parametrize("change", ["crop", "reorder", "select", "repeat", "deepcopy", "reset"])
    def test_changes_between_steps(self, change):
        ours, theirs = GrowingLayer(), DynamicCache().layer_class_to_replicate()
        for layer in (ours, theirs):
            torch.manual_seed(0)
            layer.update(self.states(5), self.states(5))
            before = layer.keys.clone()
            if change == "crop":
                layer.crop(-2)
            elif change == "reorder":
                layer.reorder_cache(torch.tensor([1, 1]))
            elif change == "select":
                layer.batch_select_indices(torch.tensor([1]))
            elif change == "repeat":
                layer.batch_repeat_interleave(2)
            elif change == "deepcopy":
                other = copy.deepcopy(layer)
                other.update(self.states(1), self.states(1))
                assert torch.equal(layer.keys, before)
            else:
                layer.reset()
            rows = 2 if layer.keys is None else layer.keys.shape[0]
            torch.manual_seed(1)
            layer.update(self.states(1, rows), self.states(1, rows))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)

    def test_gradients(self):
        layer, first = GrowingLayer(), self.states(2).requires_grad_()
        layer.update(first, first)
        keys, _ = layer.update(self.states(1), self.states(1))
        (keys**2).sum().backward()
        assert_same(first.grad, 2 * first)

    def test_inference_mode(self):
        model, inputs = make_model()
        expected, _ = answer(model, inputs)
        with torch.inference_mode():
            assert torch.equal(answer(model, inputs)[0], expected)


def test_only_beams_may_be_more_than_the_memory():
    model, inputs = make_model()
    memory = model.get_encoder()(**inputs)
    ids = torch.ones(6, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="the decoder's input has 6 samples and the memory has 3"):
        model(encoder_outputs=memory, decoder_input_ids=ids)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(ValueError, match="expected as many"):
        model(encoder_outputs=memory, decoder_input_ids=ids, **{CACHE: cache})
    with pytest.raises(ValueError, match="has 4 samples"):
        model(encoder_outputs=memory, decoder_input_ids=ids[:4], **{CACHE: make_cache(model.config.decoder)})


class TestMemoryCache:
    def cache(self) -> EncoderDecoderCache:
        """Two samples of two beams each."""
        cache = make_cache(make_model()[0].config.decoder)
        with torch.no_grad():
            cache.self_attention_cache.update(torch.arange(4.0).view(4, 1, 1, 1), torch.zeros(4, 1, 1, 1), 0)
            cache.cross_attention_cache.update(torch.arange(2.0).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 0)
        cache.cross_attention_cache.mask = torch.arange(2).view(2, 1, 1, 1)
        return cache

    def rows(self, cache) -> list[list[int]]:
        memory = cache.cross_attention_cache
        return [states.flatten().tolist() for states in (memory.layers[0].keys, memory.mask)]

    def test_stays_with_its_samples_when_beams_change_places(self):
        cache = self.cache()
        cache.reorder_cache(torch.tensor([1, 1, 2, 2]))
        assert cache.self_attention_cache.layers[0].keys.flatten().tolist() == [1, 1, 2, 2]
        assert self.rows(cache) == [[0, 1], [0, 1]]

    def test_a_row_for_each_of_the_answer(self):
        cache = self.cache()
        cache.cross_attention_cache.unshare(4)
        cache.cross_attention_cache.unshare(4)
        assert self.rows(cache) == [[0, 0, 1, 1]] * 2
        cache.reorder_cache(torch.tensor([3, 1, 2, 0]))
        assert self.rows(cache) == [[1, 0, 1, 0]] * 2

    def test_empty(self):
        memory = MemoryCache()
        memory.unshare(4)
        memory.batch_repeat_interleave(2)
        memory.batch_select_indices(torch.tensor([0]))
        assert memory.rows == 0 and memory.mask is None
