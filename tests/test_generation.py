# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Generation in every mode, against a loop without a cache that is written out below."""

import copy
import math

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import StaticCache
from transformers.generation import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from modeling_crossfuse.decoder_cache import CACHE

from .helpers import (
    FUSIONS,
    assert_same,
    checkpoint_activations,
    count_calls,
    take_rows,
    tiny_config,
    tiny_inputs,
    tiny_labels,
    tiny_model,
)
from .plain_decoder import plain_logits


STEPS = 7
START, EOS, PAD = 1, 2, 0
NAMES = ("text", "image", "wrist")
CACHES = [{}, {"use_cache": False}, {"cache_implementation": "static"}]


def make_model(*names, fusion="bottleneck", eos_token_id=None, decoder=None, **settings):
    """A model that does not stop by itself, unless given a token to stop at."""
    settings = {"tie_word_embeddings": False, "initializer_range": 0.4, **settings}
    decoder = {"vocab_size": 50, "num_hidden_layers": 2, **(decoder or {})}
    config = tiny_config(*(names or NAMES), fusion=fusion, eos_token_id=eos_token_id, decoder=decoder, **settings)
    model = tiny_model(config)
    for name, parameter in model.named_parameters():
        if (
            "q_proj" in name
        ):  # attention that picks, as that of trained models does: answers vary, and depend on inputs
            parameter.data *= 3
    return model


def make_inputs(model, batch_size: int = 3):
    """Three samples that differ in what they have and in how long it is."""
    inputs = tiny_inputs(model.config, batch_size)
    if model.config.modalities.keys() == list(NAMES) and batch_size == 3:
        inputs["attention_mask"] = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
        inputs["modality_mask"] = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]])
    return inputs


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def inputs(model):
    return make_inputs(model)


@pytest.fixture(scope="module")
def expected(model, inputs):
    answers = reference(model, inputs)
    assert len({tuple(answer) for answer in answers.tolist()}) == 3, "samples answered alike would test nothing"
    assert all(len(set(answer)) > 3 for answer in answers.tolist()), "answers of one token would test nothing"
    return answers


@torch.no_grad()
def next_scores(model, inputs, ids, **masks):
    """Log probabilities of the token after `ids`, by a full forward pass without a cache."""
    return model(**inputs, decoder_input_ids=ids, use_cache=False, **masks).logits[:, -1].float().log_softmax(-1)


def reference(model, inputs, steps: int = STEPS, prompt=None) -> torch.Tensor:
    """Greedy search, one full forward pass per token."""
    batch_size = next(iter(inputs.values())).shape[0]
    ids = torch.full((batch_size, 1), START) if prompt is None else prompt
    for _ in range(steps):
        ids = torch.cat([ids, next_scores(model, inputs, ids).argmax(-1, keepdim=True)], dim=1)
    return ids


@torch.no_grad()
def score_of(model, inputs, ids, start: int = 1) -> torch.Tensor:
    """Sum of the log probabilities of `ids` from position `start` on, by one forward pass without a cache."""
    logits = model(**inputs, decoder_input_ids=ids[:, :-1], use_cache=False).logits.log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, start - 1 :].sum(-1)


def beam_reference(model, inputs, num_beams: int, steps: int = STEPS):
    """Beam search of one sample without an end token: the best sequences and their summed log probabilities."""
    beams = [([START], 0.0)]
    for _ in range(steps):
        candidates = []
        for ids, score in beams:
            scores = next_scores(model, inputs, torch.tensor([ids]))[0]
            candidates += [([*ids, token], score + value) for token, value in enumerate(scores.tolist())]
        beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return beams


def repeat(inputs, times: int):
    return {name: value.repeat_interleave(times, 0) for name, value in inputs.items()}


# What the reference rests on: a decoder that shares no code with the model's


PLAIN_SETTINGS = [
    {},
    {"fusion": "concat", "tie_word_embeddings": True},
    {"position_embedding_type": "sinusoidal", "fusion": "joint"},
    {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500.0},
    {"mlp_type": "gelu", "norm_type": "layernorm", "attn_implementation": "eager"},
]


def close_in_float64(actual, expected):
    # Rotary and sinusoidal angles are float32 in the model.
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", PLAIN_SETTINGS, ids=str)
def test_logits_of_a_plain_decoder(settings):
    model = make_model(**settings).double()
    inputs = make_inputs(model)
    ids, mask = torch.randint(3, 50, (3, 6)), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    memory = model.get_encoder()(**inputs)
    actual = model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False).logits
    kept = mask != 0
    close_in_float64(actual[kept], plain_logits(model, memory, ids, mask)[kept])


@torch.no_grad()
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("settings", PLAIN_SETTINGS, ids=str)
def test_greedy_search_of_a_plain_decoder(settings, cache):
    """Tokens and logits, with every cache."""
    model = make_model(**settings).double()
    inputs = make_inputs(model)
    options = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    outputs = model.generate(**inputs, **options, **cache)
    logits = plain_logits(model, model.get_encoder()(**inputs), outputs.sequences[:, :-1])
    close_in_float64(torch.stack(outputs.logits, dim=1).double(), logits)
    assert torch.equal(outputs.sequences[:, 1:], logits.argmax(-1))


# Greedy search, with every cache


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_greedy(fusion, cache):
    """Other settings: see `test_greedy_search_of_a_plain_decoder`."""
    model = make_model(fusion=fusion)
    inputs = make_inputs(model)
    answers = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, **cache)
    assert torch.equal(answers, reference(model, inputs))


@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded"])
def test_cache_implementations(model, inputs, expected, cache):
    if cache == "offloaded" and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs an accelerator to offload from")
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, cache_implementation=cache), expected)


def test_a_cache_of_the_users_own(model, inputs, expected):
    config = model.config.get_text_config(decoder=True)
    memory_length = 5 + 4 + 5 + 3
    caches = [
        EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
        EncoderDecoderCache(
            StaticCache(config=config, max_cache_len=STEPS + 1),
            StaticCache(config=config, max_cache_len=memory_length),
        ),
    ]
    for cache in caches:
        assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, **{CACHE: cache}), expected)


def test_static_cache_twice(model, inputs, expected):
    """The second call may reuse what the first one made."""
    for length in (STEPS, STEPS - 2, STEPS):
        answers = model.generate(**inputs, max_new_tokens=length, cache_implementation="static")
        assert torch.equal(answers, expected[:, : length + 1])


def test_use_cache_of_the_config():
    model = make_model(decoder={"use_cache": False})
    inputs = make_inputs(model)
    outputs = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True)
    assert torch.equal(outputs.sequences, reference(model, inputs))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_forward_with_a_static_cache(backend):
    torch.compiler.reset()
    model = make_model("text", "wrist", fusion="joint")
    inputs = make_inputs(model)
    inputs["modality_mask"] = torch.tensor([[1, 1], [0, 1], [1, 0]])
    expected = reference(model, inputs)
    model.forward = torch.compile(model.forward, fullgraph=True, backend=backend)
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, cache_implementation="static"), expected)


def test_step_by_step_with_a_cache_gives_the_logits_of_one_pass(model, inputs, expected):
    """Not only the same choices: the same numbers, in float64, since this model magnifies how float32 rounds."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=expected, use_cache=False).logits
        outputs, steps = model(**inputs, decoder_input_ids=expected[:, :3], use_cache=True), []
        steps.append(outputs.logits)
        memory = model.get_encoder()(**inputs)
        for position in range(3, expected.shape[1]):
            outputs = model(
                encoder_outputs=memory,
                decoder_input_ids=expected[:, position : position + 1],
                **{CACHE: outputs[CACHE]},
                use_cache=True,
            )
            steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-11, rtol=1e-11)


# Beams


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_beam_search(model, inputs, num_beams, cache):
    outputs = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        **cache,
    )
    sequences = outputs.sequences.unflatten(0, (3, num_beams))
    for sample in range(3):
        alone = take_rows(inputs, slice(sample, sample + 1))
        beams = beam_reference(model, alone, num_beams)
        assert sequences[sample].tolist() == [ids for ids, _ in beams]
    recomputed = score_of(model, repeat(inputs, num_beams), outputs.sequences)
    if num_beams > 1:
        assert_same(outputs.sequences_scores, recomputed, atol=1e-4)
    transitions = model.compute_transition_scores(
        outputs.sequences, outputs.scores, getattr(outputs, "beam_indices", None), normalize_logits=num_beams == 1
    )
    assert_same(transitions.sum(-1), recomputed, atol=1e-4)


def test_beam_search_that_stops(model, inputs):
    """Beams of different lengths, with padding behind the end; the score is the mean log probability of a token."""
    end = model.generate(**inputs, max_new_tokens=4)[0, 3].item()
    outputs = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        num_beams=4,
        num_return_sequences=4,
        eos_token_id=end,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = set()
    for row, (ids, score) in enumerate(zip(outputs.sequences.tolist(), outputs.sequences_scores.tolist())):
        length = ids.index(end) + 1 if end in ids else len(ids)
        assert set(ids[length:]) <= {end}  # what transformers' beam search fills with where the padding token is 0
        alone = take_rows(inputs, slice(row // 4, row // 4 + 1))
        total = score_of(model, alone, torch.tensor([ids[:length]])).item()
        # Divided by the length without the start token.
        assert score == pytest.approx(total / (length - 1), abs=1e-4)
        lengths.add(length)
    assert len(lengths) > 1


def test_beam_sampling(model, inputs):
    settings = {"do_sample": True, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS, "top_k": 10}
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(model.generate(**inputs, **settings))
    assert answers[0].shape == (6, STEPS + 1)
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_number_of_answers_needs_as_many_beams(model, inputs):
    with pytest.raises(ValueError, match="num_return_sequences"):
        model.generate(**inputs, num_beams=2, num_return_sequences=3, max_new_tokens=2)


# Every fusion, way of decoding and pattern of what is missing


@pytest.fixture(scope="module", params=FUSIONS)
def every_pattern(request):
    """A model, and a sample for each set of modalities that there can be, of different lengths."""
    model = make_model(fusion=request.param)
    patterns = [[int(number & place > 0) for place in (1, 2, 4)] for number in range(1, 8)]
    inputs = tiny_inputs(model.config, batch_size=7)
    inputs["attention_mask"] = (torch.arange(5) < torch.tensor([[5], [1], [3], [2], [4], [5], [2]])).long()
    inputs["wrist_mask"] = (torch.arange(5) < torch.tensor([[2], [5], [1], [3], [5], [4], [5]])).long()
    return model, {**inputs, "modality_mask": torch.tensor(patterns)}


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 2, "do_sample": True},
        {"cache_implementation": "static"},
        {"num_beams": 3, "cache_implementation": "static"},
        {"return_dict_in_generate": True, "num_beams": 3},
        {"prefill_chunk_size": 2, "decoder_input_ids": torch.tensor([[START, 9, 8, 7, 6]] * 7)},
    ],
    ids=lambda method: "-".join(method) or "greedy",
)
def test_cached_as_uncached(every_pattern, method):
    """Without a cache, generate runs what training runs, all of it at each token."""
    model, inputs = every_pattern
    uncached = {
        key: value for key, value in method.items() if key not in ("cache_implementation", "prefill_chunk_size")
    }
    answers = []
    for settings in (method, {**uncached, "use_cache": False}):
        torch.manual_seed(0)
        outputs = model.generate(**inputs, max_new_tokens=STEPS, **settings)
        answers.append(outputs.sequences if method.get("return_dict_in_generate") else outputs)
    assert torch.equal(*answers)
    assert len({tuple(answer) for answer in answers[0].tolist()}) > len(answers[0]) / 2, "answers hardly differ"


def test_greedy_without_a_cache(every_pattern):
    model, inputs = every_pattern
    answers = model.generate(**inputs, max_new_tokens=STEPS, use_cache=False)
    assert torch.equal(answers, reference(model, inputs))


@pytest.mark.parametrize("method", [{"prompt_lookup_num_tokens": 2}, {"assistant_model": None}], ids=str)
def test_drafts_of_every_pattern(every_pattern, method):
    model, inputs = every_pattern
    if "assistant_model" in method:
        method = {"assistant_model": tiny_model(tiny_config(*NAMES, d_model=16, fusion="concat"), seed=1)}
    expected = reference(model, inputs)
    for row in range(7):
        assert torch.equal(model.generate(**one(inputs, row), max_new_tokens=STEPS, **method), expected[row : row + 1])


def test_an_assistant_of_a_model_without_text():
    """It reads the modalities with an encoder of its own, whatever they are called."""
    model = make_model("image", "wrist")
    inputs, assistant = make_inputs(model), tiny_model(tiny_config("image", "wrist", d_model=16), seed=1)
    expected = reference(model, inputs)
    for row, missing in enumerate((None, "pixel_values", "wrist_values")):
        given = {name: value for name, value in one(inputs, row).items() if name != missing}
        answers = model.generate(**given, max_new_tokens=STEPS, assistant_model=assistant)
        assert torch.equal(answers, expected[row : row + 1] if missing is None else reference(model, given))


@pytest.mark.parametrize("names", [("image",), ("wrist", "image"), ("text", "wrist")], ids="-".join)
def test_the_main_input_as_the_first_argument(names):
    model = make_model(*names)
    inputs = make_inputs(model)
    main = {"image": "pixel_values", "wrist": "wrist_values", "text": "input_ids"}[names[0]]
    rest = {name: value for name, value in inputs.items() if name != main}
    assert torch.equal(model.generate(inputs[main], **rest, max_new_tokens=STEPS), reference(model, inputs))
    with pytest.raises(ValueError, match=f"`inputs` and `{main}` are both given"):
        model.generate(inputs[main], **inputs)


# Sampling


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize(
    "settings", [{"top_k": 0}, {"top_k": 5}, {"top_k": 0, "top_p": 0.7}, {"temperature": 0.5, "top_k": 0}], ids=str
)
def test_sampling_draws_what_a_loop_draws(model, inputs, settings, cache):
    torch.manual_seed(0)
    answers = model.generate(**inputs, do_sample=True, max_new_tokens=STEPS, **settings, **cache)
    torch.manual_seed(0)
    ids = torch.full((3, 1), START)
    for _ in range(STEPS):
        scores = next_scores(model, inputs, ids) / settings.get("temperature", 1.0)
        if settings["top_k"]:
            scores = scores.masked_fill(scores < scores.topk(settings["top_k"]).values[:, -1:], -math.inf)
        if "top_p" in settings:
            ordered, order = scores.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            scores = scores.masked_fill(
                (before >= settings["top_p"]).scatter(1, order, before >= settings["top_p"]), -math.inf
            )
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1)], dim=1)
    assert torch.equal(answers, ids)


def test_several_samples_of_one_input(model, inputs):
    torch.manual_seed(0)
    answers = model.generate(**inputs, do_sample=True, num_return_sequences=4, max_new_tokens=STEPS)
    assert answers.shape == (12, STEPS + 1)
    assert len({tuple(answer) for answer in answers[:4].tolist()}) > 1


# Drafts that the model only checks


def one(inputs, row: int = 0):
    return take_rows(inputs, slice(row, row + 1))


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 1], ids=["agrees", "disagrees"])
def test_assisted_decoding(model, inputs, expected, seed, row):
    """By a smaller CrossFuse, which has an encoder of its own; a good draft or a bad one, the answer is the same."""
    assistant = model if seed == 0 else tiny_model(tiny_config(*NAMES, d_model=16, fusion="concat"), seed=seed)
    answers = model.generate(**one(inputs, row), max_new_tokens=STEPS, assistant_model=assistant)
    assert torch.equal(answers, expected[row : row + 1])


def test_assisted_decoding_saves_steps_when_the_assistant_agrees(model, inputs):
    calls = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: calls.append(output.shape[1]))
    model.generate(**one(inputs), max_new_tokens=STEPS, assistant_model=make_model())
    handle.remove()
    assert len(calls) < STEPS


def test_assisted_sampling(model, inputs):
    assistant = tiny_model(tiny_config(*NAMES, d_model=16))
    torch.manual_seed(0)
    answers = model.generate(**one(inputs), max_new_tokens=STEPS, assistant_model=assistant, do_sample=True)
    assert answers.shape == (1, STEPS + 1)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_prompt_lookup(model, inputs, row):
    # A prompt that repeats itself, so that there is something to look up.
    prompt = torch.tensor([[START, 5, 6, 7, 5, 6, 7, 5, 6]])
    answers = model.generate(
        **one(inputs, row), decoder_input_ids=prompt, max_new_tokens=STEPS, prompt_lookup_num_tokens=3
    )
    assert torch.equal(answers, reference(model, one(inputs, row), prompt=prompt))


# Prompts of the decoder


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_prompt_is_continued(model, inputs, cache):
    prompt = torch.tensor([[START, 9, 8], [START, 7, 6], [START, 5, 4]])
    answers = model.generate(**inputs, decoder_input_ids=prompt, max_new_tokens=STEPS, **cache)
    assert torch.equal(answers, reference(model, inputs, prompt=prompt))


def test_a_prompt_without_the_start_token_gets_it(model, inputs):
    prompt = torch.tensor([[9, 8], [7, 6], [5, 4]])
    answers = model.generate(**inputs, decoder_input_ids=prompt, max_new_tokens=STEPS)
    started = torch.cat([torch.full((3, 1), START), prompt], dim=1)
    assert torch.equal(answers, reference(model, inputs, prompt=started))


@pytest.mark.parametrize("settings", [{}, {"position_embedding_type": "sinusoidal"}], ids=str)
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_left_padded_prompts(settings, num_beams, cache):
    """A prompt goes on as it does without the padding to its left."""
    model = make_model(**settings)
    inputs = make_inputs(model)
    prompts = [[START, 9, 8, 7, 6], [START, 5], [START, 4, 3]]
    padded = torch.tensor([[PAD] * (5 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (5 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    common = {"max_new_tokens": STEPS, "num_beams": num_beams, **cache}
    answers = model.generate(**inputs, decoder_input_ids=padded, decoder_attention_mask=mask, **common)
    for row, prompt in enumerate(prompts):
        alone = model.generate(**one(inputs, row), decoder_input_ids=torch.tensor([prompt]), **common)
        assert answers[row, 5:].tolist() == alone[0, len(prompt) :].tolist()


def test_left_padding_changes_no_logits(model, inputs):
    prompt = torch.tensor([[START, 9, 8]] * 3)
    padded = torch.cat([torch.full((3, 2), PAD), prompt], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 3)
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=prompt).logits
        actual = model(**inputs, decoder_input_ids=padded, decoder_attention_mask=mask).logits
    assert_same(actual[:, 2:], expected)


# Going on, and beginning in the middle


def test_continuing_from_a_returned_cache(model, inputs, expected):
    first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    second = model.generate(
        **inputs, decoder_input_ids=first.sequences, **{CACHE: first[CACHE]}, max_new_tokens=STEPS - 3
    )
    assert torch.equal(second, expected)


def test_continuing_from_a_returned_cache_with_a_longer_prompt(model, inputs):
    """The words of a user after those of the model."""
    first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    prompt = torch.cat([first.sequences, torch.tensor([[9, 8]] * 3)], dim=1)
    second = model.generate(**inputs, decoder_input_ids=prompt, **{CACHE: first[CACHE]}, max_new_tokens=STEPS)
    assert torch.equal(second, reference(model, inputs, prompt=prompt))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_encoder_outputs_in_place_of_inputs(model, inputs, settings):
    with torch.no_grad():
        memory = model.get_encoder()(**inputs)
    kept = memory.last_hidden_state.clone()
    answers = model.generate(encoder_outputs=memory, max_new_tokens=STEPS, **settings)
    assert torch.equal(answers, model.generate(**inputs, max_new_tokens=STEPS, **settings))
    # And the memory can be asked again.
    assert torch.equal(memory.last_hidden_state, kept)
    with pytest.raises(ValueError, match="and `encoder_outputs`, which has a mask"):
        model.generate(encoder_outputs=memory, wrist_values=inputs["wrist_values"])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_batch_against_single(model, inputs, settings):
    together = model.generate(**inputs, max_new_tokens=STEPS, **settings)
    for row in range(3):
        alone = model.generate(**one(inputs, row), max_new_tokens=STEPS, **settings)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("names", [("image",), ("wrist",), ("audio", "video"), ("wrist", "text")], ids="-".join)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_any_modalities(names, settings):
    model = make_model(*names)
    inputs = make_inputs(model)
    answers = model.generate(**inputs, max_new_tokens=STEPS, **settings)
    if not settings.get("num_beams"):
        assert torch.equal(answers, reference(model, inputs))
    assert answers.shape == (3, STEPS + 1)


@pytest.mark.parametrize("missing", NAMES)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=str)
def test_a_modality_that_is_not_given_at_all(model, missing, settings):
    inputs = tiny_inputs(model.config)
    value_name = model.config.modalities.value_name(missing)
    mask = torch.tensor([[int(name != missing) for name in NAMES]] * 2)
    expected = model.generate(**inputs, modality_mask=mask, max_new_tokens=STEPS, **settings)
    del inputs[value_name]
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, **settings), expected)
    assert torch.equal(model.generate(**inputs, **{value_name: None}, max_new_tokens=STEPS, **settings), expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_read_no_modality_that_is_missing(num_beams):
    model = make_model("text", "wrist", fusion="concat")
    inputs = {**tiny_inputs(model.config, 3), "modality_mask": torch.tensor([[1, 0], [0, 1], [1, 0]])}
    settings = {"max_new_tokens": STEPS, "num_beams": num_beams}
    answers = model.generate(**inputs, **settings)
    returned = model.generate(**inputs, **settings, return_dict_in_generate=True)
    assert torch.equal(answers, returned.sequences)
    memory = returned[CACHE].cross_attention_cache
    assert memory.layers[0].keys.shape[:3] == (3 * num_beams, 2, 5)  # of the 10 positions that both would have
    assert torch.equal(memory.mask, torch.zeros(3 * num_beams, 1, 1, 5))


def test_two_modalities_of_one_kind():
    modalities = {name: {"kind": "image", "image_size": 8, "patch_size": 4} for name in ("left_eye", "right_eye")}
    model = make_model(modalities=modalities)
    inputs = tiny_inputs(model.config)
    assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS), reference(model, inputs))


def test_embeddings_in_place_of_tokens(model, inputs, expected):
    embeds = model.get_encoder().get_input_embeddings()(inputs["input_ids"])
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    answers = model.generate(**rest, inputs_embeds=embeds, max_new_tokens=STEPS)
    assert torch.equal(answers, expected)


def test_tokens_as_the_first_argument(model, inputs, expected):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(model.generate(inputs["input_ids"], **rest, max_new_tokens=STEPS), expected)


# What is computed, and how often


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_memory_is_read_once(cache, num_beams):
    """Encoders, fusion, and the keys and values of cross-attention work once per generation."""
    model = make_model("text", "wrist")
    inputs = make_inputs(model)
    attention = model.model.decoder.layers[0].cross_attn
    encoder = model.model.encoder
    counted = [encoder.encoders["text"], encoder.encoders["wrist"], encoder.fusion]
    counted += [attention.k_proj, attention.v_proj]
    counts = [count_calls(module) for module in counted]
    steps = count_calls(attention.q_proj)
    model.generate(**inputs, max_new_tokens=STEPS, num_beams=num_beams, **cache)
    assert [len(count) for count in counts] == [1] * 5
    assert counts[0] == counts[1] == [3]
    assert len(steps) == STEPS


def test_with_a_cache_each_step_reads_one_token(model, inputs):
    lengths = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model.generate(**inputs, max_new_tokens=STEPS)
    handle.remove()
    assert lengths == [1] * STEPS


# Where it ends


@pytest.fixture(scope="module")
def end(expected):
    """A token that ends the first answer early and not the others'."""
    return next(token for token in expected[0, 3:5].tolist() if token not in expected[1:].tolist()[0][:4])


def ended(answers: torch.Tensor, end: int) -> list[list[int]]:
    """What the reference says, with padding behind the end."""
    rows = answers.tolist()
    rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
    length = max(map(len, rows))
    return [row + [PAD] * (length - len(row)) for row in rows]


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_end_of_sequence(model, inputs, expected, end, cache):
    answers = model.generate(**inputs, max_new_tokens=STEPS, eos_token_id=end, **cache)
    assert answers.tolist() == ended(expected, end)


def test_several_end_tokens(model, inputs, expected):
    ends = [expected[0, 3].item(), expected[1, 2].item()]
    answers = model.generate(**inputs, max_new_tokens=STEPS, eos_token_id=ends).tolist()
    for answer, row in zip(answers, expected.tolist()):
        stop = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
        assert answer[: stop + 1] == row[: stop + 1]
        assert set(answer[stop + 1 :]) <= {PAD}


def test_end_token_of_the_config(expected, end):
    model = make_model(eos_token_id=end)
    assert model.generation_config.eos_token_id == end
    assert model.generation_config.decoder_start_token_id == START
    assert model.generate(**make_inputs(model), max_new_tokens=STEPS).tolist() == ended(expected, end)


@pytest.mark.parametrize("setting", [{"min_new_tokens": 6}, {"min_length": 7}], ids=str)
def test_shortest_length(model, inputs, end, setting):
    answers = model.generate(**inputs, max_new_tokens=STEPS, eos_token_id=end, **setting)
    assert end not in answers[:, :7].flatten().tolist()


@pytest.mark.parametrize("setting", [{"max_length": 5}, {"max_new_tokens": 4}], ids=str)
def test_longest_length(model, inputs, expected, setting):
    assert torch.equal(model.generate(**inputs, **setting), expected[:, :5])


class Forbid(LogitsProcessor):
    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.tokens] = -math.inf
        return scores


class StopAfter(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_logits_processors(model, inputs, expected):
    forbidden = sorted(set(expected[:, 1].tolist()))
    answers = model.generate(**inputs, max_new_tokens=STEPS, logits_processor=LogitsProcessorList([Forbid(forbidden)]))
    assert not set(answers[:, 1:].flatten().tolist()) & set(forbidden)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": [3, 4, 5]},
        {"bad_words_ids": [[7]]},
    ],
    ids=str,
)
def test_settings_of_transformers_own_processors(model, inputs, settings):
    answers = model.generate(**inputs, max_new_tokens=STEPS, **settings)
    assert answers.shape == (3, STEPS + 1)
    if "no_repeat_ngram_size" in settings:
        assert all(len(set(answer)) == STEPS + 1 for answer in answers.tolist())


def test_stopping_criteria(model, inputs, expected):
    answers = model.generate(**inputs, max_new_tokens=STEPS, stopping_criteria=StoppingCriteriaList([StopAfter(4)]))
    assert torch.equal(answers, expected[:, :4])


def test_generation_config(model, inputs, expected):
    config = GenerationConfig(
        max_new_tokens=3, decoder_start_token_id=START, pad_token_id=PAD, eos_token_id=None, do_sample=False
    )
    assert torch.equal(model.generate(**inputs, generation_config=config), expected[:, :4])


# What it hands back


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_streamer(model, inputs, expected):
    streamer = Collect()
    model.generate(**one(inputs), max_new_tokens=STEPS, streamer=streamer)
    assert streamer.tokens == expected[0].tolist()
    assert streamer.ended


@pytest.mark.parametrize("num_beams", [1, 3])
def test_everything_that_can_be_asked_for(num_beams):
    model = make_model(attn_implementation="eager", fusion="joint")
    inputs = make_inputs(model)
    outputs = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        num_beams=num_beams,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    rows, memory, vocabulary = 3 * num_beams, 5 + 4 + 5, 50
    assert outputs.sequences.shape == (3, STEPS + 1)
    assert [scores.shape for scores in outputs.scores] == [(rows, vocabulary)] * STEPS
    assert [logits.shape for logits in outputs.logits] == [(rows, vocabulary)] * STEPS
    # Of the encoder once: text, image and wrist have rows for the samples that have them, the fusion for all.
    rows_of_parts = [(2, 5), (2, 4), (2, 5), (3, memory)]
    assert [weights.shape for weights in outputs.encoder_attentions] == [(n, 2, s, s) for n, s in rows_of_parts]
    assert outputs.encoder_hidden_states[-1].shape == (3, memory, 32)
    # Of the decoder per step and layer.
    for step in range(STEPS):
        assert [weights.shape for weights in outputs.decoder_attentions[step]] == [(rows, 2, 1, step + 1)] * 2
        assert [weights.shape for weights in outputs.cross_attentions[step]] == [(rows, 2, 1, memory)] * 2
        assert [state.shape for state in outputs.decoder_hidden_states[step]] == [(rows, 1, 32)] * 3
    # Nothing of a missing modality is attended to: text in the second sample, image and wrist in the third.
    weights = torch.stack([step[0] for step in outputs.cross_attentions]).unflatten(1, (3, num_beams))
    assert weights[:, 1, ..., :5].eq(0).all() and weights[:, 2, ..., 5:].eq(0).all()
    assert isinstance(outputs[CACHE], EncoderDecoderCache)


def test_scores_are_those_of_the_reference(model, inputs, expected):
    outputs = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True)
    for step, logits in enumerate(outputs.logits):
        assert_same(logits.log_softmax(-1), next_scores(model, inputs, expected[:, : step + 1]))


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_logits_of_all_positions_change_nothing(model, inputs, settings):
    """By default `generate` asks for those of the last position alone."""
    common = {"max_new_tokens": STEPS, "decoder_input_ids": torch.tensor([[START, 9, 8]] * 3), **settings}
    assert torch.equal(model.generate(**inputs, **common, logits_to_keep=0), model.generate(**inputs, **common))


def test_assisted_decoding_gives_everything_that_can_be_asked_for():
    model = make_model(attn_implementation="eager")
    inputs = one(make_inputs(model))
    asked = {"output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate"}
    options = {"max_new_tokens": STEPS, **dict.fromkeys(asked, True)}
    expected = model.generate(**inputs, **options)
    for draft in ({"assistant_model": make_model()}, {"prompt_lookup_num_tokens": 2}):
        outputs = model.generate(**inputs, **options, **draft)
        assert torch.equal(outputs.sequences, expected.sequences)
        assert_same(torch.stack(outputs.logits), torch.stack(expected.logits), atol=1e-3)
        assert len(outputs.encoder_attentions) == len(expected.encoder_attentions)
        positions = sum(states[-1].shape[1] for states in outputs.decoder_hidden_states)
        assert positions >= STEPS


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_a_returned_cache_has_the_shapes_of_transformers_own(settings):
    model = make_model(num_attention_heads=4, num_key_value_heads=2)
    inputs = make_inputs(model)
    outputs = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, **settings)
    rows, config = 3 * max(settings.values(), default=1), model.config.decoder
    cache = outputs[CACHE]
    assert type(cache) is EncoderDecoderCache and len(cache) == config.num_hidden_layers
    answer, memory = cache.self_attention_cache, cache.cross_attention_cache
    for part, length in ((answer, STEPS), (memory, outputs_length(model, inputs))):
        assert part.get_seq_length() == length
        for layer in part.layers:
            assert layer.keys.shape == layer.values.shape == (rows, 2, length, 32 // 4)


def outputs_length(model, inputs) -> int:
    """The longest sample's positions of the memory."""
    return int(model.get_encoder()(**inputs).attention_mask.sum(1).max())


def test_what_generate_keeps_is_handed_on(model):
    """As `prepare_inputs_for_generation` does in transformers."""
    ids, value = torch.ones(2, 3, dtype=torch.long), torch.ones(2)
    prepared = model.prepare_inputs_for_generation(ids, is_first_iteration=True, anything=value, labels=value)
    assert prepared["anything"] is value and "labels" not in prepared
    assert torch.equal(prepared["decoder_input_ids"], ids)


# Other types and modes


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16(fusion, settings):
    model = make_model(fusion=fusion)
    inputs = make_inputs(model)
    model.to(torch.bfloat16)
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    answers = model.generate(
        **inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, **settings
    )
    assert answers.sequences.shape == (3, STEPS + 1)
    assert all(logits.isfinite().all() for logits in answers.logits)


def test_generating_in_the_middle_of_training(model, inputs, expected):
    """`Seq2SeqTrainer` generates with a model under gradient checkpointing, and goes on to train."""
    trained = make_model()
    checkpoint_activations(trained)
    assert torch.equal(trained.generate(**inputs, max_new_tokens=STEPS), expected)
    trained.train()
    loss = trained(**inputs, labels=expected[:, 1:]).loss
    loss.backward()
    assert loss.isfinite()


def test_the_inputs_are_left_alone(model, inputs):
    before = {name: value.clone() for name, value in inputs.items()}
    model.generate(**inputs, max_new_tokens=2, num_beams=2)
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["pad_token_id", "decoder_start_token_id"])
def test_special_tokens_that_are_missing(name):
    config = tiny_config("text", **{name: None})
    model, inputs = tiny_model(config), tiny_inputs(config)
    with pytest.raises(ValueError, match=f"`config.{name}` is None"):
        model(**inputs, labels=tiny_labels())
    assert model(**inputs, labels=tiny_labels(), decoder_input_ids=tiny_labels()).loss.isfinite()
    if name == "decoder_start_token_id":
        with pytest.raises(ValueError, match=r"neither `decoder_input_ids` .* `config.decoder_start_token_id`"):
            model(**inputs)
