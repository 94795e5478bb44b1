# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Models with quantised encoders: what is checked when they are composed, and what loading and saving them needs."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def are_quantized(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether any of the parameters is quantised."""
    return any(type(parameter) is not nn.Parameter for parameter in parameters)


def check_quantizers(quantizers: dict[str, Any], frozen: Iterable[str]):
    """Raises a `ValueError` unless all quantised encoders are frozen, and quantised alike, as one config says it."""
    for name in quantizers:
        if name not in frozen:
            raise ValueError(f"the encoder of {name!r} is quantised and can't train; give `freeze=({name!r},)`, too")
    if len({str(quantizer.quantization_config) for quantizer in quantizers.values()}) > 1:
        raise ValueError(f"the encoders of {', '.join(quantizers)} are quantised in different ways; expected one way")


def adopt_quantizer(model: PreTrainedModel, quantizers: dict[str, Any]):
    """Makes a model know which of its encoders are quantised, as saving and loading it need."""
    quantizer = copy.copy(next(iter(quantizers.values())))
    quantizer.quantization_config = copy.deepcopy(quantizer.quantization_config)
    # A regular expression of all modules but those of the quantised encoders.
    others = rf"(?!.*encoders\.({'|'.join(quantizers)})\.).*"
    quantizer.quantization_config.modules_to_not_convert = [others]
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config


def settle_loaded_quantization(model: PreTrainedModel):
    """Lets a loaded model train what is not quantised, and lets it be saved again."""
    frozen = [part for part in model.get_encoder().encoders.children() if part.config.frozen]
    resting = {id(parameter) for part in frozen for parameter in part.parameters()}
    if not are_quantized(parameter for parameter in model.parameters() if id(parameter) not in resting):
        model.is_quantized = False  # Trainer refuses a quantised model, although none of what trains here is
    # What a quantiser reads in a format of its own, it writes in that format, too: saving has nothing to turn back.
    conversions = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [conversion for conversion in conversions if _has_reverse(conversion)]


def _has_reverse(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
