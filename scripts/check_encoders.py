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
Tries every encoder of Transformers - text, image, video, audio - with a tiny random model of its type.

Configurations are made tiny by the names and types of their fields, whatever the type of the model, in levels: the
first one takes the most away, and each following one keeps more of the default.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig
from transformers.utils import is_timm_available


KINDS = {
    "text": {"input_ids"},
    "image": {"pixel_values"},
    "video": {"pixel_values_videos", "pixel_values"},
    "audio": {"input_features", "input_values"},
}

VOCABULARY = 128
EXPERTS = 4
LAYERS = 2
MOST_LAYERS = 5

# Fields never passed on: they follow from others, or say nothing about the architecture.
DERIVED = re.compile(r"^(_.*|id2label|label2id|architectures|transformers_version|stage_names|attribute_map)$")
# The first pattern that finds something in a field's name says what the field holds; "keep" protects from the ones below.
ROLES = [
    ("keep", r"^(max|min)_depth|^depth_(co|div|mul|conf|sep)|feat_extract_layers|max_window_layers|depthwise_padding"),
    ("keep", r"^((num|in|audio|input|num_input|patch_embed_input)_)?(channels|chans)(_out)?$|mel|^input_(dim|feat)"),
    ("keep", r"projection_input_dim|model_in_dim|^(act|state|query)_dim|pos_dim|^max_(action|state)_dim|proj_layers"),
    ("zero", r"^num_kv_shared_layers$|^num_nextn_predict_layers$"),
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
    ("width", r"(dims?|dimension|channels?|width|rank|units|filters|num_pos_feats|upsample_groups)$"),
    ("width", r"(hidden|intermediate|embed|embedding|embeds|head|projection|proj|inner|ffn|feedforward)_sizes?$"),
    ("width", r"^d_(model|ff|kv|head|inner|latents|rel)$|^n_(embd|inner)$|^(fpn_feature|pooler_output)_size$"),
    ("width", r"dim_(feedforward|head|bbox\w*)$|^(hidden|intermediate)_size_\w+$"),
    ("width", r"^(coordinate|shape|emb|entity_emb|bottleneck|feed_forward|flow)_size$"),
]


@dataclass
class Level:
    """How much of a configuration to take away; widths are divided by `factor`."""

    factor: int = 1
    layers: bool = True
    vocabulary: bool = True
    experts: bool = True


LEVELS = [Level(16), Level(8), Level(4), Level(2), Level(1), Level(1, vocabulary=False), Level(1, layers=False)]


@dataclass
class Shrinking:
    """What has to be the same in a configuration and in all the configurations inside it."""

    level: Level
    layers: int = LAYERS
    old_layers: int = 0
    identifiers: dict[int, int] = field(default_factory=dict)

    def width(self, value: Any) -> Any:
        return value // self.level.factor if is_int(value) and value % self.level.factor == 0 else value

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

    def one(self, value: Any) -> Any:
        return min(value, 1) if self.level.experts and is_int(value) else value

    def zero(self, value: Any) -> Any:
        return 0 if self.level.layers and is_int(value) else value

    def number_of_layers(self, value: Any) -> Any:
        return min(value, self.layers) if self.level.layers and is_int(value) else value

    def depths(self, value: Any) -> Any:
        return min(value, 1) if self.level.layers and is_int(value) else value

    def positions(self, value: Any) -> Any:
        """Indices of layers: the last of those that are left; without a list of numbers, an entry for each layer."""
        if not self.level.layers or not isinstance(value, (list, tuple)) or not value:
            return value
        if len(value) == self.old_layers:
            return self.per_layer(value)
        if not all(is_int(entry) for entry in value):
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
        if not isinstance(value, (list, tuple)) or not value:
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
    """Indices of layers among `old_layers` as indices among `layers`: the last ones, negative where they all were."""
    count = min(len(indices), layers)
    if max(indices) < 0:
        return list(range(-count, 0))
    if max(indices) <= layers - 1 or not old_layers or max(indices) > old_layers:
        return list(indices)
    last = layers if max(indices) == old_layers else layers - 1
    return list(range(last - count + 1, last + 1))


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
        return shrink_config(value, shrinking)
    if value is None or isinstance(value, (bool, str, float)):
        return value
    role = role_of(name)
    if role is None or role == "keep":
        return value
    whole = {"positions": shrinking.positions, "per_layer": shrinking.per_layer, "rotary": shrinking.rotary}
    if role in whole:
        return whole[role](value)
    return map_entries(getattr(shrinking, role), value)


def declared_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that a configuration's class declares, with their values."""
    names = [entry.name for entry in fields(config) if not DERIVED.search(entry.name)]
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def default_of(config_class: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return config_class()
    except Exception:  # Some classes cannot do without arguments.
        return None


def is_derived(config: PreTrainedConfig, name: str) -> bool:
    """Whether a list or dictionary is made by the class itself, from other fields."""
    declared = {entry.name: entry.default for entry in fields(config)}
    return declared.get(name, MISSING) is None and isinstance(getattr(config, name), (list, tuple, dict))


def count_layers(config: PreTrainedConfig) -> int:
    """The number of layers of a configuration, 0 without one."""
    counts = {name: value for name, value in declared_fields(config).items() if role_of(name) == "number_of_layers"}
    main = getattr(config, "num_hidden_layers", None)
    return main if is_int(main) and main in counts.values() else max(filter(is_int, counts.values()), default=0)


def shrink_config(config: PreTrainedConfig, shrinking: Shrinking) -> PreTrainedConfig:
    """A smaller configuration of the same class: it is made anew, with the fields that are not the default any more."""
    if type(config).__module__.find(".timm_") >= 0 and not is_timm_available():
        return replace_backbone(config)
    shrinking.old_layers, above = count_layers(config) or shrinking.old_layers, shrinking.old_layers
    default = default_of(type(config))
    changed = {}
    for name, value in declared_fields(config).items():
        if default is not None and getattr(default, name, None) == value and is_derived(config, name):
            continue
        small = shrink_field(name, value, shrinking)
        if default is None or not same(small, getattr(default, name, MISSING)):
            changed[name] = small
    changed.update(shrink_outputs(config, default, shrinking))
    shrinking.old_layers = above
    return type(config)(**changed)


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


def replace_backbone(config: PreTrainedConfig) -> PreTrainedConfig:
    """A tiny ResNet with as many outputs, for a backbone that needs timm."""
    count = len(getattr(config, "out_indices", None) or [-1])
    widths = [8, 16, 32, 64]
    return ResNetConfig(
        embedding_size=8, hidden_sizes=widths, depths=[1] * 4, layer_type="basic", out_indices=list(range(5 - count, 5))
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
    lists += [value for name, value in declared_fields(config).items() if role_of(name) == "positions"]
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
    made, error = None, None
    for level in LEVELS:
        try:
            config = shrink(config_class(), level)
            model = AutoModel.from_config(config)
            made = made or config
            if works is not None:
                works(model)
            return config
        except Exception as problem:  # A smaller model of the type is not possible, in one of very many ways.
            error = error or problem
    if made is None:
        raise ValueError(f"{config_class.__name__} cannot be made tiny: {error}") from error
    return made


def kinds_of(model: nn.Module) -> set[str]:
    """The kinds of inputs that a model or one of the models inside it takes."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {name for module in models for name in inspect.signature(module.forward).parameters}
    return {kind for kind, inputs in KINDS.items() if inputs & names}


def encoder_types() -> list[str]:
    """Every type of model that `AutoModel` can make."""
    return [model_type for model_type, config_class in CONFIG_MAPPING.items() if config_class in MODEL_MAPPING]
