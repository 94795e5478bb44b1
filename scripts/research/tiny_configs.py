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
Tiny configurations of any type of model that transformers has, for `check_encoders.py`.

Configurations are made tiny by the names and types of their fields, whatever the type of the model, in levels: the
first one takes the most away, and each following one keeps more of the default.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from math import gcd
from types import SimpleNamespace
from typing import Any

from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig
from transformers.utils import is_timm_available


VOCABULARY = 128
VOCABULARY_MAP = {"<image>": 100, "<|image|>": 101, "<|extra_200|>": 102, "IMGIMGAZ": 103}
VOCABULARY_MAP["<|visual token 000000|>"] = 104
IMAGE_SIZE = 64
EXPERTS = 4
QUERIES = 8
SIDE = 4
GROUPS = 32
LAYERS = 2
MOST_LAYERS = 5

# Fields never passed on: they follow from others, or say nothing about the architecture.
DERIVED = re.compile(r"^(_.*|id2label|label2id|architectures|transformers_version|stage_names|attribute_map)$")
# The first pattern that finds something in a field's name says what the field holds; "keep" protects from the rest.
ROLES = [
    ("keep", r"^(max|min)_depth|^depth_(co|div|mul|conf|sep)|feat_extract_layers|max_window_layers|depthwise_padding"),
    ("keep", r"^pos_emb_width$|^subsampling_conv_channels$|^global_attention_blocks$"),
    ("queries", r"^num_queries$"),
    ("side", r"^axial_pos_shape$"),
    ("keep", r"^((num|in|audio|input|num_input|patch_embed_input)_)?(channels|chans)(_out)?$|mel|^input_(dim|feat)"),
    ("keep", r"projection_input_dim|model_in_dim|^(act|state|query)_dim|pos_dim|^max_(action|state)_dim|proj_layers"),
    ("zero", r"^(num_kv_shared_layers|num_nextn_predict_layers|merge_index)$"),
    ("one", r"^(n|topk|moe_n|num_expert)_groups?$|^first_k_dense_replace$|^insert_layer_id$|(n|num)_shared_experts$"),
    ("experts", r"(^|_)(num|n)_(local_|routed_)?experts$"),
    ("chosen", r"experts_per_tok$|^(moe_)?(top_?k|k)$"),
    ("identifier", r"(_token_(ids?|index)|_id)$"),
    ("vocabulary", r"vocab(_size(s|_base|_per_layer_input)?)?$|hash_buckets$"),
    ("positions", r"(indices|indexes|idxs?|cross_attention_layers|target_layers|extract_layers|hook_ids)$"),
    ("positions", r"(kv_source_layers|rope_scaling_layers|layer_ids|feature_layer|attention_blocks|no_rope_layers)$"),
    ("number_of_layers", r"^(n_layers?|layers|depth|num_self_attends_per_block)$|_layers$|_depth$|num_\w+_layers"),
    ("depths", r"^(depths?|num_block_repeats|blocks_per_stage|block_sizes|block_repeats|n_attn_blocks)$"),
    ("depths", r"^(stage_numb_of_layers|stage_num_blocks)$"),
    ("rotary", r"^rope_(parameters|scaling)$"),
    ("per_layer", r"layer|types$|pattern$"),
    ("grouped", r"^base_channels$"),
    ("heads", r"(^|_)heads?(_per_stage)?$|^num_(attention|key_value)_heads\w*$"),
    ("head_width", r"head_dim$|^d_(kv|head)$|head_size$|dim_head$|^rotary_dim$"),
    ("width", r"(dims?|dimension|channels?|width|rank|units|filters|num_pos_feats|upsample_groups)$"),
    ("width", r"(hidden|intermediate|embed|embedding|embeds|head|projection|proj|inner|ffn|feedforward)_sizes?$"),
    ("width", r"^d_(model|ff|kv|head|inner|latents|rel)$|^n_(embd|inner)$|^(fpn_feature|pooler_output)_size$"),
    ("width", r"dim_(feedforward|head|bbox\w*)$|^(hidden|intermediate)_size_\w+$|embed_dim_\w+$|channel_list$"),
    ("width", r"^(coordinate|shape|emb|entity_emb|bottleneck|feed_forward|flow|adapter_input)_size$|^out_features$"),
]

# Values for fields that some classes leave at None, although their models cannot be made without.
COMPLETIONS: dict[str, Callable[[SimpleNamespace, int], Any]] = {
    "vocab_size": lambda config, layers: VOCABULARY,
    "prediction_length": lambda config, layers: 4,
    "num_experts": lambda config, layers: EXPERTS,
    "vocabulary_map": lambda config, layers: VOCABULARY_MAP,
    "head_dim": lambda config, layers: config.hidden_size // config.num_attention_heads,
    "mlp_layer_types": lambda config, layers: ["dense"] * layers,
    "moe_intermediate_size": lambda config, layers: config.hidden_size,
    "top_k_experts": lambda config, layers: EXPERTS // 2,
    "pad_token_id": lambda config, layers: 1,
    "indexer_n_heads": lambda config, layers: 2,
    "indexer_kv_heads": lambda config, layers: 1,
    "indexer_head_dim": lambda config, layers: config.head_dim,
    "indexer_budget": lambda config, layers: 64,
    "indexer_compress_ratio": lambda config, layers: 16,
    "default_language": lambda config, layers: config.languages[0],
    "downsample_rate": lambda config, layers: "1/2",
    "deepstack_layer_map": lambda config, layers: [(layers - 1, 0)],
}


@dataclass
class Level:
    """
    How much of a configuration to take away; widths are divided by `factor`.

    With `fewer_heads`, attention heads become fewer, which leaves rotary embeddings as they are; otherwise narrower.
    `complete` fills in what the default lacks.
    """

    factor: int = 1
    layers: bool = True
    vocabulary: bool = True
    experts: bool = True
    complete: bool = False
    fewer_heads: bool = False


LEVELS = [
    Level(16, fewer_heads=True),
    Level(16),
    Level(8, fewer_heads=True),
    Level(8),
    Level(4, fewer_heads=True),
    Level(4),
    Level(16, fewer_heads=True, layers=False),
    Level(16, layers=False),
    Level(16, fewer_heads=True, complete=True),
    Level(8, complete=True),
    Level(4, complete=True),
    Level(2),
    Level(1),
    Level(1, complete=True),
    Level(1, vocabulary=False),
    Level(1, layers=False),
]


@dataclass
class Shrinking:
    """What has to be the same in a configuration and in all the configurations inside it."""

    level: Level
    layers: int = LAYERS
    old_layers: int = 0
    identifiers: dict[int, int] = field(default_factory=dict)

    def width(self, value: Any) -> Any:
        return value // self.level.factor if is_int(value) and value % self.level.factor == 0 else value

    def grouped(self, value: Any) -> Any:
        """Channels that are normalized in groups, of which there are usually 32."""
        return max(self.width(value), GROUPS) if is_int(value) and value % GROUPS == 0 else value

    def head_width(self, value: Any) -> Any:
        return value if self.level.fewer_heads else self.width(value)

    def heads(self, value: Any) -> Any:
        return max(value // self.level.factor, 1) if self.level.fewer_heads and is_int(value) else value

    def identifier(self, value: Any) -> Any:
        """The id that takes a special token's place in the small vocabulary, always the same for the same token."""
        if not self.level.vocabulary or not is_int(value) or value < VOCABULARY:
            return value
        return self.identifiers.setdefault(value, VOCABULARY - 1 - len(self.identifiers))

    def vocabulary(self, value: Any) -> Any:
        return VOCABULARY if self.level.vocabulary and is_int(value) and value > VOCABULARY else value

    def experts(self, value: Any) -> Any:
        return min(value, EXPERTS) if self.level.experts and is_int(value) else value

    def chosen(self, value: Any) -> Any:
        return min(value, EXPERTS // 2) if self.level.experts and is_int(value) else value

    def queries(self, value: Any) -> Any:
        """Of detectors, which choose so many from the positions of an image."""
        return min(value, QUERIES) if is_int(value) else value

    def side(self, value: Any) -> Any:
        """Of a square of positions, all of which a text has to fill in training: those of a made-up text."""
        return SIDE if is_int(value) else value

    def one(self, value: Any) -> Any:
        return min(value, 1) if self.level.experts and is_int(value) else value

    def zero(self, value: Any) -> Any:
        return 0 if self.level.layers and is_int(value) else value

    def number_of_layers(self, value: Any) -> Any:
        return min(value, self.layers) if self.level.layers and is_int(value) else value

    def depths(self, value: Any) -> Any:
        return min(value, 1) if self.level.layers and is_int(value) else value

    def positions(self, value: Any) -> Any:
        """Indices of layers: the last of those that are left."""
        if not self.level.layers:
            return value
        if is_int(value):
            return max(min(value, self.layers - 1), -self.layers)
        if not isinstance(value, (list, tuple)) or not all(map(is_int, value)):
            return value
        return type(value)(last_layers(value, self.old_layers, self.layers))

    def per_layer(self, value: Any) -> Any:
        """An entry for each layer: the last ones, which have both kinds of layers more often than the first ones."""
        listed = self.level.layers and isinstance(value, (list, tuple)) and len(value) == self.old_layers
        return value[-self.layers :] if listed else value

    def rotary(self, value: Any) -> Any:
        """Parameters of rotary embeddings: sections and factors are as many as a head is wide."""
        if isinstance(value, dict):
            return {key: self.rotary(entry) for key, entry in value.items()}
        if not isinstance(value, (list, tuple)) or not value or self.level.fewer_heads:
            return value
        if all(is_int(entry) for entry in value):
            return type(value)(split_evenly(sum(value) // self.level.factor, value))
        return value[: max(len(value) // self.level.factor, 1)]


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def split_evenly(total: int, parts: list[int]) -> list[int]:
    """`total` in the same proportions as `parts`."""
    ends = [round(total * sum(parts[: i + 1]) / sum(parts)) for i in range(len(parts))]
    return [end - start for start, end in zip([0, *ends], ends)]


def last_layers(indices: list[int], old_layers: int, layers: int) -> list[int]:
    """Indices of layers among `old_layers` as indices among `layers`: the last ones, in the same order."""
    if not indices or -layers <= min(indices) <= max(indices) < layers:
        return list(indices)
    last = -1 if max(indices) < 0 else layers if max(indices) == old_layers else layers - 1
    kept = sorted(set(indices))[-layers:]
    return [last - (len(kept) - 1 - kept.index(index)) for index in indices if index in kept]


def map_entries(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies a function to a value, or to every value in (nested) lists."""
    if isinstance(value, (list, tuple)):
        return type(value)(map_entries(function, entry) for entry in value)
    return function(value)


def role_of(name: str) -> str | None:
    """What a field of this name holds, see `ROLES`."""
    return next((role for role, pattern in ROLES if re.search(pattern, name)), None)


def shrink_field(name: str, value: Any, shrinking: Shrinking) -> Any:
    """The value for a field of this name in a smaller configuration."""
    if isinstance(value, PreTrainedConfig):
        return replace_backbone(value) if needs_timm(value) else shrink_config(value, shrinking)
    if value is None or isinstance(value, (bool, str, float)):
        return value
    value, role = shrinking.per_layer(value), role_of(name)
    if role is None or role in ("keep", "per_layer"):
        return value
    if role in ("positions", "rotary"):
        return getattr(shrinking, role)(value)
    return map_entries(getattr(shrinking, role), value)


def declared_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that a configuration's class declares, with their values, wherever it keeps them."""
    kept = {entry.name: config.attribute_map.get(entry.name, entry.name) for entry in fields(config)}
    return {name: vars(config)[key] for name, key in kept.items() if key in vars(config) and not DERIVED.search(name)}


def default_of(config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return config_class()
    except Exception:  # Some classes cannot do without arguments.
        return None


def is_derived(config: PreTrainedConfig, name: str) -> bool:
    """Whether the class itself makes a list or dictionary, from other fields."""
    value, role = declared_fields(config)[name], role_of(name)
    declared = {entry.name: entry.default for entry in fields(config)}
    if declared.get(name, MISSING) is not None or not isinstance(value, (list, tuple, dict)):
        return False
    if role == "per_layer" and len(set(map(str, value))) > 1:
        return False  # The last layers have both kinds of attention, but a class may give the first ones just one.
    return role in (None, "keep", "per_layer") and not config.is_heterogeneous


def count_layers(config: PreTrainedConfig) -> int:
    """The number of layers of a configuration, 0 without one."""
    counts = {name: value for name, value in declared_fields(config).items() if role_of(name) == "number_of_layers"}
    main = getattr(config, "num_hidden_layers", None)
    return main if is_int(main) and main in counts.values() else max(filter(is_int, counts.values()), default=0)


def shrink_config(config: PreTrainedConfig, shrinking: Shrinking) -> PreTrainedConfig:
    """A smaller configuration of the same class, made anew with the fields that are not the default any more."""
    above, shrinking.old_layers = shrinking.old_layers, count_layers(config) or shrinking.old_layers
    default = default_of(type(config))
    usual = declared_fields(default) if default is not None else {}
    changed = {}
    for name, value in {**declared_fields(config), **optional_configs(config)}.items():
        if name in usual and same(value, usual[name]) and is_derived(config, name):
            continue
        small = shrink_field(name, value, shrinking)
        if name not in usual or not same(small, usual[name]):
            changed[name] = small
    if isinstance(usual.get("image_size"), int) and not any("patch" in name for name in usual):
        changed["image_size"] = IMAGE_SIZE  # convolutions take any; numbers of patches other fields may count on
    changed |= shrink_outputs(config, default, shrinking) | shrink_exceptions(config, shrinking) | name_model(config)
    if shrinking.level.complete:
        changed |= complete(config, {**usual, **changed}, shrinking)
    shrinking.old_layers = above
    return fit_heads(type(config), changed)


def optional_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The configurations that the default leaves out, together with a part of the model."""
    missing = {name: inner for name, inner in config.sub_configs.items() if vars(config).get(name, config) is None}
    return {name: inner() for name, inner in missing.items() if issubclass(inner, PreTrainedConfig)}


def fit_heads(config_class: type[PreTrainedConfig], changed: dict[str, Any]) -> PreTrainedConfig:
    """Makes a configuration with no more attention heads than its width can be divided among."""
    config = config_class(**changed)
    names = {name: config.attribute_map.get(name, name) for name in ("hidden_size", "num_attention_heads", "head_dim")}
    width, heads, head = (vars(config).get(name) for name in names.values())
    if head is not None or not is_int(width) or not is_int(heads) or heads < 1 or width % heads == 0:
        return config
    fewer = {names["num_attention_heads"]: gcd(width, heads)}
    groups = vars(config).get("num_key_value_heads")
    if is_int(groups):
        fewer["num_key_value_heads"] = gcd(groups, gcd(width, heads))
    return config_class(**{**changed, **fewer})


def shrink_exceptions(config: PreTrainedConfig, shrinking: Shrinking) -> dict[str, dict[int, dict[str, Any]]]:
    """The fields that have other values in some of the layers."""
    if not config.is_heterogeneous:
        return {}
    exceptions = config._heterogeneity_spec.per_layer_overrides
    gone = shrinking.old_layers - shrinking.layers if shrinking.level.layers else 0
    kept = {index - gone: entries for index, entries in exceptions.items() if index >= gone}
    return {
        "per_layer_config": {
            index: {name: shrink_field(name, value, shrinking) for name, value in entries.items()}
            for index, entries in kept.items()
        }
    }


def name_model(config: PreTrainedConfig) -> dict[str, list[str]]:
    """The model that `AutoModel` is to make, where there are several for a configuration."""
    try:
        models = MODEL_MAPPING[type(config)]
    except (KeyError, ValueError):  # No model of its own, or one that Transformers does not export.
        return {}
    return {"architectures": [models[0].__name__]} if isinstance(models, (list, tuple)) else {}


def complete(config: PreTrainedConfig, values: dict[str, Any], shrinking: Shrinking) -> dict[str, Any]:
    """Values for the fields that are left at None, see `COMPLETIONS`."""
    layers = shrinking.layers if shrinking.level.layers else shrinking.old_layers
    missing = [name for name in COMPLETIONS if name in values and values[name] is None]
    values = SimpleNamespace(**values)
    return {name: COMPLETIONS[name](values, layers) for name in missing}


def same(one: Any, other: Any) -> bool:
    """Whether a value needs no mention; configurations are always mentioned."""
    return not isinstance(one, PreTrainedConfig) and type(one) is type(other) and one == other


def shrink_outputs(
    config: PreTrainedConfig, default: PreTrainedConfig | None, shrinking: Shrinking
) -> dict[str, list[int]]:
    """The layers whose outputs a backbone gives, where they are not those of the class."""
    indices = getattr(config, "_out_indices", None)
    if not indices:
        return {}
    small = shrinking.positions(list(indices)) if count_layers(config) else list(indices)
    return {} if small == getattr(default, "_out_indices", None) and small == indices else {"out_indices": small}


def needs_timm(config: PreTrainedConfig) -> bool:
    """Whether a configuration is one of a model of timm, which is not installed."""
    return ".timm_" in type(config).__module__ and not is_timm_available()


def replace_backbone(config: PreTrainedConfig) -> PreTrainedConfig:
    """A tiny ResNet with as many outputs, for a backbone that needs timm."""
    count = len(getattr(config, "out_indices", None) or [-1])
    widths = [8, 16, 32, 64]
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=widths,
        depths=[1] * 4,
        layer_type="basic",
        out_indices=list(range(5 - count, 5)),
    )


def inner_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and all those inside it."""
    yield config
    for value in declared_fields(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from inner_configs(value)


def layers_needed(config: PreTrainedConfig) -> int:
    """The smallest number of layers that has room for the lists of layers in a configuration."""
    lists = [getattr(config, "_out_indices", None)] if count_layers(config) else []
    roles = ["positions", "depths"] if count_layers(config) else ["positions"]
    lists += [value for name, value in declared_fields(config).items() if role_of(name) in roles]
    lengths = [len(value) for value in lists if isinstance(value, (list, tuple))]
    return max((length for length in lengths if length <= MOST_LAYERS), default=0)


def shrink(config: PreTrainedConfig, level: Level) -> PreTrainedConfig:
    """A configuration of the same class as small as a level asks for."""
    configs = list(inner_configs(config))
    layers = max(LAYERS, *map(layers_needed, configs))
    return shrink_config(config, Shrinking(level, layers, max(map(count_layers, configs))))


def tiny_config(
    config_class: type[PreTrainedConfig], works: Callable[[PreTrainedModel], Any] | None = None
) -> PreTrainedConfig:
    """
    A tiny configuration of a class: the smallest level of which `AutoModel` makes a model that `works`.

    `works` raises an error for a model that does not; where none does, the smallest that can be made is good enough.
    """
    made, errors = None, []
    for level in LEVELS:
        if level.factor == 1 and len({str(error) for error in errors}) == 1:
            break  # What fails in the same way at all the small sizes does so at the default size, after a long time.
        try:
            config = shrink(config_class(), level)
            model = AutoModel.from_config(config)
            made = made or config
            if works is not None:
                works(model)
            return config
        except ImportError:
            raise
        except Exception as error:  # A smaller model of the type is not possible, in one of very many ways.
            errors.append(error)
    if made is None:
        raise ValueError(f"{config_class.__name__} cannot be made tiny: {errors[0]}") from errors[0]
    return made
