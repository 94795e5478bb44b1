# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Trains or fine-tunes a CrossFuse model on any data set whose columns map to modalities.

RECIPE is a YAML file of flags, or the name of a ready one, such as emoji. The command line wins over it.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from .recipe import parse_flags


EPILOG = """
Every flag may also stand in the recipe. So may every flag of transformers' Seq2SeqTrainingArguments, such as
--output_dir, --learning_rate, --num_train_epochs or --per_device_train_batch_size: `crossfuse train --help_trainer`
lists them.

examples:
  the emoji recipe, with another learning rate:
    crossfuse train emoji --learning_rate 5e-4
  a data set of your own, without a recipe:
    crossfuse train --model small --dataset me/photos --inputs image=photo text=question \\
        --target answer --output_dir outputs/photos --num_train_epochs 10 --per_device_train_batch_size 32
  with encoders of transformers, which run once for each sample and not again while the rest learns:
    crossfuse train --encoders '{"image": "google/siglip2-base-patch16-224"}' --freeze image \\
        --cache_encoder_outputs --dataset me/photos --inputs image=photo text=question --target answer
  only adapters, which LoRA adds to a trained model:
    crossfuse train configuration/recipes/emoji_lora.yaml
  in ten minutes, whatever the machine, with a schedule that fits:
    crossfuse train emoji --max_minutes 10
  on several processes:
    torchrun --nproc_per_node 2 -m crossfuse train emoji
    accelerate launch -m crossfuse train emoji
  going on after an interruption:
    crossfuse train emoji --resume_from_checkpoint last
"""

# What of `TrainingArguments` a reader of a model card wants to know.
CARD_KEYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "bf16",
    "seed",
)

logger = logging.getLogger("crossfuse")


def parse_args(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    parser.usage = "crossfuse train [RECIPE] [--flag value ...]"
    parser.allow_abbrev = False  # the other flags are not known yet
    parser.add_argument("--help_trainer", action="store_true", help="show the flags of Seq2SeqTrainingArguments")
    flags = parse_flags(argv, parser)
    return argparse.Namespace(help_trainer=flags.own.pop("help_trainer"), flags=flags)


def card_settings(recipe, arguments, num_processes: int, steps: int) -> dict[str, Any]:
    """What a model card says of a training that has made so many steps."""
    settings = {key: getattr(arguments, key) for key in CARD_KEYS}
    return {**vars(recipe), **settings, "max_steps": steps, "num_processes": num_processes}


def make_compute_metrics(recipe, arguments, model, processor):
    """What the Trainer calls with answers and labels, if there is anything to compare."""
    import torch

    from modeling_crossfuse.evaluation.metrics import compute_label_metrics, compute_text_metrics
    from modeling_crossfuse.evaluation.prediction import read_logits

    def compare_texts(prediction):
        pad = processor.tokenizer.pad_token_id
        texts = []
        for tokens in (prediction.predictions, prediction.label_ids):
            tokens = tokens.copy()
            tokens[tokens == -100] = pad
            texts.append(processor.batch_decode(tokens, skip_special_tokens=True))
        return compute_text_metrics(predictions=texts[0], references=texts[1])

    def compare_labels(prediction):
        config, labels = model.config, torch.tensor(prediction.label_ids)
        answers = torch.tensor(prediction.predictions)
        if config.problem_type == "single_label_classification":
            answers, labels = answers[labels != -100], labels[labels != -100]
            labels = torch.nn.functional.one_hot(labels, config.num_labels)
        elif config.problem_type == "regression":
            labels = labels.view(len(labels), -1)
        if len(labels) == 0:
            return {}  # the loss is 0, and there is nothing to compare
        return compute_label_metrics(read_logits(answers, config), read_logits(labels, config), config.problem_type)

    if recipe.task == "classification":
        return compare_labels
    return compare_texts if arguments.predict_with_generate else None


def load_splits(recipe) -> tuple[Any, Any]:
    """The rows to train on and, if there are any, those to evaluate on."""
    from modeling_crossfuse.data.rows import load_rows

    rows = load_rows(recipe.dataset, recipe.train_split, recipe.max_train_samples, recipe.dataset_config)
    columns = [column for column in (*recipe.inputs.values(), recipe.target) if column]
    check_split(recipe.train_split, rows, [*columns, *(recipe.questions or {}).values()])
    if not recipe.eval_split:
        return rows, None
    eval_rows = load_rows(recipe.dataset, recipe.eval_split, recipe.max_eval_samples, recipe.dataset_config)
    check_split(recipe.eval_split, eval_rows, columns)
    return rows, eval_rows


def check_split(split: str, rows, columns: list[str]):
    """Raises a `ValueError` that names a split without rows, or without one of the columns."""
    from modeling_crossfuse.data.rows import check_columns

    if len(rows) == 0:
        raise ValueError(f"the split {split!r} has no rows")
    try:
        check_columns(rows, columns)
    except ValueError as error:
        raise ValueError(f"the split {split!r} has {error}") from error


def check_rows(splits: list[tuple]):
    """Raises a `ValueError` that names the first row which training can't use."""
    from modeling_crossfuse.data.rows import row_numbers

    for split, rows, collator in splits:
        bad = collator.find_bad_rows(rows)
        for index, reason in bad.items():
            more = f" ({len(bad):,} of its {len(rows):,} rows can't be used)" if len(bad) > 1 else ""
            raise ValueError(f"row {row_numbers(rows)[index]} of the split {split!r} {reason}{more}")


def without_bad_samples(splits: list[tuple], arguments) -> list[tuple]:
    """The splits with the rows that training can use. The first process of a machine reads them all, before others."""
    from modeling_crossfuse.data.bad_samples import skip_bad_samples

    file = Path(arguments.output_dir, "bad_samples.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    with arguments.main_process_first(desc="reading all rows"):
        is_first = arguments.local_process_index == 0
        workers, progress = arguments.dataloader_num_workers, not arguments.disable_tqdm
        kept = skip_bad_samples(splits, file, is_first, workers, progress)
    for (split, rows, _), readable in zip(splits, kept):
        if arguments.process_index == 0:
            skipped = f"{len(rows) - len(readable):,} of the {len(rows):,} rows of the split {split!r} skipped"
            logger.info(skipped + (f"; {file} lists them" if len(readable) < len(rows) else ""))
    return [(split, readable, collator) for (split, _, collator), readable in zip(splits, kept)]


def log_unlabeled(split: str, rows, collator):
    """Says how many rows have no class, if any."""
    if unlabeled := collator.count_unlabeled(rows):
        logger.info(
            f"{unlabeled:,} of the {len(rows):,} rows of the split {split!r} have no label in {collator.target!r}; "
            "loss and metrics leave them out"
        )


def describe_labels(recipe, rows, config) -> str:
    """What a classification is to learn, on one line."""
    from modeling_crossfuse.data.labels import are_integers_with_gaps

    if config.problem_type == "regression":
        return f"learning {config.num_labels} number{'s' * (config.num_labels > 1)} from {recipe.target!r}"
    described = f"learning {config.num_labels} label{'s' * (config.num_labels > 1)} from {recipe.target!r}"
    if not are_integers_with_gaps(rows, recipe.target):
        return described
    return (
        f"{described}, whose numbers have no fraction, and some are missing; to learn them as numbers, say "
        '--model_overrides \'{"problem_type": "regression"}\''
    )


def close_progress_bar(trainer):
    """Ends the line of the progress bar that an error or Ctrl-C leaves, so that a message gets its own."""
    from transformers import ProgressCallback

    bar = trainer.pop_callback(ProgressCallback)
    if bar is not None and bar.training_bar is not None:
        bar.on_evaluate(trainer.args, trainer.state, trainer.control)
        bar.on_train_end(trainer.args, trainer.state, trainer.control)


def save_so_far(trainer):
    """Saves the model that an error or Ctrl-C leaves half trained, beside where a whole training saves it."""
    folder = Path(trainer.args.output_dir, f"stopped-at-step-{trainer.state.global_step}")
    if trainer.args.should_save and trainer.state.global_step > 0:
        with trainer.averaged_weights():
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
        logger.info(f"training was stopped; the model so far is in {folder}")


def resume_point(arguments) -> str | None:
    """The checkpoint to go on from: `last` stands for the newest in the output folder."""
    from transformers.trainer_utils import get_last_checkpoint

    if arguments.resume_from_checkpoint not in ("last", "true", "True"):
        return arguments.resume_from_checkpoint
    folder = Path(arguments.output_dir)
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is None:
        raise ValueError(f"`resume_from_checkpoint`: there is no checkpoint in {arguments.output_dir}")
    return checkpoint


def end_processes(trainer):
    """
    Ends what connects the processes of a distributed training. Its threads can abort a process in which Python ends
    before them; and they can wait forever where it is DistributedDataParallel that ends last, which holds the
    interpreter's lock then. So that goes first.
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def log_what_trains(recipe, arguments, model, whole, splits: list[tuple]):
    """Says what is trained on what, and how, before it takes its time."""
    from .training_arguments import describe_precision

    if arguments.process_index != 0:
        return
    trained, (_, rows, _) = whole.num_parameters(only_trainable=True), splits[0]
    logger.info(
        f"{model.num_parameters():,} parameters, {trained:,} of which train; {len(rows):,} samples to train on"
    )
    logger.info(describe_precision(recipe, arguments))
    if recipe.task == "classification":
        logger.info(describe_labels(recipe, rows, model.config))
    for split in splits:
        log_unlabeled(*split)


def cache_splits(recipe, arguments, model, processor, splits: list[tuple]) -> list:
    """The rows of each split as the collators expect them."""
    from modeling_crossfuse.training.building import cache_rows

    cache = Path(arguments.output_dir, "_encoder_outputs")  # Trainer does not push what starts so
    names = ("the training data", "the evaluation data")
    if not recipe.cache_encoder_outputs:
        return [cache_rows(recipe, rows, model, processor, cache, name) for (_, rows, _), name in zip(splits, names)]
    model.get_encoder().to(arguments.device)
    with arguments.main_process_first(desc="caching"):
        return [cache_rows(recipe, rows, model, processor, cache, name) for (_, rows, _), name in zip(splits, names)]


def train(trainer, checkpoint: str | None) -> float:
    """Trains, and returns how many seconds it took. An error, or Ctrl-C, leaves the model so far."""
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (Exception, KeyboardInterrupt):
        close_progress_bar(trainer)
        save_so_far(trainer)
        raise
    return time.monotonic() - started


def save_and_evaluate(recipe, arguments, trainer, duration: float):
    """Saves the model with its card. Its evaluation comes after that, since it may fail, and completes the card."""
    trainer.card = {
        "dataset": recipe.dataset,
        "split": recipe.eval_split,
        "recipe": card_settings(recipe, arguments, arguments.world_size, trainer.state.global_step),
        "duration": duration,
    }
    trainer.create_model_card()
    trainer.save_state()
    trainer.save_model()
    if trainer.eval_dataset is None:
        return
    metrics = trainer.evaluate()
    trainer.card["metrics"] = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    trainer.create_model_card()
    trainer.save_state()
    if arguments.push_to_hub:
        trainer.push_to_hub(commit_message="Metrics")


def run(args: argparse.Namespace) -> str | None:
    """Trains, evaluates, and saves model, processor and model card; returns the folder they were saved in."""
    import transformers

    from modeling_crossfuse.data.labels import check_digits
    from modeling_crossfuse.training.building import add_lora, build_model, make_collators, number_labels
    from modeling_crossfuse.training.trainer import CrossFuseTrainer

    from .loading import load_config
    from .training_arguments import TrainerParser, read_arguments

    if args.help_trainer:
        return TrainerParser(prog="crossfuse train").print_help()
    logging.basicConfig(format="%(message)s")
    recipe, arguments = read_arguments(args.flags)
    logger.setLevel(logging.INFO if arguments.process_index == 0 else logging.WARNING)
    # Between processes: convolutions give their gradients channels last, which costs a copy and no more.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    transformers.set_seed(arguments.seed)
    checkpoint = resume_point(arguments)
    load_config(recipe.model)  # if there is none, this says so before the data is read
    rows, eval_rows = load_splits(recipe)
    with arguments.main_process_first(desc="building the model"):
        labels = number_labels(recipe, rows)
        model, processor = build_model(recipe, rows, labels)
    if recipe.task == "generation":
        model.generation_config.max_length = recipe.max_target_length
    whole = add_lora(model, recipe.lora) if recipe.lora else model
    train_collator, eval_collator = make_collators(recipe, model, processor, labels, arguments.seed, rows)
    splits = [(recipe.train_split, rows, train_collator), (recipe.eval_split, eval_rows, eval_collator)]
    splits = splits if eval_rows is not None else splits[:1]
    if recipe.on_bad_sample == "skip":
        splits = without_bad_samples(splits, arguments)
    check_rows(splits)
    log_what_trains(recipe, arguments, model, whole, splits)
    if recipe.task == "classification" and model.config.problem_type == "regression":
        check_digits(rows, recipe.target)
    train_dataset, *eval_datasets = cache_splits(recipe, arguments, model, processor, splits)
    trainer = CrossFuseTrainer(
        model=whole,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets[0] if eval_datasets else None,
        data_collator=train_collator,
        eval_collator=eval_collator,
        processing_class=processor,
        compute_metrics=make_compute_metrics(recipe, arguments, model, processor),
        learning_rates=recipe.learning_rates,
        ema_decay=recipe.ema_decay,
        max_minutes=recipe.max_minutes,
    )
    duration = train(trainer, checkpoint)
    trainer.use_averaged_weights()
    if recipe.answer_classifier:
        model.drop_answer_head()
    if recipe.lora:
        trainer.merge_adapter(Path(arguments.output_dir, "adapter"))
    save_and_evaluate(recipe, arguments, trainer, duration)
    end_processes(trainer)
    return arguments.output_dir
