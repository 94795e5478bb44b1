# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A Trainer with learning rates for parts of a model, averages of the weights, and training by the clock."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import ProgressCallback, Seq2SeqTrainer, TrainerCallback
from transformers.processing_utils import ProcessorMixin
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length

from ..data.rows import NumberedRows
from ..encoder_sources import check_special_tokens
from ..pretrained import CrossFusePreTrainedModel
from .model_card import write_model_card
from .time_budget import PlannedProgress, TimeBudget


class _AverageWeights(TrainerCallback):
    """Averages the weights after each step of the optimizer."""

    def __init__(self, averages: AveragedModel, model: torch.nn.Module):
        self.averages, self.model = averages, model

    def on_step_end(self, args, state, control, **kwargs):
        self.averages.update_parameters(self.model)


def parameter_groups(
    model: torch.nn.Module, learning_rate: float, learning_rates: dict[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """
    An optimizer's groups of the parameters that require a gradient, each part of the model with its own learning rate.
    Biases and the weights of norms, which are vectors, don't decay.

    `learning_rates` has the start of a parameter's name, without `"model."`, to its learning rate; the longest start
    that fits counts, and the name of a modality stands for its encoder.
    """
    named = {
        name.removeprefix("base_model.model.").removeprefix("model."): parameter  # PEFT adds the first
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
    """A string that is not pickled: with `training_args.bin`, Trainer would push `hub_token` for all to read."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        return str, ("<HUB_TOKEN>",)

    def __deepcopy__(self, memo):
        return self


def batch_length(batch: dict[str, torch.Tensor]) -> int:
    """How many positions a batch's masks keep, and how many labels it has: its cost grows with their number."""
    masks = [value for name, value in batch.items() if name.endswith("mask") and name != "modality_mask"]
    labels = batch.get("labels")
    return int(sum((mask != 0).sum() for mask in masks)) + (0 if labels is None else int((labels != -100).sum()))


def _without_names(rows):
    """The data set itself, of which a sampler may want a column."""
    return rows.rows if isinstance(rows, NumberedRows) else rows


class _Untokenized:
    """A processor without a tokenizer. Trainer would ask what is a `ProcessorMixin` for the tokenizer's tokens."""

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor

    def __getattr__(self, name: str):
        return getattr(self.processor, name)


class CrossFuseTrainer(Seq2SeqTrainer):
    """
    [`~transformers.Seq2SeqTrainer`] with learning rates for parts of the model and an average of the weights. It takes
    models with adapters of PEFT, too. With `train_sampling_strategy="group_by_length"`, samples of about one length
    share a batch: the column `length_column_name` says how long they are; without it, the collator makes each sample
    once before training starts, and its masks and labels are counted. Errors of [`CrossFuseDataCollator`] name the row
    of the training or evaluation data.

    Args:
        eval_collator (`Callable`, *optional*): collator for evaluation and prediction. Defaults to that of training,
            which may augment its batches.
        learning_rates (`dict[str, float]`, *optional*): start of a parameter's name, such as
            `"encoder.encoders.image.stem"`, to its learning rate; the longest start that fits counts. The name of a
            modality, such as `"image"`, stands for its encoder.
        ema_decay (`float`, *optional*): evaluate and save the exponential moving average of the weights. Checkpoints
            have the weights and their average, so that resuming changes nothing.
        max_minutes (`float`, *optional*): end training by the clock, as [`TimeBudget`] says.
        card (`dict`, *optional*): arguments of [`write_model_card`], for what the trainer does not know of the
            training.

    Raises:
        ValueError: if a key of `learning_rates` is the start of no parameter's name, or `max_minutes` is not above 0;
            if the special tokens of model and tokenizer disagree; or for the `label_smoothing_factor` of a model that
            learns neither classes nor tokens.
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
        if isinstance(self.processing_class, ProcessorMixin) and not hasattr(self.processing_class, "tokenizer"):
            self.processing_class = _Untokenized(self.processing_class)
        self._check_special_tokens()
        self._check_label_smoothing()
        self.card = dict(card or {})
        if self.args.hub_token is not None:
            self.args.hub_token = _Secret(self.args.hub_token)
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
                self.add_callback(PlannedProgress)

    def _check_special_tokens(self):
        model = self.accelerator.unwrap_model(self.model)
        processor = getattr(self.data_collator, "processor", self.processing_class)
        tokenizer = getattr(processor, "tokenizer", processor)
        if model.can_generate() and getattr(self.data_collator, "problem_type", None) is None:
            check_special_tokens(tokenizer, model.generation_config)

    def _check_label_smoothing(self):
        model = self.accelerator.unwrap_model(self.model)
        is_regression = model.task == "classification" and model.config.resolved_problem_type == "regression"
        if self.label_smoother is not None and (is_regression or model.task == "retrieval"):
            raise ValueError(
                f"`label_smoothing_factor={self.args.label_smoothing_factor}` smooths classes and tokens, and this "
                f"{type(model).__name__} learns none of them; leave it out"
            )

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        unwrapped = self.accelerator.unwrap_model(model)
        if "labels" not in inputs or not unwrapped.can_generate():
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        if self.label_smoother is not None or self.compute_loss_func is not None:
            # Trainer does not show the model the labels then; the decoder's input is made of them here.
            prepare = unwrapped.prepare_decoder_input_ids_from_labels
            inputs = {"decoder_input_ids": prepare(inputs["labels"]), **inputs}
        elif not return_outputs:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        groups = self.args.train_sampling_strategy == "group_by_length" and has_length(rows)
        if not groups or self.args.length_column_name in getattr(_without_names(rows), "column_names", ()):
            return super()._get_train_sampler(_without_names(rows))
        # transformers would take the length of one input for that of the sample.
        progress = tqdm(rows, desc="measuring lengths", disable=self.args.disable_tqdm)
        lengths = [batch_length(self.eval_collator([row])) for row in progress]
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths=lengths
        )

    def create_optimizer(self, model=None):
        if self.optimizer is not None or not self.learning_rates:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        groups = parameter_groups(self.model, self.args.learning_rate, self.learning_rates, self.args.weight_decay)
        optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(groups, **arguments)
        return self.optimizer

    def _get_eval_sampler(self, eval_dataset):
        # transformers would group the samples of evaluation by the length of one input, and predict in that order.
        own, self.args.train_sampling_strategy = self.args.train_sampling_strategy, "sequential"
        try:
            return super()._get_eval_sampler(eval_dataset)
        finally:
            self.args.train_sampling_strategy = own

    @contextlib.contextmanager
    def _replaced(self, **attributes):
        """Within this context, the trainer has other attributes."""
        own = {name: getattr(self, name) for name in attributes}
        vars(self).update(attributes)
        try:
            yield
        finally:
            vars(self).update(own)

    def _with_names(self, rows, part: str):
        """Rows that errors can name, unless Trainer has to see the data set itself, whose columns it removes."""
        if self.args.remove_unused_columns or isinstance(rows, (str, IterableDataset, NumberedRows)):
            return rows
        if isinstance(rows, dict):
            return {name: self._with_names(value, f"{part} {name!r}") for name, value in rows.items()}
        return NumberedRows(rows, part) if has_length(rows) else rows

    def get_train_dataloader(self):
        with self._replaced(train_dataset=self._with_names(self.train_dataset, "the training data")):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None):
        own, given = (self._with_names(rows, "the evaluation data") for rows in (self.eval_dataset, eval_dataset))
        with self._replaced(eval_dataset=own, data_collator=self.eval_collator):
            return super().get_eval_dataloader(given)

    def get_test_dataloader(self, test_dataset):
        with self._replaced(data_collator=self.eval_collator):
            return super().get_test_dataloader(self._with_names(test_dataset, "the test data"))

    @property
    def _has_averages(self) -> bool:
        return self.averages is not None and self.averages.n_averaged > 0

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within this context, the model has the average of its weights."""
        if not self._has_averages:
            yield
            return
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.averages.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def use_averaged_weights(self):
        """Replaces the weights by their average, and ends averaging."""
        if self._has_averages:
            self.model.load_state_dict(self.averages.module.state_dict())
        self.averages = None

    def merge_adapter(self, folder: str | Path):
        """Saves the adapter of a model with LoRA in a folder, and adds it to the model's weights."""
        if self.args.should_save:
            self.model.save_pretrained(folder)
        self.model = self.model_wrapped = self.model.merge_and_unload()
        self.accelerator.free_memory()  # an evaluation prepares the merged model, as it would any other

    def evaluation_loop(self, *args, **kwargs):
        with self.averaged_weights():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        if _internal_call:  # a checkpoint: resuming needs the weights themselves
            return super().save_model(output_dir, _internal_call)
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)
        # Nothing reads Trainer's pickled settings, and people find them in the card.
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(self, *args, tags: str | list[str] | None = None, **kwargs):
        """
        Writes the card of [`write_model_card`] into the output folder. A model with adapters gets the card of
        [`~transformers.Trainer`], which takes the other arguments.

        Args:
            tags (`str` or `list[str]`, *optional*): for the Hub.
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
