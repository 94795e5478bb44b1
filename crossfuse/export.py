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
Exports a saved model that generates, for CPUs: as ONNX or `torch.export` graphs in float32, or with int8 weights.

Graphs: the encoder runs once for an answer and gives the memory, its mask, and the keys and values by which the
decoder's cross-attention reads it. The decoder runs once for a token: past keys and values of its self-attention go in
and come out longer. Batch and lengths may be any, as far as the encoders allow it. The graphs are then run on samples
of other sizes, some of which lack modalities: what differs from the model by more than 1e-4, or answers otherwise, is
an error and is not kept. The speed is that of `generate` for one sample that has all modalities.

Int8: torchao's weights for the linear layers, in a folder that `from_pretrained` loads as any other.

With --dataset, the model's answers before and after are compared with a column of right ones.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from modeling_crossfuse.command_line import check_numbers, format_table, load_model, run_program
from modeling_crossfuse.data.rows import load_rows, parse_mapping
from modeling_crossfuse.evaluation.evaluation import check_inputs, evaluate_rows
from modeling_crossfuse.export.exported_model import CrossFuseExportedModel
from modeling_crossfuse.export.graphs import SUFFIXES, export_model
from modeling_crossfuse.training.model_card import METRICS


EPILOG = """
examples:
  for ONNX Runtime; CrossFuseExportedModel.from_folder("exported") then answers as the model does:
    python scripts/export.py checkpoints/emoji --output exported
  as torch.export programs, which PyTorch loads without CrossFuse:
    python scripts/export.py checkpoints/emoji --output exported --format torch
  with int8 weights, and what that costs in exact match:
    python scripts/export.py checkpoints/emoji --output emoji-int8 --quantize int8 --dataset data/emoji \\
        --inputs image=picture --target name

exit codes: 0 done, 2 a wrong argument, model or data set, or an export that differs from the model (one line on
standard error says which)
"""

# The largest difference between a number that a graph gives and the model's, in float32.
TOLERANCE = 1e-4
# What speed is measured on: tokens of an answer, and how often each side gives it.
NUM_TOKENS, NUM_RUNS = 16, 21


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or its id on the Hub")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to; new, or empty")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--format", choices=tuple(SUFFIXES), default="onnx", help="of the graphs (default: onnx)")
    what.add_argument("--quantize", choices=("int8",), help="give the model such weights instead of making graphs")
    parser.add_argument("--dataset", help="compare the answers on this data set: its folder, or its id on the Hub")
    parser.add_argument("--dataset_config", metavar="NAME", help="configuration of the data set, if it has several")
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument(
        "--inputs", nargs="+", metavar="MODALITY=COLUMN", help="which column each modality is read from"
    )
    parser.add_argument("--target", metavar="COLUMN", help="column of the right answers, such as names.fr")
    parser.add_argument("--question", metavar="TEXT", help="ask this of every sample, through the text modality")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="samples at a time (default: 64)")
    parser.add_argument("--max_samples", type=int, metavar="N", help="use N rows only, spaced evenly over the split")
    args = parser.parse_args(argv)
    check_numbers(args, above_zero=("batch_size", "max_samples"))
    if not Path(args.output).absolute().parent.is_dir():
        raise ValueError(f"--output: there is no folder {Path(args.output).parent}")
    if os.path.lexists(args.output) and not (os.path.isdir(args.output) and not os.listdir(args.output)):
        raise ValueError(f"--output: {args.output} exists and is not an empty folder")
    if args.dataset is not None and (args.inputs is None or args.target is None):
        raise ValueError("--dataset needs --inputs and --target, such as --inputs image=picture --target name")
    if args.dataset is None and (args.inputs or args.target or args.question):
        raise ValueError("--inputs, --target and --question go with --dataset")
    return args


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` at the end, or nothing if there is an error."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp lets nobody else read it
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def made_up_sample(modalities, length: int) -> dict[str, Any]:
    """A sample of noise: of each modality about as many positions as `length` says, but no more than two images."""
    noise = np.random.default_rng(length)

    def picture() -> Image.Image:
        return Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))

    def sound(part) -> dict[str, Any]:
        # Each convolution halves the number of frames, of 10 ms; encoders of transformers make one of 20 ms or so.
        frames = length * 2 ** getattr(part, "num_conv_layers", 2)
        return {"array": noise.standard_normal(160 * frames) / 10, "sampling_rate": 16_000}

    makers = {
        "text": lambda part: " ".join(["word"] * length),
        "image": lambda part: [picture() for _ in range(min(length, 2))],
        "video": lambda part: [picture() for _ in range(length * part.temporal_patch_size)],
        "audio": sound,
        "series": lambda part: noise.standard_normal((length * getattr(part, "patch_length", 1), part.num_channels)),
    }
    return {name: makers[part.kind](part) for name, part in modalities.items()}


def made_up_batch(model, processor, *lengths: int, missing: bool = False) -> dict[str, torch.Tensor]:
    """A batch of samples of these lengths; with `missing`, all but the first lack a modality each."""
    names = list(model.config.modalities)
    samples = [made_up_sample(model.config.modalities, length) for length in lengths]
    if missing and len(names) > 1:
        for place, sample in enumerate(samples[1:]):
            sample[names[place % len(names)]] = None
    columns = {name: [sample[name] for sample in samples] for name in names}
    return dict(processor(**columns, return_tensors="pt"))


@torch.inference_mode()
def largest_difference(model, exported: CrossFuseExportedModel, batch: dict[str, torch.Tensor]) -> float:
    """
    How far an exported model's memory and logits are from the model's, at most.

    Raises:
        ValueError: if their greedy answers differ.
    """
    answers = model.generate(**batch, max_new_tokens=NUM_TOKENS)
    expected, actual = (side(**batch, decoder_input_ids=answers) for side in (model, exported))
    # The graph has positions for the modalities that no sample has; no mask keeps them.
    memories = [side.encoder_last_hidden_state[side.encoder_attention_mask != 0] for side in (expected, actual)]
    pairs = [memories, (expected.logits, actual.logits)]
    difference = max((one - other).abs().max().item() for one, other in pairs)
    if difference <= TOLERANCE and not torch.equal(answers, exported.generate(**batch, max_new_tokens=NUM_TOKENS)):
        raise ValueError("the exported model's greedy answers are not those of the model")
    return difference


@torch.inference_mode()
def measure_speed(model, exported: CrossFuseExportedModel, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Median milliseconds of an answer of the model and of the exported model, asked in turn."""
    times = ([], [])
    for _ in range(NUM_RUNS + 1):
        for side, seconds in zip((model, exported), times):
            start = time.perf_counter()
            side.generate(**batch, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS)
            seconds.append(time.perf_counter() - start)
    return tuple(1000 * statistics.median(seconds[1:]) for seconds in times)  # the first warms up


def export_graphs(model, processor, folder: Path, format: str) -> CrossFuseExportedModel:
    """Writes the graphs, and reports how they compare with the model."""
    export_model(model, made_up_batch(model, processor, 2, 3), folder, format)
    exported = CrossFuseExportedModel.from_folder(folder)
    difference = largest_difference(model, exported, made_up_batch(model, processor, 5, 2, 9, 4, missing=True))
    if not difference <= TOLERANCE:  # it may be no number
        raise ValueError(f"the exported model's numbers are {difference:.1e} off; expected {TOLERANCE:.0e} at most")
    print(f"largest difference to the model: {difference:.1e}; the same greedy answers")
    before, after = measure_speed(model, exported, made_up_batch(model, processor, 5))
    print(
        f"an answer of {NUM_TOKENS} tokens: {after:.1f} ms, the model {before:.1f} ms ({before / after:.2f} times as "
        f"fast; threads: {torch.get_num_threads()})"
    )
    return exported


def export_int8(model, name: str, folder: Path):
    """Writes the model with int8 weights, and gives it as it is loaded from there."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig
    except ImportError as error:
        raise ImportError("int8 weights need torchao: `pip install crossfuse[quantize]`") from error
    settings = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    type(model).from_pretrained(name, quantization_config=settings).save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def weights_size(folder: Path) -> int:
    """Bytes of the weights, or of the graphs that have them."""
    suffixes = (".safetensors", ".onnx", ".data", ".pt2")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in suffixes)


def compare_answers(args: argparse.Namespace, rows, models: dict[str, Any], processor) -> list[dict[str, float]]:
    """The metrics of each model's answers."""
    inputs, results = parse_mapping(args.inputs), []
    for model in models.values():
        metrics = evaluate_rows(
            model, processor, rows, inputs, args.target, question=args.question, batch_size=args.batch_size
        )
        results.append(metrics)
    names = [name for name in results[0] if name in METRICS]
    table = [
        [title, *(f"{metrics[name]:.{METRICS[name][1]}f}" for name in names)]
        for title, metrics in zip(models, results)
    ]
    header = ["answers", *(METRICS[name][0] for name in names)]
    print(format_table(header, table, right=range(1, len(header))))
    return results


def run(argv: list[str] | None) -> list[dict[str, float]]:
    args = parse_args(argv)
    rows = None if args.dataset is None else load_rows(args.dataset, args.split, args.max_samples, args.dataset_config)
    model, processor = load_model(args.model, "cpu")
    if not model.can_generate():
        raise ValueError(f"the model is a {type(model).__name__}, which has no decoder; expected one that generates")
    if rows is not None:
        check_inputs(model.config, rows, parse_mapping(args.inputs), args.target)
    results = []
    with whole_folder(Path(args.output).absolute()) as folder:
        if args.quantize is None:
            model.config.dtype = torch.float32
            exported = export_graphs(model.float(), processor, folder, args.format)
        else:
            exported = export_int8(model, args.model, folder)
        processor.save_pretrained(folder)
        if rows is not None:
            results = compare_answers(args, rows, {"before": model, "after": exported}, processor)
        size = weights_size(folder)
    before = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    print(f"written to {args.output}: {size / 1e6:.1f} MB of weights, the model {before / 1e6:.1f} MB")
    return results


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """
    Exports a model.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `list[dict[str, float]]`: with `--dataset`, what [`evaluate_rows`] gives of the model and of the exported one.
    """
    return run_program("export.py", run, argv)


if __name__ == "__main__":
    main()
