# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
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
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .flags import Parser, add_dataset_arguments, parse_mapping
from .tables import format_table


EPILOG = """
examples:
  for ONNX Runtime; CrossFuseExportedModel.from_folder("exported") then answers as the model does:
    crossfuse export checkpoints/emoji --output exported
  as torch.export programs, which PyTorch loads without CrossFuse:
    crossfuse export checkpoints/emoji --output exported --format torch
  with int8 weights, and what that costs in exact match:
    crossfuse export checkpoints/emoji --output emoji-int8 --quantize int8 --dataset data/emoji \\
        --inputs image=picture --target name
"""


def parse_args(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model, or its id on the Hub")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to; new, or empty")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="of the graphs (default: onnx)")
    what.add_argument("--quantize", choices=("int8",), help="give the model such weights instead of making graphs")
    add_dataset_arguments(parser)
    args = parser.parse_args(argv)
    if not Path(args.output).absolute().parent.is_dir():
        raise ValueError(f"--output: there is no folder {Path(args.output).parent}")
    if os.path.lexists(args.output) and not (os.path.isdir(args.output) and not os.listdir(args.output)):
        raise ValueError(f"--output: {args.output} exists and is not an empty folder")
    if args.dataset is not None and (args.inputs is None or args.target is None):
        raise ValueError("--dataset needs --inputs and --target, such as --inputs image=picture --target name")
    if args.dataset is None and (args.inputs or args.target or args.question):
        raise ValueError("--inputs, --target and --question go with --dataset")
    args.inputs = parse_mapping(args.inputs)
    return args


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` at the end, or nothing if there is an error."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        folder = Path(work, path.name)
        folder.mkdir()
        yield folder
        folder.replace(path)


def export_graphs(model, processor, folder: Path, format: str):
    """Writes the graphs, reports how they compare with the model, and returns what runs them."""
    import torch

    from modeling_crossfuse.export.exported_model import CrossFuseExportedModel
    from modeling_crossfuse.export.graphs import export_model

    from .export_checks import NUM_TOKENS, check_answers, made_up_batch, measure_speed

    export_model(model, made_up_batch(model, processor, 2, 3), folder, format)
    exported = CrossFuseExportedModel.from_folder(folder)
    difference = check_answers(model, exported, made_up_batch(model, processor, 5, 2, 9, 4, missing=True))
    print(f"largest difference to the model: {difference:.1e}; the same greedy answers")
    before, after = measure_speed(model, exported, made_up_batch(model, processor, 5))
    print(
        f"an answer of {NUM_TOKENS} tokens: {after:.1f} ms, the model {before:.1f} ms ({before / after:.2f} times as "
        f"fast; threads: {torch.get_num_threads()})"
    )
    return exported


def export_int8(model, name: str, folder: Path):
    """Writes the model with int8 weights, and gives it as it is loaded from there."""
    from transformers import TorchAoConfig

    from modeling_crossfuse.extras import needs

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise needs("int8 weights need torchao", "quantize") from error
    settings = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    type(model).from_pretrained(name, quantization_config=settings).save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def weights_size(folder: Path) -> int:
    """Bytes of the weights, or of the graphs that have them."""
    suffixes = (".safetensors", ".onnx", ".data", ".pt2")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in suffixes)


def compare_answers(args: argparse.Namespace, rows, models: dict[str, Any], processor) -> list[dict[str, float]]:
    """The metrics of each model's answers."""
    from modeling_crossfuse.evaluation.metric_names import METRICS
    from modeling_crossfuse.evaluation.scores import evaluate_rows

    options = {"question": args.question, "batch_size": args.batch_size}
    results = [evaluate_rows(model, processor, rows, args.inputs, args.target, **options) for model in models.values()]
    names = [name for name in results[0] if name in METRICS]
    table = [
        [title, *(f"{metrics[name]:.{METRICS[name][1]}f}" for name in names)]
        for title, metrics in zip(models, results)
    ]
    header = ["answers", *(METRICS[name][0] for name in names)]
    print(format_table(header, table, right=range(1, len(header))))
    return results


def run(args: argparse.Namespace) -> list[dict[str, float]]:
    """Exports a model; with `--dataset`, returns the metrics of the model and of the exported one."""
    import torch

    from modeling_crossfuse.data.rows import load_rows
    from modeling_crossfuse.evaluation.prediction import check_inputs

    from .loading import load_model

    rows = None if args.dataset is None else load_rows(args.dataset, args.split, args.max_samples, args.dataset_config)
    model, processor = load_model(args.model, "cpu")
    if not model.can_generate():
        raise ValueError(f"the model is a {type(model).__name__}, which has no decoder; expected one that generates")
    if rows is not None:
        check_inputs(model.config, rows, args.inputs, args.target)
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
