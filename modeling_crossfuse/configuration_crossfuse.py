# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""CrossFuse configuration: one sub-config per modality, one for the fusion, one for the decoder."""

import copy
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_layers import (
    LAYER_FIELDS,
    MAX_MODALITIES,
    LayerConfig,
    PartConfig,
    build_part,
    natural_int,
    optional_positive_int,
    positive_float,
    positive_int,
    probability,
    read_rope_parameters,
    refuse_huge,
    refuse_unknown_keys,
)
from .configuration_modalities import CrossFuseModalitiesConfig, check_modality_name


# What `config.json` means. A change that older releases would misread raises it.
FORMAT_VERSION = 2

# What labels may be to transformers' classification heads.
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

# What the decoder's config keeps and the whole config gives and writes as its own.
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")

# The fusion methods that a config may name; `register_fusion` adds to them.
FUSION_TYPES = ["concat", "joint", "bottleneck", "latent"]

# Starts of keyword arguments that `generate` keeps from the encoder, and what `forward` means something else by.
_RESERVED_STARTS = (
    "cache_params",
    "cross_attn",
    "decoder_",
    "modality_mask",
    "output_hidden_states",
    "past_key_values",
    "use_cache",
)


@strict
class CrossFuseFusionConfig(PartConfig):
    """
    Configuration of the fusion: how the streams become the memory.

    Args:
        type (`str`, defaults to `"concat"`): `"concat"`, `"joint"`, `"bottleneck"`, `"latent"`, or a name given to
            [`register_fusion`].
        num_layers (`int`, defaults to 2): layers of the fusion; `"concat"` has none.
        num_latents (`int`, defaults to 16): bottleneck positions of `"bottleneck"`, or the length of `"latent"`'s
            memory.
        options (`dict`, *optional*): whatever a fusion of your own needs.
    """

    model_type = "crossfuse_fusion"
    base_config_key = "fusion"
    type: str = "concat"
    num_layers: int = natural_int(default=2)
    num_latents: int = positive_int(default=16)
    options: dict[str, Any] | None = None

    def validate_fusion_type(self):
        if self.type not in FUSION_TYPES:
            raise ValueError(
                f"`type={self.type!r}` is not a fusion; expected one of {', '.join(FUSION_TYPES)}, or a name given to "
                "`register_fusion` before"
            )
        if self.type == "latent" and self.num_layers == 0:
            raise ValueError("`num_layers=0` leaves fusion 'latent' without a layer; expected at least 1")


@strict
class CrossFuseDecoderConfig(PartConfig):
    """
    Configuration of the decoder: causal self-attention over the answer, cross-attention to the memory.

    Args:
        vocab_size (`int`, defaults to 32000): size of the vocabulary that answers are made of.
        num_hidden_layers (`int`, defaults to 4): number of layers.
        use_cache (`bool`, defaults to `True`): whether to return the keys and values for the next step.
        pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id (`int`): special tokens of the answers. A
            [`CrossFuseConfig`] gives them as its own, and it alone writes them to a file.
    """

    model_type = "crossfuse_decoder"
    base_config_key = "decoder"
    vocab_size: int = positive_int(default=32_000)
    num_hidden_layers: int = positive_int(default=4)
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key not in SPECIAL_TOKENS}


def _of_decoder(name: str) -> property:
    """An attribute that the decoder's config keeps."""
    return property(
        lambda config: getattr(config.decoder, name), lambda config, value: setattr(config.decoder, name, value)
    )


def ready_config(name_or_path: str) -> str:
    """
    The folder of a ready configuration, such as `"tiny"` or `"configuration/tiny"`; any other name, and a folder, stay
    as they are. The configurations lie in the package where it is installed, and beside it in a clone.
    """
    package, name = Path(__file__).resolve().parent, str(name_or_path).removeprefix("configuration/")
    if Path(name_or_path).is_dir() or not name.isidentifier():
        return name_or_path
    for folder in (package, package.parent):
        if (folder / "configuration" / name / "config.json").is_file():
            return str(folder / "configuration" / name)
    return name_or_path


@strict
class CrossFuseConfig(LayerConfig):
    r"""
    Configuration of a CrossFuse model: any number of named modalities, a fusion and a decoder.

    Settings of the layers (`num_attention_heads`, `norm_type`, `dropout`, ...) given here hold in every part; a part's
    own settings win.

    Args:
        d_model (`int`, defaults to 256): width of the streams, the memory and, unless they say otherwise, of every
            part.
        modalities (`dict[str, dict]`, *optional*): name of each modality to its settings. `kind` is one of `text`,
            `image`, `video`, `audio`, `series`, and may be left out where the name is the kind. The order is that of
            `modality_mask` and of the memory. Defaults to one modality `text`.
        fusion (`dict`, *optional*): see [`CrossFuseFusionConfig`].
        decoder (`dict`, *optional*): see [`CrossFuseDecoderConfig`].
        num_hidden_layers (`int`, defaults to 4): layers of each encoder and of the decoder.
        num_attention_heads (`int`, defaults to 4): attention heads.
        num_key_value_heads (`int`, *optional*): heads of the keys and values; fewer than `num_attention_heads` is
            grouped-query attention (Ainslie et al., 2023).
        intermediate_size (`int`, *optional*): width inside the feed-forward; 8/3 (SwiGLU) or 4 (GELU) times the part's
            width by default.
        mlp_type (`str`, defaults to `"swiglu"`): `"swiglu"` (Shazeer, 2020) or `"gelu"`.
        norm_type (`str`, defaults to `"rmsnorm"`): `"rmsnorm"` (Zhang & Sennrich, 2019) or `"layernorm"`.
        norm_eps (`float`, defaults to 1e-6): added to the norms' variance.
        dropout (`float`, defaults to 0.0): dropout after the embeddings, attention and feed-forward.
        attention_dropout (`float`, defaults to 0.0): dropout of attention weights.
        position_embedding_type (`str`, defaults to `"rotary"`): `"rotary"` (Su et al., 2021; one group of channels per
            axis for images and videos) or `"sinusoidal"` (Vaswani et al., 2017). Rotary positions act within
            attention: an encoder with `num_hidden_layers=0` has none.
        rope_parameters (`dict`, *optional*): rotary positions as transformers' configs have them,
            `{"rope_type": "default", "rope_theta": 10000.0}`; there is no other type.
        rope_theta (`float`, defaults to 10000.0): short form of it, the base wavelength of rotary positions.
        initializer_range (`float`, defaults to 0.02): standard deviation of initial weights.
        modality_dropout (`float`, defaults to 0.0): probability with which training leaves out a modality of a sample;
            never its last one. Each modality may have its own.
        num_answers (`int`, defaults to 0): distinct answers that an auxiliary classifier on the mean of the memory
            tells apart in training, given `answer_ids`; 0 builds none. Where each of many answers has a few examples,
            the encoders learn several times faster from it than from the decoder alone.
        answer_loss_weight (`float`, defaults to 1.0): weight of that classifier's loss beside the decoder's. Above 1,
            the encoders follow the classifier more than the decoder.
        classifier_dropout (`float`, defaults to 0.0): dropout before the last layer of the classification heads.
        labeled_modality (`str`, *optional*): whose positions [`CrossFuseForTokenClassification`] labels; the first of
            kind `text`, or else of kind `series`, by default.
        contrastive_groups (`dict[str, list[str]]`, *optional*): two groups of modalities that
            [`CrossFuseForRetrieval`] compares, by names of your own, such as
            `{"emoji": ["image", "audio"], "name": ["text"]}`. By default all that is not text, and text.
        contrastive_loss (`str`, defaults to `"softmax"`): `"softmax"` (Radford et al., 2021, *CLIP*) or `"sigmoid"`
            (Zhai et al., 2023, *SigLIP*).
        projection_dim (`int`, *optional*): width of the embeddings of [`CrossFuseForRetrieval`]; `d_model` by default.
        label_smoothing (`float`, defaults to 0.0): share of the target probability spread over the vocabulary, or
            the classes, in training.
        tie_word_embeddings (`bool`, defaults to `True`): whether the decoder's token embedding is also its output
            layer.
        pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id (`int`): special tokens of the answers.
        format_version (`int`, *optional*): version of the format that the config is written in; the newest by default.
        src_vocab_size, tgt_vocab_size (`int`, *optional*): short forms of `modalities={"text": {"vocab_size": ...}}`
            and `decoder={"vocab_size": ...}` for a text-only model. They are not saved.

    Raises:
        ValueError: if a newer release of CrossFuse wrote the config, if a key is unknown, or if a modality, the
            fusion or the decoder is wrong in any way.
        huggingface_hub.errors.StrictDataclassError: as in every transformers config, if the value of another key has
            the wrong type or is out of range. Either message names the key, the value and what is allowed.

    Example:

    ```python
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseForConditionalGeneration

    >>> config = CrossFuseConfig(
    ...     d_model=64,
    ...     num_hidden_layers=2,
    ...     modalities={
    ...         "text": {"vocab_size": 100},
    ...         "image": {"image_size": 32, "patch_size": 8},
    ...         "wrist": {"kind": "series", "num_channels": 6},
    ...     },
    ...     fusion={"type": "bottleneck", "num_layers": 1, "num_latents": 4},
    ...     decoder={"vocab_size": 100},
    ... )
    >>> model = CrossFuseForConditionalGeneration(config)
    >>> config.modalities["image"].patch_size
    8
    ```
    """

    model_type = "crossfuse"
    # What Trainer's `predict` leaves out unless its `ignore_keys` say otherwise: its predictions are the logits.
    keys_to_ignore_at_inference = [
        "cache",
        "past_key_values",
        "attention_mask",
        "modality_ids",
        "encoder_attention_mask",
        "encoder_modality_ids",
        "hidden_states",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "decoder_hidden_states",
        "attentions",
        "cross_attentions",
        "encoder_attentions",
        "decoder_attentions",
        "logits_per_image",
        "logits_per_text",
    ]
    attribute_map = {"hidden_size": "d_model"}
    sub_configs_defaults = {
        "modalities": CrossFuseModalitiesConfig,
        "fusion": CrossFuseFusionConfig,
        "decoder": CrossFuseDecoderConfig,
    }

    d_model: int = positive_int(default=256)
    num_hidden_layers: int = natural_int(default=4)
    modalities: PreTrainedConfig | dict | None = None
    fusion: PreTrainedConfig | dict | None = None
    decoder: PreTrainedConfig | dict | None = None
    modality_dropout: float | int = probability(default=0.0)
    num_answers: int = natural_int(default=0)
    answer_loss_weight: float | int = positive_float(default=1.0)
    classifier_dropout: float | int = probability(default=0.0)
    labeled_modality: str | None = None
    contrastive_groups: dict[str, list[str]] | None = None
    contrastive_loss: str = "softmax"
    projection_dim: int | None = optional_positive_int(default=None)
    label_smoothing: float | int = probability(default=0.0)
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    format_version: int = FORMAT_VERSION
    also_takes: ClassVar[tuple[str, ...]] = (*LayerConfig.also_takes, *SPECIAL_TOKENS)

    def __post_init__(self, **kwargs):
        self._check_format()
        refuse_huge("", {**self.__dict__, **kwargs})
        self.rope_parameters = read_rope_parameters(self.rope_parameters, kwargs.pop("rope_theta", None))
        tokens = {name: kwargs.pop(name) for name in SPECIAL_TOKENS if name in kwargs}
        # Of the code that a model from the Hub brings along.
        self.crossfuse_version = kwargs.pop("crossfuse_version", None)
        src_vocab_size, tgt_vocab_size = kwargs.pop("src_vocab_size", None), kwargs.pop("tgt_vocab_size", None)
        refuse_unknown_keys(self, kwargs)
        self.modalities = self._build_modalities(src_vocab_size)
        self.fusion = self._build(CrossFuseFusionConfig, self.fusion, {})
        decoder_defaults = {"num_hidden_layers": max(self.num_hidden_layers, 1)}
        if tgt_vocab_size is not None:
            if isinstance(self.decoder, PreTrainedConfig) or "vocab_size" in (self.decoder or {}):
                raise ValueError(f"`tgt_vocab_size={tgt_vocab_size!r}` and the `vocab_size` of `decoder`; drop one")
            decoder_defaults["vocab_size"] = tgt_vocab_size
        self._refuse_other_tokens(tokens)
        self.decoder = self._build(CrossFuseDecoderConfig, self.decoder, decoder_defaults)
        for name, token in tokens.items():
            setattr(self.decoder, name, token)
        super().__post_init__(**kwargs)
        if self.label2id is None:  # transformers makes it of default labels alone
            self.label2id = {label: number for number, label in self.id2label.items()}

    def _check_format(self):
        """Refuses newer formats. It is checked first, since they may have keys that are unknown here."""
        version = self.format_version
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"`format_version={version!r}`; expected 1 to {FORMAT_VERSION}, which this release reads. For what a "
                "newer one has written, upgrade: `pip install --upgrade crossfuse`"
            )
        self.format_version = FORMAT_VERSION

    def _refuse_other_tokens(self, tokens: dict[str, Any]):
        """Raises a `ValueError` for a special token that differs from the one in the settings of the decoder."""
        settings = self.decoder if isinstance(self.decoder, dict) else {}
        for name, token in tokens.items():
            if settings.get(name, token) != token:
                raise ValueError(f"`{name}={token!r}`, and `{name}={settings[name]!r}` of `decoder`; drop one")

    def _shared(self) -> dict[str, Any]:
        return {"hidden_size": self.d_model, "dtype": self.dtype, **{key: getattr(self, key) for key in LAYER_FIELDS}}

    def _build(self, config_class: type[PartConfig], part: Any, defaults: dict[str, Any]) -> PreTrainedConfig:
        if isinstance(part, PreTrainedConfig):
            return part
        where = config_class.base_config_key
        return build_part(where, config_class, _settle({**self._shared(), **defaults}, part or {}))

    def _build_modalities(self, src_vocab_size: int | None) -> CrossFuseModalitiesConfig:
        modalities = self.modalities
        if isinstance(modalities, PreTrainedConfig):
            return modalities
        if src_vocab_size is not None and modalities is not None:
            raise ValueError(
                f"`src_vocab_size={src_vocab_size!r}` is the short form of a text-only model; with `modalities`, give "
                '`modalities={"text": {"vocab_size": ...}}` instead'
            )
        if modalities is None:
            modalities = {"text": {} if src_vocab_size is None else {"vocab_size": src_vocab_size}}
        if not modalities:
            raise ValueError("`modalities` is empty; expected at least one modality")
        if len(modalities) > MAX_MODALITIES:
            raise ValueError(f"`modalities` has {len(modalities):,} entries; expected at most {MAX_MODALITIES:,}")
        inherited = ("num_hidden_layers", "modality_dropout")
        defaults = {**self._shared(), **{key: getattr(self, key) for key in inherited}}
        parts = {
            name: self._with_defaults(part, defaults) if isinstance(part, dict) else part
            for name, part in modalities.items()
        }
        names = parts.pop("names", list(parts))
        for name in parts:
            check_modality_name(name)
        return CrossFuseModalitiesConfig(names=names, **parts)

    def _with_defaults(self, part: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        if "encoder" in part:  # an encoder of transformers has settings of its own
            defaults = {"modality_dropout": self.modality_dropout, "dtype": self.dtype}
        return _settle(defaults, part)

    def validate_widths(self):
        for where in ("fusion", "decoder"):
            part = getattr(self, where)
            if isinstance(part, PreTrainedConfig) and part.hidden_size != self.d_model:
                raise ValueError(f"`{where}` has `hidden_size={part.hidden_size}`; expected `d_model={self.d_model}`")

    def validate_tensor_names(self):
        """No two modalities may share an argument of `forward`, and none may take one that `generate` keeps."""
        if not isinstance(self.modalities, CrossFuseModalitiesConfig):
            return
        names = self.modalities.tensor_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`modalities` has two modalities that are both given as `{twice[0]}`; rename one")
        reserved = [name for name in names if name.startswith(_RESERVED_STARTS)]
        if reserved:
            raise ValueError(
                f"`modalities` has one that would be given as `{reserved[0]}`, which is no name for an input: "
                f"`generate` keeps what starts with {', '.join(_RESERVED_STARTS)} for the decoder; rename it"
            )

    def validate_problem_type(self):
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"`problem_type={self.problem_type!r}`; expected one of {', '.join(PROBLEM_TYPES)}, or None"
            )

    def validate_labeled_modality(self):
        if self.labeled_modality is not None and self.labeled_modality not in self.modalities:
            raise ValueError(
                f"`labeled_modality={self.labeled_modality!r}` is no modality; expected one of "
                f"{', '.join(self.modalities)}"
            )

    def validate_contrastive(self):
        if self.contrastive_loss not in ("softmax", "sigmoid"):
            raise ValueError(f"`contrastive_loss={self.contrastive_loss!r}`; expected 'softmax' or 'sigmoid'")
        if self.contrastive_groups is None:
            return
        members = [name for group in self.contrastive_groups.values() for name in group]
        unknown = [name for name in members if name not in self.modalities]
        if len(self.contrastive_groups) != 2 or not all(self.contrastive_groups.values()):
            raise ValueError(
                f"`contrastive_groups={self.contrastive_groups}`; expected two groups of at least one modality each"
            )
        if unknown or len(set(members)) < len(members):
            raise ValueError(
                f"`contrastive_groups={self.contrastive_groups}`; expected each of {', '.join(self.modalities)} once "
                "at most, and nothing else"
            )

    def validate_special_tokens(self):
        for name in self._unknown_tokens():
            raise ValueError(
                f"`{name}={getattr(self, name)}` is not a token of the decoder; expected at least 0 and below "
                f"`vocab_size={self.vocab_size}`"
            )

    def _unknown_tokens(self) -> list[str]:
        """Names of the special tokens that are not in the decoder's vocabulary."""
        ids = {name: getattr(self, name) for name in SPECIAL_TOKENS}
        known = range(self.vocab_size)
        return [
            name
            for name, tokens in ids.items()
            if any(
                token not in known for token in (tokens if isinstance(tokens, list) else [tokens]) if token is not None
            )
        ]

    def forget_unknown_tokens(self):
        """Sets the special tokens that are not in the decoder's vocabulary to None, for a model without a decoder."""
        for name in self._unknown_tokens():
            setattr(self, name, None)

    def __setattr__(self, key, value):
        super().__setattr__(key, value)
        if key == "dtype":  # saving a model sets it here only
            for name in self.sub_configs_defaults:
                part = self.__dict__.get(name)
                if isinstance(part, PreTrainedConfig):
                    part.dtype = value

    @property
    def resolved_problem_type(self) -> str:
        """`problem_type` or, without one, the type for which transformers' loss takes integer labels."""
        return self.problem_type or ("regression" if self.num_labels == 1 else "single_label_classification")

    vocab_size = _of_decoder("vocab_size")
    use_cache = _of_decoder("use_cache")
    pad_token_id = _of_decoder("pad_token_id")
    bos_token_id = _of_decoder("bos_token_id")
    eos_token_id = _of_decoder("eos_token_id")
    decoder_start_token_id = _of_decoder("decoder_start_token_id")

    @property
    def num_frames(self) -> int:
        """Frames that the first modality of kind `video` samples; the pipeline `video-classification` asks for it."""
        for name in self.modalities.names_of_kind("video"):
            return self.modalities[name].num_frames
        raise AttributeError("this CrossFuse model has no modality of kind 'video', so its config has no `num_frames`")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """
        The decoder's config; with `encoder=True`, or of a model without a decoder (`is_encoder_decoder=False`), that
        of the first modality of kind `text`, if there is one.
        """
        if (encoder and not decoder) or not self.is_encoder_decoder:
            texts = self.modalities.names_of_kind("text")
            return self.modalities[texts[0]] if texts else self
        return self.decoder

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in every transformers config, and the name of a ready configuration, such as `"tiny"`, will do, too."""
        return super().from_pretrained(ready_config(pretrained_model_name_or_path), *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.validate()  # `kwargs` were set after the config was made
        return loaded

    def to_dict(self) -> dict[str, Any]:
        output = {**super().to_dict(), **{name: getattr(self, name) for name in SPECIAL_TOKENS}}
        output.pop("auto_map", None)  # goes with the code: see `save_code`
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        # The base class would leave out of each part what equals the part's own default; a public format says it all.
        base = PreTrainedConfig().to_dict()
        output = self.to_dict()
        output.pop("_name_or_path", None)  # where it was loaded from is nobody else's business
        kept = {key: value for key, value in output.items() if key not in base or value != base[key]}
        return {**kept, "transformers_version": output["transformers_version"]}


def _settle(defaults: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The settings of a part, with defaults for what it does not say."""
    settings = {**defaults, **copy.deepcopy(part)}
    rope_parameters = part.get("rope_parameters")
    if "rope_theta" not in part and isinstance(rope_parameters, dict) and "rope_theta" in rope_parameters:
        settings.pop("rope_theta", None)
    return settings


__all__ = ["CrossFuseConfig", "CrossFuseDecoderConfig", "CrossFuseFusionConfig"]
