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
"""What `benchmark.py` compares: CrossFuse and its peers of transformers, of the same sizes, with their inputs."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from transformers import (
    BertConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration


@dataclass(frozen=True)
class Sizes:
    """The sizes that all contestants share: `layers` in each encoder and in the decoder."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    vocab_size: int = 4096
    image_size: int = 64
    patch_size: int = 8
    mel_bins: int = 80
    frames: int = 200
    question_tokens: int = 16
    target_tokens: int = 32
    max_positions: int = 128
    batch: int = 16

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class Settings:
    """Where and how models run, and how often. `attn_implementation=None` is the model's own choice."""

    device: str = "cpu"
    dtype: str = "float32"
    attn_implementation: str | None = None
    threads: int = 2
    repeats: int = 5
    steps: int = 5


TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": None}
# Layers such as most peers have; without these settings, CrossFuse has RMSNorm, SwiGLU and rotary positions.
CLASSIC = {"mlp_type": "gelu", "norm_type": "layernorm", "position_embedding_type": "sinusoidal"}
FREE = ("pad_token_id", "bos_token_id", "eos_token_id")  # of `TOKENS`, what every config knows
OURS = "CrossFuse"


def crossfuse(sizes: Sizes, modalities: dict, **settings) -> CrossFuseConfig:
    return CrossFuseConfig(
        d_model=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        modalities=modalities,
        decoder={"vocab_size": sizes.vocab_size},
        **TOKENS,
        **settings,
    )


def crossfuse_captioner(sizes: Sizes, **settings) -> CrossFuseConfig:
    image = {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
    return crossfuse(sizes, {"image": image}, **settings)


def vit(sizes: Sizes, intermediate_size: int) -> ViTConfig:
    return ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=intermediate_size,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def vit_bert(sizes: Sizes, intermediate_size: int) -> VisionEncoderDecoderConfig:
    decoder = BertConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=intermediate_size,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.max_positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
        **{name: TOKENS[name] for name in FREE},
    )
    return encoder_decoder(vit(sizes, intermediate_size), decoder)


def vit_gpt2(sizes: Sizes, intermediate_size: int) -> VisionEncoderDecoderConfig:
    decoder = GPT2Config(
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_inner=intermediate_size,
        vocab_size=sizes.vocab_size,
        n_positions=sizes.max_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        is_decoder=True,
        add_cross_attention=True,
        **{name: TOKENS[name] for name in FREE},
    )
    return encoder_decoder(vit(sizes, intermediate_size), decoder)


def encoder_decoder(encoder: PreTrainedConfig, decoder: PreTrainedConfig) -> VisionEncoderDecoderConfig:
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, tie_word_embeddings=True, **TOKENS
    )


def blip(sizes: Sizes, intermediate_size: int) -> BlipConfig:
    shared = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": intermediate_size,
    }
    text = {
        **shared,
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "sep_token_id": None,  # at which BLIP stops
        **{name: TOKENS[name] for name in FREE},
    }
    vision = {**shared, "image_size": sizes.image_size, "patch_size": sizes.patch_size}
    vision["initializer_range"] = text["initializer_range"] = 0.02  # BLIP's 1e-10 makes numbers that CPUs are slow at
    return BlipConfig(text_config=text, vision_config=vision)


def make_labels(sizes: Sizes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, sizes.vocab_size - 1, (sizes.batch, sizes.target_tokens), generator=generator)


def make_images(sizes: Sizes) -> dict[str, torch.Tensor]:
    shape = (sizes.batch, 3, sizes.image_size, sizes.image_size)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(1))}


def make_prompted_images(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Of the prompt, BLIP drops the last token and replaces the first; without one, it needs an end of sequence."""
    return {**make_images(sizes), "input_ids": torch.ones(sizes.batch, 2, dtype=torch.long)}


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


def count_parameters(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """Without memory for them."""
    with torch.device("meta"):
        return model_class._from_config(config).num_parameters()


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
}

# What is not the same, although the parameters agree.
DIFFERENCES = {
    "captioning": (
        "the ViT and BLIP's encoder have a class token, and a layer that pools the picture",
        "BERT and BLIP have a dense layer before the vocabulary",
        "BLIP scores one token fewer, since it shifts the labels that it is given",
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
    # The number of parameters is a straight line over that width: two points give it.
    low, high = (count_parameters(entrant.model_class, entrant.make_config(sizes, width)) for width in (8, 16))
    return entrant.make_config(sizes, max(8 + 8 * round((target - low) / (high - low)), 8))


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


def build(entrant: Entrant, config: PreTrainedConfig, sizes: Sizes, settings: Settings) -> Contestant:
    """The model with random weights, and its batch."""
    torch.manual_seed(0)
    model = build_model(entrant.model_class, config, settings)
    inputs = move(entrant.make_inputs(sizes), settings)
    labels = make_labels(sizes).to(settings.device)
    return Contestant(model, inputs, {**inputs, **entrant.train(labels)})


def build_model(model_class: type[PreTrainedModel], config: PreTrainedConfig, settings: Settings) -> PreTrainedModel:
    """A peer without the attention that was asked for runs with its own choice."""
    make = partial(model_class._from_config, dtype=getattr(torch, settings.dtype))
    attention = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    try:
        model = make(copy.deepcopy(config), **attention)
    except (ImportError, ValueError):
        if model_class is CrossFuseForConditionalGeneration:
            raise
        model = make(config)
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
    configs = make_configs(task, sizes)
    return {
        title: build(TASKS[task][title], configs[title], sizes, settings)
        for title in (configs if titles is None else titles)
    }
