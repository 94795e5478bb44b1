# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Encoders: built-in ones, a stem per kind in front of the one Transformer layer, and any that transformers has."""

import math
from itertools import pairwise

import torch
from torch import nn

from .arguments import refuse_unknown
from .configuration_encoders import CrossFuseBuiltInEncoderConfig, CrossFuseWrappedEncoderConfig
from .configuration_modalities import CrossFuseModalitiesConfig
from .encoder_calls import call_encoder
from .encoder_search import build_encoder
from .layers import RECORDED, CrossFuseLayers, CrossFuseRotaryEmbedding, CrossFuseTokenEmbedding, sinusoidal_positions
from .packing import Packing, pack, unpack
from .pretrained import CrossFusePreTrainedModel


def sequence_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions `(batch, length, 1)` that count only what the mask `(batch, length)` keeps."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0).unsqueeze(-1)


def grid_positions(*sizes: int, device: torch.device) -> torch.Tensor:
    """Coordinates `(1, product of sizes, axes)` of the cells of a grid, the last axis running fastest."""
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    return torch.stack(axes, dim=-1).flatten(0, -2).unsqueeze(0)


def pad_to_multiple(values: torch.Tensor, multiples: tuple[int, ...]) -> torch.Tensor:
    """Pads the last dimensions with zeros, at their ends, to multiples."""
    sizes = values.shape[-len(multiples) :]
    padding = [amount for size, multiple in zip(sizes, multiples) for amount in (-size % multiple, 0)][::-1]
    # A graph for any length can't ask whether this one needs padding.
    return nn.functional.pad(values, padding) if torch.compiler.is_compiling() or any(padding) else values


def group_mask(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Mask `(batch, length)` of groups of `size` steps: a group is kept where any of its steps is."""
    return pad_to_multiple(mask, (size,)).unflatten(-1, (-1, size)).amax(-1)


class TextStem(nn.Module):
    """Token embedding."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = CrossFuseTokenEmbedding(config.vocab_size, config.hidden_size)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if values.dim() == 2:
            values = self.embed_tokens(values.masked_fill(mask == 0, 0))
        return values, sequence_positions(mask), mask


class ImageStem(nn.Module):
    """Patches, by one projection or by residual convolutions, with two-dimensional positions."""

    def __init__(self, config):
        super().__init__()
        self.patch_size = config.patch_size
        make = _convolutional_stem if config.stem_type == "conv" else _patch_projection
        self.projection = make(config)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = pad_to_multiple(values, (self.patch_size, self.patch_size))
        grid = self.projection(values.contiguous(memory_format=torch.channels_last))
        positions = grid_positions(*grid.shape[-2:], device=values.device)
        hidden_states = grid.flatten(2).transpose(1, 2)
        return hidden_states, positions, mask[:, None].expand(-1, hidden_states.shape[1])


def _patch_projection(config) -> nn.Module:
    return nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)


class Convolution(nn.Conv2d):
    """
    A convolution that computes with its channels last: on CPUs, it is several times as fast so in bfloat16. The
    parameter itself stays contiguous, as saved weights have to be.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return self._conv_forward(hidden_states, weight, self.bias)


class ResidualConvolutions(nn.Module):
    """Two convolutions around which the input passes unchanged (He et al., 2016, *Identity Mappings*)."""

    def __init__(self, channels: int):
        super().__init__()
        self.block = nn.Sequential(*_normed_convolution(channels, channels), *_normed_convolution(channels, channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.block(hidden_states)


def _normed_convolution(channels: int, width: int, **kwargs) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(), Convolution(channels, width, 3, padding=1, bias=False, **kwargs)]


def _convolutional_stem(config) -> nn.Module:
    """
    Convolutions that each halve the image and double the channels, with residual blocks after all but the first, and a
    projection to the encoder's width.
    """
    width = config.stem_width or max(config.hidden_size // 8, 8)
    layers: list[nn.Module] = [Convolution(config.num_channels, width, 3, stride=2, padding=1, bias=False)]
    for _ in range(int(math.log2(config.patch_size)) - 1):  # the first has halved the image once
        channels, width = width, min(2 * width, config.hidden_size)
        layers.extend(_normed_convolution(channels, width, stride=2))
        layers.extend(ResidualConvolutions(width) for _ in range(config.stem_depth))
    projection = Convolution(width, config.hidden_size, 1, bias=False)
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), projection, nn.BatchNorm2d(config.hidden_size))


class VideoStem(nn.Module):
    """Tubelets (Arnab et al., 2021, *ViViT*) with three-dimensional positions."""

    def __init__(self, config):
        super().__init__()
        self.patch = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.projection = nn.Conv3d(config.num_channels, config.hidden_size, self.patch, stride=self.patch)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = values.masked_fill((mask == 0)[:, :, None, None, None], 0.0).transpose(1, 2)
        grid = self.projection(pad_to_multiple(values, self.patch))
        positions = grid_positions(*grid.shape[-3:], device=values.device)
        cells = grid.shape[-2] * grid.shape[-1]
        return grid.flatten(2).transpose(1, 2), positions, group_mask(mask, self.patch[0]).repeat_interleave(cells, 1)


class AudioStem(nn.Module):
    """Log-mel frames through convolutions that each halve their number, as in Whisper (Radford et al., 2022)."""

    def __init__(self, config):
        super().__init__()
        widths = [config.num_mel_bins] + [config.hidden_size] * config.num_conv_layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Padding is zeroed before each convolution, so that a clip gives the same alone and beside a longer one.
        hidden_states = values.masked_fill((mask == 0)[:, None], 0.0)
        for convolution in self.convolutions:
            mask = mask[:, ::2]
            hidden_states = nn.functional.gelu(convolution(hidden_states)).masked_fill((mask == 0)[:, None], 0.0)
        return hidden_states.transpose(1, 2), sequence_positions(mask), mask


class SeriesStem(nn.Module):
    """A linear layer on the channels of one or more time steps."""

    def __init__(self, config):
        super().__init__()
        self.patch_length = config.patch_length
        self.projection = nn.Linear(config.num_channels * config.patch_length, config.hidden_size)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = values.masked_fill((mask == 0)[:, :, None], 0.0)
        patches = pad_to_multiple(values, (self.patch_length, 1)).unflatten(1, (-1, self.patch_length)).flatten(2)
        mask = group_mask(mask, self.patch_length)
        return self.projection(patches), sequence_positions(mask), mask


STEMS = {"text": TextStem, "image": ImageStem, "video": VideoStem, "audio": AudioStem, "series": SeriesStem}


class CrossFuseModalityEncoder(CrossFusePreTrainedModel):
    """
    What built-in and wrapped encoders share: several images per sample, and freezing. A subclass implements
    `_encode(values, mask)`.
    """

    known_arguments = frozenset({"output_attentions", "skip_padding"})

    def forward(self, values: torch.Tensor, mask: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Values of samples that have the modality, with their mask, to hidden states `(batch, length, hidden_size)` and
        the mask `(batch, length)` of these. `skip_padding` leaves padding out, and `output_attentions` is for the
        attention implementation; any other argument is a `ValueError`.
        """
        refuse_unknown(kwargs, self.known_arguments, type(self).forward)
        if self.config.encodes_images:
            return self._encode_images(values, mask, **kwargs)
        return self._encode(values, mask, **kwargs)

    def _encode(self, values: torch.Tensor, mask: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def _encode_images(self, values: torch.Tensor, mask: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image `(batch, images, ...)` by itself; then those of a sample one after the other."""
        packing = Packing(mask)
        # Padding is left out, so that it costs nothing and batch norm's statistics are those of the images. A graph of
        # fixed shapes can't do that: there, all positions of a padding image are kept here, and masked afterwards.
        if torch.compiler.is_compiling() or not 0 < len(packing.index) < mask.numel():
            values = values.flatten(0, 1).masked_fill((mask == 0).flatten()[:, None, None, None], 0.0)
            hidden_states, _ = self._encode(values, torch.ones_like(mask).flatten(), **kwargs)
            hidden_states = hidden_states.unflatten(0, mask.shape)
        else:
            values = pack(values, packing).squeeze(0)
            hidden_states, _ = self._encode(values, mask.new_ones(len(values)), **kwargs)
            hidden_states = unpack(hidden_states.unsqueeze(0), packing)
        images, positions, width = hidden_states.shape[1:]
        if torch.compiler.is_compiling() or images > 1:  # a graph for any number of images has to be ready for several
            index = sinusoidal_positions(torch.arange(images, device=values.device)[:, None], width)
            # Relative to the first image, so that a sample with one image is the same in a batch with many.
            hidden_states = hidden_states + (index - index[:1])[:, None].to(hidden_states)
        return hidden_states.flatten(1, 2), mask.repeat_interleave(positions, dim=1)

    def train(self, mode: bool = True):
        # What is frozen gives the same in training as afterwards: no dropout, and batch norm keeps its statistics.
        return super().train(mode and not self.config.frozen)

    def set_frozen(self, frozen: bool, training: bool):
        """Freezes the encoder, or lets what trained before train again; `training` is the mode of the whole model."""
        if frozen and not self.config.frozen:
            self.note_trainable()
        self.config.frozen = frozen
        self.train(training)
        self.apply_frozen()

    def note_trainable(self):
        """Notes which parameters train while the encoder is not frozen: some, as fixed positions, never do."""
        self._trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def apply_frozen(self):
        """Makes parameters train, or not, as `config.frozen` says. Loading weights undoes it."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self._trainable and not self.config.frozen)


class CrossFuseBuiltInEncoder(CrossFuseModalityEncoder):
    """
    A built-in encoder: the stem of its kind, positions, and Transformer layers.

    Args:
        config ([`CrossFuseBuiltInEncoderConfig`]): one of the encoder configs, such as [`CrossFuseImageConfig`].
    """

    config: CrossFuseBuiltInEncoderConfig
    _can_record_outputs = RECORDED

    def __init__(self, config: CrossFuseBuiltInEncoderConfig):
        super().__init__(config)
        self.stem = STEMS[config.kind](config)
        rotary = config.position_embedding_type == "rotary"
        self.rotary_emb = CrossFuseRotaryEmbedding(config, config.position_axes) if rotary else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = CrossFuseLayers(config, config.num_hidden_layers)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.kind != "text":
            raise NotImplementedError(f"an encoder of kind {self.config.kind!r} has no token embedding")
        return self.stem.embed_tokens

    def set_input_embeddings(self, value: nn.Module):
        self.stem.embed_tokens = value

    def _encode(self, values: torch.Tensor, mask: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states, positions, mask = self.stem(values, mask)  # (batch, length, hidden_size)
        position_embeddings = None
        if self.rotary_emb is not None:
            position_embeddings = self.rotary_emb(positions, hidden_states.dtype)
        else:
            hidden_states = hidden_states + sinusoidal_positions(positions, hidden_states.shape[-1]).to(hidden_states)
        hidden_states = self.layers(
            self.dropout(hidden_states), mask, position_embeddings=position_embeddings, **kwargs
        )
        return hidden_states, mask


class CrossFuseWrappedEncoder(CrossFuseModalityEncoder):
    """
    The adapter around any encoder of transformers.

    The encoder gets its mask where it takes one. Otherwise what stands in the padding of a sample is read as the
    sample's processor left it; nothing is ever read of a sample that lacks the modality.

    Args:
        config ([`CrossFuseWrappedEncoderConfig`]): how the encoder is built and called, as `from_encoders` finds out.

    Raises:
        ValueError: if the config does not say all of it.
    """

    config: CrossFuseWrappedEncoderConfig

    def __init__(self, config: CrossFuseWrappedEncoderConfig):
        super().__init__(config)
        if config.missing_settings:
            raise ValueError(
                f"the config does not say how to call the encoder of its {type(config.encoder).__name__}: it lacks "
                f"{', '.join(f'`{name}`' for name in config.missing_settings)}. To find these out, build the model by "
                "`CrossFuseForConditionalGeneration.from_encoders({name: encoder config}, ...)`"
            )
        self.model = build_encoder(config.encoder, config.architecture)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def _encode(self, values: torch.Tensor, mask: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.compiler.is_compiling():
            return call_encoder(self.model, self.config, values, mask)
        try:
            return call_encoder(self.model, self.config, values, mask)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{self.config.values_argument}` of shape {tuple(values.shape)} is not what the encoder "
                f"{self.config.architecture} takes: {self._too_long(values) or error}"
            ) from error

    def _too_long(self, values: torch.Tensor) -> str | None:
        """That a text is longer than the positions that the encoder knows, if so."""
        positions = getattr(self.config.encoder, "max_position_embeddings", None)
        if self.config.kind == "text" and positions is not None and values.shape[1] > positions:
            return f"it has {positions} positions; cut texts, such as by `processor.set_max_lengths`"
        return None


class CrossFuseEncoders(CrossFusePreTrainedModel):
    """
    The encoders of all modalities, each a child of the modality's name. A model rather than an `nn.ModuleDict`, so
    that transformers finds the models inside: their tied weights, attention implementation and parallel plans.

    Args:
        config ([`CrossFuseModalitiesConfig`]): the `modalities` of a [`CrossFuseConfig`].
    """

    config: CrossFuseModalitiesConfig
    _can_record_outputs = RECORDED

    def __init__(self, config: CrossFuseModalitiesConfig):
        super().__init__(config)
        for name, part in config.items():
            if hasattr(self, name):
                raise ValueError(
                    f"`modalities` has the name {name!r}, which is an attribute of a model; choose another"
                )
            wrapped = part.is_wrapped
            self.add_module(name, CrossFuseWrappedEncoder(part) if wrapped else CrossFuseBuiltInEncoder(part))
            self[name].note_trainable()
            self[name].apply_frozen()
            self[name].train(self.training)
        self.post_init()

    def __getitem__(self, name: str) -> CrossFuseModalityEncoder:
        return self.get_submodule(name)
