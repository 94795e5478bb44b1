# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Inputs that are read once and kept in memory, and outputs of frozen encoders that are kept on disk."""

import functools
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
from accelerate.utils import tqdm

from ..encoder_processors import describe
from ..hub import __version__
from ..inputs import read_inputs
from .collator import CrossFuseDataCollator
from .rows import (
    NumberedRows,
    has_text,
    paths_in,
    row_name,
    row_names,
    row_numbers,
    select_columns,
    top_column,
    undecoded,
)


# The key of a cached row for the tensors that are made already.
TENSORS = "__tensors__"


class CachedInputs(torch.utils.data.Dataset):
    """
    Rows whose inputs, except for texts, are made into tensors once and kept in memory.

    Args:
        rows (`datasets.Dataset`): the rows.
        processor ([`CrossFuseProcessor`]): makes the tensors.
        inputs (`dict[str, str]`): name of each modality to its column.
        target (`str`, *optional*): a column to keep, beside those with text.
        part (`str`, *optional*): what errors call the rows, as in [`NumberedRows`].
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor,
        inputs: dict[str, str],
        target: str | None = None,
        part: str | None = None,
    ):
        inputs = {name: column for name, column in inputs.items() if processor.modalities[name]["kind"] != "text"}
        collator = CrossFuseDataCollator(processor, inputs)
        self.numbers = row_numbers(rows)
        samples = NumberedRows(undecoded(select_columns(rows, inputs.values())), part) if inputs else [{}] * len(rows)

        def read(row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
            values = {name: collator.read_column([row], column)[0] for name, column in inputs.items()}
            is_given = not all(processor.is_missing(name, value) for name, value in values.items())
            return collator([row]) if is_given else {}

        with tqdm(samples, desc="reading the inputs", unit=" samples") as bar:
            self.tensors = [read(row) for row in bar]
        kept = [name for name, feature in rows.features.items() if has_text(feature)]
        texts = rows.select_columns(kept).to_list() if kept else [{}] * len(rows)
        self.texts = [_only_text(row, rows.features) for row in texts]
        if target is not None and not has_text(rows.features[top_column(rows, target)]):
            for text, row in zip(self.texts, select_columns(rows, [target])):
                text.update(row)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.texts[index], TENSORS: self.tensors[index]}


def _only_text(value: Any, feature: Any) -> Any:
    """A row, or a struct in it, with its texts alone."""
    if not isinstance(value, dict):
        return value
    return {name: _only_text(value[name], part) for name, part in feature.items() if has_text(part)}


class EncodedInputs(torch.utils.data.Dataset):
    """
    Rows whose modalities with a frozen encoder are encoded once. The encoders' outputs are kept in a file that is
    mapped into memory, so that it may be larger than the memory.

    The file is used again as long as the rows, the files that they name, the columns, the weights of the encoders and
    the settings of the processor are the same: their content, whatever they are called. [`CachedInputsCollator`] makes
    batches of these rows.

    Args:
        rows (`datasets.Dataset`): the rows.
        model ([`CrossFuseForConditionalGeneration`]): the model; its encoders run on the device that they are on.
        processor ([`CrossFuseProcessor`]): makes the tensors.
        inputs (`dict[str, str]`): name of each modality to its column. Those of [`frozen_modalities`] are encoded.
        folder (`str` or `Path`): the folder of the file.
        batch_size (`int`, defaults to 32): samples that are encoded at a time.
        part (`str`, *optional*): what errors call the rows, as in [`NumberedRows`].
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        model,
        processor,
        inputs: dict[str, str],
        folder: str | Path,
        batch_size: int = 32,
        part: str | None = None,
    ):
        self.names = frozen_modalities(model, inputs)
        self.modalities = model.config.modalities
        others = {name: column for name, column in inputs.items() if name not in self.names}
        inputs = {name: inputs[name] for name in self.names}
        self.numbers = row_numbers(rows)
        samples = undecoded(select_columns(rows, inputs.values()))
        names = [row_name(number, part) for number in self.numbers]
        fingerprint = _fingerprint(samples, model, processor, inputs)
        Path(folder).mkdir(parents=True, exist_ok=True)
        encoded = samples.map(
            functools.partial(_encode_rows, names=names, model=model, processor=processor, inputs=inputs),
            with_indices=True,
            batched=True,
            batch_size=batch_size,
            writer_batch_size=batch_size,
            remove_columns=samples.column_names,
            features=datasets.Features({key: feature for name in inputs for key, feature in _features(name).items()}),
            load_from_cache_file=True,
            cache_file_name=str(Path(folder, f"{fingerprint}.arrow")),
            new_fingerprint=fingerprint,
            desc="encoding the inputs",
        )
        self.encoded = encoded.with_format("numpy")
        unread = _only_read_by(inputs, others, rows)
        self.rows = rows.remove_columns(unread) if set(unread) < set(rows.column_names) else [{}] * len(rows)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, encoded = dict(self.rows[index]), self.encoded[index]
        tensors = {"modality_mask": torch.zeros(1, len(self.modalities), dtype=torch.long), **row.pop(TENSORS, {})}
        modality_mask = tensors["modality_mask"] = tensors["modality_mask"].clone()
        for name in self.names:
            states, length = (encoded[key] for key in _features(name))
            if length:
                names = self.modalities.tensor_names_of(name)
                # `torch.tensor` copies, since memory that is mapped from a file is read-only.
                tensors[names.hidden_states] = torch.tensor(states).view(1, int(length), -1)
                tensors[names.hidden_states_mask] = torch.ones(1, int(length), dtype=torch.long)
                modality_mask[:, list(self.modalities).index(name)] = 1
        return {**row, TENSORS: tensors}


def frozen_modalities(model, inputs: Collection[str]) -> list[str]:
    """Those of the modalities whose encoders do not train. Raises a `ValueError` if there are none."""
    modalities, encoders = model.config.modalities, model.get_encoder().encoders
    frozen = [name for name in inputs if name in modalities and modalities[name].frozen]
    # LoRA adds weights to a frozen encoder that train.
    constant = [name for name in frozen if not any(p.requires_grad for p in encoders[name].parameters())]
    if not constant:
        raise ValueError(
            f"`cache_encoder_outputs`: of the modalities that `inputs` reads from columns ({', '.join(inputs)}) none "
            "has an encoder that training leaves as it is; name at least one of them in `freeze`, and let `lora` "
            "leave it alone"
        )
    return constant


def _features(name: str) -> dict[str, Any]:
    """The file's columns for a modality: the hidden states that its mask keeps, in one flat list, and their number."""
    return {
        f"{name}_hidden_states": datasets.List(datasets.Value("float32")),
        f"{name}_length": datasets.Value("int32"),
    }


def _encode_rows(
    columns: Mapping[str, list[Any]],
    indices: list[int],
    names: Sequence[str],
    model,
    processor,
    inputs: dict[str, str],
) -> dict[str, list[np.ndarray | int]]:
    """The values of the file's columns for a few rows."""
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    collator, outputs = CrossFuseDataCollator(processor, inputs), {}
    for name, column in inputs.items():
        samples = collator.read_column(rows, column)
        given = [index for index, sample in enumerate(samples) if not processor.is_missing(name, sample)]
        states = [np.zeros((0, 0), dtype=np.float32)] * len(rows)
        if given:
            chosen, sample_names = [samples[index] for index in given], [names[indices[index]] for index in given]
            encoded = _encode_samples(model, processor, name, chosen, sample_names)
            for index, sample_states in zip(given, encoded):
                states[index] = sample_states
        states_column, length_column = _features(name)
        outputs[states_column] = [sample_states.ravel() for sample_states in states]
        outputs[length_column] = [len(sample_states) for sample_states in states]
    return outputs


@torch.no_grad()
def _encode_samples(model, processor, name: str, samples: list[Any], sample_names: list[str]) -> list[np.ndarray]:
    """Hidden states `(length, hidden_size)` of each sample, without padding."""
    tensors = processor(**{name: samples}, sample_names=sample_names, return_tensors="pt")
    modalities = model.config.modalities
    given = read_inputs(tensors, modalities)[name]
    encoder = model.get_encoder()
    device = next(encoder.encoders[name].parameters()).device
    hidden_states, mask = encoder.encode_modality(name, given.values.to(device), given.mask.to(device))
    return [states[kept].float().cpu().numpy() for states, kept in zip(hidden_states, mask.bool())]


def _only_read_by(inputs: dict[str, str], others: dict[str, str], rows: datasets.Dataset) -> list[str]:
    """The columns that only `inputs` reads, without those with texts, which may be answers, too."""
    read, read_by_others = ({top_column(rows, column) for column in part.values()} for part in (inputs, others))
    return [column for column in read - read_by_others if not has_text(rows.features[column])]


# Settings of a modality that do not change its encoder's outputs.
_IRRELEVANT = ("dtype", "modality_dropout", "revision", "source")


def _fingerprint(samples: datasets.Dataset, model, processor, inputs: dict[str, str]) -> str:
    """A hash of everything that the encoders' outputs depend on."""
    fingerprint = hashlib.sha256()
    modalities = {
        name: {key: value for key, value in model.config.modalities[name].to_dict().items() if key not in _IRRELEVANT}
        for name in inputs
    }
    described = {name: _describe_processor(processor, name) for name in inputs}
    settings = [inputs, modalities, described, transformers.__version__, __version__]
    fingerprint.update(json.dumps(settings, sort_keys=True, default=str).encode())
    columns = dict.fromkeys(top_column(samples, column) for column in inputs.values())
    for content in _content(samples.select_columns(list(columns))):
        fingerprint.update(content)
    for name in inputs:
        for key, value in model.get_encoder().encoders[name].state_dict().items():
            # `torch.save` writes quantised weights, too. Of a view, it would write the whole storage: hence the clone.
            buffer = io.BytesIO()
            torch.save((key, value.cpu().clone()), buffer)
            fingerprint.update(buffer.getbuffer())
    return fingerprint.hexdigest()


def _content(samples: datasets.Dataset) -> Iterator[bytes]:
    """What rows hold, and what is in the files that they name."""
    with_paths = [field.name for field in samples.features.arrow_schema if "string" in str(field.type)]
    for table in samples.with_format("arrow").iter(batch_size=32):
        table, stream = table.combine_chunks().replace_schema_metadata(), io.BytesIO()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        yield stream.getvalue()
        for path in filter(os.path.isfile, paths_in(table.select(with_paths).to_pylist())):
            with open(path, "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()


def _describe_processor(processor, name: str) -> dict[str, Any]:
    """The settings that a modality is processed with, and those of its sub-processors."""
    parts = processor.sub_processors_of(name).items()
    described = {part: describe(sub_processor) for part, sub_processor in parts if sub_processor is not None}
    return {**processor.settings_of(name), **described}


class CachedInputsCollator(CrossFuseDataCollator):
    """
    [`CrossFuseDataCollator`] for the rows of [`CachedInputs`] and [`EncodedInputs`]. It processes the modalities that
    these have not made into tensors.

    Args:
        args, kwargs: as [`CrossFuseDataCollator`] takes them.
        cached (`Collection[str]`, *optional*): the modalities whose tensors are in the rows. Defaults to all except
            those of kind `text`, as in [`CachedInputs`].
    """

    def __init__(self, *args, cached: Collection[str] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if cached is None:
            modalities = self.processor.modalities.items()
            cached = [name for name, settings in modalities if settings["kind"] != "text"]
        self.cached = set(cached)

    def _encode(self, rows: list[dict[str, Any]], inputs: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
        samples = [row[TENSORS] for row in rows]
        names = dict.fromkeys(name for sample in samples for name in sample)
        batch = {name: _stack([sample.get(name) for sample in samples]) for name in names}
        batch.setdefault("modality_mask", torch.zeros(len(rows), len(self.processor.modalities), dtype=torch.long))
        for name, values in inputs.items():
            if name in self.cached:
                continue
            column = list(self.processor.modalities).index(name)
            given = [row for row, value in enumerate(values) if not self.processor.is_missing(name, value)]
            batch["modality_mask"][given, column] = 1
            if given:
                chosen = [values[row] for row in given]
                sample_names = row_names([rows[row] for row in given])
                encoded = self.processor(**{name: chosen}, sample_names=sample_names, return_tensors="pt")
                for key in set(encoded) - {"modality_mask"}:
                    batch[key] = encoded[key].new_zeros(len(rows), *encoded[key].shape[1:])
                    batch[key][given] = encoded[key]
        return batch

    def read_column(self, rows: list[dict[str, Any]], column: str) -> list[Any]:
        names = [name for name in self.inputs if self.inputs[name] == column]
        return [] if names and self.cached.issuperset(names) else super().read_column(rows, column)


def _stack(tensors: list[torch.Tensor | None]) -> torch.Tensor:
    """Tensors `(1, ...)` of different sizes as one batch, padded with zeros; a row for None has zeros only."""
    given = [tensor for tensor in tensors if tensor is not None]
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in given))]
    batch = given[0].new_zeros(len(tensors), *shape)
    for row, tensor in enumerate(tensors):
        if tensor is not None:
            batch[(row, *(slice(size) for size in tensor.shape[1:]))] = tensor[0]
    return batch


__all__ = ["CachedInputs", "CachedInputsCollator", "EncodedInputs", "frozen_modalities"]
