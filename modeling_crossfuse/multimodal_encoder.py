# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""From the keyword arguments of `forward` to the memory: every encoder, and their fusion."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .arguments import known_arguments, refuse_unknown
from .configuration_crossfuse import CrossFuseConfig
from .encoders import CrossFuseEncoders
from .fusion import FUSIONS, Stream
from .inputs import ModalityInputs, find_present, read_inputs
from .layers import RECORDED
from .older_formats import refuse_format_1
from .outputs import CrossFuseEncoderOutput, selects_hidden_states
from .packing import Packing, pack_samples, unpack_samples
from .pretrained import CrossFusePreTrainedModel


class CrossFuseModalityEmbeddings(nn.Module):
    """
    What is added to all states of a modality, by name, so that the order of modalities may change. The names end in
    `_embedding`: adapters find modules by the end of a name, and that of a modality is its encoder's.
    """

    def __init__(self, names: Iterable[str], dim: int):
        super().__init__()
        for name in names:
            self.add_module(f"{name}_embedding", nn.Embedding(1, dim))

    def forward(self, name: str, device: torch.device) -> torch.Tensor:
        """The embedding of a modality, `(dim,)`. It is the result of a call, which fetches offloaded weights."""
        return self.get_submodule(f"{name}_embedding")(torch.zeros((), dtype=torch.long, device=device))


class CrossFuseMultimodalEncoder(CrossFusePreTrainedModel):
    """
    One encoder per modality, a projection of each to `d_model`, and the fusion of the streams into the memory.

    ```
    input_ids, pixel_values, ...      the keyword arguments of `forward`
        |  read_inputs, find_present
    values (batch, ...)  and mask (batch, length)  of each modality;  present (batch, num_modalities)
        |  the modality's encoder, for the samples that have the modality
    hidden states (batch, length, hidden_size)  and mask (batch, length)
        |  projection, modality embedding
    streams (batch, length, d_model)
        |  fusion
    memory (batch, memory_length, d_model),  mask (batch, memory_length)  and the modality of each position
    ```

    Args:
        config ([`CrossFuseConfig`]): the whole model's config.
    """

    _can_record_outputs = RECORDED

    def __init__(self, config: CrossFuseConfig):
        super().__init__(config)
        modalities = config.modalities
        self.known_arguments = known_arguments(config)
        self.encoders = CrossFuseEncoders(modalities)
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(part.hidden_size, config.d_model)
                for name, part in modalities.items()
                if part.hidden_size != config.d_model
            }
        )
        self.modality_embeddings = CrossFuseModalityEmbeddings(modalities, config.d_model)
        self.fusion = FUSIONS[config.fusion.type].for_modalities(config.fusion, modalities.keys())
        self.register_load_state_dict_pre_hook(refuse_format_1)
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """That of the memory. An encoder may have another."""
        return next(self.modality_embeddings.parameters()).dtype

    def _text_encoder(self) -> CrossFusePreTrainedModel:
        names = self.config.modalities.names_of_kind("text")
        if not names:
            raise NotImplementedError(
                "this CrossFuse model has no modality of kind 'text', so its encoder has no token embedding"
            )
        return self.encoders[names[0]]

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the first modality of kind `text`."""
        return self._text_encoder().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self._text_encoder().set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """Resizes the vocabulary of the first text encoder, and leaves the decoder's as it is."""
        return self._text_encoder().resize_token_embeddings(*args, **kwargs)

    @selects_hidden_states
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        modality_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFuseEncoderOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): values of the modality `text`, if there is one.
            modality_mask (`torch.Tensor` of shape `(batch, num_modalities)`): 1 where a sample has a modality, in the
                config's order. Without it, a modality is present where its values are given and its mask keeps
                anything.
            output_hidden_states (`bool` or `list[int]`, *optional*): whether to give what each layer makes, or of
                which places of the hidden states of [`CrossFuseEncoderOutput`]; the others are `None` then. Negative
                places count from the end. Places beyond the last layer are ignored.
            kwargs: values and masks of the other modalities, named as `config.modalities.tensor_names` says.

        Raises:
            ValueError: if no modality is given, a sample has none, an argument is unknown, a tensor has the wrong
                shape, or values are not finite.
        """
        given = {"input_ids": input_ids, **kwargs}
        refuse_unknown(given, self.known_arguments, type(self).forward)
        inputs = read_inputs(given, self.config.modalities)
        present = find_present(inputs, modality_mask, self.config.modalities)  # (batch, num_modalities)
        present = self._drop_modalities(present)
        layer_kwargs = {"skip_padding": not records_layers(self.config, given)}
        if "output_attentions" in given:
            layer_kwargs["output_attentions"] = given["output_attentions"]
        streams = self._streams(inputs, present, **layer_kwargs)  # each (batch, length, d_model)
        memory = self.fusion(streams, **layer_kwargs)  # (batch, memory_length, d_model)
        return CrossFuseEncoderOutput(
            last_hidden_state=memory.hidden_states,
            attention_mask=memory.attention_mask,
            modality_ids=memory.modality_ids.to(present.device).expand(memory.attention_mask.shape[0], -1),
        )

    def _drop_modalities(self, present: torch.Tensor) -> torch.Tensor:
        """In training, leaves out modalities at random, but never a sample's last one."""
        rates = [part.modality_dropout for part in self.config.modalities.values()]
        if not self.training or not any(rates):
            return present
        rates = torch.tensor(rates, device=present.device)
        keep = present & (torch.rand(present.shape, device=present.device) >= rates)
        spared = (torch.rand(present.shape, device=present.device) * present).argmax(1, keepdim=True)
        return keep | (~keep.any(1, keepdim=True) & torch.zeros_like(keep).scatter(1, spared, True))

    def _streams(self, inputs: dict[str, ModalityInputs], present: torch.Tensor, **kwargs) -> list[Stream]:
        # The samples that lack a modality are left out of its encoder. A graph of fixed shapes can't do that: compiled
        # or exported, all samples pass through and those that lack it are masked, with the same result.
        fixed_shapes = torch.compiler.is_compiling()
        counts = None if fixed_shapes else present.sum(0).tolist()
        # Under distributed training, the processes have to agree on which parameters get a gradient.
        distributed = self.training and is_distributed()
        streams = []
        for index, (name, part) in enumerate(self.config.modalities.items()):
            if name not in inputs or (counts is not None and counts[index] == 0):
                if distributed:
                    streams.append(self._empty_stream(index, name, present))
                continue
            encode = self._encode_all if fixed_shapes or counts[index] == len(present) else self._encode_present
            hidden_states, mask = encode(name, inputs[name], present[:, index], **kwargs)
            embedding = self.modality_embeddings(name, present.device)  # (d_model,)
            hidden_states = hidden_states.to(embedding.dtype)  # an encoder may have a dtype of its own
            if name in self.projections:
                hidden_states = self.projections[name](hidden_states)  # (batch, length, d_model)
            # Encoders may lie on several devices; the streams meet here.
            hidden_states, mask = hidden_states.to(embedding.device) + embedding, mask.to(embedding.device)
            if distributed and part.is_wrapped:  # it may have parameters that do not count here
                hidden_states = hidden_states + self._touch(name, embedding)
            hidden_states = hidden_states.masked_fill((mask == 0).unsqueeze(-1), 0.0)
            streams.append(Stream(index, hidden_states, mask))
        return streams

    def encode_modality(
        self, name: str, values: torch.Tensor, mask: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Runs the encoder of one modality, without projection and fusion.

        Args:
            name (`str`): the modality.
            values (`torch.Tensor` of shape `(batch, ...)`): its values, as `forward` takes them; images of shape
                `(batch, images, channels, height, width)`.
            mask (`torch.Tensor` of shape `(batch, length)`): their mask.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: hidden states `(batch, length, hidden_size)` and their mask
            `(batch, length)`. `forward` takes them as `<name>_hidden_states` and `<name>_hidden_states_mask`.
        """
        encoder, device = self.encoders[name], values.device.type
        has_autocast = torch.is_autocast_enabled(device)
        if not (values.is_floating_point() or has_autocast):
            return encoder(values, mask, **kwargs)
        dtypes = (parameter.dtype for parameter in encoder.parameters() if parameter.is_floating_point())
        # The replicas of DataParallel have no parameters.
        dtype = next(dtypes, None) or self.modality_embeddings(name, mask.device).dtype
        if values.is_floating_point():  # processors give float32, whatever the model's dtype is
            values = values.to(dtype)
        # Autocast would mix two low precisions within the encoder.
        keeps_autocast = has_autocast and dtype in (torch.float32, torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=keeps_autocast):
            return encoder(values, mask, **kwargs)

    def _encode(self, name: str, given: ModalityInputs, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states `(batch, length, hidden_size)` and their mask, also where they are given."""
        if given.is_encoded:
            return given.values, given.mask
        return self.encode_modality(name, given.values, given.mask, **kwargs)

    def _encode_all(self, name: str, given: ModalityInputs, rows, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        rows = rows.unsqueeze(1)
        # A sample without the modality gets a mask of ones here, since attention over nothing has no defined result.
        values = given.values.masked_fill(~rows.view(-1, *[1] * (given.values.dim() - 1)), 0)
        given = given._replace(values=values, mask=given.mask.masked_fill(~rows, 1))
        hidden_states, encoded_mask = self._encode(name, given, **kwargs)
        return hidden_states, encoded_mask.masked_fill(~rows, 0)

    def _encode_present(self, name: str, given: ModalityInputs, rows, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        samples = Packing(rows.unsqueeze(1))
        values, mask = pack_samples(given.values, samples), pack_samples(given.mask, samples)
        hidden_states, mask = self._encode(name, given._replace(values=values, mask=mask), **kwargs)
        return unpack_samples(hidden_states, samples), unpack_samples(mask, samples)

    def _touch(self, name: str, embedding: torch.Tensor) -> torch.Tensor:
        """A zero that depends on all parameters of a modality, so that each of them gets a gradient."""
        parameters = list(self.encoders[name].parameters())
        if name in self.projections:
            parameters += self.projections[name].parameters()
        return touch(parameters) + embedding.sum() * 0.0

    def _empty_stream(self, index: int, name: str, present: torch.Tensor) -> Stream:
        """The stream of a modality that no sample has. It depends on the parameters of the modality."""
        embedding = self.modality_embeddings(name, present.device)
        hidden_states = embedding.new_zeros(len(present), 1, self.config.d_model) + self._touch(name, embedding)
        return Stream(index, hidden_states, torch.zeros_like(present[:, :1], dtype=torch.long))


def is_distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def touch(parameters: Iterable[nn.Parameter]) -> torch.Tensor | float:
    """A zero that depends on the parameters that train, so that each of them gets a gradient."""
    return sum(parameter.sum() for parameter in parameters if parameter.requires_grad) * 0.0


def records_layers(config: CrossFuseConfig, kwargs: dict[str, Any]) -> bool:
    """Whether the output of a `forward` with these arguments has hidden states or attentions."""
    return bool(
        kwargs.get("output_attentions", config.output_attentions)
        or kwargs.get("output_hidden_states", config.output_hidden_states)
    )
