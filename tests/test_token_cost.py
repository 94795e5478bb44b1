# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a token costs, counted in calls, not in time: a slow way that is taken unnoticed fails here."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import modeling_crossfuse
from modeling_crossfuse import explain

from .helpers import take_rows, tiny_config, tiny_inputs, tiny_labels, tiny_model


PACKAGE = str(Path(modeling_crossfuse.__file__).parent)
LAYERS = 2
METHODS = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "all returned": {"return_dict_in_generate": True, "output_logits": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}
# How many of these operations a token takes. There would be more, or others, where a fast way is not taken.
OPERATIONS = {
    # Each layer attends to the answer and to the memory by PyTorch's fused attention, without masks made anew ...
    "_scaled_dot_product_flash_attention_for_cpu": 2 * LAYERS,
    "where": 0,
    # ... and has four projections of self-attention, two of cross-attention, since the memory's keys and values are
    # there already, and three of the feed-forward, which like the vocabulary's are large: weights times columns.
    "mm": 9 * LAYERS + 1,
    "t": 6 * LAYERS,
    # A key and a value for each layer are written where they stay, and nothing is copied together.
    "copy_": 2 * LAYERS,
}
# How often functions of this package are called for a token, at the most: 120 to 136 as this is written (more often
# where transformers has the cache's old name).
MOST_CALLS = 70 * LAYERS


# The same for a forward of a model of a text and an image: 175 as this is written. It was 372 where names of tensors
# were worked out in every call.
MOST_CALLS_OF_A_FORWARD = 180


class CountOperations(TorchDispatchMode):
    """Counts the operations of PyTorch by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class CountCalls:
    """Counts calls of Python functions in files below a folder."""

    def __init__(self, folder: str = PACKAGE):
        self.folder, self.calls = folder, 0

    def __enter__(self):
        sys.setprofile(self._count)
        return self

    def _count(self, frame, event, argument):
        self.calls += event == "call" and frame.f_code.co_filename.startswith(self.folder)

    def __exit__(self, *error):
        sys.setprofile(None)


@pytest.fixture
def model():
    """Its vocabulary and feed-forward layers are large enough for the products of few rows."""
    decoder = {"vocab_size": 2048, "num_hidden_layers": LAYERS, "intermediate_size": 2048}
    return tiny_model(tiny_config("text", "wrist", decoder=decoder, eos_token_id=None))


@pytest.fixture
def inputs(model):
    """The memory has a gap, where the second sample lacks a modality."""
    return {**tiny_inputs(model.config), "modality_mask": torch.tensor([[1, 1], [1, 0]])}


def operations(model, inputs, **options) -> Counter:
    """What the last token takes in the model."""
    counts, forward = [], model.forward

    def counted(*args, **kwargs):
        with CountOperations() as mode:
            outputs = forward(*args, **kwargs)
        mode.counts["mm"] += mode.counts["bmm"]  # the product of a single column
        counts.append(mode.counts)
        return outputs

    model.forward = counted
    model.generate(**inputs, max_new_tokens=8, **options)
    model.forward = forward
    return counts[-1]


def calls(model, inputs, folder: str = PACKAGE, **options) -> float:
    """What a token takes in the model and around it, from those of eight more tokens."""
    totals = []
    for tokens in (8, 8, 16):  # the first time, things are made that stay
        with CountCalls(folder) as counter:
            model.generate(**inputs, max_new_tokens=tokens, **options)
        totals.append(counter.calls)
    return (totals[2] - totals[1]) / 8


@pytest.mark.parametrize("method", METHODS)
def test_operations_of_a_token(model, inputs, method):
    # Drafts are of one sample. Several tokens at once need a mask, of which PyTorch makes numbers in each layer.
    is_draft = method == "prompt lookup"
    found = operations(model, take_rows(inputs, [0]) if is_draft else inputs, **METHODS[method])
    expected = {name: count for name, count in OPERATIONS.items() if not (is_draft and name == "where")}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("method", [method for method in METHODS if method != "prompt lookup"])
def test_calls_for_a_token(model, inputs, method):
    assert calls(model, inputs, **METHODS[method]) <= MOST_CALLS


@torch.no_grad()
def test_calls_of_a_forward():
    model = tiny_model(tiny_config("text", "image"))
    inputs = {**tiny_inputs(model.config), "decoder_input_ids": tiny_labels()}
    model(**inputs)
    with CountCalls() as counter:
        model(**inputs)
    assert 0 < counter.calls <= MOST_CALLS_OF_A_FORWARD


def test_hooks_that_explanations_leave_behind(model, inputs):
    before, calls_before, all_before = operations(model, inputs), calls(model, inputs), calls(model, inputs, "")
    explain(model, take_rows(inputs, [0]), max_positions=2, num_orders=1)
    model.set_attn_implementation("eager")
    model(**inputs, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    assert operations(model, inputs) == before
    assert calls(model, inputs) == calls_before
    hooks = sum(len(module._forward_hooks) for module in model.get_decoder().modules())
    assert 0 < calls(model, inputs, "") - all_before <= 6 * hooks  # nobody asks them for anything


def test_the_slow_way_is_seen(model, inputs):
    """What these tests are for: each of the fast ways, taken away, shows."""
    model.set_attn_implementation("eager")
    assert operations(model, inputs)["_scaled_dot_product_flash_attention_for_cpu"] == 0
    model.set_attn_implementation("sdpa")
    without_cache = operations(model, inputs, use_cache=False)
    assert without_cache["mm"] > OPERATIONS["mm"]  # the memory's keys and values, again
    static = operations(model, inputs, cache_implementation="static")
    assert static["where"] > 0
    with torch.enable_grad():
        model.lm_head.most_rows = 0
    assert operations(model, inputs)["t"] == OPERATIONS["t"] + 1
