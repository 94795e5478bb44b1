# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Number formats by the machine: bfloat16 where it is computed fast, float32 elsewhere."""

import functools
import time

import torch
from transformers.utils import is_torch_bf16_gpu_available


@functools.cache
def relative_time(dtype: torch.dtype) -> float:
    """
    How long one thread multiplies matrices in a number format, as a ratio to the time in float32: about 0.3 for
    bfloat16 where the processor has instructions for it, 40 where it has not. It is measured, once in a process and in
    less than a tenth of a second, since PyTorch has no public function that says which instructions it uses.

    Args:
        dtype (`torch.dtype`): the number format.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse.training.precision import relative_time

    >>> relative_time(torch.bfloat16) > 0
    True
    ```
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many would mostly wait for each other
    try:
        return _seconds_of_a_product(dtype) / _seconds_of_a_product(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _seconds_of_a_product(dtype: torch.dtype, size: int = 256, repeats: int = 4) -> float:
    """The shortest time of several, in which other processes disturbed least."""
    matrix, times = torch.ones(size, size, dtype=dtype), []
    for _ in range(repeats):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return min(times)


def choose_precision(device: str | torch.device = "cpu") -> tuple[str, str]:
    """
    The number format that training is to compute in on a device.

    Args:
        device (`str` or `torch.device`, defaults to `"cpu"`): the device.

    Returns:
        `tuple[str, str]`: `"bfloat16"` where the device computes it fast, `"float32"` elsewhere; and why.

    Example:

    ```python
    >>> from modeling_crossfuse.training.precision import choose_precision

    >>> precision, reason = choose_precision("cpu")
    >>> precision in ("bfloat16", "float32")
    True
    ```
    """
    device = torch.device(device)
    if device.type == "cpu":
        ratio = relative_time(torch.bfloat16)
        reason = f"bfloat16 takes {ratio:.2f} times as long as float32 on this processor"
        return ("bfloat16" if ratio < 0.75 else "float32"), reason  # what is converted takes time, too
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = is_torch_bf16_gpu_available()
    return ("bfloat16", f"{device.type} has it") if fast else ("float32", f"{device.type} has no bfloat16")


def loading_dtype(dtype: torch.dtype | None, device: str | torch.device = "cpu") -> torch.dtype | str:
    """
    The number format in which a saved model answers fast: its own, unless it is one of 16 bits that the processor
    computes slower than float32. Nothing that was saved is lost either way.

    Args:
        dtype (`torch.dtype`, *optional*): the model's own, as its config says.
        device (`str` or `torch.device`, defaults to `"cpu"`): where it is to answer.

    Returns:
        `torch.dtype` or `str`: what `from_pretrained` takes as `dtype`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse.training.precision import loading_dtype

    >>> loading_dtype(torch.float32)
    torch.float32
    ```
    """
    if dtype is None:
        return "auto"
    on_cpu = torch.device(device).type == "cpu"
    slow = on_cpu and dtype in (torch.bfloat16, torch.float16) and relative_time(dtype) > 1
    return torch.float32 if slow else dtype


__all__ = ["choose_precision", "loading_dtype", "relative_time"]
