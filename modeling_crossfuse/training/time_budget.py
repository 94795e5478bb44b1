# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Training that ends by the clock."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState


logger = logging.getLogger("crossfuse.training")


class PlannedProgress(ProgressCallback):
    """A bar that ends where [`TimeBudget`] plans that training ends."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar.total = state.max_steps
        super().on_step_end(args, state, control, **kwargs)


class TimeBudget(TrainerCallback, ExportableState):
    """
    Ends training when its time is up, with a schedule of the learning rate that is complete by then. The first steps
    are measured, and the rest is planned: as many steps as fit, over which what is left of the schedule is spread
    evenly. Later steps are measured, too, and the plan is made anew, so that training ends by the clock even if the
    machine becomes slower. Where all steps fit, nothing changes.

    The first process's clock counts. Training that resumes from a checkpoint has the time that was left then.

    Args:
        minutes (`float`): what training takes at most, with the evaluations during it; but it makes twelve steps at
            least.
    """

    measured_steps = 10  # the fewest that a plan is made from

    def __init__(self, minutes: float):
        if not 0 < minutes < math.inf:
            raise ValueError(f"`max_minutes={minutes}`; expected more than 0")
        self.minutes = minutes
        self.started, self.spent = None, 0.0
        # The plan: at `step`, the schedule is at `position`; from there on, a step is `pace` steps of the schedule.
        self.step, self.position, self.pace = 0, 0.0, 1.0

    def position_at(self, step: int) -> float:
        """Where the schedule is at a step of the training."""
        return self.position + (step - self.step) * self.pace

    def seconds(self) -> float:
        """The time of training so far, with that before an interruption."""
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
        if isinstance(lr_scheduler, LambdaLR):  # no other kind of schedule has an end
            lr_scheduler.lr_lambdas = [self._paced(function) for function in lr_scheduler.lr_lambdas]

    def _paced(self, function: Callable[[float], float]) -> Callable[[int], float]:
        return lambda step: function(min(self.position_at(step), self.schedule_steps))

    def on_step_end(self, args, state, control, **kwargs):
        step, now = state.global_step, time.monotonic()
        if not self.marks:  # the first step says little: in it, workers start and kernels are chosen
            self.marks, self.next_plan = [(step, now)], step + self.measured_steps
        if not self.next_plan <= step < state.max_steps:
            return
        seconds = self._seconds_a_step(step, now)
        fitting = step + max(1, int((60 * self.minutes - self.seconds()) / seconds))
        fitting = int(broadcast(torch.tensor(fitting, device=args.device)))
        state.max_steps = min(fitting, self.schedule_steps)
        left, position = state.max_steps - step, self.position_at(step)
        self.step, self.position, self.pace = step, position, (self.schedule_steps - position) / left
        self.next_plan = step + max(1, left // 10)
        if state.is_world_process_zero:
            self._announce(seconds, state.max_steps)

    def _seconds_a_step(self, step: int, now: float) -> float:
        """The mean over the later half of the steps: a slow moment changes it little, a slower machine much."""
        middle = (self.marks[0][0] + step) / 2
        since, then = next(mark for mark in reversed(self.marks) if mark[0] <= middle)
        self.marks.append((step, now))
        return max((now - then) / (step - since), 1e-6)  # by a coarse clock, steps may take no time

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
