# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Exports a model that generates as two graphs, for ONNX Runtime or PyTorch without this code.

The encoder runs once for an answer. Beside the memory it gives the keys and values that every layer of the decoder
reads the memory by, so that no step computes them again. The decoder runs once for a token: its self-attention's keys
and values go in as `past_key_values.*` and come out, longer by the new tokens, as `present.*`.
"""

import json
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers.cache_utils import EncoderDecoderCache

from ..arguments import known_arguments, refuse_unknown
from ..extras import needs
from ..files import write_whole
from ..inputs import find_present, read_inputs
from ..modeling_crossfuse import CrossFuseForConditionalGeneration


# The file that says what the encoder takes, and the ends of the graphs' files.
INPUTS_FILE = "inputs.json"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def graph_inputs(inputs: dict[str, torch.Tensor | None], config) -> dict[str, torch.Tensor]:
    """
    The inputs of the encoder's graph from those of `forward`, checked as `forward` does: values and mask of each given
    modality, and `modality_mask`. Images have their dimension for several per sample.

    Args:
        inputs (`dict[str, torch.Tensor]`): as `forward` takes them.
        config ([`CrossFuseConfig`]): the model's.

    Raises:
        ValueError: as `forward` does, and if a modality is given as hidden states or embeddings.
    """
    modalities, modality_mask = config.modalities, inputs.get("modality_mask")
    tensors = {name: inputs.get(name) for name in modalities.tensor_names}
    refuse_unknown(inputs, known_arguments(config))
    read = read_inputs(tensors, modalities)
    present = find_present(read, modality_mask, modalities)
    result = {}
    for name, (values, mask, _, _, given) in read.items():
        if given != modalities.value_name(name):
            raise ValueError(f"`{given}` is no input of an exported model; expected `{modalities.value_name(name)}`")
        result |= {given: values, modalities.mask_name(name): mask}
    return {**result, "modality_mask": present.long()}


class EncoderGraph(nn.Module):
    """
    The encoders, the fusion, and the decoder's view of the memory: `last_hidden_state` `(batch, memory_length,
    d_model)`, `encoder_attention_mask` `(batch, memory_length)` and, for each layer of the decoder,
    `present.<layer>.encoder.key` and `.value` `(batch, key_value_heads, memory_length, head_dim)`.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): the model.
    """

    def __init__(self, model: CrossFuseForConditionalGeneration):
        super().__init__()
        self.encoder = model.get_encoder()
        self.attentions = nn.ModuleList(layer.cross_attn for layer in model.get_decoder().layers)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.encoder(**inputs, return_dict=True)
        memory = outputs.last_hidden_state
        graph_outputs = {"last_hidden_state": memory, "encoder_attention_mask": outputs.attention_mask}
        for layer, attention in enumerate(self.attentions):
            keys, values = attention.keys_values(memory)
            graph_outputs |= {f"present.{layer}.encoder.key": keys, f"present.{layer}.encoder.value": values}
        return graph_outputs


class DecoderGraph(nn.Module):
    """
    The decoder and the language modelling head, one or more tokens further: `input_ids` `(batch, new)`,
    `encoder_attention_mask` `(batch, memory_length)` and, for each layer, `past_key_values.<layer>.encoder.key` and
    `.value`, which the encoder gave, and `past_key_values.<layer>.decoder.key` and `.value` `(batch, key_value_heads,
    past, head_dim)`, empty at first, to `logits` `(batch, new, vocab_size)` and `present.<layer>.decoder.key` and
    `.value` `(batch, key_value_heads, past + new, head_dim)`.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): the model.
    """

    def __init__(self, model: CrossFuseForConditionalGeneration):
        super().__init__()
        self.decoder, self.lm_head = model.get_decoder(), model.lm_head

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        input_ids, memory_mask = inputs["input_ids"], inputs["encoder_attention_mask"]
        names = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
        layers = range(len(self.decoder.layers))
        cache = EncoderDecoderCache(
            [[inputs[f"past_key_values.{layer}.{name}"] for name in names] for layer in layers]
        )
        past, new = cache.self_attention_cache.layers[0].keys.shape[2], input_ids.shape[1]
        position_ids = past + torch.arange(new, device=input_ids.device)
        # A mask of four dimensions is taken as it is; to make its own, the decoder would ask whether there is a past.
        mask = torch.arange(past + new, device=input_ids.device) <= position_ids[:, None]
        outputs = self.decoder(
            input_ids=input_ids,
            attention_mask=mask.expand(input_ids.shape[0], 1, -1, -1),
            position_ids=position_ids[None],
            # Its length is read, and nothing else, since its keys and values are in the cache.
            encoder_hidden_states=memory_mask[..., None].to(self.lm_head.weight.dtype),
            encoder_attention_mask=memory_mask,
            cache=cache,
            use_cache=True,
            return_dict=True,
        )
        graph_outputs = {"logits": self.lm_head(outputs.last_hidden_state)}
        for layer, states in enumerate(cache.self_attention_cache.layers):
            graph_outputs |= {f"present.{layer}.decoder.key": states.keys}
            graph_outputs |= {f"present.{layer}.decoder.value": states.values}
        return graph_outputs


def _decoder_example(memory: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    """Inputs of the decoder's graph, after three tokens: sizes that nothing else has."""
    mask, decoder = memory["encoder_attention_mask"], config.decoder
    head_dim = decoder.hidden_size // decoder.num_attention_heads
    example = {"input_ids": mask.new_ones(len(mask), 2, dtype=torch.long), "encoder_attention_mask": mask}
    for layer in range(decoder.num_hidden_layers):
        for part in ("key", "value"):
            past = memory["last_hidden_state"].new_zeros(len(mask), decoder.num_key_value_heads, 3, head_dim)
            example[f"past_key_values.{layer}.decoder.{part}"] = past
            example[f"past_key_values.{layer}.encoder.{part}"] = memory[f"present.{layer}.encoder.{part}"]
    return example


def _encoder_dimensions(name: str, config) -> list[int]:
    """The dimensions of an input of the encoder that may have another size in another batch."""
    for modality, part in config.modalities.items():
        if name == config.modalities.mask_name(modality):
            return [1]
        if name == config.modalities.value_name(modality):
            lengths = ("length", "images", "frames", "samples", "steps")
            return [1 + place for place, dimension in enumerate(part.layout) if dimension in lengths]
    return []


def _decoder_dimensions(name: str) -> list[int]:
    return [2] if name.startswith("past_key_values") else [1]


def trace(graph: nn.Module, example: dict[str, torch.Tensor], dimensions: dict[str, list[int]]) -> ExportedProgram:
    """
    A graph as `torch.export` has it, for any batch size and, as far as the encoders allow it, for any length.

    Args:
        graph (`nn.Module`): takes and gives a dict of tensors.
        example (`dict[str, torch.Tensor]`): its inputs, with a batch of at least 2.
        dimensions (`dict[str, list[int]]`): of each, the dimensions that are lengths.

    Raises:
        ValueError: if it can't be exported.
    """
    shapes = {name: {0: Dim.DYNAMIC, **dict.fromkeys(dimensions[name], Dim.AUTO)} for name in example}
    try:
        program = torch.export.export(graph, (example,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever an encoder does that has no place in a graph
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"torch.export can't make a graph of this model: {message}") from error
    # PyTorch can't load a program with a block that nothing reads, as the positions of an encoder without layers are.
    program.graph.eliminate_dead_code()
    _forget_source(program)
    return program


def _forget_source(program: ExportedProgram):
    """Takes out where in which file each node came from: what is written is for other machines."""
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _import_onnx():
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs("exporting to ONNX needs onnx and onnxscript", "export") from error


def _write(program: ExportedProgram, example: dict[str, torch.Tensor], outputs: list[str], path: Path):
    if path.suffix == SUFFIXES["torch"]:
        torch.export.save(program, path)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter itself calls
        onnx = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=list(example), output_names=outputs, optimize=True
        )
    onnx.save(path)


@torch.no_grad()
def export_model(
    model: CrossFuseForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    folder: str | Path,
    format: str = "onnx",
):
    """
    Writes a model as `encoder.onnx` and `decoder.onnx`, or `.pt2`, with its configs and `inputs.json`, which has the
    dtype and the shape of each input of the encoder that it was traced with.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): the model in float32, in evaluation mode and on the CPU.
        inputs (`dict[str, torch.Tensor]`): an example with every modality, as `forward` takes it, of at least two
            samples, each long enough to be two positions or more of the memory: of what there is only one,
            `torch.export` makes a graph for one. Modalities that an exported model is not given take the time that
            these take, so the shorter the better.
        folder (`str` or `Path`): an existing folder.
        format (`str`, defaults to `"onnx"`): or `"torch"`.

    Raises:
        ImportError: for ONNX, if `crossfuse[export]` is not installed.
        TypeError: if the model is of another class.
        ValueError: if the format is unknown, the model has another dtype or mode, the example lacks a modality, or
            `torch.export` can't make a graph of this model.

    Example:

    ```python
    >>> import tempfile
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration
    >>> from modeling_crossfuse.export.exported_model import CrossFuseExportedModel
    >>> from modeling_crossfuse.export.graphs import export_model

    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50, tgt_vocab_size=60)
    >>> model = CrossFuseForConditionalGeneration(config).eval()
    >>> question = torch.tensor([[3, 4, 5], [6, 7, 8]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_model(model, {"input_ids": question}, folder, format="torch")
    ...     exported = CrossFuseExportedModel.from_folder(folder)
    >>> torch.equal(exported.generate(question, max_new_tokens=4), model.generate(question, max_new_tokens=4))
    True
    ```
    """
    if format not in SUFFIXES:
        raise ValueError(f"`format={format!r}` is unknown; expected one of {', '.join(SUFFIXES)}")
    if not isinstance(model, CrossFuseForConditionalGeneration):
        raise TypeError(f"the model is a {type(model).__name__}; expected a CrossFuseForConditionalGeneration")
    if model.training or model.dtype != torch.float32:
        mode = "training" if model.training else "evaluation"
        raise ValueError(f"the model is {model.dtype} in {mode} mode; expected `model.float().eval()`")
    if format == "onnx":
        _import_onnx()
    folder, config = Path(folder), model.config
    example = graph_inputs(inputs, config)
    lacking = [name for name in config.modalities if config.modalities.value_name(name) not in example]
    if lacking:
        raise ValueError(f"`inputs` lacks `{config.modalities.value_name(lacking[0])}`; expected every modality")
    encoder, decoder = EncoderGraph(model), DecoderGraph(model)
    memory = encoder(example)
    step = _decoder_example(memory, config)
    suffix = SUFFIXES[format]
    program = trace(encoder, example, {name: _encoder_dimensions(name, config) for name in example})
    _write(program, example, list(memory), folder / f"encoder{suffix}")
    program = trace(decoder, step, {name: _decoder_dimensions(name) for name in step})
    _write(program, step, list(decoder(step)), folder / f"decoder{suffix}")
    described = {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in example.items()
    }
    write_whole(folder / INPUTS_FILE, json.dumps(described, indent=2) + "\n")
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


__all__ = ["export_model"]
