#!/usr/bin/env python
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
"""
Measures what a training step costs, in time and memory, against a peer on the same work in the same run.

Each variant runs in a process of its own, in turn with the others, several times; the table has the medians.
"""

import argparse
import copy
import gc
import json
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, TorchAoConfig, ViTConfig

from modeling_crossfuse import CrossFuseForConditionalGeneration
from modeling_crossfuse.command_line import check_arguments, format_table, run_program
from modeling_crossfuse.model_card import write_whole


EPILOG = """
examples:
  what freezing the encoders saves, and caching what they give:
    python scripts/benchmark.py frozen
  what int8 weights of frozen encoders save, and what they change:
    python scripts/benchmark.py quantized --output quantized.json
"""

# As all-MiniLM-L6-v2, and a ViT of the same width.
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TEXT, IMAGE = BertConfig(**SIZES), ViTConfig(**SIZES)
DECODER = {"vocab_size": 4096, "num_hidden_layers": 2}
BATCH, TOKENS, ANSWER = 8, 32, 16


def make_model(freeze: tuple[str, ...] = (), quantize: bool = False) -> CrossFuseForConditionalGeneration:
    """A model of both encoders, with random weights."""
    torch.manual_seed(0)
    encoders = {"text": TEXT, "image": IMAGE}
    if quantize:
        encoders = {name: quantize_encoder(AutoModel.from_config(config)) for name, config in encoders.items()}
    return CrossFuseForConditionalGeneration.from_encoders(encoders, decoder=DECODER, freeze=freeze, d_model=256)


def quantize_encoder(model):
    """The model with int8 weights, saved and loaded as a user would."""
    from torchao.quantization import Int8WeightOnlyConfig

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        settings = TorchAoConfig(Int8WeightOnlyConfig(version=2))
        return AutoModel.from_pretrained(folder, quantization_config=settings)


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1000, 20_000, (BATCH, TOKENS), generator=generator),
        "pixel_values": torch.randn(BATCH, 3, 224, 224, generator=generator),
        "labels": torch.randint(3, 4096, (BATCH, ANSWER), generator=generator),
    }


@torch.no_grad()
def encode(model: CrossFuseForConditionalGeneration, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with what the encoders give in place of values."""
    encoder, encoded = model.get_encoder(), {"labels": batch["labels"]}
    for name, values, length in (
        ("text", batch["input_ids"], TOKENS),
        ("image", batch["pixel_values"].unsqueeze(1), 1),
    ):
        states, mask = encoder.encode_modality(name, values, torch.ones(BATCH, length, dtype=torch.long))
        encoded |= {f"{name}_hidden_states": states, f"{name}_hidden_states_mask": mask}
    return encoded


def trained(**settings) -> Callable[[], tuple]:
    return lambda: (make_model(**settings), make_batch())


def cached() -> tuple:
    model = make_model(freeze=("text", "image"))
    return model, encode(model, make_batch())


FROZEN = ("text", "image")
VARIANTS = {
    "frozen": {
        "both encoders train": trained(),
        "text frozen": trained(freeze=("text",)),
        "both frozen": trained(freeze=FROZEN),
        "both frozen, cached": cached,
    },
    "quantized": {
        "both frozen, float32": trained(freeze=FROZEN),
        "both frozen, int8": trained(freeze=FROZEN, quantize=True),
    },
}


def reset_peak_memory() -> float:
    """Forgets the most memory that this process has held, and gives what it holds now, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """The most memory that this process has held since, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def measure(group: str, variant: str, steps: int, threads: int) -> dict[str, float]:
    """Milliseconds of a training step, and the megabytes that the steps needed on top of the finished model."""
    torch.set_num_threads(threads)
    model, batch = VARIANTS[group][variant]()
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    gc.collect()
    before, times = reset_peak_memory(), []
    for _ in range(steps + 1):
        started = time.perf_counter()
        model(**batch, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return {
        "step_ms": 1000 * statistics.median(times[1:]),  # the first makes the optimizer's state
        "step_mb": peak_memory() - before,
        "encoder_mb": encoder_memory(model),
    }


def encoder_memory(model: CrossFuseForConditionalGeneration) -> float:
    """Megabytes of the encoders' weights."""
    tensors = [tensor for part in model.get_encoder().encoders.parameters() for tensor in inner_tensors(part)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    if hasattr(tensor, "__tensor_flatten__"):  # quantised: values and scales
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]


def run_variants(group: str, repeats: int, steps: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians over processes, the variants taking turns so that what else the machine does falls on all."""
    results = {variant: [] for variant in VARIANTS[group]}
    context = multiprocessing.get_context("spawn")
    for _ in range(repeats):
        for variant, found in results.items():
            with ProcessPoolExecutor(1, context) as process:
                found.append(process.submit(measure, group, variant, steps, threads).result())
    return {
        variant: {key: statistics.median(result[key] for result in found) for key in found[0]}
        for variant, found in results.items()
    }


def report(results: dict[str, dict[str, float]]) -> str:
    """A table; ratios are to the first variant."""
    first = next(iter(results.values()))
    header = ["", "step ms", "ratio", "step MB", "ratio", "encoders MB"]
    rows = [
        [
            variant,
            f"{result['step_ms']:.0f}",
            f"{result['step_ms'] / first['step_ms']:.2f}",
            f"{result['step_mb']:.0f}",
            f"{result['step_mb'] / first['step_mb']:.2f}",
            f"{result['encoder_mb']:.0f}",
        ]
        for variant, result in results.items()
    ]
    return format_table(header, rows, right=range(1, 6))


@torch.no_grad()
def quantization_error() -> float:
    """By how much of their length hidden states of the encoders change with int8 weights, at the median."""
    batch, errors = make_batch(), []
    model = make_model(freeze=FROZEN).eval()
    quantized = CrossFuseForConditionalGeneration.from_encoders(
        {name: quantize_encoder(copy.deepcopy(model.get_encoder().encoders[name].model)) for name in FROZEN},
        decoder=DECODER,
        freeze=FROZEN,
        d_model=256,
    ).eval()
    for name in FROZEN:
        exact, rounded = (encode(each, batch)[f"{name}_hidden_states"] for each in (model, quantized))
        errors.append(((rounded - exact).norm(dim=-1) / exact.norm(dim=-1)).flatten())
    return torch.cat(errors).median().item()


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=list(VARIANTS), help="what to compare")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes per variant (default: 5)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps per process (default: 5)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads (default: 1)")
    parser.add_argument("--output", metavar="FILE", help="write the figures there, as JSON")
    return parser.parse_args(argv)


def run(argv: list[str] | None) -> dict[str, dict[str, float]]:
    args = parse_args(argv)
    check_arguments(args, above_zero=("repeats", "steps", "threads"))
    results = run_variants(args.group, args.repeats, args.steps, args.threads)
    print(report(results))
    if args.group == "quantized":
        print(f"\nhidden states change by {100 * quantization_error():.2f} % of their length (median)")
    if args.output is not None:
        write_whole(args.output, json.dumps(results, indent=2) + "\n")
    return results


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    return run_program("benchmark.py", run, argv)


if __name__ == "__main__":
    main()
