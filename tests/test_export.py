# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Exported models: what the graphs give is what the model gives, for sizes and modalities other than those traced."""

import json
import sys

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSeq2SeqLM, BertConfig, TorchAoConfig

from crossfuse.main import main, run
from modeling_crossfuse import CrossFuseForSequenceClassification, CrossFuseProcessor
from modeling_crossfuse.evaluation.prediction import predict
from modeling_crossfuse.export.exported_model import CrossFuseExportedModel
from modeling_crossfuse.export.graphs import export_model
from modeling_crossfuse.training import train_tokenizer

from .helpers import FUSIONS, assert_same, run_python, take_rows, tiny_config, tiny_inputs, tiny_model


pytestmark = pytest.mark.slow  # models are built and exported or trained in most of them


NAMES = ["red", "green", "blue", "grey", "white"]
BERT = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
WRIST = {"wrist": {"kind": "series", "num_channels": 3}}


def example_inputs(config) -> dict[str, torch.Tensor]:
    """Two samples with every modality and, where there are images, two of them."""
    inputs = tiny_inputs(config)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"][:, None].repeat(1, 2, 1, 1, 1)
    return inputs


def export(config, folder, format):
    """A model with weights that do not look alike, and what was exported of it."""
    model = tiny_model(config)
    export_model(model, example_inputs(config), folder, format)
    return model, CrossFuseExportedModel.from_folder(folder)


def export_config(*names, **settings):
    """Without an end, and with an output layer of its own: tied to the embeddings, it would echo one token."""
    return tiny_config(*names, tie_word_embeddings=False, eos_token_id=None, **{"initializer_range": 0.4, **settings})


@torch.no_grad()
def uncached(model, inputs, steps: int = 6) -> torch.Tensor:
    """Greedy search by the model, one full forward pass for each token."""
    ids = torch.ones(len(next(iter(inputs.values()))), 1, dtype=torch.long)
    for _ in range(steps):
        logits = model(**inputs, decoder_input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


def other_batch(config, batch_size: int) -> dict[str, torch.Tensor]:
    """Other lengths than those traced, odd ones among them, padding, and samples that lack a modality each."""
    names, inputs = config.modalities, tiny_inputs(config, batch_size, seed=1)
    for name, part in names.items():
        value_name, mask_name = names.value_name(name), names.mask_name(name)
        axis = {"audio": 2, "image": 0}.get(part.kind, 1)
        if axis:
            values = inputs[value_name]
            inputs[value_name] = torch.cat([values, values.flip(axis)], dim=axis).narrow(axis, 0, 7)
            inputs[mask_name] = torch.ones(batch_size, 7, dtype=torch.long)
            inputs[mask_name][0, 5:] = 0
    inputs["modality_mask"] = torch.ones(batch_size, len(names), dtype=torch.long)
    for sample in range(1, batch_size):
        inputs["modality_mask"][sample, (sample - 1) % len(names)] = 0
    return inputs


@torch.no_grad()
def assert_equal(model, exported, inputs):
    answers = uncached(model, inputs)
    expected = model(**inputs, decoder_input_ids=answers, use_cache=False)
    actual = exported(**inputs, decoder_input_ids=answers)
    assert_same(actual.logits, expected.logits, atol=1e-4)
    memories = [side.encoder_last_hidden_state[side.encoder_attention_mask != 0] for side in (actual, expected)]
    assert_same(*memories, atol=1e-4)
    assert torch.equal(exported.generate(**inputs, max_new_tokens=6), answers)
    beams = {"num_beams": 3, "max_new_tokens": 6, "length_penalty": 0.5}
    assert torch.equal(exported.generate(**inputs, **beams), model.generate(**inputs, **beams))


def assert_equal_in_any_batch(model, exported):
    config = model.config
    inputs = other_batch(config, batch_size=len(config.modalities) + 1)
    assert len(uncached(model, inputs).unique()) > 3, "answers of one token would test nothing"
    assert_equal(model, exported, inputs)
    assert_equal(model, exported, take_rows(inputs, slice(0, 1)))
    for name in config.modalities:  # alone: the others are not given at all
        names = config.modalities.tensor_names_of(name)
        assert_equal(model, exported, {key: value for key, value in inputs.items() if key in names})


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A model, what was exported of it by torch.export, and its folder."""
    folder = tmp_path_factory.mktemp("programs")
    return *export(export_config("text", "wrist", fusion="bottleneck"), folder, "torch"), folder


def test_programs_give_what_the_model_gives(programs):
    model, exported, _ = programs
    assert_equal_in_any_batch(model, exported)


def test_the_decoder_does_not_compute_the_keys_of_the_memory(programs):
    *_, folder = programs
    program = torch.export.load(folder / "decoder.pt2")
    parameters = program.graph_signature.inputs_to_parameters
    used = {parameters[node.name] for node in program.graph.nodes if node.name in parameters and node.users}
    assert "decoder.layers.0.cross_attn.q_proj.weight" in used and "decoder.layers.0.self_attn.k_proj.weight" in used
    assert not used & {f"decoder.layers.0.cross_attn.{part}_proj.weight" for part in "kv"}


def test_sampling_is_that_of_the_model(programs):
    model, exported, _ = programs
    answers = []
    for side in (model, exported):
        torch.manual_seed(0)
        answers.append(side.generate(**tiny_inputs(model.config), do_sample=True, max_new_tokens=8))
    assert torch.equal(*answers)


def test_the_cache_may_be_left_out(programs):
    model, exported, _ = programs
    inputs = tiny_inputs(model.config)
    without = exported.generate(**inputs, max_new_tokens=6, use_cache=False)
    assert torch.equal(without, uncached(model, inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None, "wrist_values": None}, "no modality is given"),
        ({"pixel_values": torch.zeros(2, 3, 8, 8)}, "`pixel_values` is not an input of this model"),
        ({"wrist_values": torch.zeros(2, 5, 4)}, "expected `num_channels=3`"),
        ({"input_ids": torch.full((2, 5), 40)}, "expected at least 0 and below `vocab_size=40`"),
        ({"modality_mask": torch.tensor([[1, 1], [0, 0]])}, "sample 1 of the batch has no modality"),
        ({"wrist_values": None, "wrist_hidden_states": torch.zeros(2, 5, 32)}, "`wrist_hidden_states` is no input"),
        ({"decoder_attention_mask": torch.tensor([[1], [0]])}, "`decoder_attention_mask` has a 0"),
        ({"decoder_position_ids": torch.tensor([[3], [3]])}, "`decoder_position_ids` are not 0 and on"),
        ({"output_attentions": True}, "`output_attentions=True` is not for an exported model"),
        ({"labels": torch.ones(2, 1, dtype=torch.long)}, "`labels` is not an input of this model"),
        ({"wrist_valus": 5}, r"`wrist_valus` is not an input of this model\. Did you mean `wrist_values`"),
    ],
)
def test_an_exported_model_refuses(programs, changes, message):
    model, exported, _ = programs
    inputs = {**tiny_inputs(model.config), "decoder_input_ids": torch.ones(2, 1, dtype=torch.long), **changes}
    with pytest.raises(ValueError, match=message):
        exported(**{name: value for name, value in inputs.items() if value is not None})


def test_nothing_that_is_written_names_this_machine(programs):
    *_, folder = programs
    for path in folder.iterdir():
        assert b"graphs.py" not in path.read_bytes() and b"modeling_crossfuse/" not in path.read_bytes(), path.name


def test_from_folder_refuses_a_folder_without_graphs(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no exported model in"):
        CrossFuseExportedModel.from_folder(tmp_path)


def test_export_model_refuses(monkeypatch, tmp_path):
    config = tiny_config("text", "wrist")
    model, inputs = tiny_model(config), tiny_inputs(config)
    with pytest.raises(ValueError, match="`format='pickle'` is unknown; expected one of onnx, torch"):
        export_model(model, inputs, tmp_path, "pickle")
    with pytest.raises(TypeError, match="the model is a CrossFuseForSequenceClassification"):
        export_model(tiny_model(config, CrossFuseForSequenceClassification), inputs, tmp_path)
    with pytest.raises(ValueError, match=r"expected `model.float\(\).eval\(\)`"):
        export_model(tiny_model(config).train(), inputs, tmp_path)
    with pytest.raises(ValueError, match="`inputs` lacks `wrist_values`"):
        export_model(model, {"input_ids": inputs["input_ids"]}, tmp_path, "torch")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript; install it with: pip .*crossfuse\[export\]"):
        export_model(model, inputs, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_onnx_graphs_give_what_the_model_gives(fusion, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = export_config("text", "image", "video", "audio", "wrist", fusion=fusion, num_key_value_heads=1)
    model, exported = export(config, tmp_path, "onnx")
    assert_equal_in_any_batch(model, exported)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    fixed = {size for tensor in session.get_inputs() for size in tensor.shape if isinstance(size, int)}
    assert fixed == {3, 5, 6, 8}  # channels, modalities, mel bins, pixels: no batch size and no length


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_encoders_of_transformers_can_be_exported(format, tmp_path):
    pytest.importorskip("onnxruntime")
    config = export_config(modalities={"text": {"encoder": BERT}, **WRIST})
    assert_equal_in_any_batch(*export(config, tmp_path, format))


@pytest.mark.slow
def test_sinusoidal_positions_patches_and_several_layers(tmp_path):
    pytest.importorskip("onnxruntime")
    modalities = {"wrist": {**WRIST["wrist"], "patch_length": 3, "num_hidden_layers": 0}, "text": {"vocab_size": 40}}
    config = export_config(modalities=modalities, position_embedding_type="sinusoidal", num_hidden_layers=2)
    assert_equal_in_any_batch(*export(config, tmp_path, "onnx"))


@pytest.mark.slow
def test_programs_run_without_this_code(programs):
    model, _, folder = programs
    program = """
import json, sys, torch
encoder, decoder = (torch.export.load(f"{part}.pt2").module() for part in ("encoder", "decoder"))
inputs = torch.load("inputs.pt")
memory = encoder(inputs)
past = {name.replace("present", "past_key_values"): value for name, value in memory.items() if "present" in name}
for part in ("key", "value"):
    past[f"past_key_values.0.decoder.{part}"] = past[f"past_key_values.0.encoder.{part}"][:, :, :0]
answer = [[1]]
for _ in range(6):
    step = {"input_ids": torch.tensor(answer)[:, -1:], "encoder_attention_mask": memory["encoder_attention_mask"]}
    outputs = decoder({**step, **past})
    past |= {name.replace("present", "past_key_values"): outputs[name] for name in outputs if name != "logits"}
    answer[0].append(outputs["logits"][0, -1].argmax().item())
print(json.dumps(answer))
"""
    inputs = take_rows(tiny_inputs(model.config), slice(0, 1))
    masks = {"attention_mask": torch.ones(1, 5), "wrist_mask": torch.ones(1, 5), "modality_mask": torch.ones(1, 2)}
    torch.save({**inputs, **{name: mask.long() for name, mask in masks.items()}}, folder / "inputs.pt")
    finished = run_python(program, folder, installed=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == uncached(model, inputs).tolist()


# crossfuse export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model and a data set."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = train_tokenizer(NAMES, vocab_size=280)
    config = tiny_config("text", "image", "audio", decoder={"vocab_size": len(tokenizer)})
    config.modalities["text"].vocab_size = len(tokenizer)
    tiny_model(config).save_pretrained(folder / "model")
    CrossFuseProcessor.from_config(config, tokenizer=tokenizer).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    rows = {"picture": [Image.new("RGB", (8, 8), name) for name in NAMES], "name": NAMES}
    features = datasets.Features({"picture": datasets.Image(), "name": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("crossfuse.export_checks.NUM_RUNS", 1)


def export_program(*argv):
    return run(["export", *map(str, argv)])


def assert_refused(capsys, message, *argv):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, argv)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1, error


@pytest.mark.slow
def test_script_writes_a_folder_that_answers_as_the_model_does(folder, capsys, tmp_path):
    output = tmp_path / "exported"
    data = ["--dataset", str(folder / "data"), "--inputs", "image=picture", "--target", "name"]
    before, after = export_program(folder / "model", "--output", output, "--format", "torch", *data)
    assert before["exact_match"] == after["exact_match"] and before["cer"] == after["cer"]
    printed = capsys.readouterr().out
    assert "the same greedy answers" in printed and "times as fast" in printed and "MB of weights" in printed
    assert list(tmp_path.iterdir()) == [output]
    exported, processor = CrossFuseExportedModel.from_folder(output), CrossFuseProcessor.from_pretrained(output)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    rows = [{"image": Image.new("RGB", (8, 8), "red"), "text": "green"}, {"image": None, "text": "blue"}]
    inputs = {"image": "image", "text": "text"}
    answers = [predict(side, processor, rows, inputs, max_new_tokens=6) for side in (model, exported)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_script_keeps_nothing_that_differs_from_the_model(folder, capsys, monkeypatch, tmp_path):
    def export_another(model, *args):
        with torch.no_grad():
            model.lm_head.weight[3:] += 1e-3
        export_model(model, *args)
        with torch.no_grad():
            model.lm_head.weight[3:] -= 1e-3

    monkeypatch.setattr("modeling_crossfuse.export.graphs.export_model", export_another)
    argv = (folder / "model", "--output", tmp_path / "exported", "--format", "torch")
    assert_refused(capsys, "off; expected 1e-04 at most", *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_script_writes_into_an_empty_folder(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    export_program(folder / "model", "--output", tmp_path / "empty", "--format", "torch")
    assert (tmp_path / "empty" / "decoder.pt2").is_file()


def test_script_refuses(folder, capsys, monkeypatch, tmp_path):
    model = folder / "model"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    data = ("--dataset", folder / "data")
    for message, *argv in [
        ("there is no folder", model, "--output", tmp_path / "nowhere" / "exported"),
        ("exists and is not an empty folder", model, "--output", tmp_path / "full"),
        ("--dataset needs --inputs and --target", model, "--output", tmp_path / "a", *data),
        ("go with --dataset", model, "--output", tmp_path / "a", "--target", "name"),
        ("--batch_size: 0 is not above 0", model, "--output", tmp_path / "a", "--batch_size", "0"),
        ("no column 'photo'", model, "--output", tmp_path / "a", *data, "--inputs", "image=photo", "--target", "name"),
    ]:
        assert_refused(capsys, message, *argv)
    classifier = tmp_path / "classifier"
    tiny_model(tiny_config(), CrossFuseForSequenceClassification).save_pretrained(classifier)
    CrossFuseProcessor.from_pretrained(model).save_pretrained(classifier)
    assert_refused(capsys, "which has no decoder", classifier, "--output", tmp_path / "a")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert_refused(capsys, "needs onnx and onnxscript", model, "--output", tmp_path / "a")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert_refused(capsys, "int8 weights need torchao", model, "--output", tmp_path / "a", "--quantize", "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "full"]


@pytest.mark.slow
def test_script_exports_to_onnx_by_default(folder, capsys, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    export_program(folder / "model", "--output", tmp_path / "exported")
    assert "the same greedy answers" in capsys.readouterr().out
    assert {"encoder.onnx", "decoder.onnx"} < {path.name for path in (tmp_path / "exported").iterdir()}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime; install it with: pip install .crossfuse\[export\]"):
        CrossFuseExportedModel.from_folder(tmp_path / "exported")


def test_script_writes_int8_weights_that_load_as_any_model(folder, capsys, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    output = tmp_path / "int8"
    data = ["--dataset", str(folder / "data"), "--inputs", "image=picture", "--target", "name", "--max_samples", "2"]
    before, after = export_program(folder / "model", "--output", output, "--quantize", "int8", *data)
    assert before["num_samples"] == after["num_samples"] == 2 and "exact match" in capsys.readouterr().out
    sizes = [(path / "model.safetensors").stat().st_size for path in (output, folder / "model")]
    assert sizes[0] < 0.8 * sizes[1]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(output)
    assert type(loaded.model.decoder.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    settings = TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))
    quantized = AutoModelForSeq2SeqLM.from_pretrained(folder / "model", quantization_config=settings)
    inputs = example_inputs(loaded.config)
    step = {**inputs, "decoder_input_ids": torch.ones(2, 3, dtype=torch.long)}
    with torch.no_grad():
        logits = [model(**step).logits for model in (loaded, quantized)]
        exact = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")(**step).logits
    assert torch.equal(*logits)
    assert 0 < (logits[0] - exact).norm() < 0.05 * exact.norm()
