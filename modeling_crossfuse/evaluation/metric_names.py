# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The names of the metrics, for tables and cards; to import them takes no more than Python."""

# For each key that the metrics give: the name that people know it by, and how many digits say enough.
METRICS = {
    "exact_match": ("exact match", 3),
    "cer": ("CER", 3),
    "chrf": ("chrF", 1),
    "accuracy": ("accuracy", 3),
    "f1_macro": ("macro F1", 3),
    "f1_micro": ("micro F1", 3),
    "subset_accuracy": ("subset accuracy", 3),
    "mae": ("MAE", 3),
    "rmse": ("RMSE", 3),
    "r2": ("R²", 3),
    "recall_at_1": ("recall@1", 3),
    "recall_at_5": ("recall@5", 3),
    "recall_at_10": ("recall@10", 3),
    "mrr": ("MRR", 3),
    "loss": ("loss", 3),
}
