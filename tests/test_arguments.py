# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What each `forward` takes: an argument that nobody would read is an error that names it."""

import functools

import pytest
import torch
from transformers.utils import TransformersKwargs

from modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseForTokenClassification,
    CrossFuseModel,
)
from modeling_crossfuse.arguments import PASSED

from .helpers import assert_same, tiny_config, tiny_inputs, tiny_labels, tiny_model


HEADS = [
    CrossFuseModel,
    CrossFuseForConditionalGeneration,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseEncoderModel,
    CrossFuseForSequenceClassification,
    CrossFuseForTokenClassification,
    CrossFuseForRetrieval,
]
# Flags of transformers' own, with values that ask for nothing.
FLAGS = {
    "use_cache": False,
    "return_dict": True,
    "output_attentions": None,
    "output_hidden_states": False,
    "output_router_logits": None,
    "num_items_in_batch": torch.tensor(5),
    "cu_seq_lens_q": None,
    "cu_seq_lens_k": None,
    "max_length_q": None,
    "max_length_k": None,
    "position_ids": None,
    "is_causal": None,
    "seq_idx": None,
}


@functools.cache
def model_of(model_class):
    config = tiny_config("text", "image", "wrist", fusion="joint", tie_word_embeddings=False)
    return tiny_model(config, model_class)


def make(model_class):
    """A model, which no test changes, and its inputs."""
    model = model_of(model_class)
    return model, tiny_inputs(model.config)


def memory_of(model, inputs):
    return (model if hasattr(model, "encoder") else model.get_encoder())(**inputs)


@pytest.mark.parametrize("value", [None, 5, torch.ones(2, 3), torch.ones(2, 3).numpy(), "text"], ids=type)
@pytest.mark.parametrize("model_class", HEADS)
def test_an_unknown_argument(model_class, value):
    model, inputs = make(model_class)
    with pytest.raises(
        ValueError, match=r"`pixels` is not an input of this model\. Did you mean `pixel_values`"
    ) as error:
        model(**inputs, pixels=value)
    assert "wrist_values" in str(error.value) and "pixel_values_videos" not in str(error.value)


@pytest.mark.parametrize(
    ("model_class", "name", "nearest"),
    [
        (CrossFuseForConditionalGeneration, "label", "labels"),
        (CrossFuseForConditionalGeneration, "decoder_inputs_ids", "decoder_input_ids"),
        (CrossFuseForConditionalGeneration, "output_hidden_state", "output_hidden_states"),
        (CrossFuseForConditionalGeneration, "position_ids", "decoder_position_ids"),
        (CrossFuseModel, "wrist_valus", "wrist_values"),
        (CrossFuseForSequenceClassification, "encoder_output", "encoder_outputs"),
        (CrossFuseForTokenClassification, "labls", "labels"),
        (CrossFuseForRetrieval, "item_id", "item_ids"),
    ],
)
def test_the_nearest_name(model_class, name, nearest):
    model, inputs = make(model_class)
    with pytest.raises(ValueError, match=f"`{name}` is not an input of this model. Did you mean `{nearest}`"):
        model(**inputs, **{name: torch.ones(2, 3)})


def test_a_name_like_nothing():
    model, inputs = make(CrossFuseModel)
    with pytest.raises(ValueError, match=r"`q` is not an input of this model\. It takes attention_mask, cache"):
        model(**inputs, q=1)


@pytest.mark.parametrize("model_class", [CrossFuseModel, CrossFuseForConditionalGeneration])
def test_an_unknown_argument_beside_a_memory(model_class):
    model, inputs = make(model_class)
    with pytest.raises(ValueError, match="`pixels` is not an input of this model"):
        model(encoder_outputs=memory_of(model, inputs), pixels=5)
    classifier, inputs = make(CrossFuseForSequenceClassification)
    with pytest.raises(ValueError, match="`pixels` is not an input of this model"):
        classifier(encoder_outputs=memory_of(classifier, inputs), pixels=5)


@pytest.mark.parametrize("name", ["text", "image", "video", "audio", "fused"])
def test_features_refuse_an_unknown_argument(name):
    model, inputs = make(CrossFuseForRetrieval)
    with pytest.raises(ValueError, match="`pixels` is not an input of this model"):
        getattr(model, f"get_{name}_features")(**inputs, pixels=5)


def test_parts_refuse_an_unknown_argument():
    model, inputs = make(CrossFuseModel)
    with pytest.raises(ValueError, match="`pixels` is not an input of this model"):
        model.encoder(**inputs, pixels=5)
    with pytest.raises(ValueError, match=r"`input_id` is not an input of this model\. Did you mean `input_ids`"):
        model.decoder(torch.ones(2, 1, dtype=torch.long), input_id=5)
    with pytest.raises(ValueError, match=r"`pixels` is not an input of this model\. It takes mask"):
        model.encoder.encoders["text"](inputs["input_ids"], torch.ones(2, 5), pixels=5)


@pytest.mark.parametrize("name", ["pixel_values_videos", "video_mask", "input_features", "input_values"])
@pytest.mark.parametrize("model_class", HEADS)
def test_a_modality_that_the_model_has_not(model_class, name):
    """Not even as what is no tensor. `None`, which Trainer's columns may be, is nothing."""
    model, inputs = make(model_class)
    for value in (torch.ones(2, 3), [1, 2]):
        with pytest.raises(ValueError, match=f"`{name}` is not an input of this model"):
            model(**inputs, **{name: value})
    model(**inputs, **{name: None})


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "pixel_values", "wrist_values", "modality_mask"])
@pytest.mark.parametrize(
    "model_class", [CrossFuseModel, CrossFuseForConditionalGeneration, CrossFuseForSequenceClassification]
)
def test_a_modality_beside_a_memory(model_class, name):
    model, inputs = make(model_class)
    inputs |= {"attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]), "modality_mask": torch.ones(2, 3)}
    memory = memory_of(model, inputs)
    with pytest.raises(ValueError, match=f"`{name}` and `encoder_outputs`, which has a mask of its own, are both"):
        model(encoder_outputs=memory, **{name: inputs[name]})
    ones = torch.ones(2, 5)  # which `generate` makes of anything
    model(**{name: None, "attention_mask": ones, "encoder_outputs": memory})


def test_all_names_of_transformers_are_looked_at():
    assert TransformersKwargs.__annotations__.keys() <= FLAGS.keys()
    assert FLAGS.keys() - PASSED == {"position_ids", "is_causal", "seq_idx"}


@pytest.mark.parametrize("model_class", HEADS)
def test_what_transformers_passes(model_class):
    model, inputs = make(model_class)
    outputs, expected = model(**inputs, **FLAGS), model(**inputs)
    assert_same(outputs[0], expected[0])
    assert isinstance(model(**inputs, return_dict=False), tuple)


@pytest.mark.parametrize("model_class", [CrossFuseModel, CrossFuseForConditionalGeneration])
def test_what_transformers_passes_beside_a_memory(model_class):
    model, inputs = make(model_class)
    memory = memory_of(model, inputs)
    assert_same(model(encoder_outputs=memory, **FLAGS)[0], model(encoder_outputs=memory)[0])


@pytest.mark.parametrize("name", ["position_ids", "is_causal", "seq_idx"])
@pytest.mark.parametrize("model_class", HEADS)
def test_what_nobody_would_read(model_class, name):
    model, inputs = make(model_class)
    with pytest.raises(ValueError, match=f"`{name}` is not an input of this model"):
        model(**inputs, **{name: torch.tensor(False)})


@torch.no_grad()
@pytest.mark.parametrize(
    "model_class",
    [CrossFuseForConditionalGeneration, pytest.param(CrossFuseForSequenceClassification, marks=pytest.mark.slow)],
)
def test_in_a_compiled_graph(model_class):
    """In one graph, which asks for no argument's value."""
    torch.compiler.reset()
    model, inputs = make(model_class)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(compiled(**inputs, **FLAGS).logits, model(**inputs).logits)
    with pytest.raises(Exception, match="`pixels` is not an input of this model"):
        compiled(**inputs, pixels=5)


# `logits_to_keep`


@torch.no_grad()
@pytest.mark.parametrize("kept", [0, 1, 3, 9, torch.tensor([0, 2]), torch.tensor([-1])], ids=str)
def test_logits_to_keep(kept):
    model, inputs = make(CrossFuseForConditionalGeneration)
    inputs["decoder_input_ids"] = tiny_labels(2, 4)
    chosen = kept if isinstance(kept, torch.Tensor) else slice(-kept, None)
    assert_same(model(**inputs, logits_to_keep=kept).logits, model(**inputs).logits[:, chosen])


def test_logits_to_keep_and_labels():
    model, inputs = make(CrossFuseForConditionalGeneration)
    inputs["labels"] = tiny_labels(2, 4)
    assert model(**inputs, logits_to_keep=0).loss is not None
    for kept in (1, torch.tensor([0])):
        with pytest.raises(ValueError, match="`labels` and `logits_to_keep` are both given"):
            model(**inputs, logits_to_keep=kept)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
def test_generate_computes_the_logits_of_the_last_position_alone(options):
    model, inputs = make(CrossFuseForConditionalGeneration)
    lengths = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model.generate(**inputs, decoder_input_ids=tiny_labels(2, 4), max_new_tokens=3, min_new_tokens=3, **options)
    handle.remove()
    assert lengths == [1, 1, 1]
