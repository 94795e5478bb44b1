# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Training that ends by the clock. The clock is the test's own: a step takes as long as the test says."""

import itertools
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import ProgressCallback, TrainerCallback

from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse.training import time_budget
from modeling_crossfuse.training.time_budget import TimeBudget
from modeling_crossfuse.training.trainer import CrossFuseTrainer

from .test_training import SCRIPT, argv_of, assert_equal_weights, folder, make_trainer, train  # noqa: F401


class Clock(TrainerCallback):
    """Each step takes `seconds(step)`; the learning rates that steps were made with are kept."""

    def __init__(self, seconds, stop_after: int | None = None):
        self.now, self.seconds, self.stop_after, self.rates = 1000.0, seconds, stop_after, []

    def monotonic(self) -> float:
        return self.now

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.now += self.seconds(state.global_step)
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop_after:
            control.should_training_stop = True


@pytest.fixture
def run(tmp_path, monkeypatch):
    """
    Trains for at most a minute by the clock; gives the trainer, and the clock, which started at 1000. Unless it
    `computes`, a step has no loss and no gradients, which the clock and the schedule don't depend on.
    """

    def run(seconds, max_minutes=1, stop_after=None, resume=None, computes=False, **arguments):
        clock = Clock(seconds, stop_after)
        if not computes:
            monkeypatch.setattr(CrossFuseTrainer, "training_step", lambda *args: torch.zeros(()))
        monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=clock.monotonic))
        settings = {"max_steps": 200, "lr_scheduler_type": "linear", "warmup_steps": 20, **arguments}
        trainer = make_trainer(tmp_path, callbacks=[clock], **settings)
        if max_minutes is not None:
            trainer.add_callback(TimeBudget(max_minutes))
        trainer.train(resume_from_checkpoint=resume)
        return trainer, clock

    return run


def test_it_ends_by_the_clock_with_the_whole_schedule(run, caplog):
    with caplog.at_level(logging.INFO, "crossfuse"):
        trainer, clock = run(lambda step: 0.5)
    assert clock.now - 1000 == pytest.approx(60, abs=0.5)
    assert trainer.state.global_step == trainer.state.max_steps == len(clock.rates) == 120
    peak = clock.rates.index(max(clock.rates))
    assert 10 <= peak <= 20, "the warm-up shrinks, too"
    assert sorted(clock.rates[:peak]) == clock.rates[:peak]
    assert sorted(clock.rates[peak:], reverse=True) == clock.rates[peak:]
    steps = [before - after for before, after in itertools.pairwise(clock.rates[peak:])]
    assert max(steps) < 1.1 * min(steps), "an even line"
    assert max(clock.rates) > 0.95e-2 and clock.rates[-1] < 2e-4
    assert [record.message for record in caplog.records] == [
        "measured 0.50 s a step: 120 of 200 steps fit in the 1 minutes",
        "trained 120 steps in 1.0 minutes",
    ]


def test_nothing_changes_where_all_steps_fit(run, caplog):
    settings = {"max_steps": 40, "lr_scheduler_type": "cosine", "computes": True}
    with caplog.at_level(logging.INFO, "crossfuse"):
        (limited, clock), (free, other) = run(lambda step: 1.0, **settings), run(lambda step: 1.0, None, **settings)
    assert limited.state.global_step == 40 and clock.rates == other.rates
    assert_equal_weights(limited.model.state_dict(), free.model.state_dict())
    assert caplog.records[0].message == "measured 1.00 s a step: all 40 steps fit in the 1 minutes"


@pytest.mark.parametrize("changed", [0.14, 0.6])
def test_a_machine_that_changes(run, changed, caplog):
    """Another program starts, or ends: the clock is kept, and the learning rate falls to nothing without a jump."""
    with caplog.at_level(logging.INFO, "crossfuse"):
        trainer, clock = run(lambda step: 0.2 if step < 150 else changed, max_steps=1000)
    assert clock.now - 1000 == pytest.approx(60, abs=1)
    assert trainer.state.global_step == pytest.approx(150 + 30 / changed, rel=0.05)
    falls = [before - after for before, after in itertools.pairwise(clock.rates[20:])]
    assert clock.rates[-1] < 1e-3 and max(falls) < 1e-3 and min(falls) >= 0
    assert len([record for record in caplog.records if "fit in" in record.message]) >= 2  # the plan is said anew


def test_one_slow_moment_changes_little(run):
    trainer, clock = run(lambda step: 10.0 if step == 100 else 0.2, max_steps=1000)
    assert trainer.state.global_step == pytest.approx(250, abs=5) and clock.now - 1000 == pytest.approx(60, abs=1)
    falls = [before - after for before, after in itertools.pairwise(clock.rates[20:])]
    assert max(falls) < 1e-4, "nor does the plan swing"


@pytest.mark.parametrize("kind", ["constant", "constant_with_warmup", "cosine", "inverse_sqrt"])
def test_other_schedules(run, kind):
    trainer, clock = run(lambda step: 1.0, lr_scheduler_type=kind, warmup_steps=0.1)
    assert trainer.state.global_step == 60
    if kind == "constant":
        assert set(clock.rates) == {1e-2}
    if kind == "cosine":
        assert clock.rates[-1] < 1e-4


def test_a_budget_for_a_few_steps(run):
    trainer, _ = run(lambda step: 30.0)
    assert trainer.state.global_step == 12, "the first, those that are measured, and one to end with"


def test_averages_and_evaluation(run, tmp_path):
    """The last step is evaluated and saved as that of any training."""
    settings = {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50}
    trainer, _ = run(lambda step: 1.0, ema_decay=0.9, **settings)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == [50, 60] and trainer.averages.n_averaged == 60
    assert (tmp_path / "checkpoint-60").exists()


@pytest.mark.parametrize("restored", [False, True])
def test_going_on_takes_the_time_that_was_left(run, tmp_path, restored):
    settings = {"save_strategy": "steps", "save_steps": 30, "restore_callback_states_from_checkpoint": restored}
    whole, clock = run(lambda step: 1.0, save_total_limit=5, **settings)
    resumed, second = run(lambda step: 1.0, resume=str(tmp_path / "checkpoint-30"), **settings)
    assert second.now - 1000 == pytest.approx(30, abs=1) and resumed.state.global_step == 60
    assert second.rates == pytest.approx(clock.rates[30:], rel=0.05, abs=1e-5)
    assert whole.state.stateful_callbacks["TimeBudget"]["attributes"]["spent"] == pytest.approx(60)


def test_going_on_from_a_training_without_a_budget(run, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 30}
    run(lambda step: 1.0, max_minutes=None, stop_after=30, **settings)
    resumed, clock = run(lambda step: 1.0, resume=str(tmp_path / "checkpoint-30"), **settings)
    assert resumed.state.global_step == 90 and clock.rates[-1] < 3e-4
    assert (tmp_path / "checkpoint-90").exists()


def test_training_twice(run):
    trainer, clock = run(lambda step: 1.0)
    clock.rates.clear()
    trainer.train()
    assert trainer.state.global_step == 60 and clock.rates[0] == 0


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_budgets_that_are_refused(tmp_path, minutes):
    message = r"`max_minutes=.*`; expected more than 0"
    with pytest.raises(ValueError, match=message):
        TimeBudget(minutes)
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--output_dir", str(tmp_path), "--max_minutes", str(minutes)])


def test_the_recipe_hands_it_on(folder, tmp_path, capsys):  # noqa: F811
    trainer = train(folder, tmp_path, max_minutes=1e-9, max_steps=100, disable_tqdm=False)
    assert trainer.state.global_step == 12
    card = (tmp_path / "README.md").read_text()
    assert "| `max_steps` | 12 |" in card and "| `max_minutes` | 1e-09 |" in card
    # The bar ends where training does.
    assert len([part for part in trainer.callback_handler.callbacks if isinstance(part, ProgressCallback)]) == 1
    assert "| 12/12 [" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_end_together(folder, tmp_path):  # noqa: F811
    argv = argv_of(
        folder,
        tmp_path,
        max_minutes=0.05,
        max_steps=100_000,
        use_cpu=True,
        per_device_train_batch_size=1,
        eval_split="",
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(SCRIPT), *argv], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("computing in ") == done.stderr.count("trained ") == 1
    assert "of 100,000 steps fit in the 0.05 minutes" in done.stderr
