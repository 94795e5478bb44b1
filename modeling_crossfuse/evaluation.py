# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Answers of a model for many samples, what they are worth, and which modalities they came from."""

import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoProcessor

from .data import get_column
from .processing_crossfuse import _load_sound


def cover(picture: Image.Image, share: float = 0.5) -> Image.Image:
    """
    Hides the right part of a picture behind white.

    Args:
        picture (`PIL.Image.Image`): left as it is.
        share (`float`, defaults to 0.5): share of the width that is hidden, from 0 to 1.

    Returns:
        `PIL.Image.Image`: an RGB picture of the same size.

    Raises:
        ValueError: if `share` is not between 0 and 1.

    Example:

    ```python
    >>> from PIL import Image
    >>> from modeling_crossfuse.evaluation import cover

    >>> half = cover(Image.new("RGB", (4, 1), "red"))
    >>> [half.getpixel((x, 0)) for x in range(4)]
    [(255, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255)]
    ```
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share={share}` is not between 0 and 1")
    covered = picture.convert("RGB")
    width, height = covered.size
    hidden = round(width * share)
    if hidden:
        ImageDraw.Draw(covered).rectangle((width - hidden, 0, width, height), fill="white")
    return covered


def add_noise(clip: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """
    Adds white noise to a waveform.

    Args:
        clip (`np.ndarray` of shape `(samples,)`): the waveform, left as it is.
        snr_db (`float`): signal-to-noise ratio in dB, both as mean power over the clip: at 0 the noise is as strong as
            the signal. Silence stays silent.
        generator (`np.random.Generator`): draws the noise.

    Returns:
        `np.ndarray` of shape `(samples,)`: float32, not clipped.

    Raises:
        ValueError: if the clip has not one dimension, or `snr_db` is not finite.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_crossfuse.evaluation import add_noise

    >>> clip = np.sin(np.arange(16_000) / 10)
    >>> noise = add_noise(clip, snr_db=0, generator=np.random.default_rng(0)) - clip
    >>> round(float((noise**2).mean() / (clip**2).mean()), 4)
    1.0
    ```
    """
    clip = np.asarray(clip, dtype=np.float64)
    if clip.ndim != 1:
        raise ValueError(f"`clip` has shape {clip.shape}; expected (samples,)")
    if not np.isfinite(snr_db):
        raise ValueError(f"`snr_db={snr_db}` is not a finite number")
    if clip.size == 0:
        return clip.astype(np.float32)
    noise = generator.standard_normal(clip.shape)
    power = (clip**2).mean() / 10 ** (snr_db / 10)
    return (clip + noise * np.sqrt(power / (noise**2).mean())).astype(np.float32)


@dataclass
class Degradation:
    """
    Makes raw inputs worse, each time in the same way: the noise of a clip depends on `seed` and the clip alone.

    Args:
        cover (`float`, *optional*): share of every picture to hide, see [`cover`].
        noise_db (`float`, *optional*): signal-to-noise ratio of every clip in dB, see [`add_noise`].
        seed (`int`, defaults to 0): of the noise.
    """

    cover: float | None = None
    noise_db: float | None = None
    seed: int = 0

    def __call__(self, kind: str, value: Any) -> Any:
        """
        `value`, a raw input of a modality of that kind, made worse; kinds other than image and audio stay as they are.

        Raises:
            ValueError: if it can't be read, or a setting is out of range.
        """
        if kind == "image" and self.cover is not None:
            if isinstance(value, list):
                return [self(kind, picture) for picture in value]
            if not isinstance(value, Image.Image):
                raise ValueError(f"a picture to cover is {type(value).__name__}; expected a PIL image")
            return cover(value, self.cover)
        if kind == "audio" and self.noise_db is not None:
            sound, sampling_rate = _load_sound("a sound to add noise to", value)
            generator = np.random.default_rng([self.seed, zlib.crc32(sound.tobytes())])
            return {"array": add_noise(sound, self.noise_db, generator), "sampling_rate": sampling_rate}
        return value


def _first_column(rows, column: str) -> str:
    """The column itself, or the struct that a dotted path starts at."""
    return column if column in rows.column_names else column.split(".")[0]


def text_modality(config) -> str:
    """The first modality of kind `text` of a model's config: the one that takes questions."""
    for name, part in config.modalities.items():
        if part.kind == "text":
            return name
    raise ValueError(
        f"this model takes no text, so it can't be asked a question; it takes {', '.join(config.modalities)}"
    )


class _Samples(Dataset):
    """What the model is given of each row, by modality, and made worse where that is asked for."""

    def __init__(self, rows, inputs: dict[str, str], kinds: dict[str, str], degrade):
        self.rows, self.inputs, self.kinds, self.degrade = rows, inputs, kinds, degrade

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        sample = {name: get_column(row, column) for name, column in self.inputs.items()}
        if self.degrade is None:
            return sample
        return {
            name: None if value is None else self.degrade(self.kinds[name], value) for name, value in sample.items()
        }


def _batches(config, processor, rows, inputs, question, degrade, batch_size) -> DataLoader:
    """Batches of tensors, in the order of the rows."""
    check_inputs(config, rows, inputs)
    asked = None if question is None else text_modality(config)
    if asked in inputs:
        raise ValueError(f"the question takes the place of the modality {asked!r}; leave {asked!r} out of the inputs")

    def collate(samples: list[dict[str, Any]]):
        columns = {name: [sample[name] for sample in samples] for name in inputs}
        if asked is not None:
            columns[asked] = [question] * len(samples)
        return processor(**columns, return_tensors="pt")

    kinds = {name: config.modalities[name].kind for name in inputs}
    if hasattr(rows, "select_columns"):  # a `datasets.Dataset` decodes every column of a row that is read
        rows = rows.select_columns(list({_first_column(rows, column) for column in inputs.values()}))
    return DataLoader(_Samples(rows, inputs, kinds, degrade), batch_size=batch_size, collate_fn=collate)


def check_inputs(config, rows: Sequence[dict[str, Any]], inputs: dict[str, str], target: str | None = None):
    """
    Raises:
        ValueError: if there are no rows, `config` has no such modality, or the first row has no such column.
    """
    if len(rows) == 0:
        raise ValueError("the data set has no rows")
    for name in inputs:
        if name not in config.modalities:
            raise ValueError(f"unknown modality {name!r}; this model takes {', '.join(config.modalities)}")
    try:
        for column in [*inputs.values(), *([] if target is None else [target])]:
            get_column(rows[0], column)
    except KeyError as error:
        raise ValueError(error.args[0]) from error


@torch.inference_mode()
def predict(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    question: str | None = None,
    batch_size: int = 64,
    degrade: Callable[[str, Any], Any] | None = None,
    progress: bool = True,
    **generate_kwargs,
) -> list[str]:
    """
    Answers for many samples.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): put into evaluation mode for the time being.
        processor ([`CrossFuseProcessor`]): the model's.
        rows (`datasets.Dataset` or a sequence of `dict`): one row per sample, read one batch at a time.
        inputs (`dict[str, str]`): modality to column; dots lead into structs. A row's `None` is a missing modality.
        question (`str`, *optional*): asked of every sample, as the first modality of kind `text`.
        batch_size (`int`, defaults to 64): samples per batch.
        degrade (`Callable[[str, Any], Any]`, *optional*): takes a kind and a raw value and returns a worse one, such
            as [`Degradation`].
        progress (`bool`, defaults to `True`): whether to show a progress bar.
        generate_kwargs: as `model.generate` takes them.

    Returns:
        `list[str]`: an answer for each row, without special tokens and surrounding blanks.

    Raises:
        ValueError: if a modality or a column is unknown, or a sample has no modality.
    """
    batches = _batches(model.config, processor, rows, inputs, question, degrade, batch_size)
    was_training = model.training
    model.eval()
    answers = []
    try:
        with tqdm(
            total=len(rows), desc="Answering", unit="sample", disable=None if progress else True, leave=False
        ) as bar:
            for batch in batches:
                ids = model.generate(**_to(batch, model), **_length(model, generate_kwargs))
                texts = processor.batch_decode(ids, skip_special_tokens=True)
                answers.extend(text.strip() for text in texts)
                bar.update(len(texts))
    finally:
        model.train(was_training)
    return answers


def _to(batch, model) -> dict[str, torch.Tensor]:
    """A batch without labels, on the model's device."""
    return {name: value.to(model.device) for name, value in batch.items() if name != "labels"}


def _length(model, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    # transformers stops after 20 tokens where nobody said when to: too early for text made of characters.
    defaults = model.generation_config
    chosen = {"max_new_tokens", "max_length", "generation_config"} & generate_kwargs.keys()
    if chosen or defaults.max_new_tokens is not None or defaults.max_length not in (None, 20):
        return generate_kwargs
    return {"max_new_tokens": 64, **generate_kwargs}


def evaluate_rows(
    model,
    processor,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, str],
    target: str,
    **predict_kwargs,
) -> dict[str, float]:
    """
    How good a model's answers are.

    Args:
        model, processor, rows, inputs: as in [`predict`].
        target (`str`): the column of the right answers; dots lead into structs.
        predict_kwargs: the other arguments of [`predict`].

    Returns:
        `dict[str, float]`: `exact_match` and `cer` as fractions, `chrf` from 0 to 100, `num_samples` and
        `samples_per_second`.

    Raises:
        ImportError: if `crossfuse[train]` is not installed.
        ValueError: as [`predict`] does, or if a row has no answer.
    """
    from .metrics import compute_text_metrics

    check_inputs(model.config, rows, inputs, target)
    answers_only = rows.select_columns([_first_column(rows, target)]) if hasattr(rows, "select_columns") else rows
    references = [get_column(row, target) for row in answers_only]
    for index, reference in enumerate(references):
        if not isinstance(reference, str):
            raise ValueError(f"row {index} has {reference!r} in column {target!r}; expected a text")
    start = time.perf_counter()
    answers = predict(model, processor, rows, inputs, **predict_kwargs)
    seconds = time.perf_counter() - start
    return {
        **compute_text_metrics(answers, references),
        "num_samples": len(answers),
        "samples_per_second": round(len(answers) / seconds, 1),
    }


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """
    Every non-empty subset, the small ones first.

    Example:

    ```python
    >>> from modeling_crossfuse.evaluation import subsets

    >>> list(subsets(["image", "audio"]))
    [('image',), ('audio',), ('image', 'audio')]
    ```
    """
    for size in range(1, len(names) + 1):
        yield from itertools.combinations(names, size)


@torch.inference_mode()
def modality_shares(model, inputs: dict[str, torch.Tensor], generated_ids: torch.LongTensor) -> torch.Tensor:
    """
    How much of the decoder's cross-attention went to each modality while it answered.

    It is the attention weight, summed over a modality's positions in the memory and averaged over layers, heads and
    the answer's tokens. That says where the decoder *read*, not what *caused* the answer: a modality with many
    positions draws weight even if it tells little, and after `joint` or `bottleneck` fusion a position also carries
    what it took from other modalities. To learn what an answer depends on, leave a modality out and compare answers.

    Args:
        model ([`CrossFuseForConditionalGeneration`]): run in evaluation mode with eager attention, which is the one
            that gives its weights; its own mode and attention are put back afterwards.
        inputs (`dict[str, torch.Tensor]`): a batch as the processor makes it.
        generated_ids (`torch.LongTensor` of shape `(batch, length)`): what `generate` answered, the start token
            included. What comes after the end token is left out.

    Returns:
        `torch.Tensor` of shape `(batch, num_modalities)`: shares from 0 to 1 in the config's order. They add up to 1,
        less the share of positions that belong to no single modality: some for fusion `bottleneck`, all for
        `latent`.

    Raises:
        ValueError: if `generated_ids` has nothing after the start token.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration
    >>> from modeling_crossfuse.evaluation import modality_shares

    >>> config = CrossFuseConfig(
    ...     d_model=32,
    ...     num_hidden_layers=1,
    ...     modalities={"text": {"vocab_size": 50}, "image": {"image_size": 16, "patch_size": 8}},
    ...     decoder={"vocab_size": 60},
    ... )
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "pixel_values": torch.zeros(1, 3, 16, 16)}
    >>> shares = modality_shares(model, inputs, model.generate(**inputs, max_new_tokens=4))
    >>> shares.shape, round(shares.sum().item(), 3)
    (torch.Size([1, 2]), 1.0)
    ```
    """
    if generated_ids.shape[1] < 2:
        raise ValueError(
            f"`generated_ids` has shape {tuple(generated_ids.shape)}; expected an answer after the start token"
        )
    was_training, implementation = model.training, model.config._attn_implementation
    model.eval()
    try:
        model.set_attn_implementation("eager")
        outputs = model(
            **_to(inputs, model), decoder_input_ids=generated_ids[:, :-1], output_attentions=True, use_cache=False
        )
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
    # (batch, target_length, memory_length)
    weights = torch.stack(outputs.cross_attentions).float().mean(dim=(0, 2))
    answered = _answered(generated_ids[:, 1:], model).unsqueeze(-1)
    weights = (weights * answered).sum(1) / answered.sum(1).clamp(min=1)
    modality_ids = outputs.encoder_modality_ids
    return torch.stack(
        [(weights * (modality_ids == index)).sum(1) for index in range(len(model.config.modalities))], dim=1
    )


def _answered(ids: torch.LongTensor, model) -> torch.Tensor:
    """1 for the tokens `(batch, length)` of an answer up to its end token, the end token included."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return torch.ones_like(ids)
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device)).long()
    return ((is_end.cumsum(1) - is_end) == 0).long()


def _check_source(what: str, name_or_path: str):
    """What can't be an id on the Hub must be a folder; the Hub's own message for it would speak of ids."""
    is_path = (
        Path(name_or_path).is_absolute() or name_or_path.startswith(".") or name_or_path.rstrip("/").count("/") > 1
    )
    if is_path and not Path(name_or_path).exists():
        raise FileNotFoundError(f"there is no {what} at {name_or_path}")


def load_model(name_or_path: str, device: str | None = None):
    """
    A saved model and its processor.

    Args:
        name_or_path (`str`): a folder, or an id on the Hub.
        device (`str`, *optional*): defaults to a GPU where there is one.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        OSError, ValueError: if they can't be loaded; the message says why.
    """
    _check_source("model", name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(name_or_path)
    processor = AutoProcessor.from_pretrained(name_or_path)
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), processor


def load_rows(dataset: str, split: str = "test", max_samples: int | None = None):
    """
    A split of a data set, with audio left undecoded, so that `torchcodec` is not needed.

    Args:
        dataset (`str`): a folder, or an id on the Hub.
        split (`str`, defaults to `"test"`): its split.
        max_samples (`int`, *optional*): how many rows to keep, spaced evenly: a data set may be sorted.

    Raises:
        OSError, ValueError: if there is no such data set or split.
    """
    from datasets import Audio, load_dataset, load_from_disk

    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples={max_samples}` is not at least 1")
    _check_source("data set", dataset)
    if Path(dataset, "dataset_dict.json").exists():  # as `save_to_disk` writes it
        splits = load_from_disk(dataset)
        if split not in splits:
            raise ValueError(f"unknown split {split!r}; {dataset} has {', '.join(splits)}")
        rows = splits[split]
    else:
        rows = load_dataset(dataset, split=split)
    for column, feature in rows.features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(column, Audio(decode=False))
    if max_samples is not None and max_samples < len(rows):
        rows = rows.select(np.linspace(0, len(rows) - 1, max_samples).round().astype(int))
    return rows


def one_line(error: Exception) -> str:
    """What an error says, on one line: the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """
    `["image=picture", "audio=speech"]`, as given on a command line, as a `dict`.

    Raises:
        ValueError: if one is not of the form `name=value`, or a name comes twice.
    """
    mapping = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{pair!r} is not of the form modality=value, such as image=picture")
        if name in mapping:
            raise ValueError(f"the modality {name!r} is given twice")
        mapping[name] = value
    return mapping


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """
    Columns of text for the terminal.

    Args:
        header (`Sequence[str]`): titles of the columns.
        rows (`Sequence[Sequence[str]]`): their cells.
        right (`Sequence[int]`, defaults to `()`): the columns to align at the right, as numbers are.

    Example:

    ```python
    >>> from modeling_crossfuse.evaluation import format_table

    >>> print(format_table(["inputs", "CER"], [["image", "0.250"]], right=[1]))
    inputs    CER
    ------  -----
    image   0.250
    ```
    """
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


__all__ = [
    "Degradation",
    "add_noise",
    "cover",
    "evaluate_rows",
    "modality_shares",
    "predict",
]
