# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Training a tokenizer."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    A byte-level BPE tokenizer (Sennrich et al., 2016) of the texts, with `<pad>`, `<s>` and `</s>` as tokens 0, 1 and
    2. It reads these as any other characters where they stand in a text, which comes back as it was, but for Unicode's
    NFC normalisation.

    Args:
        texts (`Iterable[str]`): the texts that the vocabulary is learnt from.
        vocab_size (`int`): the largest number of tokens; bytes alone are 256.

    Example:

    ```python
    >>> from modeling_crossfuse.training import train_tokenizer

    >>> tokenizer = train_tokenizer(["red apple", "green apple"], vocab_size=300)
    >>> tokenizer.decode(tokenizer("green apple").input_ids, skip_special_tokens=True)
    'green apple'
    ```
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",
        split_special_tokens=True,
    )
