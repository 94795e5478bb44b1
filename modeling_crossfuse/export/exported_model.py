# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Exported models: `generate` drives their graphs, which ONNX Runtime or PyTorch runs on the CPU."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from ..arguments import encoder_tensor_names, known_arguments, refuse_beside_memory, refuse_unknown
from ..decoder_cache import CACHE, takes_cache
from ..extras import needs
from ..modeling_crossfuse import CrossFuseForConditionalGeneration
from ..outputs import CrossFuseEncoderOutput, CrossFuseSeq2SeqLMOutput
from ..pretrained import CrossFusePreTrainedModel
from .graphs import INPUTS_FILE, SUFFIXES, graph_inputs, name_states


# A function from tensors by name to tensors by name.
Graph = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def load_graph(path: Path, num_threads: int) -> Graph:
    """Loads a graph from its file; PyTorch's take the process's number of threads."""
    if path.suffix == SUFFIXES["torch"]:
        return torch.export.load(path).module().forward  # the module itself would refuse `eval`
    try:
        import onnxruntime
    except ImportError as error:
        raise needs("running ONNX models needs onnxruntime", "export") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        try:
            arrays = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:  # ONNX Runtime's errors share no other class
            shapes = ", ".join(f"`{name}` {tuple(tensor.shape)}" for name, tensor in inputs.items())
            raise ValueError(f"{path.name} does not take tensors of the shapes {shapes}: {error}") from error
        return {name: torch.from_numpy(array) for name, array in zip(outputs, arrays)}

    return run


@dataclass
class CrossFuseExportedEncoderOutput(CrossFuseEncoderOutput):
    """
    [`CrossFuseEncoderOutput`], and the keys and values by which the decoder reads the memory.

    Args:
        key_values (`torch.Tensor` of shape `(batch, layers, 2, key_value_heads, memory_length, head_dim)`): those of
            each layer's cross-attention, in one tensor, which `generate` repeats for beams.
    """

    key_values: torch.Tensor | None = None


def refuse_recording(kwargs: dict[str, Any]):
    """Raises a `ValueError` if attentions or hidden states are asked for, which the graphs don't give."""
    for flag in ("output_attentions", "output_hidden_states"):
        if kwargs.get(flag):
            raise ValueError(f"`{flag}={kwargs[flag]!r}` is not for an exported model, whose graphs give none")


class CrossFuseExportedEncoder(nn.Module):
    """The encoder of an exported model. `example` is what `inputs.json` has: dtype and shape of each input."""

    main_input_name = "input_ids"

    def __init__(self, graph: Graph, config, example: dict[str, dict]):
        super().__init__()
        self.graph, self.config, self.example = graph, config, example

    def forward(self, input_ids: torch.LongTensor | None = None, **kwargs) -> CrossFuseExportedEncoderOutput:
        """Takes the inputs of [`CrossFuseMultimodalEncoder`], but no hidden states and embeddings."""
        refuse_recording(kwargs)
        outputs = self.graph(self._fill(graph_inputs({"input_ids": input_ids, **kwargs}, self.config)))
        states = [
            torch.stack([outputs[f"present.{layer}.encoder.{part}"] for part in ("key", "value")], dim=1)
            for layer in range(self.config.decoder.num_hidden_layers)
        ]
        return CrossFuseExportedEncoderOutput(
            last_hidden_state=outputs["last_hidden_state"],
            attention_mask=outputs["encoder_attention_mask"],
            key_values=torch.stack(states, dim=1),
        )

    def _fill(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All inputs of the graph, zeros for the modalities that no sample has."""
        batch, filled = len(inputs["modality_mask"]), {}
        for name, expected in self.example.items():
            dtype, shape = getattr(torch, expected["dtype"]), [batch, *expected["shape"][1:]]
            filled[name] = inputs[name].to(dtype).contiguous() if name in inputs else torch.zeros(shape, dtype=dtype)
        return filled


class CrossFuseExportedModel(CrossFuseForConditionalGeneration):
    """
    An exported model, which [`~CrossFuseExportedModel.from_folder`] loads. `generate` (greedily, by beams or by
    sampling), [`predict`] and pipelines answer as with the model that was exported. It has no weights of its own and
    can't be trained or saved.
    """

    _can_compile_fullgraph = False
    beams_share_memory = False  # the graphs take a row of the memory for each row of the answer

    def __init__(self, config, encoder: CrossFuseExportedEncoder, decoder_graph: Graph):
        CrossFusePreTrainedModel.__init__(self, config)  # the graphs replace the parts that its base class would make
        self.encoder, self.decoder_graph = encoder, decoder_graph
        self.encoder_tensor_names = encoder_tensor_names(config)
        self.known_arguments = known_arguments(config)
        self.eval()

    @classmethod
    def from_folder(cls, folder: str | Path, num_threads: int | None = None) -> "CrossFuseExportedModel":
        """
        Loads what `crossfuse export` or [`export_model`] wrote. ONNX Runtime takes PyTorch's number of threads, unless
        `num_threads` is given.

        Raises:
            ImportError: for ONNX, if `crossfuse[export]` is not installed.
            FileNotFoundError: if there is no exported model in the folder.
        """
        folder = Path(folder)
        suffix = next((suffix for suffix in SUFFIXES.values() if (folder / f"encoder{suffix}").is_file()), None)
        if suffix is None or not (folder / INPUTS_FILE).is_file():
            raise FileNotFoundError(f"there is no exported model in {folder}; make one with `crossfuse export`")
        config = AutoConfig.from_pretrained(folder)
        num_threads = num_threads or torch.get_num_threads()
        encoder, decoder = (load_graph(folder / f"{part}{suffix}", num_threads) for part in ("encoder", "decoder"))
        example = json.loads((folder / INPUTS_FILE).read_text(encoding="utf-8"))
        model = cls(config, CrossFuseExportedEncoder(encoder, config, example), decoder)
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def get_encoder(self, modality: str | None = None) -> CrossFuseExportedEncoder:
        return self.encoder

    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: CrossFuseExportedEncoderOutput | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CrossFuseSeq2SeqLMOutput:
        """
        Takes the arguments of [`CrossFuseForConditionalGeneration`], without labels, hidden states and embeddings.

        Raises:
            ValueError: as [`CrossFuseMultimodalEncoder`] does, if `decoder_attention_mask` has a 0, if
                `decoder_position_ids` don't follow on the cache, or if attentions or hidden states are asked for.
        """
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids=input_ids, **kwargs)
        else:
            refuse_recording(kwargs)
            refuse_beside_memory({"input_ids": input_ids, **kwargs}, self.encoder_tensor_names)
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        _check_answer(decoder_input_ids, decoder_attention_mask, decoder_position_ids, cache)
        if not cache.is_updated.get(0):
            self._start(cache, encoder_outputs.key_values)
        inputs = {
            "input_ids": decoder_input_ids.contiguous(),
            "encoder_attention_mask": encoder_outputs.attention_mask,
        }
        for part, states in (("decoder", cache.self_attention_cache), ("encoder", cache.cross_attention_cache)):
            inputs |= name_states("past_key_values", part, ((layer.keys, layer.values) for layer in states.layers))
        outputs = self.decoder_graph(inputs)
        for layer, states in enumerate(cache.self_attention_cache.layers):
            states.keys = outputs[f"present.{layer}.decoder.key"]
            states.values = outputs[f"present.{layer}.decoder.value"]
        return CrossFuseSeq2SeqLMOutput(
            logits=outputs["logits"],
            **{CACHE: cache},
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_attention_mask=encoder_outputs.attention_mask,
        )

    @staticmethod
    def _start(cache: EncoderDecoderCache, key_values: torch.Tensor):
        """Fills the cache with the encoder's keys and values, and with no tokens."""
        for layer, states in enumerate(key_values.unbind(1)):
            cache.cross_attention_cache.update(*states.unbind(1), layer)
            cache.self_attention_cache.update(*states[..., :0, :].unbind(1), layer)
            cache.is_updated[layer] = True


def _check_answer(input_ids, attention_mask, position_ids, cache: EncoderDecoderCache):
    """Raises a `ValueError` for padding, and for positions that don't follow on the cache."""
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("`decoder_attention_mask` has a 0; an exported model takes answers without padding")
    past = cache.get_seq_length()
    expected = torch.arange(past, past + input_ids.shape[1])
    if position_ids is not None and not torch.equal(position_ids, expected.expand_as(position_ids)):
        raise ValueError(f"`decoder_position_ids` are not {past} and on; an exported model counts them itself")


__all__ = ["CrossFuseExportedModel"]
