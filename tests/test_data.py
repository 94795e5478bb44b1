# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""CrossFuseDataCollator: rows of a data set to batches with labels."""

import copy
import io
import json
import pickle
import tarfile
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_crossfuse import CrossFuseConfig
from modeling_crossfuse.data.bad_samples import find_unreadable, skip_bad_samples
from modeling_crossfuse.data.collator import CrossFuseDataCollator
from modeling_crossfuse.data.rows import (
    NumberedRows,
    check_columns,
    get_column,
    load_rows,
    row_numbers,
    select_columns,
    select_rows,
    undecoded,
)
from modeling_crossfuse.processing_crossfuse import CrossFuseProcessor
from modeling_crossfuse.training.tokenizer import train_tokenizer

from .helpers import tiny_config, tiny_model


EMOJI = Path(__file__).parent.parent / "data" / "emoji"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Characters: every answer comes back letter by letter."""
    letters = " abcdefghijklmnopqrstuvwxyz"
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[BOS]", "[EOS]", "[UNK]", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def processor():
    return CrossFuseProcessor.from_config(tiny_config("text", "wrist"), tokenizer=make_tokenizer())


ROWS = [
    {"trace": np.ones((2, 3)), "say": "red", "names": {"en": "red", "fr": "rouge"}},
    {"trace": np.zeros((4, 3)), "say": None, "names": {"en": "blue", "fr": None}},
    {"trace": None, "say": "green", "names": {"en": "green", "fr": "vert"}},
    {"say": "grey", "names": None},
]
QUESTIONS = {"in english": "names.en", "in french": "names.fr"}


def text_of(processor, ids: torch.Tensor) -> list[str]:
    ids = ids.masked_fill(ids == -100, processor.tokenizer.pad_token_id).tolist()
    return ["".join(processor.tokenizer.convert_ids_to_tokens([i for i in row if i > 3])) for row in ids]


# Columns


def test_get_column():
    row = {"a": 1, "names": {"fr": "rouge", "x": {"y": 2}}, "b.c": 3, "d": None, "e": {"f.g": 4}}
    assert [get_column(row, column) for column in ("a", "names.fr", "names.x.y", "b.c", "d.z", "e.f.g")] == [
        1, "rouge", 2, 3, None, 4
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("c", "no column 'c'; a row has a, names"),
        ("names.de", "no column 'names.de'; the field 'names' has fr"),
        ("a.b", "'a' is int and has no fields"),
    ],
)
def test_get_column_that_is_not_there(column, message):
    with pytest.raises(KeyError, match=message):
        get_column({"a": 1, "names": {"fr": "rouge"}}, column)


# Inputs and labels


@pytest.mark.parametrize("kind", ["pandas", "arrow"])
def test_rows_that_are_no_dicts(kind):
    rows = datasets.Dataset.from_dict({"name": ["red"]}).with_format(kind)
    with pytest.raises(TypeError, match=r"^a row is \w+; expected a dict of columns, .* with `with_format\(None\)`$"):
        get_column(NumberedRows(rows)[0], "name")


def test_formats_that_lose_digits_are_said(monkeypatch):
    said = []
    monkeypatch.setattr("modeling_crossfuse.data.rows.logger.warning_once", said.append)
    rows = datasets.Dataset.from_dict({"name": ["red"], "wrist": [[[1.7e9, 0.5]]], "single": [[0.5]]})
    rows = rows.cast_column("single", datasets.List(datasets.Value("float32")))
    NumberedRows(rows)
    NumberedRows(rows.with_format("numpy", columns=["name", "single"]))
    NumberedRows(rows.with_format("torch", dtype=torch.float64, columns=["wrist"]))
    assert not said
    NumberedRows(rows.with_format("torch"))
    undecoded(rows.with_format("torch"))
    assert len(said) == 2 and "makes float32 of the float64 of wrist: " in said[0] == said[1]


def test_inputs_and_labels(processor):
    batch = CrossFuseDataCollator(processor, {"wrist": "trace", "text": "say"}, target="names.en")(ROWS[:3])
    assert set(batch) == {
        "input_ids", "attention_mask", "wrist_values", "wrist_mask", "modality_mask", "labels"
    }  # fmt: skip
    assert batch["modality_mask"].tolist() == [[1, 1], [0, 1], [1, 0]]
    assert text_of(processor, batch["input_ids"]) == ["red", "", "green"]
    assert text_of(processor, batch["labels"]) == ["red", "blue", "green"]
    assert batch["labels"][0].tolist()[3:] == [processor.tokenizer.eos_token_id, -100, -100]


def test_a_column_that_some_rows_lack(processor):
    batch = CrossFuseDataCollator(processor, {"wrist": "trace", "text": "say"})([ROWS[0], ROWS[3]])
    assert batch["modality_mask"].tolist() == [[1, 1], [1, 0]] and "labels" not in batch


def test_labels_are_cut_but_end(processor):
    batch = CrossFuseDataCollator(processor, {"text": "say"}, target="say", max_target_length=4)([ROWS[0], ROWS[2]])
    assert text_of(processor, batch["labels"]) == ["red", "gre"]
    assert batch["labels"][:, -1].tolist() == [processor.tokenizer.eos_token_id] * 2


@pytest.mark.parametrize(
    "text", ["was <s>10</s> now 8", "</s>", "a <pad>b", "e\u0301\0 \t日本 🧩 ", "  <s>", "<s></s>"]
)
def test_tags_in_texts_are_text(text, tmp_path):
    train_tokenizer(["was 10 now 8", "<s>10</s>"], 300).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    processor = CrossFuseProcessor(tokenizer=tokenizer, modalities={"text": {}})
    batch = CrossFuseDataCollator(processor, {"text": "say"}, target="say")([{"say": text}, {"say": text + text}])
    expected = [unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", text + text)]
    for tokens in (batch["input_ids"], batch["labels"].masked_fill(batch["labels"] == -100, tokenizer.pad_token_id)):
        assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == expected
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red[EOS]blue", r"row 1 of .* target column 'say' has '\[EOS\]' in its text.* `split_special_tokens=True`"),
        ("[PAD]", r"row 1 of .* target column 'say' has '\[PAD\]'"),
        (
            "red \ud800",
            r"row 1 of .* target column 'say' has half of a character, '\\ud800', at place 4",
        ),
    ],
)
def test_answers_that_can_not_be_learnt(processor, text, message):
    collator = CrossFuseDataCollator(processor, {"text": "question"}, target="say")
    with pytest.raises(ValueError, match=message):
        collator([{"question": "it", "say": "red"}, {"question": "it", "say": text}])
    if "\ud800" not in text:  # which no data set holds
        rows = datasets.Dataset.from_dict({"question": ["it", "it"], "say": ["red", text]})
        assert list(collator.find_bad_rows(rows)) == [1]


def test_what_is_lost_of_answers_is_said_once(processor, spoken):
    collator = CrossFuseDataCollator(processor, {"text": "say"}, target="say", max_target_length=4)
    rows = [{"say": "red"}, {"say": "green"}, {"say": "it!"}]
    for _ in range(2):
        assert collator(rows)["labels"].shape == (3, 4)
    long, unknown = spoken()
    assert "row 1 of the batch in the target column 'say' has 6 tokens with its end, and is cut to 4" in long
    assert "`max_target_length`" in long
    assert "row 2 of the batch in the target column 'say' has 1 unknown tokens of 3" in unknown
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[X]"]})
    special = CrossFuseDataCollator(
        CrossFuseProcessor(tokenizer=tokenizer, modalities={"text": {}}), {"text": "say"}, target="say"
    )
    special([{"say": "it[X]"}, {"say": "it"}])
    assert "row 0 of the batch in the target column 'say' has the special token '[X]' in its text" in spoken().pop()
    assert len(spoken()) == 3
    copy.deepcopy(collator)(rows)
    assert len(spoken()) == 5  # a copy speaks for itself


def test_labels_train_the_model(processor):
    batch = CrossFuseDataCollator(processor, {"wrist": "trace"}, target="names.en")(ROWS[:2])
    outputs = tiny_model(tiny_config("text", "wrist"))(**batch)
    assert torch.isfinite(outputs.loss) and outputs.logits.shape[:2] == batch["labels"].shape


def test_augment_changes_the_batch(processor):
    def augment(batch):
        return {**batch, "wrist_values": batch["wrist_values"] + 1}

    plain = CrossFuseDataCollator(processor, {"wrist": "trace"})(ROWS[:2])
    changed = CrossFuseDataCollator(processor, {"wrist": "trace"}, augment=augment)(ROWS[:2])
    assert torch.equal(changed["wrist_values"], plain["wrist_values"] + 1)


# Questions


def test_questions_are_drawn_and_answered(processor):
    collator = CrossFuseDataCollator(processor, {"wrist": "trace"}, questions=QUESTIONS, seed=0)
    seen = set()
    for _ in range(20):
        batch = collator(ROWS[:3])
        pairs = zip(text_of(processor, batch["input_ids"]), text_of(processor, batch["labels"]))
        seen |= set(enumerate(pairs))
    # The second row has no French name, so it is never asked for it.
    assert seen == {
        (0, ("in english", "red")),
        (0, ("in french", "rouge")),
        (1, ("in english", "blue")),
        (2, ("in english", "green")),
        (2, ("in french", "vert")),
    }


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA], ids=repr)
def test_a_row_is_not_asked_for_what_it_lacks(processor, missing):
    collator = CrossFuseDataCollator(processor, {"wrist": "trace"}, target="name", questions={"in french": "french"})
    batch = collator([{"trace": [[1.0, 2.0, 3.0]], "name": "red", "french": missing}])
    assert "input_ids" not in batch and text_of(processor, batch["labels"]) == ["red"]


def test_questions_can_be_left_out(processor):
    arguments = {"inputs": {"wrist": "trace"}, "questions": {"in french": "names.fr"}, "target": "names.en"}
    rows = [ROWS[0]] * 400
    batch = CrossFuseDataCollator(processor, **arguments, question_dropout=0.25, seed=0)(rows)
    asked = batch["modality_mask"][:, 0].tolist()
    assert 60 < asked.count(0) < 140
    assert text_of(processor, batch["labels"]) == ["rouge" if question else "red" for question in asked]
    batch = CrossFuseDataCollator(processor, **arguments)([ROWS[0], ROWS[1]])
    assert text_of(processor, batch["labels"]) == ["rouge", "blue"]
    assert batch["modality_mask"].tolist() == [[1, 1], [0, 1]]


def test_questions_of_another_modality():
    modalities = {"question": {"kind": "text"}, "context": {"kind": "text"}}
    processor = CrossFuseProcessor(tokenizer=make_tokenizer(), modalities=modalities)
    collator = CrossFuseDataCollator(
        processor, {"context": "say"}, questions={"in english": "names.en"}, question_modality="question"
    )
    batch = collator(ROWS[:1])
    assert text_of(processor, batch["question_input_ids"]) == ["in english"]
    assert text_of(processor, batch["context_input_ids"]) == ["red"]


def test_the_seed_makes_questions_repeatable(processor):
    def draws(seed):
        collator = CrossFuseDataCollator(processor, {"wrist": "trace"}, questions=QUESTIONS, seed=seed)
        return [collator([ROWS[0]] * 20)["labels"].tolist() for _ in range(3)]

    assert draws(1) == draws(1) != draws(2)
    assert draws(1)[0] != draws(1)[1]


def test_workers_draw_differently_in_each_epoch(processor):
    collator = CrossFuseDataCollator(processor, {"wrist": "trace"}, questions=QUESTIONS, seed=1)

    def epochs():
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader([ROWS[0]] * 80, batch_size=40, collate_fn=collator, num_workers=2)
        return [[text_of(processor, batch["labels"]) for batch in loader] for _ in range(2)]

    first, second = epochs()
    assert first[0] != first[1], "two workers draw alike"
    assert first != second, "two epochs draw alike"
    assert [first, second] == epochs()


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {"ankle": "trace"}}, "`ankle` is not a modality of the processor; it has text, wrist"),
        ({"inputs": {"text": "say"}, "questions": QUESTIONS}, "given by `inputs` and by `questions`"),
        ({"inputs": {"wrist": "trace"}, "questions": QUESTIONS, "question_modality": "q"}, "`q` is not a modality"),
        ({"inputs": {"wrist": "trace"}, "questions": QUESTIONS, "question_dropout": 0.5}, "needs `target`"),
        ({"inputs": {"wrist": "trace"}, "questions": QUESTIONS, "question_dropout": 2}, "question_dropout=2"),
        ({"inputs": {"wrist": "trace"}, "target": "say", "max_target_length": 0}, "max_target_length=0"),
    ],
)
def test_wrong_arguments(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossFuseDataCollator(processor, **arguments)


def test_labels_need_a_tokenizer():
    processor = CrossFuseProcessor(modalities={"wrist": {"kind": "series", "num_channels": 3}})
    with pytest.raises(ValueError, match="eos_token"):
        CrossFuseDataCollator(processor, {"wrist": "trace"}, target="say")


@pytest.mark.parametrize(
    ("arguments", "rows", "error", "message"),
    [
        (
            {"target": "say"},
            [{"say": "red"}],
            ValueError,
            "no row has the column 'trace'; the first has say.*remove_unused",
        ),
        (
            {"target": "name"},
            ROWS[:1],
            ValueError,
            "row 0 of the batch has no column 'name'; a row",
        ),
        (
            {"target": "say"},
            ROWS[:2],
            TypeError,
            "row 1 of the batch has None in the target column 'say'",
        ),
        ({"target": "trace"}, ROWS[:1], TypeError, "row 0 of the batch has array"),
        (
            {"questions": {"in french": "names.fr"}},
            ROWS[:2],
            ValueError,
            "row 1 of the batch answers none",
        ),
        ({}, [ROWS[0], ROWS[2]], ValueError, "row 1 of the batch has no modality"),
    ],
)
def test_wrong_rows(processor, arguments, rows, error, message):
    with pytest.raises(error, match=message):
        CrossFuseDataCollator(processor, {"wrist": "trace"}, **arguments)(rows)


# Rows that know their numbers


def broken_images(*broken: int, count: int = 9) -> datasets.Dataset:
    """Images as files of which some are cut off."""
    files = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.effect_noise((32, 32), 50).save(buffer, "PNG")
        data = buffer.getvalue()[: 500 if index in broken else None]
        files.append({"bytes": data, "path": f"photo{index}.png"})
    return datasets.Dataset.from_dict({"photo": files}, features=datasets.Features({"photo": datasets.Image()}))


@pytest.fixture(scope="module")
def image_collator():
    return CrossFuseDataCollator(CrossFuseProcessor.from_config(tiny_config("image")), {"image": "photo"})


def read_all(rows, collator, **settings):
    return list(torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collator, **settings))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_name_the_row_of_the_data_set(processor, num_workers):
    rows = [{"trace": np.ones((2, 3)), "say": "red"} for _ in range(8)]
    rows[5]["trace"] = np.ones((2, 4))
    collator = CrossFuseDataCollator(processor, {"wrist": "trace"})
    with pytest.raises(ValueError, match="`wrist` of row 5 of the training data has shape"):
        read_all(NumberedRows(rows, "the training data"), collator, num_workers=num_workers)
    with pytest.raises(ValueError, match="`wrist` of row 1 of the batch has shape"):
        read_all(rows, collator, num_workers=num_workers)


@pytest.mark.parametrize(
    "settings, key, value, message",
    [
        ({"target": "say"}, "say", None, "^row 6 has None in the target column 'say'"),
        ({"questions": {"in french": "say"}}, "say", None, "^row 6 answers none of the questions"),
        ({"target": "say", "problem_type": "regression"}, "say", "red", "^row 6 has 'red' in the target column"),
        ({"target": "say", "problem_type": "multi_label_classification"}, "say", "red", "^row 6 has 'red'"),
        ({}, "trace", None, "^row 6 has no modality"),
    ],
)
def test_errors_of_targets_name_the_row_of_the_data_set(processor, settings, key, value, message):
    numbers = {"regression": 1.0, "multi_label_classification": ["red"]}
    good = numbers.get(settings.get("problem_type"), "red")
    rows = [{"trace": np.ones((2, 3)), "say": good} for _ in range(8)]
    rows[6][key] = value
    collator = CrossFuseDataCollator(processor, {"wrist": "trace"}, label2id={"red": 0}, **settings)
    with pytest.raises((TypeError, ValueError), match=message):
        read_all(NumberedRows(rows), collator)


def test_a_row_may_come_twice(processor):
    """As where the last batch of several processes is filled up."""
    rows = NumberedRows([{"trace": np.full((2, 3), index), "say": name} for index, name in enumerate(("red", "blue"))])
    chosen = [rows[1], rows[0], rows[1]]
    batch = CrossFuseDataCollator(processor, {"wrist": "trace"}, target="say")(chosen)
    assert batch["wrist_values"][:, 0, 0].tolist() == [1, 0, 1]
    assert text_of(processor, batch["labels"]) == ["blue", "red", "blue"]
    classes = {"label2id": {"red": 0, "blue": 1}, "problem_type": "single_label_classification"}
    batch = CrossFuseDataCollator(processor, {"wrist": "trace"}, target="say", **classes)(chosen)
    assert batch["labels"].tolist() == [1, 0, 1]


def test_files_of_rows_are_named(image_collator):
    rows = broken_images(7)
    with pytest.raises(ValueError, match=r"^row 7, column 'photo' \(photo7.png\) can't be read: .*truncated"):
        read_all(NumberedRows(rows), image_collator)
    with pytest.raises(ValueError, match=r"^`image` of row 7 \(photo7.png\) is not a readable image: .*truncated"):
        read_all(NumberedRows(undecoded(rows)), image_collator)
    rows = datasets.Dataset.from_dict({"photo": [{"bytes": b"text", "path": None}]}, features=rows.features)
    with pytest.raises(ValueError, match=r"^row 0, column 'photo' can't be read: cannot identify image file$"):
        NumberedRows(rows)[0]


def test_rows_keep_their_numbers_when_some_are_selected(tmp_path, image_collator):
    broken_images(6).save_to_disk(tmp_path / "rows")
    rows = load_rows(str(tmp_path / "rows"), max_samples=5)
    assert list(row_numbers(rows)) == [0, 2, 4, 6, 8]
    rows = select_rows(rows, [1, 3, 4])
    assert list(row_numbers(rows)) == [2, 6, 8]
    assert list(row_numbers(select_columns(rows, ["photo"]))) == [2, 6, 8]
    with pytest.raises(ValueError, match=r"^`image` of row 6 \(photo6.png\) is not a readable image"):
        read_all(NumberedRows(rows), image_collator)
    assert set(NumberedRows(rows)[0]) == {"photo"}


def test_bad_samples_are_skipped_and_listed(tmp_path, image_collator):
    rows = broken_images(0, 7)
    assert find_unreadable(rows, image_collator.processor, image_collator.inputs, num_workers=1, progress=False) == {
        index: f"`image` of row {index} (photo{index}.png) is not a readable image: image file is truncated"
        for index in (0, 7)
    }
    splits = [("train", select_rows(rows, range(3, 9)), image_collator), ("test", rows, image_collator)]
    kept = [skip_bad_samples(splits, tmp_path / "bad.jsonl", is_first, progress=False) for is_first in (True, False)]
    for train, test in kept:
        assert list(row_numbers(train)) == [3, 4, 5, 6, 8] and list(row_numbers(test)) == [1, 2, 3, 4, 5, 6, 8]
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["split"], line["row"]) for line in lines] == [("train", 7), ("test", 0), ("test", 7)]
    splits = [("train", select_rows(rows, [1, 2]), image_collator)]
    skip_bad_samples(splits, tmp_path / "bad.jsonl", progress=False)
    assert not (tmp_path / "bad.jsonl").exists(), "nothing is bad any more"
    splits = [("train", select_rows(rows, [7, 0]), image_collator)]
    with pytest.raises(ValueError, match=r"none of the 2 rows of the split 'train' can be used; .* row 7 "):
        skip_bad_samples(splits, tmp_path / "bad.jsonl", progress=False)


# The data set of the repository


def test_rows_of_the_emoji_data_set():
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("soundfile")
    config = CrossFuseConfig(
        d_model=32,
        num_hidden_layers=1,
        modalities={
            "text": {"vocab_size": 40},
            "image": {"image_size": 32, "patch_size": 8},
            "audio": {"num_mel_bins": 40},
        },
        decoder={"vocab_size": 40},
    )
    processor = CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer())
    rows = datasets.Dataset.from_parquet(str(EMOJI / "data" / "validation-00000-of-00001.parquet"))
    collator = CrossFuseDataCollator(
        processor,
        {"image": "picture", "audio": "speech"},
        target="name",
        questions={"what is the group": "group", "what is it in spanish": "names.es"},
        question_dropout=0.5,
        max_target_length=24,
        seed=0,
    )
    batch = collator([rows[index] for index in range(8)])
    assert batch["pixel_values"].shape == (8, 3, 32, 32) and batch["input_features"].shape[:2] == (8, 40)
    assert batch["modality_mask"][:, 1:].all() and 0 < batch["modality_mask"][:, 0].sum() < 8
    assert batch["labels"].shape[1] <= 24
    assert torch.isfinite(tiny_model(config)(**batch).loss)


def test_a_split_that_was_saved_by_itself(tmp_path):
    rows = datasets.Dataset.from_dict({"say": ["red", "blue", "green"]})
    rows.save_to_disk(tmp_path / "rows")
    assert list(load_rows(str(tmp_path / "rows"), "test", max_samples=2)["say"]) == ["red", "green"]


def test_columns_are_checked():
    rows = datasets.Dataset.from_dict({"shot": [None, {"photo": "a.png"}]})
    check_columns(rows, ["shot", "shot.photo"])
    for column, reason in {
        "shot.x": "no column 'shot.x'; the field 'shot' has photo",
        "x": "no column 'x'; a row has shot",
    }.items():
        with pytest.raises(ValueError, match=f"^{reason}$"):
            check_columns(rows, [column])


def test_a_csv_file_without_rows(tmp_path):
    (tmp_path / "test.csv").write_text("say,name\n")
    with pytest.raises(ValueError, match=r"^the split 'test' of the data set .* has no rows$"):
        load_rows(str(tmp_path), "test")
    with pytest.raises(ValueError, match=r"test.csv is a file; expected its folder$"):
        load_rows(str(tmp_path / "test.csv"), "test")


def test_a_split_that_was_saved_without_rows(tmp_path):
    rows = datasets.Dataset.from_dict({"say": ["red", "blue"]})
    datasets.DatasetDict(train=rows, test=rows.select([])).save_to_disk(tmp_path / "rows")
    assert list(load_rows(str(tmp_path / "rows"), "train")["say"]) == ["red", "blue"]
    with pytest.raises(ValueError, match=r"^the split 'test' of the data set .*rows has no rows$"):
        load_rows(str(tmp_path / "rows"), "test")
    with pytest.raises(ValueError, match=r"rows has no split 'dev'; it has train, test$"):
        load_rows(str(tmp_path / "rows"), "dev")


# Images, videos and audio are not decoded

STORED = {"bytes": b"some file", "path": "clip.bin"}


def nested_rows() -> datasets.Dataset:
    """Media at the top level, in structs and in lists; with stored files that no one can decode."""
    columns = {
        "image": [STORED, None],
        "clip": [{"audio": STORED, "say": "red"}, None],
        "shots": [[STORED, STORED], []],
        "takes": [[{"video": STORED, "number": 3}], None],
    }
    features = {
        "image": datasets.Image(mode="RGB"),
        "clip": {"audio": datasets.Audio(sampling_rate=16_000), "say": datasets.Value("string")},
        "shots": datasets.List(datasets.Image()),
        "takes": datasets.List({"video": datasets.Video(), "number": datasets.Value("int64")}),
    }
    return datasets.Dataset.from_dict(columns).cast(datasets.Features(features))


def test_the_column_of_row_numbers_is_not_listed():
    rows = select_rows(datasets.Dataset.from_dict({"name": ["red", "blue"], "say": ["a", "b"]}), [1])
    with pytest.raises(KeyError, match=r"a row has name, say\W*$"):
        get_column(rows[0], "nam")


def test_media_of_which_a_feature_takes_a_part_are_decoded_by_datasets():
    features = {"grey": datasets.Image(mode="L"), "sound": datasets.Audio(stream_index=1), "image": datasets.Image()}
    rows = datasets.Dataset.from_dict({name: [None] for name in features}).cast(datasets.Features(features))
    assert undecoded(rows).features == {**features, "image": datasets.Image(decode=False)}


@pytest.mark.parametrize("form", ["split", "format", "splits", "parquet"])
def test_media_are_not_decoded(form, tmp_path):
    rows = nested_rows()
    if form in ("split", "format"):
        rows = rows.with_format("torch" if form == "format" else None)
        rows.save_to_disk(tmp_path / "rows")
    elif form == "splits":
        datasets.DatasetDict(test=rows).save_to_disk(tmp_path / "rows")
    else:
        (tmp_path / "rows").mkdir()
        rows.to_parquet(tmp_path / "rows" / "test.parquet")
    loaded = load_rows(str(tmp_path / "rows"))
    assert loaded[:] == {
        "image": [STORED, None],
        "clip": [{"audio": STORED, "say": "red"}, None],
        "shots": [[STORED, STORED], []],
        "takes": [[{"video": STORED, "number": 3}], None],
    }
    pickle.dumps(loaded)  # for workers


@pytest.mark.parametrize(("kind", "name"), [("audio", "clip.wav"), ("video", "clip.mp4"), ("image", "clip.png")])
@pytest.mark.parametrize("metadata", [None, "metadata.csv", "metadata.jsonl"])
def test_folders_of_files(kind, name, metadata, tmp_path):
    """Of which `datasets` would store audio only where torchcodec is installed."""
    paths = [tmp_path / "test" / label / name for label in ("cat", "dog")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(path.parent.name.encode())
    if metadata == "metadata.csv":
        (tmp_path / "test" / metadata).write_text(f"file_name,say\ncat/{name},red\ndog/{name},blue\n")
    elif metadata == "metadata.jsonl":
        lines = [{"file_name": f"{label}/{name}", "say": say} for label, say in (("cat", "red"), ("dog", "blue"))]
        (tmp_path / "test" / metadata).write_text("\n".join(map(json.dumps, lines)))
    rows = load_rows(str(tmp_path))
    assert [row[kind] for row in rows] == [{"bytes": None, "path": str(path)} for path in paths]
    assert metadata is None or list(rows["say"]) == ["red", "blue"]
    pickle.dumps(rows)


def test_archives_of_files(tmp_path):
    with tarfile.open(tmp_path / "test-000.tar", "w") as archive:
        for sample in ("000", "001"):
            for end in ("mp4", "wav", "png", "txt"):
                file = tarfile.TarInfo(f"{sample}.{end}")
                file.size = 3
                archive.addfile(file, io.BytesIO(end.encode()))
    for row, sample in zip(load_rows(str(tmp_path)), ("000", "001")):
        for end in ("mp4", "wav", "png"):
            stored = {"bytes": end.encode(), "path": f"{sample}.{end}"}
            assert row[end] in (stored, stored["bytes"])  # before 5.0, `datasets` has nothing but the bytes of videos


def test_a_file_that_is_gone(tmp_path):
    processor = CrossFuseProcessor.from_config(tiny_config("text", "image"), tokenizer=make_tokenizer())
    (tmp_path / "test").mkdir()
    for name in ("a.png", "b.png"):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "test" / name)
    rows = load_rows(str(tmp_path))
    (tmp_path / "test" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"^`image` of row 1 of the batch: there is no file '.*b.png'$"):
        CrossFuseDataCollator(processor, {"image": "image"})([rows[0], rows[1]])
