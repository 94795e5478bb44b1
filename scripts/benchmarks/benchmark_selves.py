# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The groups `missing`, `latent` and `reuse` of `benchmark.py`: what CrossFuse does not compute, or not twice."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
from benchmark_configs import Sizes, crossfuse, crossfuse_answerer
from benchmark_models import (
    Contestant,
    Settings,
    build,
    make_audio,
    make_images,
    make_questions,
    time_steps,
    train_steps,
)
from benchmark_tools import alternate, extra_memory, run_alone, summarize

from modeling_crossfuse.configuration_crossfuse import FUSION_TYPES


NEW_TOKENS = 64
TIMES = 4  # as many pixels along each side is 16 times as much input
ANSWER = 8  # tokens of an answer to a question


def measure_missing(sizes: Sizes, settings: Settings) -> dict:
    """A step of training where samples have an image and audio, and where each has either; and at longer inputs."""
    longer = replace(sizes, image_size=2 * sizes.image_size, frames=4 * sizes.frames)
    rows = {**measure_pairs(sizes, settings), **measure_pairs(longer, settings)}
    return describe("training step", sizes, settings, rows)


def measure_pairs(sizes: Sizes, settings: Settings) -> dict[str, dict]:
    cases = [(fusion, missing) for fusion in FUSION_TYPES for missing in (False, True)]
    steps = time_steps({case: make_pair(*case, sizes, settings) for case in cases}, settings)
    memory = {case: run_alone(pair_memory, *case, sizes, settings) for case in cases}
    positions = sizes.grid**2 + sizes.frames // 2
    return {
        f"{fusion}, {positions} positions": {
            "all present, ms": steps[fusion, False],
            "half missing, ms": steps[fusion, True],
            "ratio": steps[fusion, True]["median"] / steps[fusion, False]["median"],
            "all present, MB": memory[fusion, False],
            "half missing, MB": memory[fusion, True],
            "ratio of memory": memory[fusion, True] / memory[fusion, False],
        }
        for fusion in FUSION_TYPES
    }


def make_pair(fusion: str, missing: bool, sizes: Sizes, settings: Settings) -> Contestant:
    """Images and audio; where half of the values are `missing`, samples have either in turn."""
    modalities = {
        "image": {"image_size": sizes.image_size, "patch_size": sizes.patch_size},
        "audio": {"num_mel_bins": sizes.mel_bins, "num_conv_layers": 1},
    }
    present = torch.ones(sizes.batch, 2, dtype=torch.long)
    if missing:
        present[::2, 0] = present[1::2, 1] = 0
    inputs = {**make_images(sizes), **make_audio(sizes), "modality_mask": present}
    return build(crossfuse(sizes, modalities, fusion={"type": fusion}), inputs, sizes, settings)


def pair_memory(fusion: str, missing: bool, sizes: Sizes, settings: Settings) -> float:
    """The most megabytes that training needs on top of the finished model."""
    torch.set_num_threads(settings.threads)
    contestant = make_pair(fusion, missing, sizes, settings)
    return extra_memory(partial(train_steps, contestant, settings.steps), settings.device)


def measure_latent(sizes: Sizes, settings: Settings) -> dict:
    """A token of greedy answers about images, and about images of 16 times as many patches."""
    larger = replace(sizes, image_size=TIMES * sizes.image_size)
    functions = {
        (fusion, size.image_size): answer_from_memory(fusion, size, settings)
        for fusion in FUSION_TYPES
        for size in (sizes, larger)
    }
    times = alternate(functions, settings.repeats, settings.device)
    tokens = {case: summarize([time / NEW_TOKENS for time in taken]) for case, taken in times.items()}
    rows = {}
    for fusion in FUSION_TYPES:
        small, large = tokens[fusion, sizes.image_size], tokens[fusion, larger.image_size]
        rows[fusion] = {
            f"{sizes.grid**2:,} patches, ms": small,
            f"{larger.grid**2:,} patches, ms": large,
            "ratio": large["median"] / small["median"],
        }
    return describe(f"token, batch {sizes.batch}", sizes, settings, rows)


def answer_from_memory(fusion: str, sizes: Sizes, settings: Settings) -> Callable[[], torch.Tensor]:
    """What answers without the encoder, which runs here, once."""
    image = {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
    contestant = build(
        crossfuse(sizes, {"image": image}, fusion={"type": fusion}), make_images(sizes), sizes, settings
    )
    model = contestant.model.eval()
    with torch.no_grad():
        memory = model.get_encoder()(**contestant.inputs)
    return partial(model.generate, encoder_outputs=memory, max_new_tokens=NEW_TOKENS, do_sample=False)


def measure_reuse(sizes: Sizes, settings: Settings) -> dict:
    """A short answer about an image: all anew, with what the image's encoder gave before, and with the memory."""
    contestant = build(crossfuse_answerer(sizes), make_questions(sizes), sizes, settings)
    model = contestant.model.eval()
    functions = {
        way: partial(model.generate, **inputs, max_new_tokens=ANSWER, do_sample=False)
        for way, inputs in reusable_inputs(contestant).items()
    }
    calls = {way: count_encoder_calls(model, function) for way, function in functions.items()}
    times = alternate(functions, settings.repeats, settings.device)
    summaries = {way: summarize(taken) for way, taken in times.items()}
    first = next(iter(summaries.values()))["median"]
    rows = {
        way: {"ms": summary, "ratio": summary["median"] / first, **calls[way]} for way, summary in summaries.items()
    }
    return describe(f"answer, batch {sizes.batch}", sizes, settings, rows)


@torch.no_grad()
def reusable_inputs(contestant: Contestant) -> dict[str, dict]:
    """What `generate` gets for the first question about an image, for another one, and for another answer to it."""
    encoder, inputs = contestant.model.get_encoder(), contestant.inputs
    images = inputs["pixel_values"].unsqueeze(1)
    mask = torch.ones(images.shape[:2], dtype=torch.long, device=images.device)
    states, states_mask = encoder.encode_modality("image", images, mask)
    encoded = {"image_hidden_states": states, "image_hidden_states_mask": states_mask}
    return {
        "image and question": inputs,
        "another question, `image_hidden_states`": {**encoded, "input_ids": inputs["input_ids"].flip(1)},
        "another answer, `encoder_outputs`": {"encoder_outputs": encoder(**inputs)},
    }


def count_encoder_calls(model, function: Callable) -> dict[str, int]:
    """How often a call runs the encoder of images, and the whole encoder."""
    encoder = model.get_encoder()
    parts = {"runs of the image's encoder": encoder.encoders["image"], "of the whole encoder": encoder}
    calls = dict.fromkeys(parts, 0)

    def count(name: str, *ignored):
        calls[name] += 1

    hooks = [part.register_forward_hook(partial(count, name)) for name, part in parts.items()]
    function()
    for hook in hooks:
        hook.remove()
    return calls


def describe(title: str, sizes: Sizes, settings: Settings, rows: dict[str, dict]) -> dict:
    return {"title": title, "sizes": asdict(sizes), "settings": asdict(settings), "rows": rows}
