# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The card of a saved model: a README.md whose metadata the Hub reads, made from the run that trained the model."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.metric_names import METRICS
from ..files import write_whole


_EXPLANATIONS = {
    "exact_match": "Exact match is the share of answers that equal the right one character by character; CER, the "
    "character error rate, is edits per character (0 is best); chrF goes from 0 to 100 (100 is best).",
    "recall_at_1": "Recall@k is the share of samples whose own candidate is among the best k; MRR is the mean of one "
    "over its rank.",
}

_LIMITS = (
    "It answers only as its training data did, and it always answers: it does not say when it does not know.",
    "The results hold for data like those they were measured on. Measure again before you rely on it elsewhere.",
    "What its training data favoured or left out, it favours or leaves out.",
)


def template_path() -> Path:
    """
    Where `model_card.md` is: beside the package in a checkout, under `share/crossfuse` in an installation.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
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
    Writes `README.md` into the folder of a saved model, whole or not at all.

    Args:
        output_dir (`str` or `Path`): the folder, which must exist.
        model: the model in it, with any head.
        processor ([`CrossFuseProcessor`], *optional*): its processor; gives the sampling rate of the example.
        dataset (`str`, *optional*): what it was trained on: an id on the Hub, or a folder, which is not listed under
            `datasets` in the metadata, since the Hub would take it for an id.
        split (`str`, *optional*): what the metrics were measured on.
        metrics (`dict`, *optional*): what [`evaluate_rows`] gives, and `loss`, other
            keys being left out; or one such `dict` for each of several evaluations, by name, such as
            `{"picture": {...}, "picture + speech": {...}}`.
        recipe (`dict`, *optional*): settings of the training; those that are `None` or empty, and tokens of the Hub,
            are left out.
        duration (`float`, *optional*): seconds of training.
        model_id (`str`, *optional*): what the example loads; the folder by default.
        license (`str`, defaults to `"apache-2.0"`): as the Hub calls it.
        language (`str` or `Sequence[str]`, *optional*): codes such as `en`.
        limits (`Sequence[str]`, *optional*): sentences to add to the section on limits.
        tags (`Sequence[str]`, *optional*): for the Hub, beside those that say what the model is.
        template (`str` or `Path`, *optional*): another template than CrossFuse's own.

    Returns:
        `Path`: the card.

    Raises:
        FileNotFoundError: if the folder or the template does not exist.

    Example:

    ```python
    >>>     >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration
    >>> from modeling_crossfuse.training.model_card import write_model_card

    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50, tgt_vocab_size=60)
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     card = write_model_card(folder, model, metrics={"exact_match": 0.5}, duration=90).read_text()
    >>> "| time of training | 1 min 30 s |" in card
    True
    ```
    """
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        raise FileNotFoundError(f"there is no folder {output_dir} to write the model card into")
    modalities = model.config.modalities
    name = (model_id or output_dir.resolve().name).rstrip("/").split("/")[-1]
    results = _named_results(metrics)
    card = ModelCard.from_template(
        _card_data(name, model, dataset, split, results, license, language, tags),
        template_path=str(template or template_path()),
        model_name=name,
        modality_list=_listed([f"`{name}`" for name in modalities]),
        modality_rows=list(_modality_rows(modalities)),
        example=_example(model_id or output_dir.as_posix(), model, processor),
        answer=_answer(model),
        reader={
            "generation": "the decoder attends to",
            "classification": "the classifier reads",
            "token classification": "the classifier reads",
            "retrieval": "becomes one vector",
        }.get(_head(model), "a head is to read"),
        fusion=model.config.fusion.type,
        dataset=dataset and f"`{dataset}`",
        split=split,
        result_header=_result_header(results),
        result_rows=_result_rows(results),
        explanations=[
            text for key, text in _EXPLANATIONS.items() if any(key in values for values in results.values())
        ],
        recipe_rows=list(_recipe_rows(recipe or {})),
        num_parameters=f"{model.num_parameters():,}",
        part_rows=list(_part_rows(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        duration=None if duration is None else _format_duration(duration),
        hardware=_hardware(),
        software=_software(),
        limits=[*_LIMITS, *limits],
    )
    write_whole(output_dir / "README.md", str(card).rstrip() + "\n")
    return output_dir / "README.md"


def _named_results(metrics: dict[str, Any] | None) -> dict[str, dict[str, float]]:
    """Evaluations by name, each with the metrics that a card shows; a single one has the name ''."""
    metrics = metrics or {}
    named = {key: value for key, value in metrics.items() if isinstance(value, dict)} or {"": metrics}
    shown = {name: {key: values[key] for key in METRICS if key in values} for name, values in named.items()}
    return {name: values for name, values in shown.items() if values}


def _head(model) -> str:
    """What the model's head does, as a recipe's `task` calls it."""
    if model.can_generate():
        return "generation"
    if hasattr(model, "get_fused_features"):
        return "retrieval"
    if hasattr(model, "labeled_modality"):
        return "token classification"
    return "classification" if hasattr(model, "classifier") else "none"


def _pipeline_tag(head: str, kinds: set[str]) -> str | None:
    """The task that the Hub lists the model under."""
    if head in ("none", "token classification"):
        return "feature-extraction" if head == "none" else "token-classification"
    if head == "retrieval":
        return "zero-shot-image-classification" if {"image", "text"} <= kinds else "feature-extraction"
    if head == "classification":
        shown = (kind for kind in ("image", "video", "audio", "text") if kind in kinds)
        return next((f"{kind}-classification" for kind in shown), None)
    for kind in ("image", "video", "audio"):
        if kind in kinds and len(kinds) > 1:
            return f"{kind}-text-to-text"
    alone = {"image": "image-to-text", "video": "video-text-to-text", "audio": "automatic-speech-recognition"}
    return next((alone[kind] for kind in kinds if kind in alone), "text-generation" if "text" in kinds else None)


def _answer(model) -> dict[str, str]:
    """What comes out of the model: in words, its kind, where it stands and its shape."""
    config = model.config
    if _head(model) == "generation":
        shape = f"(batch, length), of {config.vocab_size:,} tokens"
        return {"words": "answers with text", "kind": "text", "tensor": "generate(...)", "shape": shape}
    if _head(model) == "retrieval":
        shape = f"(batch, {model.projection.out_features})"
        tensor = "get_fused_features(...).pooler_output"
        return {"words": "turns it into one vector", "kind": "vector", "tensor": tensor, "shape": shape}
    if _head(model) == "none":
        shape = f"(batch, length, {config.d_model})"
        return {"words": "has no head", "kind": "states", "tensor": "last_hidden_state", "shape": shape}
    if _head(model) == "token classification":
        words = f"gives each position of `{model.labeled_modality}` one of {config.num_labels} labels"
        shape = f"(batch, positions, {config.num_labels})"
        return {"words": words, "kind": "labels", "tensor": "logits", "shape": shape}
    answers = {
        "regression": ("answers with numbers" if config.num_labels > 1 else "answers with a number", "numbers"),
        "multi_label_classification": (f"says which of {config.num_labels} labels it has", "labels"),
    }
    words, kind = answers.get(
        config.resolved_problem_type, (f"answers with one of {config.num_labels} labels", "label")
    )
    return {"words": words, "kind": kind, "tensor": "logits", "shape": f"(batch, {config.num_labels})"}


def _card_data(name, model, dataset, split, results, license, language, tags) -> ModelCardData:
    kinds = {part.kind for part in model.config.modalities.values()}
    task = _pipeline_tag(_head(model), kinds)
    own_tags = ["encoder-decoder"] if model.can_generate() else []
    hub_id = dataset if dataset and not Path(dataset).exists() else None
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=task,
        license=license,
        language=language if language is None or isinstance(language, str) else list(language),
        tags=[*dict.fromkeys(["crossfuse", "multimodal", *own_tags, *sorted(kinds), *tags])],
        datasets=hub_id and [hub_id],
        metrics=sorted({key for values in results.values() for key in values} - {"loss"}) or None,
        eval_results=[
            EvalResult(
                task_type=task or "text-generation",
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
    """The size of a dimension of a modality's values, or its name where it may be any."""
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


# The class that the example loads, and what it does with a batch.
_EXAMPLES = {
    "generation": (
        "AutoModelForSeq2SeqLM",
        "answer = model.generate(**batch, max_new_tokens=64)\n"
        "print(processor.batch_decode(answer, skip_special_tokens=True))",
    ),
    "classification": ("AutoModelForSequenceClassification", "print(model(**batch).logits, model.config.id2label)"),
    "none": ("AutoModel", "print(model(**batch).last_hidden_state.shape)"),
    "token classification": (
        "AutoModelForTokenClassification",
        "print(model(**batch).logits.argmax(-1), model.config.id2label)",
    ),
    "retrieval": ("AutoModelForZeroShotImageClassification", "print(model(**batch, return_loss=False).logits)"),
}


def _example(model_id: str, model, processor) -> str:
    """A program that runs as it stands: it makes up an input for each modality, which a reader replaces."""
    modalities = model.config.modalities
    auto_class, use = _EXAMPLES[_head(model)]
    values = {
        "text": ('"what is it?"', ""),
        "image": ('Image.new("RGB", (256, 256), "white")', '  # or Image.open("photo.jpg")'),
        "video": ("np.zeros((8, 256, 256, 3), dtype=np.uint8)", "  # 8 frames"),
        "audio": ('{"array": np.zeros({rate}), "sampling_rate": {rate}}', '  # or "speech.ogg"'),
        "series": ("np.zeros((100, {channels}))", "  # 100 steps"),
    }
    kinds = {part.kind for part in modalities.values()}
    imports = ["import modeling_crossfuse  # registers the model with the Auto classes"]
    if kinds & {"video", "audio", "series"}:
        imports.insert(0, "import numpy as np")
    if "image" in kinds:
        imports.append("from PIL import Image")
    imports.append(f"from transformers import {auto_class}, AutoProcessor")
    arguments = []
    for name, part in modalities.items():
        value, comment = values[part.kind]
        extractor = getattr(processor, f"{name}_feature_extractor", getattr(processor, "feature_extractor", None))
        value = value.replace("{channels}", str(getattr(part, "num_channels", 1)))
        value = value.replace("{rate}", str(getattr(extractor, "sampling_rate", 16_000)))
        arguments.append(f"    {name}=[{value}],{comment}")
    return "\n".join(
        [
            *imports,
            "",
            f"model = {auto_class}.from_pretrained({json.dumps(model_id)})",
            f"processor = AutoProcessor.from_pretrained({json.dumps(model_id)})",
            "batch = processor(",
            *arguments,
            '    return_tensors="pt",',
            ")",
            use,
        ]
    )


def _result_header(results: dict[str, dict[str, float]]) -> list[str]:
    keys = [key for key in METRICS if any(key in values for values in results.values())]
    return [*(["given"] if any(results) else []), *(METRICS[key][0] for key in keys)]


def _result_rows(results: dict[str, dict[str, float]]) -> list[list[str]]:
    keys = [key for key in METRICS if any(key in values for values in results.values())]
    return [
        [
            *([name] if any(results) else []),
            *(f"{values[key]:.{METRICS[key][1]}f}" if key in values else "" for key in keys),
        ]
        for name, values in results.items()
    ]


def _recipe_rows(recipe: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in recipe.items():
        if value is None or value == "" or value == {} or value == [] or name.endswith("token"):
            continue
        if isinstance(value, dict | list | tuple):
            value = f"`{json.dumps(value, ensure_ascii=False, default=str)}`"
        # An enum of `TrainingArguments` would show its class.
        yield name, str(getattr(value, "value", value)).replace("|", "\\|").replace("\n", " ")


def _part_rows(model) -> Iterator[tuple[str, str]]:
    for title, path in (
        ("the encoders", "encoder.encoders"),
        ("the fusion", "encoder.fusion"),
        ("the decoder", "decoder"),
    ):
        part = model.base_model
        for step in path.split("."):
            part = getattr(part, step, None)
        if part is None:
            continue
        yield title, f"{sum(parameter.numel() for parameter in part.parameters()):,}"


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min"), (seconds, "s")) if count]
    return " ".join(parts[:2]) or "0 s"


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
