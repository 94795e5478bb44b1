# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Stand-in: other values than the defaults of keys that any config takes; `ConfigTester` sets and reads them."""

config_common_kwargs = {
    "architectures": ["CrossFuseModel"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "only"},
    "label2id": {"only": "0"},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
