# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`pipeline("crossfuse", ...)`, and the tasks of transformers that CrossFuse's models are for."""

import collections
import io
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    AudioClassificationPipeline,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import is_torchvision_available

from modeling_crossfuse import (
    CrossFuseEncoderModel,
    CrossFuseFeatureExtractor,
    CrossFuseForConditionalGeneration,
    CrossFuseForRetrieval,
    CrossFuseForSequenceClassification,
    CrossFuseForSpeechSeq2Seq,
    CrossFuseForTokenClassification,
    CrossFuseModel,
    CrossFusePipeline,
    CrossFuseProcessor,
    CrossFuseVideoImageProcessor,
)
from modeling_crossfuse.media_audio import load_audio, resample

from .helpers import tiny_config, tiny_model
from .test_processor import make_image, make_tokenizer, noise_image, tone


ROOT = Path(__file__).parents[1]
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}}
WRIST = np.linspace(-1, 1, 15).reshape(5, 3)
# Each lacks another modality.
SAMPLES = [
    {"text": "what is it", "image": noise_image(0), "wrist": WRIST},
    {"text": None, "image": noise_image(1)},
    {"wrist": -WRIST[:3]},
    {"text": "and this ?", "wrist": 2 * WRIST},
    {"text": "it", "image": noise_image(2)},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saves a tiny model with its processor, and gives the folder; one each for the same arguments."""
    folders = {}

    def save(model_class, *modalities, **settings) -> str:
        key = (model_class, modalities, repr(settings))
        if key not in folders:
            folders[key] = str(tmp_path_factory.mktemp("model"))
            config = tiny_config(*modalities, **settings)
            tiny_model(config, model_class).save_pretrained(folders[key])
            CrossFuseProcessor.from_config(config, tokenizer=make_tokenizer()).save_pretrained(folders[key])
        return folders[key]

    return save


@pytest.fixture
def load(folder, caplog):
    """A pipeline by task and folder. It fails where transformers says that the model is not for the task."""
    logging.getLogger("transformers").addHandler(caplog.handler)

    def load(task, model_class, *modalities, **settings):
        return pipeline(task, model=folder(model_class, *modalities, **settings), device="cpu")

    yield load
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "is not supported" not in caplog.text


@pytest.fixture
def classifier(load):
    return load("crossfuse", CrossFuseForSequenceClassification, "text", "image", "wrist", **LABELS)


@pytest.fixture
def generator(load):
    return load("crossfuse", CrossFuseForConditionalGeneration, "text", "image", "wrist")


@pytest.fixture
def retriever(load):
    return load("crossfuse", CrossFuseForRetrieval, "text", "image", projection_dim=4)


def assert_same_outputs(actual, expected):
    """Equal but for the last digits of floats."""
    if isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=1e-5)
    elif isinstance(expected, (list, dict)):
        assert type(actual) is type(expected) and len(actual) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same_outputs(actual[key], expected[key])
    else:
        assert actual == expected


class Rows(Dataset):
    def __len__(self):
        return len(SAMPLES)

    def __getitem__(self, index):
        return SAMPLES[index]


# The pipeline "crossfuse"


def test_classifies(classifier):
    answer = classifier(SAMPLES[0])
    logits = classifier.model(**classifier.processor(**SAMPLES[0], return_tensors="pt")).logits[0]
    expected = sorted(zip(logits.softmax(-1).tolist(), "abc"), reverse=True)
    assert_same_outputs(answer, [{"label": label, "score": score} for score, label in expected])
    assert classifier(SAMPLES[0], top_k=2) == answer[:2]


@pytest.mark.parametrize(
    "settings, function",
    [
        ({"problem_type": "multi_label_classification"}, torch.sigmoid),
        ({"problem_type": "single_label_classification"}, lambda logits: logits.softmax(-1)),
        ({"problem_type": "regression"}, lambda logits: logits),
        ({"id2label": {0: "yes"}}, torch.sigmoid),
    ],
)
def test_the_function_follows_the_problem_type(load, settings, function):
    pipe = load("crossfuse", CrossFuseForSequenceClassification, "wrist", **{**LABELS, **settings})
    logits = pipe.model(**pipe.processor(wrist=WRIST, return_tensors="pt")).logits[0]
    scores = {answer["label"]: answer["score"] for answer in pipe({"wrist": WRIST})}
    assert_same_outputs([scores[label] for label in pipe.model.config.id2label.values()], function(logits).tolist())
    raw = {answer["label"]: answer["score"] for answer in pipe({"wrist": WRIST}, function_to_apply="none")}
    assert_same_outputs([raw[label] for label in pipe.model.config.id2label.values()], logits.tolist())


def test_numbers_of_a_regression_keep_their_order(load):
    pipe = load("crossfuse", CrossFuseForSequenceClassification, "wrist", **LABELS, problem_type="regression")
    assert [answer["label"] for answer in pipe({"wrist": WRIST})] == ["a", "b", "c"]


@pytest.mark.parametrize("make", [list, iter, Rows], ids=["list", "generator", "dataset"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_of_samples_that_lack_modalities(classifier, make, batch_size):
    inputs = (sample for sample in SAMPLES) if make is iter else Rows() if make is Rows else SAMPLES
    assert_same_outputs(list(classifier(inputs, batch_size=batch_size)), [classifier(row) for row in SAMPLES])


DATASET = datasets.Dataset.from_list(
    [{"text": sample.get("text"), "wrist": sample.get("wrist", WRIST).tolist()} for sample in SAMPLES]
)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DATASET,
        lambda: DATASET.with_format("numpy"),
        lambda: DATASET.to_iterable_dataset(),
        lambda: datasets.Dataset.from_dict({"row": DATASET.to_list(), "label": range(5)}).select_columns("row"),
        lambda: KeyDataset([{"row": row} for row in DATASET], "row"),
        lambda: map(dict, DATASET),
        lambda: collections.deque(DATASET),
        lambda: dict(enumerate(DATASET)).values(),
        lambda: collections.UserList(DATASET),
        lambda: torch.utils.data.ConcatDataset([DATASET.select([0, 1]), DATASET.select([2, 3, 4])]),
    ],
)
def test_streams_whatever_has_several_samples(classifier, make, num_workers):
    inputs = make()
    if getattr(inputs, "column_names", None) == ["row"]:
        inputs = KeyDataset(inputs, "row")
    answers = classifier(inputs, batch_size=2, num_workers=num_workers)
    assert not isinstance(answers, list)
    assert_same_outputs(list(answers), classifier(list(DATASET)))


@pytest.mark.parametrize("make", [list, tuple])
def test_lists_and_tuples_give_lists(classifier, make):
    assert_same_outputs(classifier(make(SAMPLES), batch_size=2), [classifier(sample) for sample in SAMPLES])
    assert classifier(make([])) == []


def as_key_dataset(samples) -> KeyDataset:
    return KeyDataset([{"row": sample} for sample in samples], "row")


@pytest.mark.parametrize("make", [list, tuple, iter, as_key_dataset, lambda samples: (sample for sample in samples)])
def test_errors_name_the_item_among_all(classifier, make):
    with pytest.raises(ValueError, match=r"^`wrist` of item 5 has shape"):
        list(classifier(make([*SAMPLES, {"wrist": WRIST[:, :2]}]), batch_size=2))


def test_files_of_a_dataset_are_named(classifier):
    good, bad = io.BytesIO(), {"bytes": b"no image", "path": "two.png"}
    make_image().save(good, "PNG")
    files = [{"bytes": good.getvalue(), "path": "one.png"}, {"bytes": good.getvalue(), "path": None}, bad]
    rows = datasets.Dataset.from_dict({"image": files}, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(ValueError, match=r"^`image` of item 2 \(two.png\) is not a readable image"):
        list(classifier(rows))
    with pytest.raises(ValueError, match=r"^item 2 can't be read: cannot identify image file"):
        list(classifier(rows.to_iterable_dataset()))
    rows = rows.cast_column("image", datasets.Image(decode=False)).with_transform(
        lambda batch: {"image": [Image.open(io.BytesIO(file["bytes"])) for file in batch["image"]]}
    )
    with pytest.raises(ValueError, match=r"^item 2"):
        list(classifier(rows))


def test_columns_that_are_no_modalities_are_named(classifier):
    rows = DATASET.add_column("label", list(range(5)))
    with pytest.raises(ValueError, match="`label` is not a modality"):
        list(classifier(rows))
    assert len(list(classifier(rows.select_columns(["text", "wrist"])))) == 5


def test_a_generator_is_read_as_it_goes(classifier):
    def endless():
        while True:
            yield SAMPLES[0]

    assert len(next(iter(classifier(endless())))) == 3


def test_worker_processes_prepare_the_batches(classifier):
    assert_same_outputs(classifier(SAMPLES, batch_size=2, num_workers=1), classifier(SAMPLES))


def test_generates(generator):
    answers = generator(SAMPLES, max_new_tokens=4, batch_size=2)
    for answer, sample in zip(answers, SAMPLES):
        batch = generator.processor(**sample, return_tensors="pt")
        tokens = generator.model.generate(**batch, max_new_tokens=4)
        expected = generator.processor.batch_decode(tokens, skip_special_tokens=True)
        assert answer == [{"generated_text": expected[0]}]


def test_generates_several_answers(generator):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 3}
    answers = generator(SAMPLES[:3], batch_size=2, **options)
    assert [len(answer) for answer in answers] == [2, 2, 2]
    assert answers[1] == generator(SAMPLES[1], generate_kwargs=options)


def test_generation_arguments_given_at_first_hold(folder):
    model = folder(CrossFuseForConditionalGeneration, "text", "image", "wrist")
    pipe = pipeline("crossfuse", model=model, max_new_tokens=2, top_k=5, skip_special_tokens=False)
    text = pipe(SAMPLES[0], min_new_tokens=2, max_new_tokens=2)[0]["generated_text"]
    assert len(pipe.processor.tokenizer(text)["input_ids"]) == 3 and text.startswith("[BOS]")


def test_labels_positions(load):
    pipe = load("crossfuse", CrossFuseForTokenClassification, "text", "image", **LABELS)
    samples = [{"text": "what is it", "image": make_image()}, {"text": "this ?"}, {"image": make_image()}]
    answers = pipe(samples, batch_size=3)
    assert [token["word"] for token in answers[0]] == ["what", "is", "it"]
    assert [token["index"] for token in answers[1]] == [0, 1]
    assert answers[2] == []
    assert_same_outputs(answers[:2], [pipe(samples[0]), pipe(samples[1])])
    with pytest.raises(ValueError, match="no sample has the modality 'text'"):
        pipe(samples[2])


def test_labels_the_steps_of_a_series(load):
    pipe = load("crossfuse", CrossFuseForTokenClassification, "image", "wrist", **LABELS)
    answer = pipe({"wrist": WRIST})
    assert [set(step) for step in answer] == [{"index", "label", "score"}] * 5


def test_embeds(retriever):
    samples = [{"image": make_image()}, {"text": "it"}, {"image": make_image(), "text": "it"}]
    answers = retriever(samples, batch_size=2)
    assert_same_outputs(answers, [retriever(sample) for sample in samples])
    assert np.linalg.norm(answers[0]) == pytest.approx(1, abs=1e-5)
    assert_same_outputs(retriever(samples[0], return_tensors=True).tolist(), answers[0])


def test_chooses_from_candidates(retriever):
    labels = ["what", "is", "this"]
    answer = retriever({"image": make_image()}, candidate_labels=labels)
    batch = retriever.processor(image=[make_image()], return_tensors="pt") | retriever.processor(
        text=labels, return_tensors="pt"
    )
    batch.pop("modality_mask")
    scores = retriever.model(**batch).logits.softmax(-1)[0].tolist()
    expected = sorted(zip(scores, labels), reverse=True)
    assert_same_outputs(answer, [{"label": label, "score": score} for score, label in expected])
    several = retriever([{"image": make_image()}, {"text": "it"}], candidate_labels=labels, batch_size=2, top_k=1)
    assert_same_outputs(several[0], answer[:1])


def test_chooses_from_candidates_of_any_modality(retriever):
    candidates = [{"image": noise_image(seed)} for seed in range(40)]  # more than are embedded at once
    best = retriever({"image": noise_image(37)}, candidates=candidates, top_k=1)
    assert best[0]["label"] == 37
    named = retriever({"text": "it"}, candidates=candidates[:2], candidate_labels=["first", "second"])
    assert {answer["label"] for answer in named} == {"first", "second"}


def test_takes_paths(classifier, tmp_path):
    SAMPLES[0]["image"].save(tmp_path / "picture.png")
    answer = classifier({**SAMPLES[0], "image": str(tmp_path / "picture.png")})
    assert_same_outputs(answer, classifier(SAMPLES[0]))


def test_with_objects(classifier):
    pipe = pipeline("crossfuse", model=classifier.model, processor=classifier.processor)
    assert isinstance(pipe, CrossFusePipeline)
    assert_same_outputs(pipe(SAMPLES[0]), classifier(SAMPLES[0]))


def test_in_half_precision(folder):
    model = folder(CrossFuseForSequenceClassification, "text", "image", "wrist", **LABELS)
    pipe = pipeline("crossfuse", model=model, dtype="bfloat16")
    assert sum(answer["score"] for answer in pipe(SAMPLES[0])) == pytest.approx(1, abs=1e-4)


def test_saves_and_loads(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    assert_same_outputs(pipeline("crossfuse", model=str(tmp_path))(SAMPLES[0]), classifier(SAMPLES[0]))


@pytest.mark.parametrize(
    "inputs, options, error, message",
    [
        ({}, {}, ValueError, "no modality is given; expected at least one of `text`, `image`, `wrist`"),
        ({"image": None}, {}, ValueError, "has no modality"),
        ([SAMPLES[0], {}], {"batch_size": 2}, ValueError, "item 1 has no modality"),
        ({"imagee": make_image()}, {}, ValueError, "`imagee` is not a modality.*Did you mean `image`"),
        ({"text": "it", "max_length": 1}, {}, ValueError, "`max_length` is not a modality"),
        ("it", {}, TypeError, "the sample is str; expected a dict of modalities, with any of text, image, wrist"),
        (SAMPLES[0], {"top_k": 0}, ValueError, "`top_k=0`; expected an integer of at least 1"),
        (SAMPLES[0], {"function_to_apply": "relu"}, ValueError, "'relu'`; expected one of sigmoid, softmax, none"),
        (SAMPLES[0], {"max_new_tokens": 1}, TypeError, "`max_new_tokens` is no argument for CrossFuseForSequence"),
    ],
)
def test_wrong_inputs(classifier, inputs, options, error, message):
    with pytest.raises(error, match=message):
        classifier(inputs, **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"candidate_labels": "it"}, TypeError, "are lists"),
        ({"candidate_labels": []}, ValueError, "at least one"),
        ({"candidate_labels": ["it"], "candidates": [{"text": "it"}] * 2}, ValueError, "has 1 and `candidates` has 2"),
        ({"candidates": [{"txt": "it"}]}, ValueError, "`txt` is not a modality"),
    ],
)
def test_wrong_candidates(retriever, options, error, message):
    with pytest.raises(error, match=message):
        retriever({"image": make_image()}, **options)


@pytest.mark.parametrize("model_class", [CrossFuseModel, CrossFuseEncoderModel])
def test_a_model_without_a_head(folder, model_class):
    with pytest.raises(TypeError, match=f"{model_class.__name__}, which has no head; expected one of CrossFuseFor"):
        pipeline("crossfuse", model=folder(model_class, "text"))


# The tasks of transformers


@pytest.mark.parametrize(
    "task, kind, value",
    [
        ("image-classification", "image", make_image()),
        ("audio-classification", "audio", tone()),
        ("text-classification", "text", "what is it"),
    ],
)
def test_classification_tasks_agree_with_ours(load, task, kind, value):
    model = CrossFuseForSequenceClassification, kind
    expected = load("crossfuse", *model, **LABELS)({kind: value})
    pipe = load(task, *model, **LABELS)
    assert_same_outputs([{**answer} for answer in pipe(value, top_k=3)], expected)
    assert len(pipe([value] * 3, batch_size=2)) == 3


# Clips of different lengths, the first of which is neither the longest nor the shortest.
CLIPS = [tone(0.3), tone(0.5), tone(0.2, 880.0), tone(0.45, 220.0)]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_audio_classification_of_different_lengths(load, batch_size):
    pipe = load("audio-classification", CrossFuseForSequenceClassification, "audio", **LABELS)
    for answer, clip in zip(pipe(CLIPS, batch_size=batch_size), CLIPS, strict=True):
        assert_same_outputs(answer, pipe(clip))


@pytest.mark.parametrize("stride", [{}, {"chunk_length_s": 0.2}, {"chunk_length_s": 0.2, "stride_length_s": 0.05}])
def test_automatic_speech_recognition_of_different_lengths(load, stride):
    words = {"decoder": {"vocab_size": 10}}  # all of which the tokenizer has
    pipe = load("automatic-speech-recognition", CrossFuseForConditionalGeneration, "text", "audio", **words)
    options = {"generate_kwargs": {"max_new_tokens": 6, "suppress_tokens": [0, 1, 2, 3]}, **stride}
    alone = [pipe(clip, **options) for clip in CLIPS]
    assert pipe(CLIPS, batch_size=3, **options) == alone
    assert len({answer["text"] for answer in alone}) > 1


def test_the_audio_pipelines_leave_other_models_as_they_are():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    convolutions = {"conv_dim": (4, 4), "conv_kernel": (10, 4), "conv_stride": (8, 4), "feat_extract_norm": "layer"}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 1}
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**sizes, **convolutions, **positions))
    classifier = pipeline(
        "audio-classification",
        model=model.eval(),
        feature_extractor=Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False),
    )
    assert isinstance(classifier, AudioClassificationPipeline)
    for answer, clip in zip(classifier(CLIPS, batch_size=2), CLIPS, strict=True):
        assert_same_outputs(answer, classifier(clip))


def test_video_classification(load, tmp_path):
    av = pytest.importorskip("av")
    frames = [np.full((16, 16, 3), 30 * index, np.uint8) for index in range(4)]
    path = str(tmp_path / "video.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 16
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    expected = load("crossfuse", CrossFuseForSequenceClassification, "video", **LABELS)({"video": path})
    answer = load("video-classification", CrossFuseForSequenceClassification, "video", **LABELS)(path)
    assert_same_outputs([{"label": x["label"], "score": x["score"]} for x in answer], expected)


def test_token_classification(load):
    pipe = load("token-classification", CrossFuseForTokenClassification, "text", "image", **LABELS)
    expected = load("crossfuse", CrossFuseForTokenClassification, "text", "image", **LABELS)({"text": "what is"})
    assert [token["entity"] for token in pipe("what is")] == [token["label"] for token in expected]


def test_zero_shot_image_classification(load):
    labels = ["what", "is", "this"]
    model = CrossFuseForRetrieval, "text", "image"
    expected = load("crossfuse", *model, projection_dim=4)({"image": make_image()}, candidate_labels=labels)
    pipe = load("zero-shot-image-classification", *model, projection_dim=4)
    answer = pipe(make_image(), candidate_labels=labels, hypothesis_template="{}")
    assert_same_outputs([{"label": x["label"], "score": x["score"]} for x in answer], expected)


def test_image_text_to_text(load):
    sample = {"image": make_image(), "text": "what is it"}
    model = CrossFuseForConditionalGeneration, "text", "image"
    expected = load("crossfuse", *model)(sample, max_new_tokens=3)
    pipe = load("image-text-to-text", *model)
    answer = pipe(images=sample["image"], text=sample["text"], max_new_tokens=3, return_full_text=False)
    assert answer == [{"input_text": "what is it", **expected[0]}]


def test_automatic_speech_recognition(load):
    model = CrossFuseForConditionalGeneration, "text", "audio"
    expected = load("crossfuse", *model)({"audio": tone()}, num_beams=5, max_new_tokens=3)
    pipe = load("automatic-speech-recognition", *model)
    assert isinstance(pipe.model, CrossFuseForSpeechSeq2Seq)
    answer = pipe(tone(), generate_kwargs={"max_new_tokens": 3})
    assert answer == {"text": expected[0]["generated_text"]}
    assert len(pipe([tone()] * 3, batch_size=2, generate_kwargs={"max_new_tokens": 3})) == 3


@pytest.mark.parametrize("model_class, length", [(CrossFuseEncoderModel, 3), (CrossFuseModel, 1)])
def test_feature_extraction(load, model_class, length):
    pipe = load("feature-extraction", model_class, "text")
    assert isinstance(pipe.model, model_class)
    assert np.shape(pipe("what is it")) == (1, length, 32)


def test_any_to_any(load):
    model = CrossFuseForConditionalGeneration, "text", "image", "audio"
    if not is_torchvision_available():  # which this pipeline asks for, whatever the model is
        with pytest.raises(ImportError, match="requires the Torchvision library"):
            load("any-to-any", *model)
        return
    sample = {"image": make_image(), "text": "what is it", "audio": tone()}
    answer = load("any-to-any", *model)(
        images=sample["image"], text=sample["text"], audio=sample["audio"], max_new_tokens=3, return_full_text=False
    )
    assert answer[0]["generated_text"] == load("crossfuse", *model)(sample, max_new_tokens=3)[0]["generated_text"]


def test_auto_classes_load_the_parts_of_a_processor(folder):
    model = folder(CrossFuseForConditionalGeneration, "text", "image", "audio")
    assert AutoTokenizer.from_pretrained(model).pad_token == "[PAD]"
    assert AutoImageProcessor.from_pretrained(model).size["height"] == 8
    assert isinstance(AutoFeatureExtractor.from_pretrained(model), CrossFuseFeatureExtractor)
    assert isinstance(AutoModelForSpeechSeq2Seq.from_pretrained(model), CrossFuseForSpeechSeq2Seq)
    frames = folder(CrossFuseForSequenceClassification, "video", **LABELS)
    assert isinstance(AutoImageProcessor.from_pretrained(frames), CrossFuseVideoImageProcessor)


def test_auto_model_loads_an_encoder_as_one(folder):
    assert isinstance(AutoModel.from_pretrained(folder(CrossFuseEncoderModel, "text")), CrossFuseEncoderModel)
    assert isinstance(AutoModel.from_pretrained(folder(CrossFuseForConditionalGeneration, "text")), CrossFuseModel)


@pytest.mark.slow
def test_in_another_process(folder):
    model = folder(CrossFuseForSequenceClassification, "text", "image", "wrist", **LABELS)
    code = (
        "import modeling_crossfuse; from transformers import pipeline; "
        f"print(pipeline('crossfuse', model={model!r})({{'text': 'what is it'}})[0]['label'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    expected = pipeline("crossfuse", model=model)({"text": "what is it"})[0]["label"]
    assert result.stdout.split()[-1] == expected


def test_the_trained_checkpoint():
    folder = str(ROOT / "checkpoints/emoji")
    row = pytest.importorskip("datasets").load_dataset(str(ROOT / "data/emoji"), split="test")[1000]
    ours = pipeline("crossfuse", model=folder, device="cpu")
    assert ours({"image": row["picture"], "audio": row["speech"]}) == [{"generated_text": row["name"]}]
    image = row["picture"].convert("RGB")
    answer = pipeline("image-text-to-text", model=folder, device="cpu")(
        images=image, text="name in French", return_full_text=False
    )
    expected = ours({"image": image, "text": "name in French"})[0]["generated_text"]
    assert answer[0]["generated_text"] == expected
    sound, rate = load_audio("the clip", row["speech"])
    recognizer = pipeline("automatic-speech-recognition", model=folder, device="cpu")
    sound = resample("the clip", sound, rate, recognizer.feature_extractor.sampling_rate)
    assert recognizer(sound)["text"] == ours({"audio": row["speech"]}, num_beams=5)[0]["generated_text"]
