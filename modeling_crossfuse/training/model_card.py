# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The card of a saved model: a README.md whose metadata the Hub reads, made from the run that trained the model."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.metric_names import METRICS
from ..files import write_whole


_CLASSIFIER = {
    "words": "answers with one of {config.num_labels} labels",
    "kind": "label",
    "tensor": "logits",
    "shape": "(batch, {config.num_labels})",
    "reader": "the classifier reads",
    "use": "print(model(**batch).logits, model.config.id2label)",
    "pipelines": {kind: f"{kind}-classification" for kind in ("image", "video", "audio", "text")},
}
# What a card says of a model, by its `task` or, where it classifies, by its problem type: what it does; the kind, the
# tensor and the shape of its answer; what reads its memory; how the example uses a batch; and the task that the Hub
# lists it under, by the first of the kinds that it has ("" stands for any).
_TASKS = {
    None: {
        "words": "has no head",
        "kind": "states",
        "tensor": "last_hidden_state",
        "shape": "(batch, length, {config.d_model})",
        "reader": "a head is to read",
        "use": "print(model(**batch).last_hidden_state.shape)",
        "pipelines": {"": "feature-extraction"},
    },
    "generation": {
        "words": "answers with text",
        "kind": "text",
        "tensor": "generate(...)",
        "shape": "(batch, length), of {config.vocab_size:,} tokens",
        "reader": "the decoder attends to",
        "use": "answer = model.generate(**batch, max_new_tokens=64)\n"
        "print(processor.batch_decode(answer, skip_special_tokens=True))",
        "pipelines": {
            **{kind: f"{kind}-text-to-text" for kind in ("image", "video", "audio")},
            "text": "text-generation",
        },
    },
    "single_label_classification": _CLASSIFIER,
    "multi_label_classification": {
        **_CLASSIFIER,
        "words": "says which of {config.num_labels} labels it has",
        "kind": "labels",
    },
    "regression": {**_CLASSIFIER, "words": "answers with numbers", "kind": "numbers"},
    "token_classification": {
        **_CLASSIFIER,
        "words": "gives each position of `{model.labeled_modality}` one of {config.num_labels} labels",
        "kind": "labels",
        "shape": "(batch, positions, {config.num_labels})",
        "use": "print(model(**batch).logits.argmax(-1), model.config.id2label)",
        "pipelines": {"": "token-classification"},
    },
    "retrieval": {
        "words": "turns it into one vector",
        "kind": "vector",
        "tensor": "get_fused_features(...).pooler_output",
        "shape": "(batch, {model.projection.out_features})",
        "reader": "becomes one vector",
        "use": "print(model(**batch, return_loss=False).logits)",
        "pipelines": {"": "feature-extraction"},
    },
}
# What the Hub calls a generating model with a single kind of modalities, where it has another name for that.
_PIPELINES_OF_ONE_KIND = {"image": "image-to-text", "audio": "automatic-speech-recognition"}

# Code in the example that makes up an input of each kind, for the reader to replace, and a comment on it.
_MADE_UP_INPUTS = {
    "text": ('"what is it?"', ""),
    "image": ('Image.new("RGB", (256, 256), "white")', '  # or Image.open("photo.jpg")'),
    "video": ("np.zeros((8, 256, 256, 3), dtype=np.uint8)", "  # 8 frames"),
    "audio": ('{"array": np.zeros(%(rate)d), "sampling_rate": %(rate)d}', '  # or "speech.ogg"'),
    "series": ("np.zeros((100, %(channels)d))", "  # 100 steps"),
}

_EXPLANATIONS = {
    "exact_match": "Exact match is the share of answers that equal the right one character by character; CER, the "
    "character error rate, is edits per character (0 is best); chrF goes from 0 to 100 (100 is best).",
    "recall_at_1": "Recall@k is the share of samples whose own candidate is among the best k; MRR is the mean of one "
    "over its rank.",
}


def template_path() -> Path:
    """Where `model_card.md` is: beside the package in a checkout, and under `share/crossfuse` in an installation."""
    beside = Path(__file__).resolve().parents[2] / "model_card.md"
    if beside.is_file():
        return beside
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("crossfuse") or ():
            if file.name == "model_card.md" and Path(file.locate()).is_file():
                return Path(file.locate())
    raise FileNotFoundError(
        f"the template of model cards, model_card.md, is neither at {beside} nor among the files of an installed "
        "crossfuse; reinstall crossfuse, or give `template`"
    )


def write_model_card(
    output_dir: str | Path,
    model,
    processor=None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    metrics: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    duration: float | None = None,
    model_id: str | None = None,
    license: str = "apache-2.0",
    language: str | Sequence[str] | None = None,
    limits: Sequence[str] = (),
    tags: Sequence[str] = (),
    template: str | Path | None = None,
) -> Path:
    """
    Writes `README.md` into the folder of a saved model, whole or not at all, and returns its path.

    Args:
        output_dir (`str` or `Path`): the folder, which must exist.
        model: the model in it, with any head.
        processor ([`CrossFuseProcessor`], *optional*): its processor; the example needs the sampling rate.
        dataset (`str`, *optional*): what it was trained on: an id on the Hub, or a folder, which the metadata does not
            list under `datasets`, since the Hub would take it for an id.
        split (`str`, *optional*): what the metrics were measured on.
        metrics (`dict`, *optional*): the metrics of an evaluation, and `loss`; other keys are left out. Or one such
            `dict` for each of several evaluations, by name, such as `{"image": {...}, "image + audio": {...}}`.
        recipe (`dict`, *optional*): settings of the training; those that are `None` or empty, and tokens of the Hub,
            are left out.
        duration (`float`, *optional*): seconds of training.
        model_id (`str`, *optional*): what the example loads. Defaults to the folder.
        license (`str`, defaults to `"apache-2.0"`): as the Hub calls it.
        language (`str` or `Sequence[str]`, *optional*): codes such as `en`.
        limits (`Sequence[str]`, *optional*): sentences to add to the section on limits.
        tags (`Sequence[str]`, *optional*): for the Hub, beside those that say what the model is.
        template (`str` or `Path`, *optional*): another template than CrossFuse's own.
    """
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {output_dir} to write the model card into")
    modalities = model.config.modalities
    name = (model_id or output_dir.resolve().name).rstrip("/").split("/")[-1]
    results = _named_results(metrics)
    result_header, result_rows = _result_table(results)
    card = ModelCard.from_template(
        _card_data(name, model, dataset, split, results, license, language, tags),
        template_path=str(template or template_path()),
        model_name=name,
        modality_list=_listed([f"`{name}`" for name in modalities]),
        modality_rows=list(_modality_rows(modalities)),
        auto_class=type(model).auto_classes[0],
        model_path=json.dumps(model_id or output_dir.as_posix()),
        kinds={part.kind for part in modalities.values()},
        example_inputs=list(_example_inputs(modalities, processor)),
        answer=_describe_task(model),
        fusion=model.config.fusion.type,
        dataset=dataset and f"`{dataset}`",
        split=split,
        result_header=result_header,
        result_rows=result_rows,
        explanations=[
            text for key, text in _EXPLANATIONS.items() if any(key in values for values in results.values())
        ],
        recipe_rows=list(_recipe_rows(recipe or {})),
        num_parameters=f"{model.num_parameters():,}",
        part_rows=list(_part_rows(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        duration=None if duration is None else f"{timedelta(seconds=round(duration))} h",
        hardware=_hardware(),
        software=_software(),
        limits=limits,
    )
    write_whole(output_dir / "README.md", str(card).rstrip() + "\n")
    return output_dir / "README.md"


def _named_results(metrics: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Evaluations by name, each with the metrics that a card shows; a single one has the name ''."""
    metrics = metrics or {}
    named = {key: value for key, value in metrics.items() if isinstance(value, dict)} or {"": metrics}
    shown = {name: {key: values[key] for key in METRICS if key in values} for name, values in named.items()}
    return {name: values for name, values in shown.items() if values}


def _describe_task(model) -> dict[str, str]:
    """What the card says of a model's head."""
    task = model.config.resolved_problem_type if model.task == "classification" else model.task
    texts = {key: text for key, text in _TASKS[task].items() if key != "pipelines"}
    described = {key: text.format(model=model, config=model.config) for key, text in texts.items()}
    return {**described, "pipeline": _pipeline(model, _TASKS[task]["pipelines"])}


def _pipeline(model, pipelines: dict[str, str]) -> str | None:
    """The task that the Hub lists a model under."""
    kinds = {part.kind for part in model.config.modalities.values()}
    if model.task == "retrieval" and {"image", "text"} <= kinds:
        return "zero-shot-image-classification"
    chosen = next((kind for kind in pipelines if kind in {"", *kinds}), None)
    if model.task == "generation" and kinds == {chosen}:
        return _PIPELINES_OF_ONE_KIND.get(chosen, pipelines[chosen])
    return pipelines.get(chosen)


def _card_data(name, model, dataset, split, results, license, language, tags) -> ModelCardData:
    kinds = {part.kind for part in model.config.modalities.values()}
    pipeline = _describe_task(model)["pipeline"]
    own_tags = ["encoder-decoder"] if model.task == "generation" else []
    hub_id = dataset if dataset and not Path(dataset).exists() else None
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=pipeline,
        license=license,
        language=language if language is None or isinstance(language, str) else list(language),
        tags=[*dict.fromkeys(["crossfuse", "multimodal", *own_tags, *sorted(kinds), *tags])],
        datasets=hub_id and [hub_id],
        metrics=sorted({key for values in results.values() for key in values} - {"loss"}) or None,
        eval_results=[
            EvalResult(
                task_type=pipeline or "text-generation",
                dataset_type=dataset or "unknown",
                dataset_name=dataset or "unknown",
                dataset_split=split,
                metric_type=key,
                metric_name=f"{METRICS[key][0]} ({evaluation})" if evaluation else METRICS[key][0],
                metric_value=round(float(value), 4),
            )
            for evaluation, values in results.items()
            for key, value in values.items()
            if key != "loss"
        ]
        or None,
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _modality_rows(modalities) -> Iterator[dict[str, str]]:
    for name, part in modalities.items():
        yield {
            "name": name,
            "kind": part.kind,
            "tensor": modalities.value_name(name),
            "shape": f"(batch, {', '.join(str(_size(part, axis)) for axis in part.layout if axis != 'images')})",
            "encoder": _encoder_name(part),
        }


def _size(part, axis: str) -> Any:
    """The size of a dimension of a modality's values, or its name where the size may differ."""
    size = getattr(part, "image_size", None) if axis in ("height", "width") else getattr(part, axis, None)
    if isinstance(size, (list, tuple)):
        size = size[axis == "width"]
    return 1 if axis == "one" else size if isinstance(size, int) else axis


def _encoder_name(part) -> str:
    """What encodes a modality and, for an encoder of transformers, where its weights came from."""
    if not part.is_wrapped:
        return "built in"
    source = Path(part.source).name if part.source and Path(part.source).is_absolute() else part.source
    origin = f" from `{source}`" if source else ""
    return f"{part.architecture}{origin}" + (f" at `{part.revision[:8]}`" if part.revision else "")


def _example_inputs(modalities, processor) -> Iterator[dict[str, str]]:
    """For each modality, a made-up input for the example's call of the processor."""
    for name, part in modalities.items():
        value, comment = _MADE_UP_INPUTS[part.kind]
        extractor = getattr(processor, f"{name}_feature_extractor", getattr(processor, "feature_extractor", None))
        sizes = {"rate": getattr(extractor, "sampling_rate", 16_000), "channels": getattr(part, "num_channels", 1)}
        yield {"name": name, "value": value % sizes, "comment": comment}


def _result_table(results: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of results. Only several evaluations have names, in a first column."""
    keys = [key for key in METRICS if any(key in values for values in results.values())]
    header = [METRICS[key][0] for key in keys]
    rows = [
        [f"{values[key]:.{METRICS[key][1]}f}" if key in values else "" for key in keys] for values in results.values()
    ]
    if any(results):
        return ["given", *header], [[name, *row] for name, row in zip(results, rows)]
    return header, rows


def _recipe_rows(recipe: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in recipe.items():
        if value is None or value == "" or value == {} or value == [] or name.endswith("token"):
            continue
        if isinstance(value, dict | list | tuple):
            value = f"`{json.dumps(value, ensure_ascii=False, default=str)}`"
        # An enum of `TrainingArguments` would show its class.
        yield name, str(getattr(value, "value", value)).replace("|", "\\|").replace("\n", " ")


def _part_rows(model) -> Iterator[tuple[str, str]]:
    """The number of parameters in each part that the model has."""
    encoder = getattr(model.base_model, "encoder", model.base_model)
    parts = {
        "the encoders": getattr(encoder, "encoders", None),
        "the fusion": getattr(encoder, "fusion", None),
        "the decoder": getattr(model.base_model, "decoder", None),
    }
    for title, part in parts.items():
        if part is not None:
            yield title, f"{sum(parameter.numel() for parameter in part.parameters()):,}"


def _hardware() -> str:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}"
    return f"{_processor_name()}, {os.cpu_count()} cores, no GPU"


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _software() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"


__all__ = ["write_model_card"]
