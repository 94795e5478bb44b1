# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Every option of `GenerationConfig`: it works, or it is one error that names it."""

import pytest
import torch
from transformers import BertConfig, CompileConfig, GenerationConfig

from .helpers import MODALITIES, tiny_config, tiny_inputs, tiny_model


BERT = BertConfig(vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
MODELS = {
    "shared vocabulary": {"text": {"vocab_size": 50}},
    "no text": {"image": MODALITIES["image"]},
    "wrapped encoder": {"text": {"encoder": BERT}},
}
MODES = [{}, {"num_beams": 3}]
NEW_TOKENS = 8

# Options that leave the answers as they are.
SAME = {
    "use_cache": False,
    "cache_implementation": "static",
    "max_length": NEW_TOKENS + 1,
    "min_length": 3,
    "min_new_tokens": 3,
    "max_time": 100.0,
    "early_stopping": False,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "top_h": None,
    "typical_p": None,
    "epsilon_cutoff": None,
    "eta_cutoff": None,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "num_return_sequences": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "decoder_start_token_id": [1, 1],
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
    "prefill_chunk_size": 2,
    "disable_compile": True,
    "compile_config": CompileConfig(),
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "token_healing": False,
    "is_assistant": False,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.3,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "max_matching_ngram_size": 2,
}
# Options that may change them.
OTHER = {
    "do_sample": True,
    "length_penalty": 2.0,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[5], [6, 7]],
    "suppress_tokens": [3, 4],
    "begin_suppress_tokens": [5],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 2,
    "sequence_bias": [[[5], 10.0]],
    "exponential_decay_length_penalty": (2, 1.5),
    "watermarking_config": {"bias": 2.5, "seeding_scheme": "lefthash"},
}
REFUSED = {"guidance_scale": 1.5, "token_healing": True, "negative_prompt_ids": torch.ones(2, 3, dtype=torch.long)}
READING_TEXTS = {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 30.0}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    settings = {"eos_token_id": None, "tie_word_embeddings": False, "initializer_range": 0.4}
    return tiny_model(tiny_config(modalities=MODELS[request.param], **settings))


@pytest.fixture(scope="module")
def inputs(model):
    if model.config.modalities.names_of_kind("text"):
        return {"input_ids": torch.tensor([[3, 9, 12, 20, 25], [4, 4, 8, 15, 29]])}
    return tiny_inputs(model.config)


def generate(model, inputs, mode, **options) -> torch.Tensor:
    length = {} if "max_length" in options else {"max_new_tokens": NEW_TOKENS}
    return model.generate(**inputs, **{**length, **mode, **options})


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("option", [option for option in SAME if hasattr(GenerationConfig(), option)])
def test_options_that_change_nothing(model, inputs, option, mode):
    expected = generate(model, inputs, mode)
    assert torch.equal(generate(model, inputs, mode, **{option: SAME[option]}), expected)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("option", [option for option in OTHER if hasattr(GenerationConfig(), option)])
def test_options_that_change_answers(model, inputs, option, mode):
    end = {"eos_token_id": 49} if option == "exponential_decay_length_penalty" else {}
    answers = generate(model, inputs, mode, **{option: OTHER[option]}, **end)
    assert answers.shape == (2, NEW_TOKENS + 1) or end
    assert option not in ("suppress_tokens", "bad_words_ids") or not torch.isin(answers[:, 1:], torch.tensor(5)).any()
    assert option != "forced_bos_token_id" or (answers[:, 1] == 7).all()


@pytest.mark.parametrize("place", ["argument", "given config", "config of the model"])
@pytest.mark.parametrize("option", REFUSED)
def test_options_that_are_refused(model, inputs, option, place, monkeypatch):
    options = {option: REFUSED[option]}
    if place == "given config" and option != "negative_prompt_ids":
        options = {"generation_config": GenerationConfig(**options)}
    elif place == "config of the model" and option != "negative_prompt_ids":
        monkeypatch.setattr(model.generation_config, *options.popitem())
    with pytest.raises(ValueError, match=f"`{option}` is no option of this model"):
        model.generate(**inputs, **options)


@pytest.mark.parametrize("option", READING_TEXTS)
def test_options_that_read_texts_of_another_vocabulary(model, inputs, option):
    texts = [model.config.modalities[name] for name in model.config.modalities.names_of_kind("text")]
    if texts and texts[0].vocab_size == model.config.vocab_size:
        pytest.skip("the vocabulary is shared")
    with pytest.raises(ValueError, match=f"`{option}` compares tokens of the answer with those of texts"):
        model.generate(**inputs, **{option: READING_TEXTS[option]})


@pytest.fixture(scope="module")
def two_texts():
    """A model of two texts and an image, and samples that have both, one and none of the texts."""
    names = {"text": {"vocab_size": 50}, "hint": {"kind": "text", "vocab_size": 50}, "image": MODALITIES["image"]}
    config = tiny_config(modalities=names, eos_token_id=None, tie_word_embeddings=False, initializer_range=0.4)
    masks = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 3),
        "modality_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]]),
    }
    return tiny_model(config), {**tiny_inputs(config, 3), **masks}


def texts_of(inputs) -> list[set[int]]:
    """What each sample reads."""
    kept = inputs["modality_mask"]
    return [
        set(inputs["input_ids"][row, :4].tolist() if kept[row, 0] else [])
        | set(inputs["hint_input_ids"][row].tolist() if kept[row, 1] else [])
        for row in range(3)
    ]


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_tokens_of_texts_are_banned(two_texts, mode):
    model, inputs = two_texts
    answers = generate(model, inputs, mode, encoder_no_repeat_ngram_size=1)[:, 1:].reshape(3, -1)
    for answer, banned in zip(answers.tolist(), texts_of(inputs)):
        assert not set(answer) & banned


@pytest.mark.parametrize("ends", [2, [2, 3]])
def test_answers_may_end_as_texts_do(ends):
    model = tiny_model(tiny_config("text", modalities={"text": {"vocab_size": 50}}, eos_token_id=ends))
    inputs = {"input_ids": torch.tensor([[7, 8, 2], [9, 2, 2]])}
    options = {"encoder_no_repeat_ngram_size": 1, "forced_eos_token_id": 2}
    assert (model.generate(**inputs, max_new_tokens=3, **options)[:, -1] == 2).all()


def test_tokens_of_texts_are_preferred(two_texts):
    model, inputs = two_texts
    with torch.no_grad():
        scores = model(**inputs).logits[:, 0]
    for row, text in enumerate(texts_of(inputs)):
        for token in text:
            scores[row, token] *= 30.0 if scores[row, token] > 0 else 1 / 30.0
    answers = generate(model, inputs, {}, encoder_repetition_penalty=30.0)
    assert torch.equal(answers[:, 1], scores.argmax(1))
    assert torch.equal(answers[2], generate(model, inputs, {})[2])


def test_missing_texts_and_texts_without_tokens(two_texts):
    model, inputs = two_texts
    image = {"pixel_values": inputs["pixel_values"]}
    options = {"encoder_no_repeat_ngram_size": 1}
    assert torch.equal(generate(model, image, {}, **options), generate(model, image, {}))
    embeds = model.get_encoder().encoders["text"].get_input_embeddings()(inputs["input_ids"])
    memory = model.get_encoder()(**inputs)
    for given, name in (
        ({"inputs_embeds": embeds}, "inputs_embeds"),
        ({"encoder_outputs": memory}, "encoder_outputs"),
    ):
        with pytest.raises(ValueError, match=f"`encoder_no_repeat_ngram_size` reads the tokens of texts.*`{name}`"):
            generate(model, given, {}, **options)


@pytest.mark.parametrize("draft", ["assistant", "prompt lookup"])
@pytest.mark.parametrize("option", READING_TEXTS)
def test_drafts_with_options_that_read_texts(two_texts, option, draft):
    model, inputs = two_texts
    inputs = {name: value[:1] for name, value in inputs.items()}
    options = {option: READING_TEXTS[option]}
    drafted = (
        {"prompt_lookup_num_tokens": 2}
        if draft == "prompt lookup"
        else {"assistant_model": tiny_model(model.config, seed=1)}
    )
    assert torch.equal(generate(model, inputs, {}, **options, **drafted), generate(model, inputs, {}, **options))
