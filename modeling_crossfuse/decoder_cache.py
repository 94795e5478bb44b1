# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The decoder's cache: its name in this transformers, an answer that grows in place, and a memory that beams share."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.deprecation import deprecate_kwarg


# What `generate`, outputs and a `forward` call the cache: `cache` from transformers 5.24 on, before `past_key_values`.
CACHE = "cache" if "cache" in {field.name for field in fields(Seq2SeqLMOutput)} else "past_key_values"


def takes_cache(forward: Callable) -> Callable:
    """
    Lets a `forward` that names its `cache` take it by the other name as well. Where transformers has deprecated
    `past_key_values`, so does this.
    """
    if CACHE == "cache":
        return deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")(forward)

    @wraps(forward)
    def renamed(*args, **kwargs):
        if kwargs.get("past_key_values") is not None:
            if kwargs.get("cache") is not None:
                raise ValueError("`cache` and `past_key_values` are both given; expected one of them")
            kwargs["cache"] = kwargs["past_key_values"]
        kwargs.pop("past_key_values", None)
        return forward(*args, **kwargs)

    # `generate` of these versions looks for the name that it uses.
    signature = inspect.signature(forward)
    *named, others = signature.parameters.values()
    old_name = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    renamed.__signature__ = signature.replace(parameters=[*named, old_name, others])
    del renamed.__wrapped__  # `unwrap_model` of accelerate goes on to what is wrapped, which lacks the name
    return renamed


class GrowingLayer(DynamicLayer):
    """
    A [`~transformers.cache_utils.DynamicLayer`] that reserves room for tokens to come and writes them in place, where
    the base class copies all tokens for each new one. Beams are reordered by copying them to a second room, and back.
    """

    # Not in `__dict__`, which transformers' exporters read as inputs and outputs of a graph: spare room is neither.
    __slots__ = ("_room", "_second_room")

    def __init__(self):
        super().__init__()
        self._room = self._second_room = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values `(batch, heads, new_length, head_dim)`, and gives all of them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # where nothing may be written in place
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.get_seq_length(), key_states.shape[2]
        room = self._filled_room()
        if room is None or room.shape[3] < past + new:
            rows, heads, _, head_dim = key_states.shape
            room = key_states.new_empty(2, rows, heads, max(2 * (past + new), 16), head_dim)
            if past:
                room[0, :, :, :past], room[1, :, :, :past] = self.keys, self.values
        spare_keys, spare_values = room.narrow(3, past, new).unbind()
        spare_keys.copy_(key_states)
        spare_values.copy_(value_states)
        self._settle(room, past + new)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor):
        """Reorders the rows. Some may be dropped and others repeated."""
        room, length = self._filled_room(), self.get_seq_length()
        if room is None or len(beam_idx) != room.shape[1] or torch.is_grad_enabled():
            return super().reorder_cache(beam_idx)
        second = getattr(self, "_second_room", None)
        if second is None or second.shape != room.shape:
            second = torch.empty_like(room)
        moved = second.narrow(3, 0, length)
        torch.index_select(room.narrow(3, 0, length), 1, beam_idx.to(room.device), out=moved)
        self._second_room = room
        self._settle(second, length)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the spare room out of copies and files."""
        state = dict(vars(self))
        if self.is_initialized:
            state |= {"keys": self.keys.contiguous(), "values": self.values.contiguous()}
        return state

    def _settle(self, room: torch.Tensor, length: int):
        self._room = room
        self.keys, self.values = room.narrow(3, 0, length).unbind()

    def _filled_room(self) -> torch.Tensor | None:
        """The room that has the keys and values, or None if other code has replaced them by copies."""
        room = getattr(self, "_room", None)  # which the cache of an exported graph has not
        if room is None or not self.is_initialized or self.keys.shape[0] != room.shape[1]:
            return None
        return room if self.keys.data_ptr() == room.data_ptr() else None


class AnswerCache(DynamicCache):
    """Keys and values of the answer so far, in a [`GrowingLayer`] for each layer."""

    def __init__(self):
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer


class MemoryCache(DynamicCache):
    """
    Keys and values of the memory, which every token of an answer reads, and their mask `(rows, 1, 1, memory_length)`,
    which attention adds to its scores. Beams share them: the memory has a row for each sample, and the answer may have
    several.
    """

    def __init__(self):
        super().__init__()
        self.mask: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """How many rows there are; 0 before the memory was read."""
        return self.layers[0].keys.shape[0] if self.get_seq_length() else 0

    def reorder_cache(self, beam_idx: torch.LongTensor):
        """Beams change places within their sample only, so that what they share stays as it is."""
        if len(beam_idx) == self.rows:
            self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor):
        """Only keep the `indices` in the batch dimension."""
        super().batch_select_indices(indices)
        self.mask = None if self.mask is None else self.mask[indices]

    def batch_repeat_interleave(self, repeats: int):
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self.mask = None if self.mask is None else self.mask.repeat_interleave(repeats, dim=0)

    def unshare(self, rows: int):
        """Repeats the memory for each of the answer's `rows`, for code that does not share it."""
        if self.rows and self.rows != rows:
            self.batch_repeat_interleave(rows // self.rows)


def make_cache(config) -> EncoderDecoderCache:
    """An empty cache for a decoder with this config."""
    # Flash attention finds the ends of samples in a mask of two dimensions, and flex attention has masks of its own.
    keeps_mask = config._attn_implementation in ("eager", "sdpa")
    return EncoderDecoderCache(AnswerCache(), MemoryCache() if keeps_mask else DynamicCache())


def is_shareable(cache: EncoderDecoderCache | None) -> bool:
    """Whether beams may read one memory from the cache."""
    return cache is not None and isinstance(cache.cross_attention_cache, MemoryCache)


def has_memory(cache: EncoderDecoderCache | None) -> bool:
    """Whether the memory's keys and values are in the cache already."""
    return cache is not None and cache.is_updated.get(0, False)
