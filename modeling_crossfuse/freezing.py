# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Freezing the encoders of modalities."""

from .quantization import are_quantized


class FreezingMixin:
    """Freezes and unfreezes the encoders of a model."""

    def freeze_modalities(self, *names: str):
        """
        Makes training leave the encoders of modalities as they are: their parameters get no gradient, their dropout is
        off, their batch norm keeps its statistics, and no graph is built for them. Their projections and all that
        follows train on. The config says so, and saved models remember it.

        Args:
            names (`str`): modalities.

        Raises:
            ValueError: if there is no such modality.
        """
        self._set_frozen(names, True)

    def unfreeze_modalities(self, *names: str):
        """Makes the encoders of modalities train again; the arguments are those of `freeze_modalities`."""
        self._set_frozen(names, False)

    def _set_frozen(self, names: tuple[str, ...], frozen: bool):
        encoders = self.get_encoder().encoders
        for name in names:
            if name not in self.config.modalities:
                raise ValueError(f"{name!r} is no modality of this model; it has {', '.join(self.config.modalities)}")
            if not frozen and are_quantized(encoders[name].parameters()):
                raise ValueError(f"the encoder of {name!r} is quantised and can't train")
        for name in names:
            encoders[name].set_frozen(frozen, self.training)
