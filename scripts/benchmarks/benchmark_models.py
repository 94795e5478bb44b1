# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What `benchmark.py` compares: CrossFuse and its peers of transformers, as large as it is, with their inputs."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmark_configs import (
    CLASSIC,
    Sizes,
    ast_bert,
    blip,
    crossfuse_answerer,
    crossfuse_captioner,
    crossfuse_transcriber,
    florence2,
    t5gemma2,
    vit_bert,
    vit_gpt2,
    whisper,
)
from benchmark_tools import alternate, summarize
from transformers import (
    BlipForConditionalGeneration,
    Florence2ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    SpeechEncoderDecoderModel,
    T5Gemma2ForConditionalGeneration,
    VisionEncoderDecoderModel,
    WhisperForConditionalGeneration,
)

from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration


@dataclass(frozen=True)
class Settings:
    """Where and how models run, and how often. `attn_implementation=None` is the model's own choice."""

    device: str = "cpu"
    dtype: str = "float32"
    attn_implementation: str | None = None
    threads: int = 2
    repeats: int = 5
    steps: int = 5


OURS = "CrossFuse"


def make_labels(sizes: Sizes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, sizes.vocab_size - 1, (sizes.batch, sizes.target_tokens), generator=generator)


def make_images(sizes: Sizes) -> dict[str, torch.Tensor]:
    shape = (sizes.batch, 3, sizes.image_size, sizes.image_size)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(1))}


def make_prompted_images(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Of the prompt, BLIP drops the last token and replaces the first; without one, it needs an end of sequence."""
    return {**make_images(sizes), "input_ids": torch.ones(sizes.batch, 2, dtype=torch.long)}


def make_audio(sizes: Sizes) -> dict[str, torch.Tensor]:
    shape = (sizes.batch, sizes.mel_bins, sizes.frames)
    return {"input_features": torch.randn(shape, generator=torch.Generator().manual_seed(2))}


def make_spectrograms(sizes: Sizes) -> dict[str, torch.Tensor]:
    return {"inputs": make_audio(sizes)["input_features"].transpose(1, 2)}


def make_questions(sizes: Sizes, image_tokens: int = 0) -> dict[str, torch.Tensor]:
    """An image and a question to each; `image_tokens` stand before the question for peers that need them."""
    generator = torch.Generator().manual_seed(3)
    question = torch.randint(3, sizes.image_token, (sizes.batch, sizes.question_tokens), generator=generator)
    image = torch.full((sizes.batch, image_tokens), sizes.image_token)
    return {**make_images(sizes), "input_ids": torch.cat([image, question], dim=1)}


def train_plainly(labels: torch.Tensor) -> dict:
    return {"labels": labels, "use_cache": False}


def train_ours(labels: torch.Tensor) -> dict:
    """As `CrossFuseTrainer` does."""
    return {**train_plainly(labels), "skip_logits": True}


def train_blip(labels: torch.Tensor) -> dict:
    return {"input_ids": labels, "labels": labels}


@dataclass(frozen=True)
class Entrant:
    """
    A contestant to be.

    Args:
        model_class (`type`): a class of transformers, or ours.
        make_config (`Callable`): sizes to the config. A peer's takes the width inside the feed-forward layers, too.
        make_inputs (`Callable`): sizes to what `generate` takes.
        train (`Callable`): labels to what the loss takes besides.
    """

    model_class: type[PreTrainedModel]
    make_config: Callable[..., PreTrainedConfig]
    make_inputs: Callable[[Sizes], dict[str, torch.Tensor]]
    train: Callable[[torch.Tensor], dict] = train_plainly

    @property
    def is_ours(self) -> bool:
        return self.model_class is CrossFuseForConditionalGeneration


def make_model(model_class: type[PreTrainedModel], config: PreTrainedConfig, **settings) -> PreTrainedModel:
    """A model with random weights; questions and answers share the embedding of tokens, as they do in the peers."""
    model = model_class._from_config(config, **settings)
    if isinstance(config, CrossFuseConfig) and "text" in config.modalities:
        model.get_encoder().set_input_embeddings(model.get_input_embeddings())
    return model


def count_parameters(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """Those that train, without memory for them: fixed positions are parameters to some models."""
    with torch.device("meta"):
        return make_model(model_class, config).num_parameters(only_trainable=True)


def ours(make_config: Callable[..., PreTrainedConfig], make_inputs: Callable) -> dict[str, Entrant]:
    """CrossFuse with layers such as the peers', and with its own."""
    variants = {OURS: partial(make_config, **CLASSIC), f"{OURS}, own layers": make_config}
    return {
        title: Entrant(CrossFuseForConditionalGeneration, variant, make_inputs, train_ours)
        for title, variant in variants.items()
    }


TASKS = {
    "captioning": {
        **ours(crossfuse_captioner, make_images),
        "ViT + BERT": Entrant(VisionEncoderDecoderModel, vit_bert, make_images),
        "ViT + GPT-2": Entrant(VisionEncoderDecoderModel, vit_gpt2, make_images),
        "BLIP": Entrant(BlipForConditionalGeneration, blip, make_prompted_images, train_blip),
    },
    "speech": {
        **ours(crossfuse_transcriber, make_audio),
        "Whisper": Entrant(WhisperForConditionalGeneration, whisper, make_audio),
        "AST + BERT": Entrant(SpeechEncoderDecoderModel, ast_bert, make_spectrograms),
    },
    "questions": {
        **ours(crossfuse_answerer, make_questions),
        "Florence-2": Entrant(
            Florence2ForConditionalGeneration, florence2, lambda sizes: make_questions(sizes, sizes.grid**2 + 1)
        ),
        "T5Gemma2": Entrant(
            T5Gemma2ForConditionalGeneration, t5gemma2, lambda sizes: make_questions(sizes, sizes.grid**2)
        ),
    },
}

# What is not the same, although the parameters agree.
DIFFERENCES = {
    "captioning": (
        "the ViT and BLIP's encoder have a class token, and a layer that pools the image",
        "BERT and BLIP have a dense layer before the vocabulary",
        "BLIP scores one token fewer, since it shifts the labels that it is given",
    ),
    "speech": (
        "Whisper has a second convolution, over all frames, where CrossFuse has one that halves their number",
        "AST has patches of the spectrogram in place of convolutions, two tokens more for the whole, and 97 positions "
        "with them where the others have 100",
        "BERT has a dense layer before the vocabulary",
    ),
    "questions": (
        "of DaViT, which is Florence-2's encoder of images, every other layer attends to channels, and each has "
        "convolutions of 3 x 3; a position more is the mean of the image",
        "T5Gemma2 has gates in its feed-forward layers, and attends to the answer and the memory at once; another "
        "width inside its feed-forward layers makes up for both",
    ),
}

TOLERANCE = 0.03  # by which parameters may differ


@dataclass
class Contestant:
    """
    A model with its batch, ready to train and to answer.

    Args:
        model (`PreTrainedModel`): the model, on its device.
        inputs (`dict[str, torch.Tensor]`): what `generate` takes.
        training (`dict`): what the model takes to give a loss.
    """

    model: PreTrainedModel
    inputs: dict[str, torch.Tensor]
    training: dict

    def __post_init__(self):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(self):
        """A step of training."""
        self.model.train()
        self.model(**self.training).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def generate(self, batch: int, tokens: int, beams: int = 1, **settings) -> torch.Tensor:
        """Answers of exactly so many tokens to the first samples of the batch."""
        inputs = {name: values[:batch] for name, values in self.inputs.items()}
        return self.model.eval().generate(
            **inputs, max_new_tokens=tokens, num_beams=beams, do_sample=False, **settings
        )


def fit_config(entrant: Entrant, sizes: Sizes, target: int) -> PreTrainedConfig:
    """A peer's config: feed-forward layers four times as wide as the model or, for `target` parameters, otherwise."""
    usual = entrant.make_config(sizes, 4 * sizes.width)
    if abs(count_parameters(entrant.model_class, usual) / target - 1) <= TOLERANCE:
        return usual
    # The number of parameters is a straight line over that width: two points give it. Odd widths would be slow.
    low, high = (count_parameters(entrant.model_class, entrant.make_config(sizes, width)) for width in (16, 32))
    return entrant.make_config(sizes, max(16 + 16 * round((target - low) / (high - low)), 16))


def make_configs(task: str, sizes: Sizes) -> dict[str, PreTrainedConfig]:
    """The config of each contestant of a task; the peers' are fitted to CrossFuse's."""
    entrants = TASKS[task]
    target = count_parameters(entrants[OURS].model_class, entrants[OURS].make_config(sizes))
    configs = {
        title: entrant.make_config(sizes) if entrant.is_ours else fit_config(entrant, sizes, target)
        for title, entrant in entrants.items()
    }
    counts = {title: count_parameters(entrants[title].model_class, config) for title, config in configs.items()}
    check_parameters(counts, [title for title, entrant in entrants.items() if not entrant.is_ours])
    return configs


def check_parameters(counts: dict[str, int], peers: list[str]):
    """Raises a `ValueError` if a contestant has other than the peers' mean of parameters, by more than 3 %."""
    mean = sum(counts[title] for title in peers) / len(peers)
    for title, count in counts.items():
        if abs(count / mean - 1) > TOLERANCE:
            raise ValueError(
                f"{title} has {count:,} parameters; expected the peers' mean of {mean:,.0f}, give or take "
                f"{TOLERANCE:.0%}"
            )


def build(
    config: PreTrainedConfig,
    inputs: dict[str, torch.Tensor],
    sizes: Sizes,
    settings: Settings,
    model_class: type[PreTrainedModel] = CrossFuseForConditionalGeneration,
    train: Callable[[torch.Tensor], dict] = train_ours,
) -> Contestant:
    """The model with random weights, and its batch, on the device."""
    torch.manual_seed(0)
    model = build_model(model_class, config, settings)
    inputs = move(inputs, settings)
    return Contestant(model, inputs, {**inputs, **train(make_labels(sizes).to(settings.device))})


def build_model(model_class: type[PreTrainedModel], config: PreTrainedConfig, settings: Settings) -> PreTrainedModel:
    """A peer without the attention that was asked for runs with its own choice."""
    make = partial(make_model, model_class, dtype=getattr(torch, settings.dtype))
    attention = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    try:
        model = make(config=copy.deepcopy(config), **attention)
    except (ImportError, ValueError):
        if model_class is CrossFuseForConditionalGeneration:
            raise
        model = make(config=config)
    return model.to(settings.device)


def move(inputs: dict[str, torch.Tensor], settings: Settings) -> dict[str, torch.Tensor]:
    """Tensors to the device, and numbers to the dtype."""
    dtype = getattr(torch, settings.dtype)
    return {
        name: values.to(settings.device, dtype if values.is_floating_point() else None)
        for name, values in inputs.items()
    }


def build_contestants(
    task: str, sizes: Sizes, settings: Settings, titles: Collection[str] | None = None
) -> dict[str, Contestant]:
    """The contestants of a task, or some of them."""
    configs, contestants = make_configs(task, sizes), {}
    for title in configs if titles is None else titles:
        entrant = TASKS[task][title]
        inputs = entrant.make_inputs(sizes)
        contestants[title] = build(configs[title], inputs, sizes, settings, entrant.model_class, entrant.train)
    return contestants


def train_steps(contestant: Contestant, steps: int):
    for _ in range(steps):
        contestant.step()


def time_steps(contestants: dict[Any, Contestant], settings: Settings) -> dict[Any, dict[str, float]]:
    """Milliseconds of a step of training."""
    functions = {title: partial(train_steps, contestant, settings.steps) for title, contestant in contestants.items()}
    times = alternate(functions, settings.repeats, settings.device)
    return {title: summarize([time / settings.steps for time in taken]) for title, taken in times.items()}
