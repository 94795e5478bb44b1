# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A Trainer with a few additions."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import ProgressCallback, Seq2SeqTrainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from ..pretrained import CrossFusePreTrainedModel
from .model_card import write_model_card


logger = logging.getLogger("crossfuse.training")


class _AverageWeights(TrainerCallback):
    """Averages the weights after each step of the optimizer."""

    def __init__(self, averages: AveragedModel, model: torch.nn.Module):
        self.averages, self.model = averages, model

    def on_step_end(self, args, state, control, **kwargs):
        self.averages.update_parameters(self.model)


class _PlannedProgress(ProgressCallback):
    """A bar that ends where training is planned to end."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar.total = state.max_steps
        super().on_step_end(args, state, control, **kwargs)


class TimeBudget(TrainerCallback, ExportableState):
    """
    Ends training when its time is up, with a schedule of the learning rate that is complete by then. After the first
    steps, whose time is measured, the rest is planned: as many steps as fit, over which what is left of the schedule
    is spread evenly. Later steps are measured, too, and the rest is planned again, so that training ends by the clock
    on a machine that becomes slower. Where all steps fit, nothing changes.

    The first process's clock counts. What goes on from a checkpoint has the time that was left.

    Args:
        minutes (`float`): what training takes at most, with the evaluations during it; but twelve steps at least.

    Raises:
        ValueError: if `minutes` is not above 0.

    Example:

    ```python
    >>> from modeling_crossfuse.training.trainer import TimeBudget
    >>> from transformers import Seq2SeqTrainer

    >>> def make_trainer(**settings):
    ...     return Seq2SeqTrainer(**settings, callbacks=[TimeBudget(minutes=8)])
    ```
    """

    measured_steps = 10  # at least, for a plan

    def __init__(self, minutes: float):
        if not 0 < minutes < math.inf:
            raise ValueError(f"`max_minutes={minutes}`; expected more than 0")
        self.minutes = minutes
        self.started = None
        self._follow(0, 0.0, 1.0)
        self.spent = 0.0

    def _follow(self, step: int, position: float, pace: float):
        """From `step` on, where the schedule is at `position`, a step is `pace` steps of the schedule."""
        self.step, self.position, self.pace = step, position, pace

    def position_at(self, step: int) -> float:
        """Where the schedule is at a step of the training."""
        return self.position + (step - self.step) * self.pace

    def seconds(self) -> float:
        """What training has taken so far, that before an interruption included."""
        return self.spent + (0.0 if self.started is None else time.monotonic() - self.started)

    def state(self) -> dict[str, Any]:
        plan = {"step": self.step, "position": self.position, "pace": self.pace}
        return {"args": {"minutes": self.minutes}, "attributes": {"spent": self.seconds(), **plan}}

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        step, name = state.global_step, type(self).__name__
        begun = {"spent": 0.0, "step": step, "position": float(step), "pace": 1.0}
        saved = state.stateful_callbacks.get(name, {}) if step > 0 else {}
        for key, value in saved.get("attributes", begun).items():
            setattr(self, key, value)
        self.started, self.marks, self.announced = time.monotonic(), [], None
        self.schedule_steps = state.max_steps
        state.stateful_callbacks.setdefault(name, self.state())
        if isinstance(lr_scheduler, LambdaLR):  # of the others, none has an end
            lr_scheduler.lr_lambdas = [self._paced(function) for function in lr_scheduler.lr_lambdas]

    def _paced(self, function: Callable[[float], float]) -> Callable[[int], float]:
        return lambda step: function(min(self.position_at(step), self.schedule_steps))

    def on_step_end(self, args, state, control, **kwargs):
        step, now = state.global_step, time.monotonic()
        if not self.marks:  # workers start in the first step, and kernels are chosen: it says little
            self.marks, self.next_plan = [(step, now)], step + self.measured_steps
        if not self.next_plan <= step < state.max_steps:
            return
        seconds = self._seconds_a_step(step, now)
        fitting = step + max(1, int((60 * self.minutes - self.seconds()) / seconds))
        fitting = int(broadcast(torch.tensor(fitting, device=args.device)))
        state.max_steps = min(fitting, self.schedule_steps)
        left, position = state.max_steps - step, self.position_at(step)
        self._follow(step, position, (self.schedule_steps - position) / left)
        self.next_plan = step + max(1, left // 10)
        if state.is_world_process_zero:
            self._announce(seconds, state.max_steps)

    def _seconds_a_step(self, step: int, now: float) -> float:
        """Measured over the later half of the steps so far: one slow moment changes little, a slower machine much."""
        middle = (self.marks[0][0] + step) / 2
        since, then = next(mark for mark in reversed(self.marks) if mark[0] <= middle)
        self.marks.append((step, now))
        return max((now - then) / (step - since), 1e-6)  # a clock may be coarse

    def _announce(self, seconds: float, steps: int):
        """Says what is planned, and again when that has changed by more than a tenth."""
        if self.announced is None or abs(steps - self.announced) > self.announced / 10:
            self.announced = steps
            count = "all" if steps == self.schedule_steps else f"{steps:,} of"
            logger.info(
                f"measured {seconds:.2f} s a step: {count} {self.schedule_steps:,} steps fit in the "
                f"{self.minutes:g} minutes"
            )

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            logger.info(f"trained {state.global_step:,} steps in {self.seconds() / 60:.1f} minutes")


def parameter_groups(
    model: torch.nn.Module, learning_rate: float, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """
    Groups of an optimizer in which parts of the model have learning rates of their own. Vectors, which are biases and
    the weights of norms, don't decay.

    Args:
        model (`torch.nn.Module`): its parameters that require a gradient are grouped.
        learning_rate (`float`): that of parameters which `learning_rates` says nothing of.
        learning_rates (`dict[str, float]`): start of a parameter's name, without `"model."`, to its learning rate; the
            longest start that fits counts. The name of a modality stands for its encoder.
        weight_decay (`float`): that of matrices.

    Raises:
        ValueError: if a key of `learning_rates` is the start of no parameter's name.

    Example:

    ```python
    >>> import torch
    >>> from modeling_crossfuse.training.trainer import parameter_groups

    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2, bias=False)})
    >>> groups = parameter_groups(model, 1e-3, {"decoder": 2e-3}, weight_decay=0.1)
    >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    [(1, 0.001, 0.1), (1, 0.001, 0.0), (1, 0.002, 0.1)]
    ```
    """
    named = {
        name.removeprefix("base_model.model.").removeprefix("model."): parameter  # the first is that of PEFT
        for name, parameter in model.named_parameters()
    }
    modalities = getattr(getattr(model, "config", None), "modalities", ())
    learning_rates = {
        f"encoder.encoders.{start}." if start in modalities else start: rate for start, rate in learning_rates.items()
    }
    for start in learning_rates:
        if not any(name.startswith(start) for name in named):
            raise ValueError(f"`learning_rates` has {start!r}, with which no parameter's name starts")
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            fitting = [start for start in learning_rates if name.startswith(start)]
            rate = learning_rates[max(fitting, key=len)] if fitting else learning_rate
            groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


class _Secret(str):
    """A string that is not pickled: Trainer pushes `training_args.bin`, and with it `hub_token`, for all to read."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        return str, ("<HUB_TOKEN>",)

    def __deepcopy__(self, memo):
        return self


def batch_length(batch: dict[str, torch.Tensor]) -> int:
    """Positions that a batch's masks keep, and its labels: what its cost grows with."""
    masks = [value for name, value in batch.items() if name.endswith("mask") and name != "modality_mask"]
    labels = batch.get("labels")
    return int(sum((mask != 0).sum() for mask in masks)) + (0 if labels is None else int((labels != -100).sum()))


class CrossFuseTrainer(Seq2SeqTrainer):
    """
    [`~transformers.Seq2SeqTrainer`] with a learning rate per part and an average of the weights. The model may be one
    that PEFT has added adapters to. With `train_sampling_strategy="group_by_length"`, samples of about one length
    share a batch: as the column `length_column_name` says or, without it, as the collator makes them, once for each
    sample before training starts.

    Args:
        eval_collator (`Callable`, *optional*): collator for evaluation and prediction, where training's augments.
        learning_rates (`dict[str, float]`, *optional*): start of a parameter's name, such as
            `"encoder.encoders.image.stem"`, to its learning rate; the longest start that fits counts. The name of a
            modality, such as `"image"`, stands for its encoder.
        ema_decay (`float`, *optional*): evaluate and save the exponential moving average of the weights.
            Checkpoints hold both, so that resuming changes nothing.
        max_minutes (`float`, *optional*): end training by the clock, as [`TimeBudget`] says.
        card (`dict`, *optional*): arguments of [`write_model_card`] that say more about
            the training than the trainer knows by itself.

    Raises:
        ValueError: if a key of `learning_rates` is the start of no parameter's name, or `max_minutes` is not above 0.
    """

    def __init__(
        self,
        *args,
        eval_collator=None,
        learning_rates=None,
        ema_decay: float | None = None,
        max_minutes: float | None = None,
        card=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.card = dict(card or {})
        if self.args.hub_token is not None:
            self.args.hub_token = _Secret(self.args.hub_token)
        if self.args.push_to_hub:  # what it pushes is to load without CrossFuse, too
            for part in (self.model, self.processing_class):
                if hasattr(part, "saves_code"):
                    part.saves_code = True
        self.eval_collator = eval_collator or self.data_collator
        self.learning_rates = {key: float(value) for key, value in (learning_rates or {}).items()}
        self.averages = None
        if ema_decay is not None:
            average = get_ema_multi_avg_fn(ema_decay)
            self.averages = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
            self.add_callback(_AverageWeights(self.averages, self.model))
        if max_minutes is not None:
            self.add_callback(TimeBudget(max_minutes))
            if self.pop_callback(ProgressCallback) is not None:
                self.add_callback(_PlannedProgress)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        unwrapped = self.accelerator.unwrap_model(model)
        if "labels" not in inputs or not unwrapped.can_generate():
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            # Trainer keeps the labels from the model then, which can't make the decoder's input of them.
            prepare = unwrapped.prepare_decoder_input_ids_from_labels
            inputs = {"decoder_input_ids": prepare(inputs["labels"]), **inputs}
        elif not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        groups = self.args.train_sampling_strategy == "group_by_length" and has_length(rows)
        if not groups or self.args.length_column_name in getattr(rows, "column_names", ()):
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch_size, lengths=self._sample_lengths(rows))

    def _sample_lengths(self, rows) -> list[int]:
        """How much of each sample is kept by masks, and of its labels. transformers looks at one input only."""
        progress = tqdm(rows, desc="measuring lengths", disable=self.args.disable_tqdm)
        return [batch_length(self.eval_collator([row])) for row in progress]

    def create_optimizer(self, model=None):
        if self.optimizer is not None or not self.learning_rates:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        groups = parameter_groups(self.model, self.args.learning_rate, self.learning_rates, self.args.weight_decay)
        optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    @contextlib.contextmanager
    def _collator_of_evaluation(self):
        own, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = own

    def get_eval_dataloader(self, eval_dataset=None):
        with self._collator_of_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._collator_of_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within it, the model holds the average of its weights."""
        if self.averages is None or self.averages.n_averaged == 0:
            yield
            return
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averages.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def use_averaged_weights(self):
        """Puts the average of the weights in their place, for good."""
        if self.averages is not None and self.averages.n_averaged > 0:
            self.model.load_state_dict(self.averages.module.state_dict())
        self.averages = None

    def merge_adapter(self, folder: str | Path):
        """Saves the adapter of a model with LoRA in a folder, and makes the model a plain one that has it in it."""
        if self.args.should_save:
            self.model.save_pretrained(folder)
        self.model = self.model_wrapped = self.model.merge_and_unload()

    def evaluation_loop(self, *args, **kwargs):
        with self.averaged_weights():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        if _internal_call:  # a checkpoint: resuming needs the weights themselves
            return super().save_model(output_dir, _internal_call)
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)
        # Trainer's settings, pickled: nothing reads them, and the card has them for people.
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(self, *args, tags: str | list[str] | None = None, **kwargs):
        """
        Writes [`write_model_card`]'s card into the output folder; adapters get the one
        of [`~transformers.Trainer`].

        Args:
            tags (`str` or `list[str]`, *optional*): for the Hub.
            args, kwargs: of the card of adapters; see `card` for the other.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, CrossFusePreTrainedModel):
            return super().create_model_card(*args, tags=tags, **kwargs)
        if not self.is_world_process_zero():
            return
        measured = next((entry for entry in reversed(self.state.log_history) if "eval_loss" in entry), {})
        settings = {
            "metrics": {key.removeprefix("eval_"): value for key, value in measured.items()},
            "model_id": self.hub_model_id,
            "tags": [tags] if isinstance(tags, str) else tags or (),
        }
        write_model_card(self.args.output_dir, model, self.processing_class, **{**settings, **self.card})

    def _save_checkpoint(self, *args, **kwargs):
        super()._save_checkpoint(*args, **kwargs)
        if self.averages is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=None), f"checkpoint-{self.state.global_step}")
            state = {key: value.clone() for key, value in self.averages.state_dict().items()}
            save_file(state, folder / "averages.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_averages(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_averages(self.state.best_model_checkpoint)

    def _load_averages(self, checkpoint: str):
        averages = Path(checkpoint, "averages.safetensors")
        if self.averages is not None and averages.exists():
            self.averages.load_state_dict(load_file(averages))
