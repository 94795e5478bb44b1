# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`pipeline("crossfuse", ...)`: raw samples of any mix of modalities in; text, labels, numbers or vectors out."""

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    AudioClassificationPipeline,
    AutomaticSpeechRecognitionPipeline,
    GenerationConfig,
    Pipeline,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.pipelines.pt_utils import PipelineIterator

from ..configuration_crossfuse import CrossFuseConfig
from ..data.rows import DECODING_ERRORS, read_row, reason_of, undecoded
from ..encoder_sources import check_special_tokens
from ..feature_extraction_crossfuse import CrossFuseFeatureExtractor
from ..heads import HEADS, MODELS


# The arguments of a call, by the `task` of the model's head; generation takes those of `generate`.
_PARAMETERS = {
    "classification": ("top_k", "function_to_apply"),
    "token_classification": (),
    "retrieval": ("candidate_labels", "candidates", "top_k", "return_tensors"),
}
_FUNCTIONS = {"sigmoid": torch.sigmoid, "softmax": partial(torch.softmax, dim=-1), "none": torch.nn.Identity()}
# Candidates that are embedded at once.
_CANDIDATES_PER_BATCH = 32


class AutoModelForCrossFuse(_BaseAutoModelClass):
    """Loads a checkpoint as the class that its `config.json` names in `architectures`."""

    _model_mapping = _LazyAutoMapping(OrderedDict(), OrderedDict())


# A config that names no architecture gets the first model, the one that generates.
AutoModelForCrossFuse.register(CrossFuseConfig, (*HEADS.values(), *MODELS), exist_ok=True)


class CrossFusePipeline(Pipeline):
    """
    The pipeline of any CrossFuse model with a head. It takes a dict of modalities for each sample, and gives:

    - [`CrossFuseForConditionalGeneration`]: `[{"generated_text": str}, ...]`, one for each returned sequence.
    - [`CrossFuseForSequenceClassification`]: `[{"label": str, "score": float}, ...]`, the best first; the numbers of a
      regression stay in the order of `config.id2label`.
    - [`CrossFuseForTokenClassification`]: `[{"index": int, "label": str, "score": float}, ...]` for the positions that
      the sample has, with `"word"` where they are a text's tokens.
    - [`CrossFuseForRetrieval`]: `projection_dim` floats or, given candidates, `[{"label": ..., "score": float},
      ...]`, the best first.

    Load it by `pipeline("crossfuse", model="folder or Hub id")`, or with the objects, `pipeline("crossfuse",
    model=model, processor=processor)`. Its other arguments are those of every [`~transformers.Pipeline`], and those of
    a call, as its defaults.

    Raises:
        TypeError: if the model is none of those above.

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from transformers import pipeline
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForSequenceClassification, CrossFuseProcessor

    >>> modalities = {"image": {"image_size": 16, "patch_size": 8}, "wrist": {"kind": "series", "num_channels": 6}}
    >>> config = CrossFuseConfig(d_model=32, num_hidden_layers=1, modalities=modalities, num_labels=3)
    >>> model, processor = CrossFuseForSequenceClassification(config), CrossFuseProcessor.from_config(config)
    >>> classifier = pipeline("crossfuse", model=model, processor=processor)
    >>> sample = {"image": Image.new("RGB", (40, 30)), "wrist": np.zeros((5, 6))}
    >>> sorted(answer["label"] for answer in classifier(sample))
    ['LABEL_0', 'LABEL_1', 'LABEL_2']
    >>> # the second sample has no image
    >>> answers = classifier([sample, {"wrist": np.ones((8, 6))}], batch_size=2, top_k=1)
    >>> [len(answer) for answer in answers]
    [1, 1]
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    _pipeline_calls_generate = True
    # Make sure the docstring of `__call__` is updated when it changes.
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __call__(self, inputs: dict[str, Any] | Iterable[dict[str, Any]], **kwargs: Any) -> Any:
        """
        Args:
            inputs (`dict[str, Any]`, or several of them): the name of each modality to a value that
                [`CrossFuseProcessor`] takes for one sample. A modality that is left out or `None` is missing; samples
                of a batch may lack different ones. Several samples are a list or tuple, or they are streamed from a
                `datasets.Dataset` whose columns have the names of modalities (`select_columns` and `rename_columns`
                make it so), an `IterableDataset`, a `torch.utils.data.Dataset`, a generator or another iterable.
            batch_size (`int`, *optional*, defaults to 1): how many of several samples go through the model at once.
            processor_kwargs (`dict`, *optional*): options of the processor's call.
            generate_kwargs (`dict`, *optional*): those of `generate`, for a model that generates; they may be given by
                themselves, too. Where neither they nor the model's generation config set any, `max_new_tokens=256`.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): whether the text is without special tokens.
            top_k (`int`, *optional*): how many labels or candidates to return; all by default. For a model that
                generates, it is `generate`'s.
            function_to_apply (`str`, *optional*): `"sigmoid"`, `"softmax"` or `"none"`, for a classifier. Defaults to
                `"none"` for a regression, `"sigmoid"` for several labels or a single one, and `"softmax"` otherwise.
            candidate_labels (`list[str]`, *optional*): the labels that [`CrossFuseForRetrieval`] chooses from.
            candidates (`list[dict[str, Any]]`, *optional*): a sample for each of `candidate_labels`, such as an
                image; the labels as texts by default. Without `candidate_labels`, a label is its place in this list.
            return_tensors (`bool`, *optional*, defaults to `False`): whether embeddings are tensors instead of lists.

        Returns:
            a sample's output, as the class lists it, or a list of them for a list or tuple; an iterator over them for
            what is streamed.

        Raises:
            TypeError: if a sample is not a dict, or an argument is not for this model.
            ValueError: as [`CrossFuseProcessor`] does, and if an argument's value can't be used. Of several samples,
                the message names the "item" by its place among all of them.
        """
        if not _are_several(inputs):
            return super().__call__(inputs, **kwargs)
        outputs = super().__call__(_as_items(inputs), **kwargs)
        return list(outputs) if isinstance(inputs, (list, tuple)) else outputs

    def _sanitize_parameters(self, processor_kwargs: dict[str, Any] | None = None, **kwargs):
        if self.model.task is None:
            raise TypeError(
                f"`model` is {type(self.model).__name__}, which has no head; expected one of "
                f"{', '.join(head.__name__ for head in HEADS.values())}"
            )
        preprocess_params = {} if processor_kwargs is None else {"processor_kwargs": processor_kwargs}
        if self.model.task == "generation":
            check_special_tokens(getattr(self.processor, "tokenizer", None), self.model.generation_config)
            postprocess_params = {key: kwargs.pop(key) for key in ("skip_special_tokens",) if key in kwargs}
            return preprocess_params, {**(kwargs.pop("generate_kwargs", None) or {}), **kwargs}, postprocess_params
        self._check_parameters(**kwargs)
        labels, candidates = kwargs.pop("candidate_labels", None), kwargs.pop("candidates", None)
        if labels is None and candidates is None:
            return preprocess_params, {}, kwargs
        labels, candidates = _pair_candidates(labels, candidates)
        # They are embedded once for all samples of the call.
        forward_params = {"candidate_embeds": self._embed(candidates, processor_kwargs)}
        return preprocess_params, forward_params, {**kwargs, "labels": labels}

    def _check_parameters(self, top_k: int | None = None, function_to_apply: str | None = None, **kwargs):
        given, known = {"top_k": top_k, "function_to_apply": function_to_apply, **kwargs}, _PARAMETERS[self.model.task]
        for key, value in given.items():
            if value is not None and key not in known:
                known = ("batch_size", "num_workers", "processor_kwargs", *known)
                raise TypeError(
                    f"`{key}` is no argument for {type(self.model).__name__}; expected one of {', '.join(known)}"
                )
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"`top_k={top_k!r}`; expected an integer of at least 1, or None for all")
        if function_to_apply not in (None, *_FUNCTIONS):
            raise ValueError(f"`function_to_apply={function_to_apply!r}`; expected one of {', '.join(_FUNCTIONS)}")

    def preprocess(self, sample: dict[str, Any], processor_kwargs: dict[str, Any] | None = None) -> BatchFeature:
        """One sample to the model's tensors, a batch of one."""
        return self._encode([("the sample", sample)], processor_kwargs)

    def _encode(
        self, items: list[tuple[str, dict[str, Any]]], processor_kwargs: dict[str, Any] | None = None
    ) -> BatchFeature:
        """A batch of samples, each with the name that errors call it."""
        for where, sample in items:
            if not isinstance(sample, Mapping):
                raise TypeError(
                    f"{where} is {type(sample).__name__}; expected a dict of modalities, with any of "
                    f"{', '.join(self.processor.modalities)}, or a list, a data set or a generator of such dicts"
                )
            for name in sample:
                try:
                    self.processor.modality_of(name)  # refuses what the processor would take for one of its options
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
        sample_names, samples = [list(part) for part in zip(*items)]
        given = dict.fromkeys(name for sample in samples for name in sample)
        modalities = {name: [sample.get(name) for sample in samples] for name in given}
        options = {"sample_names": sample_names, "return_tensors": "pt", **(processor_kwargs or {})}
        return self.processor(**modalities, **options)

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        # The base class joins the tensors of single samples, which must have the same names. Here samples may lack
        # different modalities, and the processor makes a batch of them.
        if isinstance(inputs, IterableDataset):
            num_workers = min(num_workers, 1)  # each would read all of it
        collate = partial(self._encode, **preprocess_params)
        loader = DataLoader(inputs, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def _forward(self, model_inputs: BatchFeature, **forward_params) -> dict[str, torch.Tensor]:
        return getattr(self, f"_forward_{self.model.task}")(model_inputs, **forward_params)

    def postprocess(self, model_outputs: dict[str, torch.Tensor], **postprocess_params) -> Any:
        """One sample's tensors, a batch of one, to its output."""
        outputs = {name: tensor[0] for name, tensor in model_outputs.items()}
        return getattr(self, f"_postprocess_{self.model.task}")(outputs, **postprocess_params)

    def _forward_generation(self, model_inputs: BatchFeature, **generate_kwargs) -> dict[str, torch.Tensor]:
        sequences = self.model.generate(**model_inputs, **self._prepare_generate_kwargs(generate_kwargs))
        sequences = sequences if isinstance(sequences, torch.Tensor) else sequences.sequences
        return {"sequences": sequences.unflatten(0, (len(model_inputs["modality_mask"]), -1))}

    def _postprocess_generation(self, outputs, skip_special_tokens: bool = True) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(outputs["sequences"], skip_special_tokens=skip_special_tokens)
        return [{"generated_text": text} for text in texts]

    def _forward_classification(self, model_inputs: BatchFeature) -> dict[str, torch.Tensor]:
        return {"logits": self.model(return_dict=True, **model_inputs).logits}

    def _postprocess_classification(self, outputs, top_k: int | None = None, function_to_apply: str | None = None):
        config = self.model.config
        is_regression = config.problem_type == "regression"
        if function_to_apply is None:
            several = config.problem_type == "multi_label_classification" or config.num_labels == 1
            function_to_apply = "none" if is_regression else "sigmoid" if several else "softmax"
        scores = _FUNCTIONS[function_to_apply](outputs["logits"].float())
        labels = [config.id2label[index] for index in range(config.num_labels)]
        return _rank(labels, scores, top_k, keep_order=is_regression)

    def _forward_token_classification(self, model_inputs: BatchFeature) -> dict[str, torch.Tensor]:
        outputs = self.model(return_dict=True, **model_inputs)
        tensors = {"logits": outputs.logits, "mask": outputs.attention_mask}
        modalities, name = self.model.config.modalities, self.model.labeled_modality
        tokens = model_inputs.get(modalities.value_name(name))
        if modalities[name].kind == "text" and tokens.shape == outputs.attention_mask.shape:
            tensors["tokens"] = tokens
        return tensors

    def _postprocess_token_classification(self, outputs) -> list[dict[str, Any]]:
        scores, classes = outputs["logits"].float().softmax(-1).max(-1)
        answer = []
        for index in outputs["mask"].nonzero().flatten().tolist():
            label = self.model.config.id2label[classes[index].item()]
            answer.append({"index": index, "label": label, "score": scores[index].item()})
            if "tokens" in outputs:
                tokenizer = self.processor.sub_processor(self.model.labeled_modality, "tokenizer")
                answer[-1]["word"] = tokenizer.convert_ids_to_tokens(outputs["tokens"][index].item())
        return answer

    def _forward_retrieval(self, model_inputs: BatchFeature, candidate_embeds: torch.Tensor | None = None):
        embeds = self.model.get_fused_features(return_dict=True, **model_inputs).pooler_output
        if candidate_embeds is None:
            return {"embeds": embeds}
        return {"logits": self.model.compare(embeds, candidate_embeds.to(embeds.device))}

    def _postprocess_retrieval(
        self, outputs, labels: list[Any] | None = None, top_k: int | None = None, return_tensors: bool = False
    ) -> Any:
        if labels is None:
            return outputs["embeds"] if return_tensors else outputs["embeds"].tolist()
        function = _FUNCTIONS[self.model.config.contrastive_loss]
        return _rank(labels, function(outputs["logits"].float()), top_k)

    def _embed(self, samples: list[dict[str, Any]], processor_kwargs: dict[str, Any] | None) -> torch.Tensor:
        """Vectors of candidates, `(len(samples), projection_dim)`."""
        collate = partial(self._encode, processor_kwargs=processor_kwargs)
        candidates = [(f"candidate {place}", sample) for place, sample in enumerate(samples)]
        batches = DataLoader(candidates, batch_size=_CANDIDATES_PER_BATCH, collate_fn=collate)
        return torch.cat([self.forward(batch)["embeds"] for batch in batches])

    def save_pretrained(self, save_directory: str, **kwargs):
        """Saves the model and its processor; `pipeline("crossfuse", model=save_directory)` loads them."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _are_several(inputs: Any) -> bool:
    """Whether a call's inputs are several samples, rather than one, or what is no sample."""
    if isinstance(inputs, (Mapping, str, bytes, np.ndarray, torch.Tensor)):
        return False
    return isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")


def _as_items(inputs: Iterable[dict[str, Any]]) -> "_Items | _StreamedItems":
    if hasattr(inputs, "cast_column") and hasattr(inputs, "__len__"):  # a `datasets.Dataset`
        return _Items(undecoded(inputs))
    is_indexed = isinstance(inputs, (Sequence, Dataset)) and not isinstance(inputs, IterableDataset)
    return _Items(inputs) if is_indexed and hasattr(inputs, "__len__") else _StreamedItems(inputs)


class _Items(Dataset):
    """Samples, each with the name that errors call it."""

    def __init__(self, samples: Any):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return f"item {index}", read_row(self.samples, index, f"item {index}")


class _StreamedItems(IterableDataset):
    """The same for samples that come one after the other."""

    def __init__(self, samples: Iterable[dict[str, Any]]):
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        samples = iter(self.samples)
        for index in itertools.count():
            try:
                sample = next(samples)
            except StopIteration:
                return
            except DECODING_ERRORS as error:
                raise ValueError(f"item {index} can't be read: {reason_of(error)}") from error
            yield f"item {index}", sample


def _turn(pipe: Pipeline, inputs: dict[str, Any]) -> dict[str, Any]:
    """
    The features of [`CrossFuseFeatureExtractor`] with their last two axes exchanged. transformers pads the samples of
    a batch along the first axis, and the frames are the last one here.
    """
    if isinstance(pipe.feature_extractor, CrossFuseFeatureExtractor):
        inputs["input_features"] = inputs["input_features"].transpose(1, 2)
    return inputs


class CrossFuseAudioClassificationPipeline(AudioClassificationPipeline):
    """`pipeline("audio-classification", ...)` of transformers, for models of CrossFuse, too."""

    def preprocess(self, inputs):
        return _turn(self, super().preprocess(inputs))

    def _forward(self, model_inputs):
        if self.model.config.model_type == CrossFuseConfig.model_type and "attention_mask" in model_inputs:
            model_inputs["feature_attention_mask"] = model_inputs.pop("attention_mask")
        return super()._forward(_turn(self, model_inputs))


class CrossFuseSpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """`pipeline("automatic-speech-recognition", ...)` of transformers, for models of CrossFuse, too."""

    def preprocess(self, inputs, **preprocess_params):
        for chunk in super().preprocess(inputs, **preprocess_params):
            yield _turn(self, chunk)

    def _forward(self, model_inputs, **forward_params):
        if self.model.config.model_type == CrossFuseConfig.model_type and "attention_mask" in model_inputs:
            forward_params["feature_attention_mask"] = model_inputs.pop("attention_mask")
        return super()._forward(_turn(self, model_inputs), **forward_params)


def _pair_candidates(labels: list[str] | None, candidates: list[dict[str, Any]] | None) -> tuple[list, list]:
    """A label and a sample for each candidate, of which the call may have left out either."""
    if isinstance(labels, str) or isinstance(candidates, (str, dict)):
        raise TypeError("`candidate_labels` and `candidates` are lists, of texts and of dicts of modalities")
    candidates = [{"text": label} for label in labels] if candidates is None else list(candidates)
    labels = list(range(len(candidates)) if labels is None else labels)
    if len(labels) != len(candidates) or not labels:
        raise ValueError(
            f"`candidate_labels` has {len(labels)} and `candidates` has {len(candidates)}; expected as many, and at "
            "least one"
        )
    return labels, candidates


def _rank(
    labels: list[Any], scores: torch.Tensor, top_k: int | None, keep_order: bool = False
) -> list[dict[str, Any]]:
    order = range(len(labels)) if keep_order else scores.argsort(descending=True).tolist()
    return [{"label": labels[index], "score": scores[index].item()} for index in order[:top_k]]


__all__ = ["CrossFuseAudioClassificationPipeline", "CrossFusePipeline", "CrossFuseSpeechRecognitionPipeline"]
