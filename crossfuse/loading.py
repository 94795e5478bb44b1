# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Loading models, and the values of one sample."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import logging

from modeling_crossfuse.configuration_crossfuse import ready_config
from modeling_crossfuse.data.rows import check_exists
from modeling_crossfuse.encoder_sources import check_special_tokens
from modeling_crossfuse.heads import MODELS
from modeling_crossfuse.media import to_array
from modeling_crossfuse.training.precision import loading_dtype

from .errors import one_line


# The models that the programs can ask, by the name in a config.
MODEL_CLASSES = {
    model.__name__: model for model in MODELS if model.task in ("generation", "classification", "retrieval")
}


def silence_transformers():
    """Leaves out what transformers and huggingface_hub log, and bars."""
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading the weights


def load_model(name_or_path: str, device: str | None = None, dtype: str = "auto"):
    """A saved model, in evaluation mode, and its processor. With the dtype `"auto"`, [`loading_dtype`] chooses."""
    silence_transformers()
    check_exists("model", name_or_path)
    place = find_device(device)
    config = load_config(name_or_path)
    name = (config.architectures or [None])[0]
    if name not in MODEL_CLASSES:
        raise ValueError(f"the model is a {name or config.model_type}; expected one of {', '.join(MODEL_CLASSES)}")
    chosen = loading_dtype(config.dtype, place) if dtype == "auto" else getattr(torch, dtype)
    model = MODEL_CLASSES[name].from_pretrained(name_or_path, dtype=chosen)
    processor = AutoProcessor.from_pretrained(name_or_path)
    if model.can_generate():
        check_special_tokens(getattr(processor, "tokenizer", None), model.generation_config)
    return model.eval().to(place), processor


def find_device(name: str | None) -> torch.device:
    """The device of that name, or a GPU where there is one. One that this machine lacks is a `ValueError`."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device: {name!r} is no device here: {one_line(error)}") from error
    return device


def load_config(name_or_path: str) -> PreTrainedConfig:
    """The config of a folder, of an id on the Hub, or of a ready configuration. An error names it."""
    try:
        return AutoConfig.from_pretrained(ready_config(name_or_path))
    except OSError as error:
        raise OSError(
            f"the model {name_or_path!r} is no folder here, nor to be had from the Hub: {one_line(error)}"
        ) from error


def read_input(kind: str, value: str) -> Any:
    """
    One modality's value, as the processor takes it: text itself, or what is in a file. Images, audio and videos may be
    at an address (`https://`), too. Numbers are in `.npy` files; a series may be a `.csv` file, a line per step.
    """
    if kind == "text" or (kind != "series" and value.startswith(("http://", "https://"))):
        return value
    path = Path(value)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"there is no file {value}")
    if kind != "series" and suffix != ".npy":
        return value  # the processor opens it
    if suffix not in (".npy", ".csv"):
        raise ValueError(f"{value} is no series: expected a .npy or .csv file")
    try:
        array = np.load(path, allow_pickle=False) if suffix == ".npy" else _read_table(path)
    except (EOFError, UserWarning, ValueError) as error:
        expected = "an array" if suffix == ".npy" else "lines of numbers with commas between them, and no header"
        reason = one_line(error).rstrip(".")
        raise ValueError(f"{value} is not a table of numbers: {reason}; expected {expected}") from error
    return to_array(value, array)


def _read_table(path: Path) -> np.ndarray:
    """The numbers of a CSV file, in double precision, since times would lose digits in less."""
    with warnings.catch_warnings(category=UserWarning, action="error"):  # there is no data
        return np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")  # with Excel's mark or without
