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
Tries every type of encoder that transformers has, with a tiny random config, as the encoder of a modality beside a
series: forward, backward, generate, a missing sample, save and reload. Prints which work, and why others do not.
"""

import argparse
import contextlib
import inspect
import json
import multiprocessing
import queue
import re
import resource
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
import transformers
from accelerate.utils import tqdm
from tiny_configs import tiny_config
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_LMS
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_TO_TEXT
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED_LMS
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as MULTIMODAL_LMS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as SEQ_TO_SEQ_LMS

from crossfuse.errors import ends_in_one_line, one_line
from crossfuse.flags import Parser, above_zero, file_to_write
from crossfuse.loading import silence_transformers
from crossfuse.tables import format_table
from modeling_crossfuse import CrossFuseForConditionalGeneration
from modeling_crossfuse.encoder_probe import DecoderError, values_that_fit
from modeling_crossfuse.encoder_search import VALUES_ARGUMENTS, JointError
from modeling_crossfuse.files import write_whole


EPILOG = """
examples:
  two types:
    python scripts/research/check_encoders.py bert whisper
  all of them, which takes a quarter of an hour; the table goes into a file:
    python scripts/research/check_encoders.py --output docs/encoders.md
"""

WORKS, FAILS, NOT_BUILT, NO_MEMORY = "works", "fails", "not built", "out of memory"
# What is no encoder of a kind, and not counted.
DECODER, JOINT = "decoder only", "no own encoder"
# How want of memory shows itself, in Python, in torch and in what torch calls.
MEMORY_ERRORS = ("MemoryError", "allocate memory", "could not create a primitive", "process was killed")
SETTINGS = {"d_model": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
LABELS = torch.tensor([[3, 4, 5], [6, 7, 8]])
# By these, parts that take patches of images show themselves.
GRIDS = {"grid_thw", "image_grid_thw"}
# Of one kind of one type, in seconds, and of memory, in bytes.
TIME_LIMIT = 60
MEMORY_LIMIT = 10 * 2**30
TASKS_PER_PROCESS = 10


class NoEncoder(ImportError):
    """Ends the search for a config: `tiny_config` takes an `ImportError` for final."""


class TooSlow(NoEncoder):
    """The time limit."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_):
        raise TooSlow(f"takes more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again and again, since what is tried may catch the error
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def check(condition: bool, message: str):
    if not condition:
        raise ValueError(message)


def try_encoder(model: PreTrainedModel, kind: str) -> str:
    """
    The name of the class of the encoder that was found in a model, and did all that an encoder has to do.

    Raises:
        ValueError: if it did not; whatever the encoder raises, too.
    """
    torch.manual_seed(0)
    crossfuse = CrossFuseForConditionalGeneration.from_encoders(
        {kind: model, "wrist": {"kind": "series", "num_channels": 2}},
        decoder={"vocab_size": 32, "num_hidden_layers": 1},
        **SETTINGS,
    )
    modalities = crossfuse.config.modalities
    part, encoder = modalities[kind], crossfuse.get_encoder().encoders[kind].model.eval()
    values = values_that_fit(encoder, part)
    inputs = {modalities.value_name(kind): values, "wrist_values": torch.randn(2, 3, 2)}
    if kind in ("text", "audio"):  # the second sample is shorter
        axis = 1 + next(i for i, name in enumerate(part.layout) if name in ("length", "frames", "samples"))
        mask = torch.ones(2, values.shape[axis], dtype=torch.long)
        mask[1, -mask.shape[1] // 4 :] = 0
        inputs[modalities.mask_name(kind)] = mask
    check_training(crossfuse.train(), kind, inputs)
    crossfuse.eval()
    answers = crossfuse.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    check(answers.shape == (2, 4), f"generate gives answers of shape {tuple(answers.shape)}")
    logits = logits_of(crossfuse, inputs)
    check(torch.equal(logits, logits_of(crossfuse, inputs)), "gives something else each time")
    lacking = logits_of(crossfuse, {**inputs, "modality_mask": torch.tensor([[0, 1], [1, 1]])})
    check(torch.allclose(logits[1], lacking[1], atol=1e-4), "a sample depends on the others of the batch")
    check_saving(crossfuse, inputs, logits)
    return part.architecture


def check_training(crossfuse: CrossFuseForConditionalGeneration, kind: str, inputs: dict[str, torch.Tensor]):
    loss = crossfuse(**inputs, labels=LABELS).loss
    loss.backward()
    trained = [part for part in crossfuse.get_encoder().encoders[kind].parameters() if part.requires_grad]
    gradients = [part.grad for part in trained if part.grad is not None]
    check(torch.isfinite(loss).item(), f"the loss is {loss.item()}")
    # Some detectors keep the first layers of their backbone fixed, and a tiny one has no others.
    check(not trained or any(gradient.abs().sum() > 0 for gradient in gradients), "the encoder gets no gradient")


@torch.no_grad()
def logits_of(crossfuse: CrossFuseForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return crossfuse(**inputs, labels=LABELS).logits


def check_saving(crossfuse: CrossFuseForConditionalGeneration, inputs: dict[str, torch.Tensor], logits: torch.Tensor):
    with tempfile.TemporaryDirectory() as folder:
        crossfuse.save_pretrained(folder)
        loaded, report = CrossFuseForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        check(not report[key], f"loading reports {key}: {', '.join(map(str, sorted(report[key])[:2]))}")
    state = loaded.state_dict()
    changed = [name for name, value in crossfuse.state_dict().items() if not torch.equal(value, state[name])]
    check(not changed, f"other weights after loading: {', '.join(changed[:2])}")
    # The weights are the same, which may lie elsewhere in memory, where sums are taken in another order.
    check(torch.allclose(logits_of(loaded, inputs), logits, atol=1e-6), "other answers after loading")


def kinds_of(model: PreTrainedModel) -> list[str]:
    """The kinds of values that a model, or a part of it, takes; videos only where it says so."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    arguments = [set(inspect.signature(part.forward).parameters) for part in parts]
    videos = any("video" in part.input_modalities for part in parts) or any(
        "pixel_values_videos" in names for names in arguments
    )
    only_videos = all("video" in part.input_modalities and "image" not in part.input_modalities for part in parts)
    left_out = {"video"} if not videos else {"image"} if only_videos else set()
    return [
        kind
        for kind, names in VALUES_ARGUMENTS.items()
        if kind not in left_out
        and any({*names, *(GRIDS if kind in ("image", "video") else ())} & given for given in arguments)
    ]


def try_kind(model_type: str, kind: str) -> tuple[str, str]:
    """The result for one kind of one type, and the class of its encoder or the reason."""
    found, errors = [], []

    def works(model: PreTrainedModel):
        try:
            found.append(try_encoder(model, kind))
        except Exception as error:
            errors.append(error)
            if isinstance(error, (DecoderError, JointError)):
                raise NoEncoder from error
            raise

    with contextlib.suppress(Exception), time_limit(TIME_LIMIT):
        tiny_config(CONFIG_MAPPING[model_type], works)
    if found:
        return WORKS, found[0]
    if any(isinstance(error, ImportError) and not isinstance(error, NoEncoder) for error in errors):
        return NOT_BUILT, one_line(errors[0])
    if any(isinstance(error, DecoderError) for error in errors) or is_language_model(model_type, kind):
        return DECODER, ""
    if any(isinstance(error, JointError) for error in errors):
        return JOINT, ""
    # The first is that of the smallest config.
    reason = one_line(errors[0]) if errors else f"takes more than {TIME_LIMIT} s"
    return FAILS, re.sub(r"^`encoders\[.*is no encoder of kind '\w+': ", "", reason)


def is_language_model(model_type: str, kind: str) -> bool:
    """Whether transformers lists a type, or the type of its texts, for generating text and not for filling gaps."""
    if CONFIG_MAPPING[model_type]().is_encoder_decoder:
        return False
    text_config = CONFIG_MAPPING[model_type].sub_configs.get("text_config")
    types = {model_type, getattr(text_config, "model_type", None)}
    generates = types & (set(CAUSAL_LMS) | set(IMAGE_TEXT_TO_TEXT) | set(MULTIMODAL_LMS))
    return kind == "text" and bool(generates) and not types & (set(MASKED_LMS) | set(SEQ_TO_SEQ_LMS))


def try_type(model_type: str) -> list[tuple[str, str, str, str]]:
    """Rows of model type, kind, result, and class or reason."""
    try:
        with time_limit(TIME_LIMIT):
            kinds = kinds_of(AutoModel.from_config(tiny_config(CONFIG_MAPPING[model_type])))
    except Exception as error:
        return [(model_type, "", NOT_BUILT, one_line(error))]
    return [(model_type, kind, *try_kind(model_type, kind)) for kind in kinds]


def start_worker():
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def all_types() -> list[str]:
    """Every type of model that transformers has and `AutoModel` can make."""
    own = {CrossFuseForConditionalGeneration.config_class}
    return sorted(name for name, found in CONFIG_MAPPING.items() if found in MODEL_MAPPING and found not in own)


def lacks_memory(row: tuple[str, str, str, str]) -> bool:
    return row[2] in (FAILS, NOT_BUILT) and any(sign in row[3] for sign in MEMORY_ERRORS)


class Worker:
    """Tries types in a process of its own, a new one after a while, since models leave things behind."""

    def __init__(self):
        self.executor, self.tasks = None, 0

    def __call__(self, model_type: str) -> list[tuple[str, str, str, str]]:
        if self.executor is None or self.tasks == TASKS_PER_PROCESS:
            self.close()
            context = multiprocessing.get_context("spawn")
            self.executor, self.tasks = ProcessPoolExecutor(1, context, start_worker), 0
        self.tasks += 1
        try:
            rows = self.executor.submit(try_type, model_type).result()
        except BrokenProcessPool:
            self.executor, rows = None, [(model_type, "", FAILS, "its process was killed")]
        if not any(lacks_memory(row) for row in rows):
            return rows
        # Types that were tried before may have taken it: once more, in a process that has tried nothing else.
        if self.tasks > 1:
            self.tasks = TASKS_PER_PROCESS
            return self(model_type)
        return [(*row[:2], NO_MEMORY, f"{MEMORY_LIMIT >> 30} GB") if lacks_memory(row) else row for row in rows]

    def close(self):
        if self.executor is not None:
            self.executor.shutdown()


def try_types(model_types: list[str], processes: int) -> list[tuple[str, str, str, str]]:
    workers = [Worker() for _ in range(processes)]
    idle = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def try_one(model_type: str) -> list[tuple[str, str, str, str]]:
        worker = idle.get()
        try:
            return worker(model_type)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(processes) as threads:
        results = list(tqdm(threads.map(try_one, model_types), total=len(model_types), unit=" types"))
    for worker in workers:
        worker.close()
    return [row for rows in results for row in rows]


def summary(rows: list[tuple[str, str, str, str]]) -> list[list[str]]:
    """For each kind, how many encoders work, and the share of those that could be built."""
    counts = Counter((kind, result) for _, kind, result, _ in rows)
    lines = []
    for kind in VALUES_ARGUMENTS:
        works, fails = counts[kind, WORKS], counts[kind, FAILS]
        if works + fails:
            share = f"{100 * works / (works + fails):.1f} %"
            others = [str(counts[kind, result]) for result in (DECODER, JOINT)]
            lines.append([kind, str(works), str(fails), share, *others])
    works, fails = (sum(counts[kind, result] for kind in VALUES_ARGUMENTS) for result in (WORKS, FAILS))
    return [*lines, ["all", str(works), str(fails), f"{100 * works / max(works + fails, 1):.1f} %", "", ""]]


SUMMARY_HEADER = ["kind", "works", "fails", "share", DECODER, JOINT]
TABLE_HEADER = ["type", "kind", "result", "encoder, or reason"]


def to_markdown(rows: list[tuple[str, str, str, str]]) -> str:
    """The page `docs/encoders.md`."""

    def table(header, lines):
        # Messages may name files of this machine.
        escaped = [[re.sub(r"/\S*/site-packages/", "", cell).replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *escaped])

    return f"""# Encoders of transformers {transformers.__version__} as encoders of modalities

`python scripts/research/check_encoders.py --output docs/encoders.md` made this page. For each type of model that
`AutoModel` can make, the program builds a model from a tiny config with random weights and uses it as the encoder of a
modality beside a series. It runs forward, backward and generate, leaves the modality out of a sample, and saves and
loads the model. A type *works* if all of this does. The other results are:

- *fails*: one of the checks failed; the table has the reason.
- *decoder only*: the model reads text from left to right to continue it. CrossFuse refuses such a model with an error.
  It is not counted.
- *no own encoder*: the model takes the values of this kind only in one stream with those of another kind, and no part
  of it takes them alone. CrossFuse refuses such a model, too. It is not counted.
- *not built*: the program could not make a model of this type, because a package is missing or the default config does
  not fit the model.
- *out of memory*: the program could not try the encoder within its limit of memory. It is not counted.

{table(SUMMARY_HEADER, summary(rows))}

{table(TABLE_HEADER, [list(row) for row in rows])}
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("check_encoders.py", __doc__, EPILOG)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types (default: all)")
    parser.add_argument("--processes", type=above_zero, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="write the table there: Markdown, or JSON if it ends so"
    )
    return parser.parse_args(argv)


def run(argv: list[str] | None) -> list[tuple[str, str, str, str]]:
    args = parse_args(argv)
    known = all_types()
    unknown = [name for name in args.types if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no model type that AutoModel can make")
    rows = try_types(args.types or known, args.processes)
    print(format_table(TABLE_HEADER, rows))
    print()
    print(format_table(SUMMARY_HEADER, summary(rows), right=range(1, 6)))
    if args.output is not None:
        as_json = Path(args.output).suffix == ".json"
        write_whole(args.output, json.dumps(rows, indent=1) + "\n" if as_json else to_markdown(rows))
    return rows


def main(argv: list[str] | None = None) -> list[tuple[str, str, str, str]]:
    silence_transformers()
    with ends_in_one_line("check_encoders.py"):
        return run(argv)


if __name__ == "__main__":
    main()
