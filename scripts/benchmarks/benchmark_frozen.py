# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The groups `frozen` and `quantized` of `benchmark.py`: what it saves to freeze encoders, and to make them int8."""

import copy
import statistics
import tempfile
from collections.abc import Callable

import torch
from benchmark_models import Settings, move
from benchmark_tools import extra_memory, milliseconds, run_alone, table
from transformers import AutoModel, BertConfig, TorchAoConfig, ViTConfig

from modeling_crossfuse import CrossFuseForConditionalGeneration


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


def measure_variant(group: str, variant: str, settings: Settings) -> dict[str, float]:
    """Milliseconds of a training step, and the megabytes that the steps needed on top of the finished model."""
    torch.set_num_threads(settings.threads)
    model, batch = VARIANTS[group][variant]()
    model, batch = prepare_model(model, settings).train(), move(batch, settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step():
        model(**batch, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = []
    memory = extra_memory(
        lambda: times.extend(milliseconds(step, settings.device) for _ in range(settings.steps + 1)), settings.device
    )
    return {
        "step_ms": statistics.median(times[1:]),  # the first makes the optimizer's state
        "step_mb": memory,
        "encoder_mb": encoder_memory(model),
    }


def prepare_model(model: CrossFuseForConditionalGeneration, settings: Settings) -> CrossFuseForConditionalGeneration:
    if settings.attn_implementation is not None:
        model.set_attn_implementation(settings.attn_implementation)
    return model.to(settings.device, getattr(torch, settings.dtype))


def encoder_memory(model: CrossFuseForConditionalGeneration) -> float:
    """Megabytes of the encoders' weights."""
    tensors = [tensor for part in model.get_encoder().encoders.parameters() for tensor in inner_tensors(part)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    if hasattr(tensor, "__tensor_flatten__"):  # quantised: values and scales
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]


def measure_variants(group: str, settings: Settings) -> dict[str, dict[str, float]]:
    """Medians over processes, the variants taking turns so that what else the machine does falls on all."""
    results = {variant: [] for variant in VARIANTS[group]}
    for _ in range(settings.repeats):
        for variant, found in results.items():
            found.append(run_alone(measure_variant, group, variant, settings))
    return {
        variant: {key: statistics.median(result[key] for result in found) for key in found[0]}
        for variant, found in results.items()
    }


def measure_frozen(settings: Settings) -> dict[str, dict]:
    return {"variants": measure_variants("frozen", settings)}


def measure_quantized(settings: Settings) -> dict:
    return {"variants": measure_variants("quantized", settings), "hidden_states_change": quantization_error()}


def report_variants(results: dict) -> str:
    """A table; ratios are to the first variant."""
    variants = results["variants"]
    first = next(iter(variants.values()))
    rows = [
        [
            variant,
            f"{result['step_ms']:.0f}",
            f"{result['step_ms'] / first['step_ms']:.2f}",
            f"{result['step_mb']:.0f}",
            f"{result['step_mb'] / first['step_mb']:.2f}",
            f"{result['encoder_mb']:.0f}",
        ]
        for variant, result in variants.items()
    ]
    report = table(["", "step ms", "ratio", "step MB", "ratio", "encoders MB"], rows)
    if "hidden_states_change" in results:
        change = 100 * results["hidden_states_change"]
        report += f"\n\nhidden states change by {change:.2f} % of their length (median)"
    return report


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
