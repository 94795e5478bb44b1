# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Exports a model that generates as two graphs, for ONNX Runtime or PyTorch without this code.

The encoder runs once for an answer. It gives the memory, and the keys and values by which every layer of the decoder
reads the memory, so that no step computes them again. The decoder runs once for a token: its self-attention's keys
and values go in as `past_key_values.*` and come out, longer by the new tokens, as `present.*`.
"""

import json
import warnings
from collections.abc import Iterable
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


# The file that describes the encoder's inputs, and the suffixes of the graphs' files.
INPUTS_FILE = "inputs.json"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def graph_inputs(inputs: dict[str, torch.Tensor | None], config) -> dict[str, torch.Tensor]:
    """
    Checks the inputs of `forward`, and turns them into those of the encoder's graph: values and mask of each given
    modality, and `modality_mask`. Images get a dimension for several per sample.

    Raises:
        ValueError: as `forward` does, and if a modality is given as hidden states or embeddings.
    """
    modalities, modality_mask = config.modalities, inputs.get("modality_mask")
    refuse_unknown(inputs, known_arguments(config))
    read = read_inputs(inputs, modalities)
    present = find_present(read, modality_mask, modalities)
    result = {}
    for name, (values, mask, _, _, given) in read.items():
        if given != modalities.value_name(name):
            raise ValueError(f"`{given}` is no input of an exported model; expected `{modalities.value_name(name)}`")
        result |= {given: values, modalities.mask_name(name): mask}
    return {**result, "modality_mask": present.long()}


def name_states(
    prefix: str, part: str, states: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The keys and values of each layer by the names that they have in graphs, such as `present.0.encoder.key`."""
    named = {}
    for layer, (keys, values) in enumerate(states):
        named |= {f"{prefix}.{layer}.{part}.key": keys, f"{prefix}.{layer}.{part}.value": values}
    return named


class EncoderGraph(nn.Module):
    """
    The encoders, the fusion, and the decoder's view of the memory: `last_hidden_state` `(batch, memory_length,
    d_model)`, `encoder_attention_mask` `(batch, memory_length)` and, for each layer of the decoder,
    `present.<layer>.encoder.key` and `.value` `(batch, key_value_heads, memory_length, head_dim)`.
    """

    def __init__(self, model: CrossFuseForConditionalGeneration):
        super().__init__()
        self.encoder = model.get_encoder()
        self.attentions = nn.ModuleList(layer.cross_attn for layer in model.get_decoder().layers)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.encoder(**inputs, return_dict=True)
        memory = outputs.last_hidden_state
        states = name_states("present", "encoder", (attention.keys_values(memory) for attention in self.attentions))
        return {"last_hidden_state": memory, "encoder_attention_mask": outputs.attention_mask, **states}


class DecoderGraph(nn.Module):
    """
    The decoder and the language modelling head, for one or more tokens. It takes `input_ids` `(batch, new)`,
    `encoder_attention_mask` `(batch, memory_length)`, for each layer what the encoder gave as
    `past_key_values.<layer>.encoder.key` and `.value`, and `past_key_values.<layer>.decoder.key` and `.value` `(batch,
    key_value_heads, past, head_dim)`, empty at first. It gives `logits` `(batch, new, vocab_size)` and
    `present.<layer>.decoder.key` and `.value` `(batch, key_value_heads, past + new, head_dim)`.
    """

    def __init__(self, model: CrossFuseForConditionalGeneration):
        super().__init__()
        self.decoder, self.lm_head = model.get_decoder(), model.lm_head

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        input_ids, memory_mask = inputs["input_ids"], inputs["encoder_attention_mask"]
        names = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
        layers = range(len(self.decoder.layers))
        cache = EncoderDecoderCache([[inputs[f"past_key_values.{i}.{name}"] for name in names] for i in layers])
        past, new = cache.self_attention_cache.layers[0].keys.shape[2], input_ids.shape[1]
        position_ids = past + torch.arange(new, device=input_ids.device)
        # The decoder takes a mask of four dimensions as it is. To make its own, it would ask whether there is a past.
        mask = torch.arange(past + new, device=input_ids.device) <= position_ids[:, None]
        outputs = self.decoder(
            input_ids=input_ids,
            attention_mask=mask.expand(input_ids.shape[0], 1, -1, -1),
            position_ids=position_ids[None],
            # Only its length is read, since its keys and values are in the cache.
            encoder_hidden_states=memory_mask[..., None].to(self.lm_head.weight.dtype),
            encoder_attention_mask=memory_mask,
            cache=cache,
            use_cache=True,
            return_dict=True,
        )
        states = ((layer.keys, layer.values) for layer in cache.self_attention_cache.layers)
        return {"logits": self.lm_head(outputs.last_hidden_state), **name_states("present", "decoder", states)}


def _decoder_example(memory: dict[str, torch.Tensor], config) -> dict[str, torch.Tensor]:
    """Inputs of the decoder's graph: two tokens after three others, sizes that no other dimension has."""
    mask, decoder = memory["encoder_attention_mask"], config.decoder
    shape = (len(mask), decoder.num_key_value_heads, 3, decoder.hidden_size // decoder.num_attention_heads)
    past = ((torch.zeros(shape), torch.zeros(shape)) for _ in range(decoder.num_hidden_layers))
    return {
        "input_ids": mask.new_ones(len(mask), 2, dtype=torch.long),
        "encoder_attention_mask": mask,
        **name_states("past_key_values", "decoder", past),
        **{f"past_key_values{name.removeprefix('present')}": memory[name] for name in memory if "present" in name},
    }


def _write_graph(
    graph: nn.Module, example: dict[str, torch.Tensor], lengths: dict[str, int], path: Path
) -> dict[str, torch.Tensor]:
    """
    Writes a graph, which takes and gives a dict of tensors, for any batch size and, as far as the encoders allow it,
    for any length: `lengths` is the dimension that is one, by name of an input. The example has a batch of at least 2;
    the outputs for it are returned.
    """
    outputs = graph(example)
    shapes = {name: {0: Dim.DYNAMIC} | ({lengths[name]: Dim.AUTO} if name in lengths else {}) for name in example}
    try:
        program = torch.export.export(graph, (example,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # an encoder may do anything that has no place in a graph
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"torch.export can't make a graph of this model: {message}") from error
    # PyTorch can't load a program with a block that nothing reads, such as the positions of an encoder without layers.
    program.graph.eliminate_dead_code()
    _forget_source(program)
    if path.suffix == SUFFIXES["torch"]:
        torch.export.save(program, path)
        return outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about what the exporter itself calls
        names = {"input_names": list(example), "output_names": list(outputs)}
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True, **names)
    onnx.save(path)
    return outputs


def _forget_source(program: ExportedProgram):
    """Removes the file and line that each node came from, which mean nothing on another machine."""
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _import_onnx():
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs("exporting to ONNX needs onnx and onnxscript", "export") from error


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
            samples, each long enough for at least two positions of the memory: where there is only one,
            `torch.export` makes a graph for one. A modality that an exported model is not given takes as long as
            its example, so short examples are best.
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
    lengths = {}
    for values, *_ in config.modalities.tensor_specs.values():
        lengths |= {values.name: values.mask_axis, values.mask_name: 1}
    suffix = SUFFIXES[format]
    memory = _write_graph(EncoderGraph(model), example, lengths, folder / f"encoder{suffix}")
    step = _decoder_example(memory, config)
    lengths = {name: 2 if name.startswith("past_key_values") else 1 for name in step}
    _write_graph(DecoderGraph(model), step, lengths, folder / f"decoder{suffix}")
    described = {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in example.items()
    }
    write_whole(folder / INPUTS_FILE, json.dumps(described, indent=2) + "\n")
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


__all__ = ["export_model"]
