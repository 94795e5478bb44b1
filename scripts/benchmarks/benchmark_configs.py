# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The sizes that `benchmark.py` gives to all, and the configs that CrossFuse and its peers have then."""

from dataclasses import dataclass

from transformers import (
    ASTConfig,
    BartConfig,
    BertConfig,
    BlipConfig,
    Florence2Config,
    GPT2Config,
    PreTrainedConfig,
    SiglipVisionConfig,
    SpeechEncoderDecoderConfig,
    T5Gemma2Config,
    VisionEncoderDecoderConfig,
    ViTConfig,
    WhisperConfig,
)

from modeling_crossfuse import CrossFuseConfig


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

    @property
    def image_token(self) -> int:
        """The token in whose place some peers put a position of the image."""
        return self.vocab_size - 1


TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": None}
# Layers such as most peers have; without these settings, CrossFuse has RMSNorm, SwiGLU and rotary positions.
CLASSIC = {"mlp_type": "gelu", "norm_type": "layernorm", "position_embedding_type": "sinusoidal"}
FREE = ("pad_token_id", "bos_token_id", "eos_token_id")  # of `TOKENS`, what every config knows


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


def layers(sizes: Sizes, intermediate_size: int) -> dict[str, int]:
    """What most configs of transformers call the sizes of their layers."""
    return {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": intermediate_size,
    }


def vit(sizes: Sizes, intermediate_size: int) -> ViTConfig:
    return ViTConfig(
        **layers(sizes, intermediate_size),
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def bert_decoder(sizes: Sizes, intermediate_size: int) -> BertConfig:
    return BertConfig(
        **layers(sizes, intermediate_size),
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.max_positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
        **{name: TOKENS[name] for name in FREE},
    )


def vit_bert(sizes: Sizes, intermediate_size: int) -> VisionEncoderDecoderConfig:
    decoder = bert_decoder(sizes, intermediate_size)
    return encoder_decoder(VisionEncoderDecoderConfig, vit(sizes, intermediate_size), decoder)


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
    return encoder_decoder(VisionEncoderDecoderConfig, vit(sizes, intermediate_size), decoder)


def encoder_decoder(
    config_class: type[PreTrainedConfig], encoder: PreTrainedConfig, decoder: PreTrainedConfig
) -> PreTrainedConfig:
    return config_class.from_encoder_decoder_configs(encoder, decoder, tie_word_embeddings=True, **TOKENS)


def blip(sizes: Sizes, intermediate_size: int) -> BlipConfig:
    shared = layers(sizes, intermediate_size)
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


def crossfuse_transcriber(sizes: Sizes, **settings) -> CrossFuseConfig:
    audio = {"num_mel_bins": sizes.mel_bins, "num_conv_layers": 1}  # a position for two frames, as in Whisper
    return crossfuse(sizes, {"audio": audio}, **settings)


def whisper(sizes: Sizes, intermediate_size: int) -> WhisperConfig:
    return WhisperConfig(
        d_model=sizes.width,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=intermediate_size,
        decoder_ffn_dim=intermediate_size,
        vocab_size=sizes.vocab_size,
        num_mel_bins=sizes.mel_bins,
        max_source_positions=sizes.frames // 2,
        max_target_positions=sizes.max_positions,
        dropout=0.0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **TOKENS,
    )


def ast_bert(sizes: Sizes, intermediate_size: int) -> SpeechEncoderDecoderConfig:
    """A ViT of spectrograms: patches of five rows, as many as Whisper has positions, or nearly so."""
    encoder = ASTConfig(
        **layers(sizes, intermediate_size),
        num_mel_bins=sizes.mel_bins,
        max_length=sizes.frames,
        patch_size=sizes.mel_bins // 5,
        frequency_stride=sizes.mel_bins // 5,
        time_stride=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return encoder_decoder(SpeechEncoderDecoderConfig, encoder, bert_decoder(sizes, intermediate_size))


def crossfuse_answerer(sizes: Sizes, **settings) -> CrossFuseConfig:
    """The image has layers of its own, then both go through the same ones, as in the peers."""
    text = {"vocab_size": sizes.vocab_size, "num_hidden_layers": 0, "position_embedding_type": "sinusoidal"}
    image = {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
    fusion = {"type": "joint", "num_layers": sizes.layers}
    return crossfuse(sizes, {"image": image, "text": text}, fusion=fusion, **settings)


def florence2(sizes: Sizes, intermediate_size: int) -> Florence2Config:
    """One stage of DaViT has the patches of a ViT; each of its blocks is two layers."""
    vision = {
        "depths": [sizes.layers // 2],
        "embed_dim": [sizes.width],
        "num_heads": [sizes.heads],
        "num_groups": [sizes.heads],
        "patch_size": [sizes.patch_size],
        "patch_stride": [sizes.patch_size],
        "patch_padding": [0],
        "patch_prenorm": [False],
        "window_size": sizes.grid,
        "mlp_ratio": intermediate_size / sizes.width,
        "projection_dim": sizes.width,
        "drop_path_rate": 0.0,
    }
    text = BartConfig(
        d_model=sizes.width,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=intermediate_size,
        decoder_ffn_dim=intermediate_size,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.max_positions,
        dropout=0.0,
        forced_eos_token_id=None,
        **TOKENS,
    )
    return Florence2Config(text_config=text, vision_config=vision, image_token_id=sizes.image_token, **TOKENS)


def t5gemma2(sizes: Sizes, intermediate_size: int) -> T5Gemma2Config:
    text = {
        "hidden_size": sizes.width,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "head_dim": sizes.width // sizes.heads,
        "query_pre_attn_scalar": sizes.width // sizes.heads,
        "vocab_size": sizes.vocab_size,
        "layer_types": ["full_attention"] * sizes.layers,
        **{name: TOKENS[name] for name in FREE},
    }
    vision = SiglipVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        vision_use_head=False,
    )
    tokens = {"image_token_index": sizes.image_token, "eoi_token_index": 2, "boi_token_index": 2}
    encoder = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": sizes.grid**2, **tokens}
    tokens = {"image_token_index": sizes.image_token, "eoi_token_index": 2}
    return T5Gemma2Config(encoder=encoder, decoder=text, **tokens, **TOKENS)
