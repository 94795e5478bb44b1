# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What of a model trains: freezing the encoders of modalities, and new parts that adapters would leave out."""

from collections.abc import Set

from transformers.utils import logging

from .quantization import are_quantized


logger = logging.get_logger(__name__)


class FreezingMixin:
    """Freezes and unfreezes the encoders of a model, and knows which parts of its head are new."""

    # The children that have random weights, or some, and are in no file; None for all of them.
    new_parts: Set[str] | None = None

    def new_head_parts(self) -> list[str]:
        """
        The parts of the head, beside the output embeddings, whose weights are in no file that the model was loaded
        from or saved to: all of them in a model that was built from a config. Adapters have to save them as a whole.
        """
        whole = (getattr(self, self.base_model_prefix, None), self.get_output_embeddings())
        parts = [name for name, part in self.named_children() if all(part is not other for other in whole)]
        return [name for name in parts if self.new_parts is None or name in self.new_parts]

    def save_pretrained(self, *args, **kwargs):
        saved = super().save_pretrained(*args, **kwargs)
        self.new_parts = frozenset()
        return saved

    def train(self, mode: bool = True):
        if mode and self.task is not None:
            self._warn_of_parts_that_rest()
        return super().train(mode)

    def _warn_of_parts_that_rest(self):
        """Warns of new parts of the head that don't train. Adapters of peft freeze what they are not told to save."""
        resting = [
            name
            for name in self.new_head_parts()
            for part in [self.get_submodule(name)]
            if not hasattr(part, "modules_to_save") and not all(p.requires_grad for p in part.parameters())
        ]
        if resting:
            names = ", ".join(f"`{name}`" for name in resting)
            logger.warning_once(
                f"New parts of this {type(self).__name__} don't train, and are in no file: {names}. Adapters that are "
                "saved without them give other answers when they are loaded. With peft, give the config of the "
                f"adapters `modules_to_save={resting}`, or save the whole model first"
            )

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
