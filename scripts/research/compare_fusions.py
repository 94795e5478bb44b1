#!/usr/bin/env python
# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Compares the four fusions with support vector machines on the six-view digits of scripts/research/prepare_digits.py, by
cross-validation: with all views, with each alone, and the mean over the subsets of each size.

One CrossFuse model and one joined machine answer for every subset. CrossFuse is trained with modality dropout and is
given the views that there are; the machine, trained on all views joined, is given the training mean in place of the
others. The last row is 63 machines, each trained on a subset of its own. All numbers are standardised by the mean and
standard deviation of the training folds.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch.utils.data import StackDataset, default_collate
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from crossfuse.errors import ends_in_one_line
from crossfuse.flags import Parser, above_zero, file_to_write
from crossfuse.loading import silence_transformers
from crossfuse.tables import format_table
from modeling_crossfuse import CrossFuseConfig, CrossFuseForSequenceClassification
from modeling_crossfuse.data.rows import load_rows
from modeling_crossfuse.evaluation.plots import plot_curves
from modeling_crossfuse.evaluation.scores import subsets
from modeling_crossfuse.files import write_whole


EPILOG = """
examples:
  the figures of docs/results.md, in a quarter of an hour on one core:
    python scripts/research/prepare_digits.py
    python scripts/research/compare_fusions.py --output digits.json
  one fusion, quickly:
    python scripts/research/compare_fusions.py --methods joint svm --folds 3 --epochs 5

exit codes: 0 done, 2 a wrong argument or data set (one line on standard error says which)
"""

LABEL = "digit"
NOISE = 0.3  # added to the views in training, in standard deviations
MIXUP = 0.4  # both parameters of the beta distribution of the shares

Views = dict[str, np.ndarray]
# Names of the views that are there, and the test rows of all views, to the digits.
Predict = Callable[[tuple[str, ...], Views], np.ndarray]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("compare_fusions.py", __doc__, EPILOG)
    parser.add_argument("--dataset", default="outputs/digits", help="folder of the digits (default: outputs/digits)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to compare (default: all)"
    )
    parser.add_argument("--folds", type=int, default=10, metavar="N", help="of the cross-validation (default: 10)")
    parser.add_argument(
        "--epochs", type=above_zero, default=25, metavar="N", help="of training CrossFuse (default: 25)"
    )
    parser.add_argument("--max_samples", type=above_zero, metavar="N", help="use N rows only, spaced evenly")
    parser.add_argument("--seed", type=int, default=0, help="of the folds, the weights and the batches (default: 0)")
    parser.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="write the accuracy of every subset to this JSON file, too, and draw it beside it",
    )
    args = parser.parse_args(argv)
    if args.folds < 2:
        raise ValueError(f"--folds is {args.folds}; expected at least 2")
    return args


def load_views(dataset: str, max_samples: int | None) -> tuple[Views, np.ndarray]:
    """The views `(rows, numbers)` and the digits `(rows,)`."""
    rows = load_rows(dataset, max_samples=max_samples).with_format("numpy")
    if LABEL not in rows.column_names:
        raise ValueError(f"the data set {dataset} has no column {LABEL!r}; it has {', '.join(rows.column_names)}")
    return {name: rows[name][:] for name in rows.column_names if name != LABEL}, rows[LABEL][:]


def make_model(fusion: str, sizes: dict[str, int], num_labels: int) -> CrossFuseForSequenceClassification:
    """Each view is a series of one step, which a linear layer makes a position of."""
    config = CrossFuseConfig(
        d_model=96,
        num_hidden_layers=0,
        modalities={name: {"kind": "series", "num_channels": size} for name, size in sizes.items()},
        fusion={"type": fusion, "num_layers": 1, "num_latents": 4},
        modality_dropout=0.4,
        dropout=0.1,
        classifier_dropout=0.2,
        num_labels=num_labels,
    )
    return CrossFuseForSequenceClassification(config)


def to_tensors(views: Views) -> dict[str, torch.Tensor]:
    """What `forward` takes: series `(rows, 1, numbers)`."""
    return {f"{name}_values": torch.from_numpy(values).float()[:, None] for name, values in views.items()}


def collate_and_mix(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch in noise, each sample mixed with another, its label, too (Zhang et al., 2018, *mixup*)."""
    batch = default_collate(samples)
    share = torch.distributions.Beta(MIXUP, MIXUP).sample()
    others = torch.randperm(len(samples))
    batch = {name: share * value + (1 - share) * value[others] for name, value in batch.items()}
    return {name: x if name == "labels" else x + NOISE * torch.randn_like(x) for name, x in batch.items()}


def compute_loss(outputs, labels: torch.Tensor, **kwargs) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=0.1)


def training_arguments(folder: str, args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        folder,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=128,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # of all steps
        weight_decay=0.05,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=args.seed,
    )


def fit_crossfuse(fusion: str, views: Views, labels: np.ndarray, args: argparse.Namespace) -> Predict:
    set_seed(args.seed)
    sizes = {name: values.shape[1] for name, values in views.items()}
    model = make_model(fusion, sizes, num_labels=labels.max() + 1)
    rows = StackDataset(**to_tensors(views), labels=torch.eye(model.config.num_labels)[labels])
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes it, though nothing is written to it
        arguments = training_arguments(folder, args)
        trainer = Trainer(model, arguments, collate_and_mix, train_dataset=rows, compute_loss_func=compute_loss)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()

    @torch.inference_mode()
    def predict(names: tuple[str, ...], views: Views) -> np.ndarray:
        given = to_tensors({name: views[name] for name in names})
        return model(**given).logits.argmax(1).numpy()

    return predict


def join(views: Views) -> np.ndarray:
    return np.concatenate(list(views.values()), axis=1)


def fit_machine(kernel: str, views: Views, labels: np.ndarray, args: argparse.Namespace) -> Predict:
    """A support vector machine on all views. Zero is the training mean, for the views are standardised."""
    machine = SVC(kernel=kernel, C=10).fit(join(views), labels)

    def predict(names: tuple[str, ...], views: Views) -> np.ndarray:
        return machine.predict(join({name: x if name in names else np.zeros_like(x) for name, x in views.items()}))

    return predict


def fit_machines(views: Views, labels: np.ndarray, args: argparse.Namespace) -> Predict:
    """A support vector machine for each subset, trained when it is asked for."""

    def predict(names: tuple[str, ...], test: Views) -> np.ndarray:
        machine = SVC(C=10).fit(join({name: views[name] for name in names}), labels)
        return machine.predict(join({name: test[name] for name in names}))

    return predict


METHODS = {
    **{fusion: partial(fit_crossfuse, fusion) for fusion in ("concat", "joint", "bottleneck", "latent")},
    "svm": partial(fit_machine, "rbf"),
    "linear_svm": partial(fit_machine, "linear"),
    "svm_per_subset": fit_machines,
}


def standardize(views: Views, train: np.ndarray, test: np.ndarray) -> tuple[Views, Views]:
    """The views of the rows `train` and `test`, by the mean and standard deviation of the first."""
    scalers = {name: StandardScaler().fit(values[train]) for name, values in views.items()}
    given, held_out = (
        {name: scaler.transform(views[name][rows]) for name, scaler in scalers.items()} for rows in (train, test)
    )
    return given, held_out


def cross_validate(views: Views, labels: np.ndarray, args: argparse.Namespace) -> Iterator[dict]:
    """The accuracy of each method with each subset of the views, in each fold."""
    folds = StratifiedKFold(args.folds, shuffle=True, random_state=args.seed)
    for fold, (train, test) in enumerate(folds.split(labels, labels)):
        given, held_out = standardize(views, train, test)
        for method in args.methods:
            predict = METHODS[method](given, labels[train], args)
            for names in subsets(list(views)):
                accuracy = float((predict(names, held_out) == labels[test]).mean())
                yield {"method": method, "fold": fold, "views": list(names), "accuracy": accuracy}
            print(f"fold {fold + 1} of {args.folds}, {method}: {accuracy:.1%} from all views", flush=True)


def mean_accuracy(results: list[dict], method: str, is_meant: Callable[[list[str]], bool]) -> float:
    """Over the folds, and the subsets of views that are meant."""
    return float(np.mean([r["accuracy"] for r in results if r["method"] == method and is_meant(r["views"])]))


def accuracy_by_size(results: list[dict], method: str, num_views: int) -> dict[int, float]:
    """The mean accuracy with each number of views, all of them first."""
    return {
        size: mean_accuracy(results, method, lambda views, size=size: len(views) == size)
        for size in range(num_views, 0, -1)
    }


def results_table(results: list[dict], methods: list[str], names: list[str]) -> str:
    """Accuracy in per cent: by the number of views, and with single views."""
    header = ["", *(f"{size} view{'s' * (size > 1)}" for size in range(len(names), 0, -1)), *names]
    rows = []
    for method in methods:
        by_size = accuracy_by_size(results, method, len(names)).values()
        single = [mean_accuracy(results, method, lambda views, name=name: views == [name]) for name in names]
        rows.append([method, *(f"{100 * value:.2f}" for value in [*by_size, *single])])
    return format_table(header, rows, right=range(1, len(header)))


def run(argv: list[str] | None) -> list[dict]:
    args = parse_args(argv)
    views, labels = load_views(args.dataset, args.max_samples)
    results = list(cross_validate(views, labels, args))
    print(results_table(results, args.methods, list(views)))
    if args.output is not None:
        write_whole(args.output, json.dumps({**vars(args), "results": results}) + "\n")
        curves = {method: accuracy_by_size(results, method, len(views)) for method in args.methods}
        drawing = plot_curves(curves, Path(args.output).with_suffix(".png"), "accuracy", "views given")
        print(f"written to {args.output} and {drawing}")
    return results


def main(argv: list[str] | None = None) -> list[dict]:
    """
    Trains and evaluates, prints a table, and writes JSON and a plot if asked to.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `list[dict]`: the accuracy of each method in each fold with each subset of the views.
    """
    silence_transformers()
    with ends_in_one_line("compare_fusions.py"):
        return run(argv)


if __name__ == "__main__":
    main()
