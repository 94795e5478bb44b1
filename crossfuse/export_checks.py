# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How an exported model compares with the model that it was made from: in what it answers, and how fast."""

import statistics
import time

import torch

from modeling_crossfuse.export.exported_model import CrossFuseExportedModel
from modeling_crossfuse.made_up import made_up_sample


# The largest difference between a number that a graph gives and the model's, in float32.
TOLERANCE = 1e-4
# What speed is measured on: tokens of an answer, and how often each side gives it.
NUM_TOKENS, NUM_RUNS = 16, 21


def made_up_batch(model, processor, *lengths: int, missing: bool = False) -> dict[str, torch.Tensor]:
    """A batch of samples of these lengths; with `missing`, all but the first lack a modality each."""
    names = list(model.config.modalities)
    samples = [made_up_sample(model.config.modalities, length) for length in lengths]
    if missing and len(names) > 1:
        for place, sample in enumerate(samples[1:]):
            sample[names[place % len(names)]] = None
    columns = {name: [sample[name] for sample in samples] for name in names}
    return dict(processor(**columns, return_tensors="pt"))


@torch.inference_mode()
def check_answers(model, exported: CrossFuseExportedModel, batch: dict[str, torch.Tensor]) -> float:
    """
    How far an exported model's memory and logits are from the model's, at most.

    Raises:
        ValueError: if that is more than `TOLERANCE`, or their greedy answers differ.
    """
    answers = model.generate(**batch, max_new_tokens=NUM_TOKENS)
    expected, actual = (side(**batch, decoder_input_ids=answers) for side in (model, exported))
    # The graph has positions for the modalities that no sample has; no mask keeps them.
    memories = [side.encoder_last_hidden_state[side.encoder_attention_mask != 0] for side in (expected, actual)]
    pairs = [memories, (expected.logits, actual.logits)]
    difference = max((one - other).abs().max().item() for one, other in pairs)
    if not difference <= TOLERANCE:  # it may be no number
        raise ValueError(f"the exported model's numbers are {difference:.1e} off; expected {TOLERANCE:.0e} at most")
    if not torch.equal(answers, exported.generate(**batch, max_new_tokens=NUM_TOKENS)):
        raise ValueError("the exported model's greedy answers are not those of the model")
    return difference


@torch.inference_mode()
def measure_speed(model, exported: CrossFuseExportedModel, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Median milliseconds of an answer of the model and of the exported model, asked in turn."""
    times = ([], [])
    for _ in range(NUM_RUNS + 1):
        for side, seconds in zip((model, exported), times):
            start = time.perf_counter()
            side.generate(**batch, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS)
            seconds.append(time.perf_counter() - start)
    return tuple(1000 * statistics.median(seconds[1:]) for seconds in times)  # the first warms up
