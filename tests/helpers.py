# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Tiny CrossFuse models and inputs that the tests share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration


# One thread is the fastest for models this small, and leaves the other cores to other test workers.
torch.set_num_threads(1)

FUSIONS = ("concat", "joint", "bottleneck", "latent")

# One modality of each kind.
MODALITIES = {
    "text": {"vocab_size": 40},
    "image": {"image_size": 8, "patch_size": 4},
    "video": {"image_size": 8, "patch_size": 4, "num_frames": 4, "temporal_patch_size": 2},
    "audio": {"num_mel_bins": 6, "num_conv_layers": 1},
    "wrist": {"kind": "series", "num_channels": 3},
}

TINY = {
    "d_model": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    # Ten times the usual: untrained models of the usual range answer nearly the same whatever they are given.
    "initializer_range": 0.2,
    "decoder": {"vocab_size": 50},
}


def tiny_config(*modalities: str, fusion: str | dict = "concat", **settings) -> CrossFuseConfig:
    """A config of about 10,000 parameters per part. `modalities` are names in `MODALITIES`, `text` by default."""
    chosen = {name: MODALITIES[name] for name in modalities or ("text",)}
    fusion = {"num_layers": 1, "num_latents": 3, **({"type": fusion} if isinstance(fusion, str) else fusion)}
    settings = {**TINY, "modalities": chosen, "fusion": fusion, **settings}
    if any(isinstance(part, dict) and "encoder" in part for part in settings["modalities"].values()):
        return composed_config(settings.pop("modalities"), **settings)
    return CrossFuseConfig(**settings)


def composed_config(encoders: dict, **settings) -> CrossFuseConfig:
    """A config with encoders of transformers, complete, as a saved model has it."""
    model = CrossFuseForConditionalGeneration.from_encoders(encoders, **settings)
    return CrossFuseConfig.from_dict(model.config.to_dict())


def tiny_model(config: CrossFuseConfig, model_class=CrossFuseForConditionalGeneration, seed: int = 0):
    """A model in evaluation mode with the same weights on every call."""
    torch.manual_seed(seed)
    return model_class(config).eval()


def tiny_inputs(config: CrossFuseConfig, batch_size: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values of every modality, without masks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "image": lambda part: (part.num_channels, part.image_size, part.image_size),
        "video": lambda part: (part.num_frames, part.num_channels, part.image_size, part.image_size),
        "audio": lambda part: (part.num_mel_bins, 6),
        "series": lambda part: (5, part.num_channels),
    }
    inputs = {}
    for name, part in config.modalities.items():
        value_name = config.modalities.value_name(name)
        if part.kind == "text":
            inputs[value_name] = torch.randint(3, part.vocab_size, (batch_size, 5), generator=generator)
        else:
            inputs[value_name] = torch.randn(batch_size, *shapes[part.kind](part), generator=generator)
    return inputs


def tiny_labels(batch_size: int = 2, length: int = 4, seed: int = 0, vocab_size: int = 50) -> torch.Tensor:
    """Random labels without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (batch_size, length), generator=generator)


def load_script(name: str):
    """A script of benchmarks or research as a module, without its folder on the path."""
    (path,) = (Path(__file__).resolve().parent.parent / "scripts").glob(f"*/{name}.py")
    spec = importlib.util.spec_from_file_location(f"crossfuse_script_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What makes a process one in which CrossFuse is not installed, whatever way it is.
WITHOUT_CROSSFUSE = """
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("crossfuse", "modeling_crossfuse"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden)
"""


def run_python(program: str, folder, installed: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program in a process of its own, whose caches and working directory are in `folder`."""
    caches = {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    path = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)} if installed else {"PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-c", program if installed else WITHOUT_CROSSFUSE + program],
        cwd=folder,
        env={**os.environ, **caches, **path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def take_rows(inputs: dict[str, torch.Tensor], rows) -> dict[str, torch.Tensor]:
    """Some samples of a batch."""
    return {name: value[rows] for name, value in inputs.items()}


def count_calls(module: torch.nn.Module) -> list[int]:
    """A list that grows by the batch size of every call of `module`."""
    rows = []
    module.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    return rows


def assert_same(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


def checkpoint_activations(model):
    """`gradient_checkpointing_enable`, by the name that transformers gives it since 5.24 where that is installed."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
