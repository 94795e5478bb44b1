# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Graphs that transformers' exporters and `torch.compile` make: what goes in and out, and that it answers the same."""

import copy

import pytest
import torch

from modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseModel,
)
from modeling_crossfuse.decoder_cache import CACHE, make_cache

from .helpers import FUSIONS, assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


exporters = pytest.importorskip("transformers.exporters.exporter_dynamo")

# What the answers begin with: of what there is only one, `torch.export` makes a graph for one.
PROMPT = torch.tensor([[1, 5, 6], [1, 7, 8]])
STEPS = 6


@pytest.fixture(scope="module")
def exporter():
    try:
        return exporters.DynamoExporter()
    except ImportError as error:  # of a PyTorch that is older than it needs
        pytest.skip(str(error))


def make(model_class=CrossFuseForConditionalGeneration, fusion="concat"):
    """Untied embeddings, and a text encoder whose padding would change the answer."""
    decoder = {"vocab_size": 50, "num_hidden_layers": 2}
    settings = {"tie_word_embeddings": False, "eos_token_id": None, "initializer_range": 0.4, "decoder": decoder}
    config = tiny_config("text", "wrist", fusion=fusion, **settings)
    return tiny_model(config, model_class), tiny_inputs(config)


def masks(padded: bool) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0] if padded else [1] * 5])}


def names_of(program) -> tuple[list[str], list[str]]:
    signature = program.graph_signature
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    return inputs, [spec.arg.name for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]


@torch.no_grad()
def uncached(model, inputs) -> torch.Tensor:
    """Greedy search, one full forward pass for each token."""
    ids = PROMPT
    for _ in range(STEPS):
        logits = model(**inputs, decoder_input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


@torch.no_grad()
def answer_by(exported, memory, decoder_config) -> torch.Tensor:
    """Greedy search by a graph for the first token and one for all others."""
    graphs = {name: component.program.module() for name, component in exported.components.items()}
    ids = new = PROMPT
    cache = make_cache(decoder_config)
    for step in range(STEPS):
        graph = graphs["decode" if step else "prefill"]
        outputs = graph(decoder_input_ids=new, encoder_outputs=copy.copy(memory), **{CACHE: cache})
        cache = outputs[CACHE]
        new = outputs.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], dim=1)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("padded", [False, True])
def test_prefill_and_decode(exporter, fusion, padded):
    """Traced with padding or without, they read both, and give what a pass without a cache gives."""
    model, values = make(fusion=fusion)
    config = exporters.DynamoConfig(dynamic=True)
    exported = exporter.export_for_generation(model, {**values, **masks(padded), "decoder_input_ids": PROMPT}, config)
    for given in (False, True):
        inputs = {**values, **masks(given)}
        expected = uncached(model, inputs)
        assert all(len(set(answer)) > 2 for answer in expected.tolist()), "answers of one token would test nothing"
        assert torch.equal(answer_by(exported, model.get_encoder()(**inputs), model.config.decoder), expected)


@pytest.mark.slow
def test_what_goes_in_and_out(exporter):
    """Of each layer keys and values, twice, and the memory's mask: no spare room, whether or not there is padding."""
    for padded in (False, True):
        model, values = make()
        exported = exporter.export_for_generation(model, {**values, **masks(padded)}, exporters.DynamoConfig())
        tensors = 2 * 2 * model.config.decoder.num_hidden_layers + 1
        memory = 3  # the memory, its mask, and the modality of its positions
        inputs, outputs = names_of(exported.components["decode"].program)
        assert len(inputs) == 1 + memory + tensors and len(outputs) == 1 + memory + tensors
        inputs, outputs = names_of(exported.components["prefill"].program)
        assert len(inputs) == 1 + memory and len(outputs) == 1 + memory + tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_class",
    [
        CrossFuseModel,
        CrossFuseForConditionalGeneration,
        CrossFuseEncoderModel,
        CrossFuseForSequenceClassification,
    ],
)
def test_whole_models(exporter, model_class):
    """With modalities that a sample lacks, other than those that were traced."""
    model, values = make(model_class, fusion="joint")
    if model_class in (CrossFuseModel, CrossFuseForConditionalGeneration):
        values["decoder_input_ids"] = tiny_labels(2, 4)
    inputs = {**values, **masks(True), "modality_mask": torch.tensor([[1, 1], [0, 1]])}
    exported = exporter.export(model, dict(inputs), exporters.DynamoConfig())
    inputs["modality_mask"] = torch.tensor([[1, 0], [1, 1]])
    with torch.no_grad():
        expected, outputs = model(**inputs), exported.program.module()(**inputs)
    kept = expected.get("attention_mask")
    for result in (outputs[0], expected[0]):
        if kept is not None and result.dim() == 3:
            result.masked_fill_(kept.unsqueeze(-1) == 0, 0.0)
    assert_same(outputs[0], expected[0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("first", [False, True], ids=["then padded", "then whole"])
def test_a_compiled_step_asks_for_no_mask(first):
    """One graph for a memory with padding and one without."""
    torch.compiler.reset()
    model, values = make()
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    def step(memory):
        ids = torch.ones(2, 1, dtype=torch.long)
        cache = model(encoder_outputs=memory, decoder_input_ids=ids, use_cache=True)[CACHE]
        expected = model(encoder_outputs=memory, decoder_input_ids=torch.cat([ids, 5 * ids], 1)).logits[:, -1:]
        arguments = {"encoder_outputs": memory, "decoder_input_ids": 5 * ids, CACHE: cache, "use_cache": True}
        assert_same(compiled(**arguments).logits, expected, atol=1e-4)

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for padded in (first, not first):
        step(model.get_encoder()(**values, **masks(padded)))
    assert len(graphs) == 1
