# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Stand-ins: transformers' source package lacks `tests/pipelines`, whose classes say what `PipelineTesterMixin` asks of
each task. As there, `get_test_pipeline` makes a pipeline and examples, and `run_pipeline_test` checks what it gives.
"""

import tempfile

import av
import numpy as np
from PIL import Image
from transformers.pipelines import (
    AudioClassificationPipeline,
    AutomaticSpeechRecognitionPipeline,
    FeatureExtractionPipeline,
    ImageClassificationPipeline,
    ImageTextToTextPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
    VideoClassificationPipeline,
)


TEXTS = ["what is it", "and this"]
PICTURES = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
SOUNDS = [np.sin(frequency * np.arange(1600)).astype(np.float32) / 2 for frequency in (0.1, 0.2)]


def check_labels(answers: list[dict], labels, name: str = "label", number: int | None = None):
    """Labels that the model has, with scores."""
    assert answers and (number is None or len(answers) == number)
    for answer in answers:
        assert answer[name] in labels and 0 <= float(answer["score"]) <= 1


class PipelineTests:
    pipeline_class, parts, examples, options = None, (), (), {}

    def get_test_pipeline(self, model, tokenizer=None, dtype="float32", **processors):
        parts = {part: {"tokenizer": tokenizer, **processors}[part] for part in self.parts}
        return self.pipeline_class(model=model, dtype=dtype, **parts, **self.options), self.examples

    def run_pipeline_test(self, pipeline, examples):
        for answer in [pipeline(examples[0]), *pipeline(list(examples))]:
            self.check(answer, pipeline.model.config)

    def check(self, answer, config):
        raise NotImplementedError


class ImageClassificationPipelineTests(PipelineTests):
    pipeline_class, parts, examples, options = (
        ImageClassificationPipeline,
        ("image_processor",),
        PICTURES,
        {"top_k": 2},
    )

    def check(self, answer, config):
        check_labels(answer, config.id2label.values(), number=2)


class AudioClassificationPipelineTests(PipelineTests):
    pipeline_class, parts, examples = AudioClassificationPipeline, ("feature_extractor",), SOUNDS

    def check(self, answer, config):
        check_labels(answer, config.id2label.values(), number=config.num_labels)


class VideoClassificationPipelineTests(PipelineTests):
    pipeline_class, parts, options = VideoClassificationPipeline, ("image_processor",), {"top_k": 2}

    def get_test_pipeline(self, *args, **kwargs):
        self.folder = tempfile.TemporaryDirectory()
        self.examples = [self.make_video(value) for value in (50, 150)]
        return super().get_test_pipeline(*args, **kwargs)

    def make_video(self, value: int) -> str:
        path = f"{self.folder.name}/{value}.mp4"
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=4)
            stream.width = stream.height = 16
            for _ in range(8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 3), value, np.uint8))))
            container.mux(stream.encode())
        return path

    def check(self, answer, config):
        check_labels(answer, config.id2label.values(), number=2)


class TextClassificationPipelineTests(PipelineTests):
    pipeline_class, parts, examples = TextClassificationPipeline, ("tokenizer",), TEXTS

    def run_pipeline_test(self, pipeline, examples):
        config = pipeline.model.config
        for answers in [pipeline(examples[0]), pipeline(examples)]:
            check_labels(answers, config.id2label.values(), number=len(answers))
        for answers in pipeline(examples, top_k=None):
            check_labels(answers, config.id2label.values(), number=config.num_labels)
        check_labels([pipeline({"text": TEXTS[0], "text_pair": TEXTS[1]})], config.id2label.values())


class TokenClassificationPipelineTests(PipelineTests):
    pipeline_class, parts, examples = TokenClassificationPipeline, ("tokenizer",), TEXTS

    def run_pipeline_test(self, pipeline, examples):
        super().run_pipeline_test(pipeline, examples)
        assert [token["word"] for token in pipeline(TEXTS[0])] == TEXTS[0].split()
        groups = pipeline(TEXTS[0], aggregation_strategy="simple")
        check_labels(groups, pipeline.model.config.id2label.values(), name="entity_group")

    def check(self, answer, config):
        check_labels(answer, config.id2label.values(), name="entity")


class FeatureExtractionPipelineTests(PipelineTests):
    pipeline_class, parts, examples = FeatureExtractionPipeline, ("tokenizer",), TEXTS

    def run_pipeline_test(self, pipeline, examples):
        super().run_pipeline_test(pipeline, examples)
        assert pipeline(TEXTS[0], return_tensors=True).shape[1] == (len(TEXTS[0].split()))

    def check(self, answer, config):
        assert np.shape(answer)[0] == 1 and np.shape(answer)[2] == config.hidden_size


class AutomaticSpeechRecognitionPipelineTests(PipelineTests):
    pipeline_class, parts, examples = AutomaticSpeechRecognitionPipeline, ("tokenizer", "feature_extractor"), SOUNDS
    options = {"max_new_tokens": 3}

    def check(self, answer, config):
        assert set(answer) == {"text"} and isinstance(answer["text"], str)


class ImageTextToTextPipelineTests(PipelineTests):
    pipeline_class, parts, options = ImageTextToTextPipeline, ("processor",), {"max_new_tokens": 3}
    examples = [{"images": picture, "text": text} for picture, text in zip(PICTURES, TEXTS)]

    def run_pipeline_test(self, pipeline, examples):
        single, several = pipeline(**examples[0]), pipeline(images=PICTURES, text=TEXTS)
        assert [answer["input_text"] for answer in single + several] == [TEXTS[0], *TEXTS]
        for answer in single + several:
            assert answer["generated_text"].startswith(answer["input_text"])
