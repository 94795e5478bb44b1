# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Number formats by the machine: bfloat16 where it is computed fast, float32 elsewhere."""

import functools
import timeit

import torch
from transformers.utils import is_torch_bf16_gpu_available


@functools.cache
def relative_time(dtype: torch.dtype) -> float:
    """
    How long one thread multiplies matrices in a number format, as a ratio to the time in float32: about 0.3 for
    bfloat16 where the processor has instructions for it, and 40 where it has none. It is measured once in a process,
    since PyTorch has no public function that says which instructions it uses.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many would mostly wait for each other
    try:
        return _seconds_of_a_product(dtype) / _seconds_of_a_product(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    """The shortest of a few times, since other processes disturb it least."""
    matrix = torch.ones(256, 256, dtype=dtype)
    return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=4))


def choose_precision(device: str | torch.device = "cpu") -> tuple[str, str]:
    """
    The number format for training on a device, and the reason: `"bfloat16"` where the device computes it fast, and
    `"float32"` elsewhere.
    """
    device = torch.device(device)
    if device.type == "cpu":
        ratio = relative_time(torch.bfloat16)
        reason = f"bfloat16 takes {ratio:.2f} times as long as float32 on this processor"
        return ("bfloat16" if ratio < 0.75 else "float32"), reason  # to convert values takes time, too
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = is_torch_bf16_gpu_available()
    return ("bfloat16", f"{device.type} has it") if fast else ("float32", f"{device.type} has no bfloat16")


def loading_dtype(dtype: torch.dtype | None, device: str | torch.device = "cpu") -> torch.dtype | str:
    """
    The number format in which a saved model answers fast, as `from_pretrained` takes it: the model's own, unless it
    has 16 bits and the processor computes it slower than float32. Nothing that was saved is lost either way.
    """
    if dtype is None:
        return "auto"
    on_cpu = torch.device(device).type == "cpu"
    slow = on_cpu and dtype in (torch.bfloat16, torch.float16) and relative_time(dtype) > 1
    return torch.float32 if slow else dtype


__all__ = ["choose_precision", "loading_dtype", "relative_time"]
