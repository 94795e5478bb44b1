# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The web page of a model: its fields, what it answers, and how that is explained."""

import contextlib
import html
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from modeling_crossfuse import explain, plot_explanation
from modeling_crossfuse.data.rows import load_rows
from modeling_crossfuse.evaluation.prediction import answer_length
from modeling_crossfuse.media_video import open_container

from .errors import one_line
from .loading import read_input


# Rows of the demo's data that a visitor may click on: a name, and what is given of it.
EXAMPLES = (
    ("rocket", ("image", "audio"), "name in French"),
    ("violin", ("image", "audio"), None),
    ("guitar", ("image",), "name in German"),
    ("whale", ("audio",), None),
)
# What one visitor may ask of a machine that others use, too.
MAX_UPLOAD, MAX_PIXELS, MAX_SECONDS, MAX_LETTERS, MAX_STEPS = "20mb", 25_000_000, 60, 1000, 10_000


def input_component(name: str, kind: str):
    """The field of a modality. Files stay as they are, for the processor to read."""
    if kind == "text":
        return gr.Textbox(label=name, max_length=MAX_LETTERS, placeholder="Leave empty what you do not have")
    if kind == "image":
        field = gr.Image(label=name, type="filepath", image_mode=None, height=240)
        # gradio would open it first, and have its own, long words for an unreadable one. It still does for a visitor
        # who clicked on an example: the field is then made anew.
        field.preprocess = lambda file: None if file is None else file.path
        return field
    if kind == "audio":
        return gr.Audio(label=name, type="filepath")
    if kind == "video":
        return gr.Video(label=name, height=240)
    return gr.File(label=f"{name} (.csv, one line per step, or .npy)", file_types=[".csv", ".npy"])


def read_sample(config, values: Sequence[str | None]) -> dict[str, Any]:
    """Modality to value, as the processor takes it, of the fields that are not empty."""
    sample = {}
    for (name, part), value in zip(config.modalities.items(), values):
        if value is None or not value.strip():
            continue
        sample[name] = read_input("series", value) if part.kind == "series" else value
        check_length(name, part.kind, sample[name])
    if not sample:
        raise ValueError(f"Nothing is given; expected at least one of {', '.join(config.modalities)}")
    return sample


def check_length(name: str, kind: str, value: Any):
    """Refuses what would keep the machine busy for long; other limits are those of the upload and of images."""
    if kind == "text":
        length, limit, unit = len(value), MAX_LETTERS, "letters"
    elif kind == "audio":
        length, limit, unit = seconds_of(value), MAX_SECONDS, "seconds"
    elif kind == "series":
        length, limit, unit = len(np.atleast_1d(value)), MAX_STEPS, "steps"
    else:
        return
    if length > limit:
        raise ValueError(f"{name} has {length:,.0f} {unit}; expected {limit:,} at most")


def seconds_of(path: str) -> float:
    import av
    import soundfile

    with contextlib.suppress(soundfile.LibsndfileError, TypeError):  # the latter is for raw audio
        return soundfile.info(path).duration
    try:
        with open_container(path) as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError:
        return 0.0  # the processor says what is wrong with it


def read_answer(model, processor, batch, explanation) -> str | dict[str, float]:
    """What the page shows as the answer: a text, or the probability of each class."""
    if model.can_generate():
        return processor.decode(explanation.targets, skip_special_tokens=True).strip() or "(nothing)"
    if model.config.resolved_problem_type == "regression":
        named = zip(explanation.labels, explanation.scores.tolist())
        return "\n".join(f"{label}: {score:.4g}" for label, score in named)
    with torch.inference_mode():
        logits = model(**batch).logits[0].float()
    several = model.config.resolved_problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if several else logits.softmax(0)
    return {model.config.id2label[label]: score for label, score in enumerate(probabilities.tolist())}


def draw(explanation, sample: dict[str, Any], processor) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        path = plot_explanation(explanation, sample, processor, Path(folder, "explanation.png"))
        with Image.open(path) as image:
            return image.copy()


def respond(model, processor, *values: str | None) -> Iterator[tuple[Any, dict[str, float], Image.Image | None]]:
    """
    Yields the answer, the share of each modality that was given, and None; then, which takes longer, the same with the
    drawing of the explanation. `values` are those of the modalities in the config's order: texts and paths.
    """
    try:
        sample = read_sample(model.config, values)
        batch = processor(**{name: [value] for name, value in sample.items()}, return_tensors="pt").to(model.device)
        # Generated once: a model that samples would answer something else the second time.
        is_asked = model.can_generate()
        answer_ids = {"generated_ids": model.generate(**batch, **answer_length(model, {}))} if is_asked else {}
        explanation = explain(model, batch, **answer_ids, max_positions=0)[0]
        answer = read_answer(model, processor, batch, explanation)
        shares = {name: share for name, share in explanation.shares().items() if name in sample}
        yield answer, shares, None
        yield answer, shares, draw(explain(model, batch, **answer_ids)[0], sample, processor)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise gr.Error(for_visitors(error, values), print_exception=False) from error


def for_visitors(error: Exception, values: Sequence[str | None]) -> str:
    """An error's message as HTML, with the names of files as the visitor knows them."""
    message = one_line(error)
    for value in values:
        if value and Path(value).is_absolute():
            message = message.replace(value, Path(value).name)
    return html.escape(message, quote=False)


def answer_component(model):
    if model.can_generate() or model.config.resolved_problem_type == "regression":
        return gr.Textbox(label="Answer", buttons=["copy"], elem_id="answer")
    return gr.Label(label="Answer", num_top_classes=5, elem_id="answer")


def build_page(model, processor, examples: Sequence[Sequence[str | None]] = ()) -> "gr.Blocks":
    """The page of a model. `examples` are samples to click on: texts and paths, in the order of its modalities."""
    modalities = model.config.modalities
    # Uploads and drawings are deleted after an hour.
    with gr.Blocks(title="CrossFuse", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            f"# CrossFuse\nGive any of **{', '.join(modalities)}**, leave the others empty, and see what the model "
            "answers and where it got that from."
        )
        with gr.Row():
            with gr.Column():
                fields = [input_component(name, part.kind) for name, part in modalities.items()]
                button = gr.Button("Answer", variant="primary", elem_id="ask")
            with gr.Column():
                answer = answer_component(model)
                shares = gr.Label(label="Share of each modality in the answer", show_heading=False, elem_id="shares")
                if examples:
                    gr.Examples(list(map(list, examples)), fields)
        gr.Markdown("### Where the answer came from")
        drawing = gr.Image(show_label=False, format="png", buttons=["download", "fullscreen"], elem_id="explanation")
        # One at a time: an explanation changes the model's attention while it lasts.
        gr.on(
            [button.click, *(field.submit for field in fields if isinstance(field, gr.Textbox))],
            partial(respond, model, processor),
            fields,
            [answer, shares, drawing],
            api_name="answer",
            concurrency_limit=1,
        )
    return page.queue(max_size=20)


def demo_examples(data: str, modalities: Sequence[str], folder: Path) -> list[list[str | None]]:
    """Rows of the demo's data set; their files go to `folder`."""
    rows = load_rows(data, "test")
    names = rows["name"][:]
    examples = []
    for name, given, question in EXAMPLES:
        row = rows[names.index(name)]
        files = {"image": folder / f"{name}.png", "audio": folder / f"{name}.ogg"}
        files["image"].write_bytes(row["picture"]["bytes"])
        files["audio"].write_bytes(row["speech"]["bytes"])
        sample = {"text": question, **{modality: str(files[modality]) for modality in given}}
        examples.append([sample.get(modality) for modality in modalities])
    return examples


def serve(model, processor, data: str | None, **settings):
    """Serves a model's page until the process is stopped. `data` is the demo's data set, for examples to click on."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow refuses twice as many
    with tempfile.TemporaryDirectory() as folder:
        examples = [] if data is None else demo_examples(data, list(model.config.modalities), Path(folder))
        page = build_page(model, processor, examples)
        page.launch(
            max_file_size=MAX_UPLOAD,
            show_error=True,
            theme=gr.themes.Default(font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "sans-serif"]),
            **settings,
        )
