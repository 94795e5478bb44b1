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
Compares CrossFuse with transformers' VisionEncoderDecoderModel (ViT + BERT, ViT + GPT-2) at naming images.

Each model starts from random weights and trains for the same time, on the same images at the same size, with the
same augmentation, tokenizer, batch size, label smoothing, optimizer and number of parameters, in the same loop.
CrossFuse adds what its recipe has: the classifier of the answers, which only trains and is not counted, and learning
rates of parts. The learning rate follows the share of the time that has passed: up in a line, then down in a line to
zero, so that a slow model gets a whole schedule, too. Exact match is that of greedy answers; measuring it is not part
of the time.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    BertConfig,
    GPT2Config,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from crossfuse.errors import ends_in_one_line
from crossfuse.flags import Parser, above_zero, file_to_write
from crossfuse.loading import silence_transformers
from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration, CrossFuseProcessor
from modeling_crossfuse.data.augmentation import BatchAugmentation
from modeling_crossfuse.data.caching import CachedInputs, CachedInputsCollator
from modeling_crossfuse.data.rows import load_rows, select_columns
from modeling_crossfuse.evaluation.metrics import compute_text_metrics
from modeling_crossfuse.files import write_whole
from modeling_crossfuse.modeling_crossfuse import shift_tokens_right
from modeling_crossfuse.training import train_tokenizer
from modeling_crossfuse.training.building import number_labels, recipe_texts
from modeling_crossfuse.training.trainer import parameter_groups


EPILOG = """
examples:
  the figures of docs/results.md, on one thread:
    python scripts/research/compare_peers.py --minutes 4 --threads 1 --clock cpu --output peers.json
  look for the learning rates anew, on the validation split, before the comparison:
    python scripts/research/compare_peers.py --learning_rates vit_bert=1e-3,2e-3,4e-3 vit_gpt2=1e-3,2e-3,4e-3
  one model, with smaller patches:
    python scripts/research/compare_peers.py --models vit_gpt2 --patch_size 4 --minutes 3 --split validation

exit codes: 0 done, 2 a wrong argument, recipe or data set (one line on standard error says which)
"""


@dataclass
class Entrant:
    """
    A model of the comparison.

    Args:
        title (`str`): its name in the table.
        learning_rate (`float`): the best of those that were tried.
        part_learning_rates (`dict[str, float]`): start of a parameter's name to a learning rate of its own.
    """

    title: str
    learning_rate: float | None = None
    part_learning_rates: dict[str, float] = field(default_factory=dict)


# CrossFuse's rates stand in the recipe. The peers' are from runs of 0.7 minutes on one thread, by the loss per token
# on the validation split:
#   learning rate   4e-3   2e-3   1e-3
#   ViT + BERT      4.74   2.70   3.06
#   ViT + GPT-2     3.19   3.31   3.53
ENTRANTS = {
    "crossfuse": Entrant("CrossFuse"),
    "vit_bert": Entrant("ViT + BERT", 2e-3),
    "vit_gpt2": Entrant("ViT + GPT-2", 4e-3),
}

# What the time is read from. The processor time of this process alone is the fairer one on a busy machine.
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("compare_peers.py", __doc__, EPILOG)
    parser.add_argument(
        "--recipe",
        default="configuration/recipes/emoji.yaml",
        help="its model, data, augmentation and optimizer (default: configuration/recipes/emoji.yaml)",
    )
    parser.add_argument(
        "--models", nargs="+", choices=ENTRANTS, default=list(ENTRANTS), help="which to train (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=12, metavar="M", help="training of each model (default: 12)")
    parser.add_argument(
        "--learning_rates",
        nargs="+",
        default=[],
        metavar="MODEL=RATE[,RATE...]",
        help="of several rates, the one with the lowest loss on the recipe's eval_split is taken (default: the "
        "recipe's for CrossFuse, "
        + ", ".join(f"{name}={entrant.learning_rate:g}" for name, entrant in ENTRANTS.items() if entrant.learning_rate)
        + ")",
    )
    parser.add_argument(
        "--search_minutes", type=float, default=1.5, metavar="M", help="training with each of several rates"
    )
    parser.add_argument(
        "--part_learning_rates",
        nargs="+",
        default=[],
        metavar="MODEL:PART=RATE",
        help="of the parameters whose names start with PART, such as vit_bert:decoder=2e-3 (default: the recipe's for "
        "CrossFuse, none for the others)",
    )
    parser.add_argument(
        "--warmup", type=float, default=0.1, metavar="SHARE", help="of the time, with a rising rate (default: 0.1)"
    )
    parser.add_argument(
        "--patch_size", type=above_zero, default=8, metavar="N", help="of the ViT, in pixels (default: 8)"
    )
    parser.add_argument("--encoder_layers", type=above_zero, default=4, metavar="N", help="of the ViT (default: 4)")
    parser.add_argument(
        "--decoder_layers", type=above_zero, default=2, metavar="N", help="of BERT or GPT-2 (default: 2)"
    )
    parser.add_argument("--split", default="test", help="split to evaluate on (default: test)")
    parser.add_argument(
        "--threads", type=above_zero, metavar="N", help="threads of the processor (default: PyTorch's)"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="what the minutes are of: the clock on the wall, or this process's processor time, which is fairer on a "
        "busy machine and needs --threads 1 (default: wall)",
    )
    parser.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="write the results to this JSON file, too"
    )
    args = parser.parse_args(argv)
    for name in ("minutes", "search_minutes"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name} is {getattr(args, name)}; expected more than 0")
    if not 0 <= args.warmup < 1:
        raise ValueError(f"--warmup is {args.warmup}; expected a share from 0 to less than 1")
    if args.clock == "cpu" and args.threads != 1:
        raise ValueError("--clock cpu counts the time of all threads together; it needs --threads 1")
    args.learning_rates = {
        name: [parse_rate(rate) for rate in rates.split(",")]
        for name, rates in parse_pairs("learning_rates", args.learning_rates)
    }
    parts: dict[str, dict[str, float]] = {}
    for name, rate in parse_pairs("part_learning_rates", args.part_learning_rates):
        model, _, part = name.partition(":")
        parts.setdefault(model, {})[part] = parse_rate(rate)
    args.part_learning_rates = parts
    return args


def parse_pairs(option: str, pairs: list[str]) -> Iterator[tuple[str, str]]:
    """`["vit_bert=1e-3"]` as pairs of texts; only known models."""
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name.split(":")[0] not in ENTRANTS or (":" in name) != (option == "part_learning_rates"):
            form = "MODEL:PART=RATE" if option == "part_learning_rates" else "MODEL=RATE"
            raise ValueError(f"--{option} has {pair!r}; expected {form} with a MODEL of {', '.join(ENTRANTS)}")
        yield name, value


def parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"{text!r} is no learning rate; expected a number above 0")
    return rate


class Task:
    """
    Images to name: what all models share.

    Args:
        args (`argparse.Namespace`): the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.recipe, self.arguments = parse_recipe([args.recipe])
        if "image" not in self.recipe.inputs or self.recipe.target is None:
            raise ValueError(f"the recipe {args.recipe} has no column for the modality image, or no target")
        self.recipe.questions = None
        self.recipe.learning_rates = image_rates(self.recipe.learning_rates or {})
        self.recipe.inputs = {"image": self.recipe.inputs["image"]}
        rows = self._load(self.recipe.train_split)
        tokenizer = train_tokenizer(recipe_texts(self.recipe, rows), self.recipe.vocab_size)
        self.answers = number_labels(self.recipe, rows)
        self.config = image_only(AutoConfig.from_pretrained(self.recipe.model), len(tokenizer))
        self.processor = CrossFuseProcessor.from_config(self.config, tokenizer=tokenizer)
        self.rows = {"train": self._cached(rows)}
        searches = any(len(args.learning_rates.get(name, ())) > 1 for name in args.models)
        for split in {args.split, *([self.recipe.eval_split] if searches else [])}:
            self.rows[split] = self._cached(self._load(split))

    def _load(self, split: str):
        rows = load_rows(self.recipe.dataset, split, config=self.recipe.dataset_config)
        return select_columns(rows, (self.recipe.inputs["image"], self.recipe.target))

    def _cached(self, rows) -> CachedInputs:
        return CachedInputs(rows, self.processor, self.recipe.inputs)

    def collator(self, augment: bool) -> CachedInputsCollator:
        settings = {"image": self.recipe.augmentation["image"]} if augment and self.recipe.augmentation else {}
        return CachedInputsCollator(
            self.processor,
            self.recipe.inputs,
            target=self.recipe.target,
            max_target_length=self.recipe.max_target_length,
            answer_ids=self.answers,
            augment=BatchAugmentation(self.processor, self.config.modalities, settings),
        )

    def training_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches without end, in an order that the seed alone fixes."""
        rows, collator = self.rows["train"], self.collator(augment=True)
        generator = torch.Generator().manual_seed(self.arguments.seed)
        size = min(self.arguments.per_device_train_batch_size, len(rows))
        while True:
            order = torch.randperm(len(rows), generator=generator).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield collator([rows[index] for index in order[start : start + size]])

    def learning_rates(self, name: str, args: argparse.Namespace) -> list[float]:
        """Those given on the command line, or else the best that was found."""
        return args.learning_rates.get(name) or [ENTRANTS[name].learning_rate or self.arguments.learning_rate]

    def part_learning_rates(self, name: str, args: argparse.Namespace) -> dict[str, float]:
        own = self.recipe.learning_rates if name == "crossfuse" else ENTRANTS[name].part_learning_rates
        return args.part_learning_rates.get(name, {part: float(rate) for part, rate in own.items()})

    def autocast(self):
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.arguments.bf16)


def image_rates(rates: dict[str, float]) -> dict[str, float]:
    """Learning rates of parts, without those of encoders that a model of images alone does not have."""
    return {
        part: rate
        for part, rate in rates.items()
        if not part.startswith("encoder.encoders.") or part.startswith("encoder.encoders.image")
    }


def image_only(config: CrossFuseConfig, vocab_size: int) -> CrossFuseConfig:
    """The config of the same model with images alone and another vocabulary."""
    settings = config.to_dict()
    settings["modalities"] = {"image": {**settings["modalities"]["image"], "modality_dropout": 0.0}}
    settings["decoder"]["vocab_size"] = vocab_size
    return CrossFuseConfig.from_dict(settings)


def build_model(name: str, task: Task, args: argparse.Namespace) -> PreTrainedModel:
    """A model with random weights that depend on the recipe's seed; a peer is as large as CrossFuse."""
    torch.manual_seed(task.arguments.seed)
    if name == "crossfuse":
        config = copy.deepcopy(task.config)
        config.num_answers = len(task.answers or ())
        return CrossFuseForConditionalGeneration._from_config(
            config, attn_implementation=task.recipe.attn_implementation
        )
    target = CrossFuseForConditionalGeneration(task.config).num_parameters()
    # The number of parameters is a straight line over the width of the feed-forward layers: two points give it.
    low, high = (build_peer(name, task, args, width).num_parameters() for width in (1, 2))
    width = round((target - low) / (high - low)) + 1
    if width < 1:
        raise ValueError(f"{ENTRANTS[name].title} has over {target:,} parameters; give it fewer layers")
    torch.manual_seed(task.arguments.seed)
    return build_peer(name, task, args, width)


def build_peer(name: str, task: Task, args: argparse.Namespace, intermediate_size: int) -> VisionEncoderDecoderModel:
    """A ViT with a decoder of the same width, both without dropout, as CrossFuse in its recipe."""
    config, image = task.config, task.config.modalities["image"]
    encoder = ViTConfig(
        hidden_size=config.d_model,
        num_hidden_layers=args.encoder_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=intermediate_size,
        image_size=image.image_size,
        patch_size=args.patch_size,
        num_channels=image.num_channels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    shared = {
        "vocab_size": config.decoder.vocab_size,
        "is_decoder": True,
        "add_cross_attention": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    if name == "vit_bert":
        decoder = BertConfig(
            hidden_size=config.d_model,
            num_hidden_layers=args.decoder_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=task.recipe.max_target_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **shared,
        )
    else:
        decoder = GPT2Config(
            n_embd=config.d_model,
            n_layer=args.decoder_layers,
            n_head=config.num_attention_heads,
            n_inner=intermediate_size,
            n_positions=task.recipe.max_target_length,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shared,
        )
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder,
        decoder,
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        tie_word_embeddings=True,
    )
    return VisionEncoderDecoderModel._from_config(both, attn_implementation=task.recipe.attn_implementation)


def compute_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor], config: CrossFuseConfig) -> torch.Tensor:
    """CrossFuse's own loss, with its auxiliary part in training; for a peer, the same cross entropy."""
    if isinstance(model, CrossFuseForConditionalGeneration):
        return model(**batch, use_cache=False, skip_logits=True).loss
    labels = batch["labels"]
    decoder_input_ids = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    logits = model(pixel_values=batch["pixel_values"], decoder_input_ids=decoder_input_ids, use_cache=False).logits
    smoothing = config.label_smoothing if model.training else 0.0
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=smoothing)


def make_optimizer(model: PreTrainedModel, arguments, rate: float, parts: dict[str, float]) -> torch.optim.AdamW:
    """AdamW with the recipe's settings; vectors, which are biases and norms, don't decay."""
    groups = parameter_groups(model, rate, parts, arguments.weight_decay)
    return torch.optim.AdamW(
        [{**group, "peak": group["lr"]} for group in groups],
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
    )


def schedule(share: float, warmup: float) -> float:
    """
    The factor of the learning rate after a share of the time.

    Example:

    ```python
    >>> [schedule(share, warmup=0.5) for share in (0.25, 0.5, 0.75, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    ```
    """
    return share / warmup if share < warmup else max(0.0, (1 - share) / (1 - warmup))


def train(
    model: PreTrainedModel,
    task: Task,
    optimizer: torch.optim.Optimizer,
    seconds: float,
    warmup: float,
    clock: Callable[[], float],
) -> int:
    """Trains for so many seconds of the clock, and returns how many steps that were."""
    torch.manual_seed(task.arguments.seed)
    model.train()
    batches, steps, recent = task.training_batches(), 0, None
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    start = clock()
    with tqdm(total=1.0, desc="training", bar_format=bar_format, disable=None, leave=False) as bar:
        while (share := (clock() - start) / seconds) < 1:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(share, warmup)
            batch = next(batches)
            with task.autocast():
                loss = compute_loss(model, batch, task.config)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), task.arguments.max_grad_norm)
            optimizer.step()
            steps += 1
            recent = loss.item() if recent is None else 0.95 * recent + 0.05 * loss.item()
            bar.set_postfix(steps=steps, loss=f"{recent:.3f}", refresh=False)
            bar.update(share - bar.n)
    return steps


@torch.inference_mode()
def evaluate(model: PreTrainedModel, task: Task, split: str) -> dict[str, float]:
    """Loss per token, and the metrics of greedy answers, over a split."""
    model.eval()
    rows, collator, tokenizer = task.rows[split], task.collator(augment=False), task.processor.tokenizer
    answers, references, loss, tokens = [], [], 0.0, 0
    size = task.arguments.per_device_eval_batch_size
    for start in tqdm(range(0, len(rows), size), desc="answering", disable=None, leave=False):
        batch = collator([rows[index] for index in range(start, min(start + size, len(rows)))])
        count = int((batch["labels"] != -100).sum())
        loss, tokens = loss + compute_loss(model, batch, task.config).item() * count, tokens + count
        labels = batch.pop("labels")
        ours = isinstance(model, CrossFuseForConditionalGeneration)
        batch.pop("answer_ids", None)
        inputs = batch if ours else {"pixel_values": batch["pixel_values"]}
        ids = model.generate(**inputs, max_length=task.recipe.max_target_length, do_sample=False, num_beams=1)
        labels = labels.masked_fill(labels == -100, tokenizer.pad_token_id)
        for texts, sequences in ((answers, ids), (references, labels)):
            texts.extend(text.strip() for text in tokenizer.batch_decode(sequences, skip_special_tokens=True))
    return {"loss": loss / tokens, **compute_text_metrics(answers, references)}


def run_model(name: str, rate: float, task: Task, args: argparse.Namespace, minutes: float, split: str) -> dict:
    """Trains and evaluates a model from the start."""
    entrant = ENTRANTS[name]
    model = build_model(name, task, args)
    parts = task.part_learning_rates(name, args)
    optimizer = make_optimizer(model, task.arguments, rate, parts)
    started = {which: read() for which, read in CLOCKS.items()}
    steps = train(model, task, optimizer, 60 * minutes, args.warmup, CLOCKS[args.clock])
    taken = {which: round((read() - started[which]) / 60, 3) for which, read in CLOCKS.items()}
    if name == "crossfuse":
        model.drop_answer_head()
    result = {
        "model": name,
        "parameters": model.num_parameters(),
        "learning_rate": rate,
        "part_learning_rates": parts,
        "steps": steps,
        "minutes": taken[args.clock],
        "wall_minutes": taken["wall"],
        "cpu_minutes": taken["cpu"],
        "split": split,
        **evaluate(model, task, split),
    }
    print(
        f"{entrant.title}, learning rate {rate:g}: {steps} steps in {taken[args.clock]:.1f} minutes, "
        f"{split} loss {result['loss']:.3f} and exact match {result['exact_match']:.3f}",
        flush=True,
    )
    return result


def compare(task: Task, args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """The results of the models, each with the best of its learning rates, and those of the search for it."""
    results, tried = [], []
    for name in args.models:
        rates = task.learning_rates(name, args)
        if len(rates) > 1:
            found = [run_model(name, rate, task, args, args.search_minutes, task.recipe.eval_split) for rate in rates]
            tried += found
            rates = [min(found, key=lambda result: result["loss"])["learning_rate"]]
        results.append(run_model(name, rates[0], task, args, args.minutes, args.split))
    return results, tried


def results_table(results: list[dict]) -> str:
    """The results as a table in Markdown; the last column says how many times a peer's exact match CrossFuse's is."""
    ours = next((result["exact_match"] for result in results if result["model"] == "crossfuse"), None)
    lines = [
        "| model | parameters | learning rate | steps | minutes | exact match | CrossFuse / model |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        match = result["exact_match"]
        ratio = "" if ours is None else f"{ours / match:.2f}" if match else "none right"
        lines.append(
            f"| {ENTRANTS[result['model']].title} | {result['parameters']:,} | {result['learning_rate']:g} "
            f"| {result['steps']:,} | {result['minutes']:.1f} | {match:.3f} | {ratio} |"
        )
    return "\n".join(lines)


def run(argv: list[str] | None) -> list[dict]:
    args = parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    task = Task(args)
    results, tried = compare(task, args)
    print(results_table(results))
    if args.output is not None:
        settings = {**vars(args), "threads": torch.get_num_threads()}
        content = {"settings": settings, "results": results, "learning_rates_tried": tried}
        write_whole(args.output, json.dumps(content, indent=2) + "\n")
        print(f"written to {args.output}")
    return results


def main(argv: list[str] | None = None) -> list[dict]:
    """
    Trains and evaluates the models, prints a table, and writes JSON if asked to.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `list[dict]`: parameters, learning rate, steps, minutes and metrics of each model.
    """
    silence_transformers()
    with ends_in_one_line("compare_peers.py"):
        return run(argv)


if __name__ == "__main__":
    main()
