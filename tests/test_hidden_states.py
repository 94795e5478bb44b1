# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`output_hidden_states` that names places, and what is left of having asked for what the layers make."""

import sys

import pytest
import torch

from modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseModel,
)

from .helpers import assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


# Text and wrist: two layers each; the joint fusion: one more. The decoder: three.
COUNTS = {"encoder": 1 + 2 + 2 + 1, "decoder": 1 + 3}
PLACES = [[0], [-1], [1, -2], [2, 3, 3], [0, 1, 2, 3, 4, 5], (-6, 5), [99, -99], 2, -1]


def make(model_class=CrossFuseForConditionalGeneration, **settings):
    decoder = {"vocab_size": 50, "num_hidden_layers": 3}
    config = tiny_config("text", "wrist", fusion="joint", num_hidden_layers=2, decoder=decoder, **settings)
    return tiny_model(config, model_class), tiny_inputs(config)


def assert_chosen(hidden_states, whole, places):
    count, places = len(whole), [places] if isinstance(places, int) else places
    chosen = {range(count)[place] for place in places if -count <= place < count}
    assert len(hidden_states) == count
    for place, (states, expected) in enumerate(zip(hidden_states, whole)):
        if place in chosen:
            assert_same(states, expected)
        else:
            assert states is None


@torch.no_grad()
@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize(
    "model_class", [CrossFuseEncoderModel, CrossFuseForSequenceClassification, CrossFuseForTokenClassification]
)
def test_places_of_encoders(model_class, places):
    model, inputs = make(model_class)
    whole = model(**inputs, output_hidden_states=True)
    assert len(whole.hidden_states) == COUNTS["encoder"]
    assert_chosen(model(**inputs, output_hidden_states=places).hidden_states, whole.hidden_states, places)


@torch.no_grad()
@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("model_class", [CrossFuseModel, CrossFuseForConditionalGeneration])
def test_places_of_both_sides(model_class, places):
    """The same are asked of encoder and decoder, each of which has its own number."""
    model, inputs = make(model_class)
    inputs["decoder_input_ids"] = tiny_labels(2, 4)
    whole, chosen = (model(**inputs, output_hidden_states=asked) for asked in (True, places))
    for side, count in COUNTS.items():
        assert len(whole[f"{side}_hidden_states"]) == count
        assert_chosen(chosen[f"{side}_hidden_states"], whole[f"{side}_hidden_states"], places)


@torch.no_grad()
def test_what_the_places_are():
    model, inputs = make()
    whole = model.get_encoder()(**inputs, output_hidden_states=True).hidden_states
    streams = whole[2].shape[1] + whole[4].shape[1]
    assert [states.shape[1] for states in whole] == [5, 5, 5, 5, 5, streams]
    outputs = model(**inputs, output_hidden_states=[-1])
    assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
    assert_same(model.lm_head(outputs.decoder_hidden_states[-1]), outputs.logits)


@torch.no_grad()
def test_places_of_the_modalities_that_are_given():
    """Without the text there are fewer; the last is the last all the same."""
    model, inputs = make(CrossFuseEncoderModel)
    inputs = {"wrist_values": inputs["wrist_values"]}
    whole = model(**inputs, output_hidden_states=True).hidden_states
    assert len(whole) == COUNTS["encoder"] - 2
    assert_chosen(model(**inputs, output_hidden_states=[-1, 0]).hidden_states, whole, [-1, 0])


@torch.no_grad()
def test_features():
    model, inputs = make(CrossFuseForRetrieval)
    whole = model.get_fused_features(**inputs, output_hidden_states=True).hidden_states
    assert_chosen(model.get_fused_features(**inputs, output_hidden_states=[1, -1]).hidden_states, whole, [1, -1])


@torch.no_grad()
@pytest.mark.parametrize("asked", [None, False, []], ids=str)
def test_nothing_is_asked_for(asked):
    model, inputs = make()
    outputs = model(**inputs, output_hidden_states=asked)
    assert outputs.encoder_hidden_states is None and outputs.decoder_hidden_states is None


@torch.no_grad()
def test_tuples():
    model, inputs = make(CrossFuseEncoderModel)
    outputs = model(**inputs, output_hidden_states=[-1])
    for part in (model, model.encoder):
        memory, *others = part(**inputs, output_hidden_states=[-1], return_dict=False)
        (hidden_states,) = (each for each in others if isinstance(each, tuple))
        assert torch.equal(memory, outputs.last_hidden_state) and hidden_states[:-1] == (None,) * 5


@torch.no_grad()
def test_generate():
    model, inputs = make(eos_token_id=None)
    outputs = model.generate(
        **inputs, max_new_tokens=3, return_dict_in_generate=True, output_hidden_states=[-1], use_cache=False
    )
    whole = model(**inputs, decoder_input_ids=outputs.sequences[:, :-1], output_hidden_states=True)
    assert_chosen(outputs.encoder_hidden_states, whole.encoder_hidden_states, [-1])
    assert_chosen(outputs.decoder_hidden_states[-1], whole.decoder_hidden_states, [-1])


@torch.no_grad()
def test_compiled():
    torch.compiler.reset()
    model, inputs = make(CrossFuseEncoderModel)
    whole = model(**inputs, output_hidden_states=True).hidden_states
    compiled = torch.compile(model, backend="eager")
    assert_chosen(compiled(**inputs, output_hidden_states=[1, -1]).hidden_states, whole, [1, -1])


# What is left of it


def calls_of(function) -> int:
    """How many Python functions a call enters."""
    count = 0

    def enter(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(enter)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@torch.no_grad()
@pytest.mark.parametrize("flag", ["output_attentions", "output_hidden_states"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_model_that_was_asked_once_answers_the_same(implementation, flag):
    model, inputs = make(eos_token_id=None, attn_implementation=implementation)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    before = model.generate(**inputs, **options)
    model(**inputs, **{flag: True})
    after = model.generate(**inputs, **options)
    assert torch.equal(before.sequences, after.sequences)
    assert torch.equal(torch.stack(before.logits), torch.stack(after.logits))
    outputs = model(**inputs)
    assert outputs.decoder_hidden_states is None and outputs.decoder_attentions is None


@torch.no_grad()
def test_what_idle_hooks_cost():
    """On each recorded module a hook, of transformers' own, asks whether it is wanted; nothing else gets slower."""
    model, inputs = make(eos_token_id=None)
    tokens = 16

    def answer():
        model.generate(**inputs, max_new_tokens=tokens)

    answer()
    before = calls_of(answer)
    model(**inputs, output_attentions=True, output_hidden_states=True)
    answer()
    per_token = (calls_of(answer) - before) / tokens
    recorded = 3 * 3  # a layer and its two attentions, three times
    assert per_token <= 6 * recorded
