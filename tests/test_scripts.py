# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The command-line programs: what they answer, print and write, and how they refuse wrong arguments."""

import io
import itertools
import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from crossfuse.main import main, run
from crossfuse.recipe import RecipeArguments
from modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseProcessor
from modeling_crossfuse.data.rows import load_rows
from modeling_crossfuse.evaluation.attention import modality_shares
from modeling_crossfuse.evaluation.degradation import Degradation
from modeling_crossfuse.evaluation.plots import plot_answers, plot_bars, plot_curves
from modeling_crossfuse.evaluation.prediction import predict
from modeling_crossfuse.evaluation.scores import evaluate_rows
from modeling_crossfuse.training import train_tokenizer

from .helpers import FUSIONS, load_script, tiny_config, tiny_inputs, tiny_model


SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
NAMES = ["red", "green", "blue", "grey", "white"]


def make_clip(seed: int) -> bytes:
    """A tenth of a second of sound at 16 kHz, as a WAV file."""
    samples = (np.random.default_rng(seed).standard_normal(1600) * 3000).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model, a data set, and one file of each kind."""
    folder = tmp_path_factory.mktemp("scripts")
    config = tiny_config("text", "image", "audio", "wrist", decoder={"vocab_size": 280})
    tokenizer = train_tokenizer([*NAMES, "name in French"], vocab_size=280)
    config.modalities["text"].vocab_size = config.vocab_size = len(tokenizer)
    tiny_model(config).save_pretrained(folder / "model")
    CrossFuseProcessor.from_config(config, tokenizer=tokenizer).save_pretrained(folder / "model")
    rows = {
        "picture": [Image.new("RGB", (8, 8), name) for name in NAMES],
        "speech": [{"bytes": make_clip(seed), "path": None} for seed in range(len(NAMES))],
        "name": NAMES,
        "names": [{"fr": name[::-1]} for name in NAMES],
    }
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            # What `Audio(decode=False)` reads, which only torchcodec could write.
            "speech": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "name": datasets.Value("string"),
            "names": {"fr": datasets.Value("string")},
        }
    )
    data = datasets.Dataset.from_dict(rows, features=features)
    (folder / "data").mkdir()
    data.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    rows["picture"][0].save(folder / "red.png")
    (folder / "red.wav").write_bytes(make_clip(0))
    np.save(folder / "wrist.npy", np.ones((4, 3), dtype=np.float32))
    np.savetxt(folder / "wrist.csv", np.ones((4, 3)), delimiter=",")
    (folder / "broken.csv").write_text("a,b,c\n1,2,3\n")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return CrossFuseForConditionalGeneration.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def processor(folder):
    return CrossFuseProcessor.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def rows(folder):
    return load_rows(str(folder / "data"))


def assert_refused(capsys, main, argv, message):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1, error


# evaluation.py


def test_predict_is_the_same_in_any_batch_and_puts_the_mode_back(model, processor, rows):
    inputs = {"image": "picture", "audio": "speech"}
    model.train()
    alone = predict(model, processor, rows, inputs, batch_size=1, max_new_tokens=6)
    together = predict(model, processor, rows, inputs, batch_size=3, max_new_tokens=6)
    assert model.training
    model.eval()
    assert alone == together and len(alone) == len(NAMES)


def test_predict_takes_missing_values_and_degradations(model, processor, rows):
    lacking = [{**row, "picture": None if index % 2 else row["picture"]} for index, row in enumerate(rows)]
    inputs = {"image": "picture", "audio": "speech"}
    degrade = Degradation(processor.modalities, level=0.5)
    answers = predict(model, processor, lacking, inputs, degrade=degrade, max_new_tokens=4)
    assert len(answers) == len(NAMES)


@pytest.mark.parametrize(
    ("inputs", "question", "message"),
    [
        ({"imag": "picture"}, None, "unknown modality 'imag'"),
        ({"image": "photo"}, None, "no column 'photo'"),
        ({"text": "name"}, "name in French", "takes the place of the modality 'text'"),
    ],
)
def test_predict_refuses(model, processor, rows, inputs, question, message):
    with pytest.raises(ValueError, match=message):
        predict(model, processor, rows, inputs, question=question)


def test_evaluate_rows_measures_what_predict_answers(model, processor, rows):
    answers = predict(model, processor, rows, {"image": "picture"}, max_new_tokens=4)
    own = [{"picture": row["picture"], "name": answer or "x"} for row, answer in zip(rows, answers)]
    results = evaluate_rows(model, processor, own, {"image": "picture"}, "name", max_new_tokens=4)
    assert results["exact_match"] == sum(map(bool, answers)) / len(answers)
    assert results["num_samples"] == len(NAMES) and results["samples_per_second"] > 0


def test_texts_that_look_the_same_are_the_same(model, processor, rows, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "decode", lambda *args, **kwargs: "caf\u00e9")
    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda ids, **kwargs: ["caf\u00e9"] * len(ids))
    own = [{"picture": row["picture"], "name": " cafe\u0301 "} for row in list(rows)[:2]]
    assert evaluate_rows(model, processor, own, {"image": "picture"}, "name")["exact_match"] == 1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_modality_shares(fusion):
    config = tiny_config("text", "image", "wrist", fusion=fusion)
    model = tiny_model(config)
    inputs = tiny_inputs(config)
    inputs["modality_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0]])
    ids = model.generate(**inputs, max_new_tokens=5)
    implementation = model.config._attn_implementation
    shares = modality_shares(model, inputs, ids)
    assert model.config._attn_implementation == implementation
    assert shares.shape == (2, 3) and (shares >= 0).all()
    assert shares[1, 1:].sum() == 0  # missing
    total = {"concat": 1.0, "joint": 1.0, "latent": 0.0}.get(fusion)
    if total is None:
        assert ((shares.sum(1) > 0) & (shares.sum(1) < 1)).all()
    else:
        torch.testing.assert_close(shares.sum(1), torch.full((2,), total))


def test_modality_shares_leave_out_padding():
    config = tiny_config("text", "image")
    model = tiny_model(config)
    inputs = tiny_inputs(config, batch_size=1)
    short = torch.tensor([[1, 7, 9, 2]])
    padded = torch.tensor([[1, 7, 9, 2, 0, 0, 0]])
    torch.testing.assert_close(modality_shares(model, inputs, short), modality_shares(model, inputs, padded))


# evaluate.py


def evaluate_argv(folder, *others):
    return [folder / "model", "--dataset", folder / "data", "--target", "name", *others]


def test_evaluate_what_is_missing_and_corrupted(folder, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "joint")
    output = tmp_path / "results.json"
    argv = evaluate_argv(folder, "--inputs", "image=picture", "audio=speech", "--missing", "all")
    argv += ["--corruption", 0, 0.5, 1, "--question", "name in French", "--max_new_tokens", 4, "--output", output]
    results = run(["evaluate", str(tmp_path / "joint"), *map(str, argv)])
    combinations = [["image"], ["audio"], ["image", "audio"]]
    models = [str(tmp_path / "joint"), str(folder / "model")]
    described = [(result["model"], result["corruption"], list(result["inputs"])) for result in results]
    assert described == list(itertools.product(models, [0, 0.5, 1], combinations))
    for result in results[: len(results) // 2]:  # the second model is a copy of the first
        again = results[results.index(result) + len(results) // 2]
        assert result["cer"] == again["cer"]
    table = capsys.readouterr().out
    assert "image + audio" in table and "exact match" in table and "corruption" in table
    saved = json.loads(output.read_text(encoding="utf-8"))
    assert saved["results"] == results and saved["corruption"] == [0, 0.5, 1] and saved["missing"] == "all"
    names = {"results.json", "results-missing.png", "results-corruption.png"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"joint"}
    for name in names - {"results.json"}:
        assert Image.open(tmp_path / name).size[0] > 400


def test_evaluate_samples_that_lack_modalities(folder, tmp_path):
    """A combination is asked of the samples that have any of it."""
    rows = load_rows(str(folder / "data"), "test")
    rows = rows.map(lambda row, index: {"picture": None if index % 2 else row["picture"]}, with_indices=True)
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "gaps")
    argv = evaluate_argv(folder, "--inputs", "image=picture", "audio=speech", "--missing", "all")
    argv[argv.index(folder / "data")] = tmp_path / "gaps"
    results = run(["evaluate", *map(str, argv), "--max_new_tokens", "2"])
    counts = {tuple(result["inputs"]): result["num_samples"] for result in results}
    assert counts == {("image",): (len(rows) + 1) // 2, ("audio",): len(rows), ("image", "audio"): len(rows)}


def test_evaluate_draws_nothing_of_a_single_result(folder, tmp_path, capsys):
    argv = evaluate_argv(folder, "--inputs", "image=picture", "--max_new_tokens", 3, "--output", tmp_path / "r.json")
    (result,) = run(["evaluate", *map(str, argv)])
    assert result["corruption"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert "corruption" not in capsys.readouterr().out


def test_evaluate_a_struct_and_some_samples(folder):
    argv = [folder / "model", "--dataset", folder / "data", "--target", "names.fr", "--max_samples", 2]
    argv += ["--inputs", "image=picture", "--num_beams", 2, "--max_new_tokens", 3]
    (result,) = run(["evaluate", *map(str, argv)])
    assert result["num_samples"] == 2


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--inputs", "imag=picture"], "unknown modality 'imag'; this model takes text, image, audio, wrist"),
        (["--inputs", "image=photo"], "no column 'photo'"),
        (["--inputs", "image"], "'image' is not of the form modality=value"),
        (["--inputs", "image=picture", "image=name"], "'image' is given twice"),
        (["--inputs", "image=picture", "--split", "tset"], "has no split 'tset'; it has test"),
        (["--inputs", "image=picture", "--corruption", "0", "2"], "--corruption: 2 is not from 0 to 1"),
        (["--inputs", "image=picture", "--batch_size", "0"], "--batch_size: 0 is not above 0"),
        (["--inputs", "image=picture", "--output", "/nowhere/r.json"], "there is no folder /nowhere"),
    ],
)
def test_evaluate_refuses(folder, capsys, others, message):
    assert_refused(capsys, main, ["evaluate", *evaluate_argv(folder, *others)], message)


def test_evaluate_refuses_what_is_not_there(folder, capsys):
    argv = ["--dataset", folder / "data", "--target", "name", "--inputs", "image=picture"]
    assert_refused(capsys, main, ["evaluate", folder / "no-model", *argv], "there is no model at")
    argv[1] = folder / "no-data"
    assert_refused(capsys, main, ["evaluate", folder / "model", *argv], "there is no data set at")


def test_a_model_that_is_nowhere_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or else it asks several times
    argv = ["--dataset", folder / "data", "--inputs", "image=picture", "--target", "name"]
    assert_refused(capsys, main, ["evaluate", "tinny", *argv], "the model 'tinny' is no folder here")


def test_evaluate_refuses_a_model_twice(folder, capsys):
    argv = ["evaluate", folder / "model", *evaluate_argv(folder, "--inputs", "image=picture")]
    assert_refused(capsys, main, argv, "is given twice")


# predict.py


@pytest.mark.parametrize(
    "inputs",
    [
        ["image={folder}/red.png"],
        ["audio={folder}/red.wav", "text=name in French"],
        ["wrist={folder}/wrist.npy", "image={folder}/red.png"],
        ["wrist={folder}/wrist.csv"],
    ],
)
def test_predict_one_sample(folder, capsys, inputs):
    given = [pair.format(folder=folder) for pair in inputs]
    answers = run(["predict", str(folder / "model"), "--max_new_tokens", "5", "--inputs", *given])
    assert capsys.readouterr().out == f"{answers[0]}\n" and len(answers) == 1


def test_lengths_from_the_command_line(folder, spoken):
    argv = ["predict", str(folder / "model"), "--max_new_tokens", "5", "--inputs", f"wrist={folder}/wrist.npy"]
    argv += [f"audio={folder}/red.wav", "text=name in French", "--max_lengths", "text=2", "audio=0.05", "wrist=1"]
    run(argv)
    cuts = [message.partition(", and is cut to ") for message in spoken()]
    assert {has.split()[0]: kept.split(", ")[0] for has, _, kept in cuts} == {
        "`text`": "2",
        "`audio`": "0.05 s",
        "`wrist`": "1",
    }


def test_npy_and_csv_are_the_same(folder):
    argv = ["predict", str(folder / "model"), "--max_new_tokens", "5", "--inputs"]
    assert run([*argv, f"wrist={folder}/wrist.npy"]) == run([*argv, f"wrist={folder}/wrist.csv"])


def test_predict_a_data_set(folder, tmp_path):
    output = tmp_path / "answers.jsonl"
    argv = [folder / "model", "--dataset", folder / "data", "--inputs", "image=picture", "--max_new_tokens", 4]
    answers = run(["predict", *map(str, argv), "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"row": row, "answer": answer} for row, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--inputs", "image={folder}/no.png"], "there is no file"),
        (["--inputs", "image={folder}/red.wav"], "is not a readable image"),
        (["--inputs", "pic={folder}/red.png"], "unknown modality 'pic'"),
        (["--inputs", "wrist={folder}/broken.csv"], "is not a table of numbers"),
        (["--inputs", "wrist={folder}/red.png"], "expected a .npy or .csv file"),
        (["--inputs", "text= "], "is empty; expected text, or None"),
        (["--inputs", "text=\udcff"], "has half of a character"),
        (["--inputs", "text=a", "--max_lengths", "text=two"], "`max_lengths` has text=two; expected a number"),
        (["--inputs", "text=a", "--max_lengths", "speech=2"], "`speech` is not a modality of this processor"),
        ([], "--inputs is missing"),
        (["--dataset", "{folder}/data"], "--inputs is missing"),
        (["--inputs", "image={folder}/red.png", "--question", "who?"], "--question and --output go with --dataset"),
        (["--inputs", "image={folder}/red.png", "--device", "gpu"], "--device: 'gpu' is no device"),
        (["--inputs", "image={folder}/red.png", "--num_beams", "0"], "--num_beams: 0 is not above 0"),
    ],
)
def test_predict_script_refuses(folder, capsys, argv, message):
    argv = [argument.format(folder=folder) for argument in argv]
    assert_refused(capsys, main, ["predict", folder / "model", *argv], message)


# Rows that can't be read


@pytest.fixture(scope="module")
def damaged(folder) -> Path:
    """The data set twice, with an image, a clip and a right answer that can't be used."""
    data = datasets.load_dataset(str(folder / "data"), split="test")
    rows = 2 * list(data.cast_column("picture", datasets.Image(decode=False)))
    rows[5] = {**rows[5], "picture": {"bytes": rows[5]["picture"]["bytes"][:50], "path": "shots/five.png"}}
    rows[6] = {**rows[6], "speech": {"bytes": b"RIFF", "path": "six.wav"}}
    rows[7] = {**rows[7], "name": None}
    (folder / "damaged").mkdir()
    damaged = datasets.Dataset.from_list(rows, features=data.features)
    damaged.to_parquet(folder / "damaged" / "test-00000-of-00001.parquet")
    return folder / "damaged"


IMAGE_5 = "`image` of row 5 (shots/five.png) is not a readable image"
AUDIO_6 = "`audio` of row 6 (six.wav) is not a readable audio file"


def damaged_argv(program: str, folder, data, *others) -> list[str]:
    inputs = ["--inputs", "image=picture", "audio=speech", "--max_new_tokens", 2, "--batch_size", 4]
    return [program, *map(str, [folder / "model", "--dataset", data, *inputs, *others])]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predict_keeps_the_answers_before_an_error(folder, damaged, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(damaged_argv("predict", folder, damaged))
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4]
    assert IMAGE_5 in printed.err and "; the 5 answers before it are printed" in printed.err
    output = tmp_path / "answers.jsonl"
    with pytest.raises(SystemExit):
        main(damaged_argv("predict", folder, damaged, "--output", output))
    assert read_lines(output) == lines
    printed = capsys.readouterr()
    assert (
        f"5 answers written to {output}" in printed.out and f"the 5 answers before it are in {output}" in printed.err
    )


def test_predict_skips(folder, damaged, tmp_path, capsys):
    output, listed = tmp_path / "answers.jsonl", tmp_path / "answers.bad_samples.jsonl"
    run(damaged_argv("predict", folder, damaged, "--on_bad_sample", "skip", "--output", output))
    lines, bad = read_lines(output), read_lines(listed)
    assert [line["row"] for line in lines] == list(range(2 * len(NAMES)))
    assert [line["row"] for line in lines if line["answer"] is None] == [line["row"] for line in bad] == [5, 6]
    for line, listed, reason in zip(lines[5:7], bad, (IMAGE_5, AUDIO_6)):
        assert line["error"] == listed["reason"] and listed["reason"].startswith(reason)
    assert (
        f"2 of {2 * len(NAMES)} rows skipped; {tmp_path / 'answers.bad_samples.jsonl'} lists"
        in capsys.readouterr().err
    )


def test_predict_counts_rows_of_the_data_set(folder, damaged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(damaged_argv("predict", folder, damaged, "--max_samples", 2, "--on_bad_sample", "skip"))
    assert [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()] == [0, 2 * len(NAMES) - 1]
    argv = damaged_argv("predict", folder, damaged)
    argv[argv.index("image=picture") : argv.index("audio=speech") + 1] = ["audio=picture"]
    assert_refused(capsys, main, argv, "`audio` of row 0 is not a readable audio file")
    with pytest.raises(ValueError, match=r"none of the .* rows can be used; the first: `audio` of row 0"):
        run([*argv, "--on_bad_sample", "skip"])
    assert len(read_lines(tmp_path / "bad_samples.jsonl")) == 2 * len(NAMES)


def test_evaluate_names_the_row(folder, damaged, capsys):
    argv = damaged_argv("evaluate", folder, damaged, "--target", "name")
    assert_refused(capsys, main, argv, "row 7 has None in the target column 'name'")
    argv[argv.index("name")] = "names.fr"
    assert_refused(capsys, main, argv, IMAGE_5)
    assert_refused(capsys, main, [*argv, "--corruption", "0.5"], "row 5: `image` (shots/five.png) is not a readable")


def test_evaluate_skips(folder, damaged, tmp_path, capsys):
    output = tmp_path / "results.json"
    others = ["--target", "name", "--on_bad_sample", "skip", "--missing", "all", "--output", output]
    results = run(damaged_argv("evaluate", folder, damaged, *others))
    counts = {tuple(result["inputs"]): (result["num_samples"], result["num_skipped"]) for result in results}
    total = 2 * len(NAMES)
    assert counts == {("image",): (total - 2, 2), ("audio",): (total - 2, 2), ("image", "audio"): (total - 3, 3)}
    bad = read_lines(tmp_path / "results.bad_samples.jsonl")
    assert [line["row"] for line in bad] == [5, 6, 7] and bad[0]["reason"].startswith(IMAGE_5)
    printed = capsys.readouterr().out
    assert "skipped" in printed.splitlines()[0] and f"3 of {total} rows skipped" in printed


# demo.py and plotting.py


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "/nowhere/recipe.yaml"], "No such file"),
        (["--recipe", "{folder}/typo.yaml"], "has the key `modle`"),
        (["--recipe", "{folder}/good.yaml", "--skip_training", "--output_dir", "/nowhere"], "there is no model in"),
        (["--recipe", "{folder}/good.yaml", "--num_processes", "0"], "--num_processes is 0; expected at least 1"),
    ],
)
def test_demo_refuses(folder, capsys, argv, message):
    (folder / "typo.yaml").write_text("modle: x\n")
    (folder / "good.yaml").write_text("model: x\nuse_cpu: true\n")
    argv = [argument.format(folder=folder) for argument in argv]
    assert_refused(capsys, load_script("demo").main, argv, message)


def test_demo_shows_a_trained_model(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {folder / 'model'}\ndataset: {folder / 'data'}\ninputs: [image=picture, audio=speech]\ntarget: name\n"
        'questions: {"name in French": names.fr}\nuse_cpu: true\n'
    )
    argv = ["--recipe", recipe, "--output_dir", folder / "model", "--skip_training", "--num_samples", 4]
    samples = load_script("demo").main([str(argument) for argument in argv])
    assert len(samples) == 4
    assert {sample["asked"] for sample in samples} >= {"picture + speech", "picture + speech + “name in French”"}
    # Nothing may have helped a model without training.
    assert {round(sum(sample["shares"].values()), 6) for sample in samples} <= {0, 1}
    assert Image.open(folder / "model" / "answers.png").size > (300, 300)
    output = capsys.readouterr().out
    assert "picture + speech" in output and "[1/4] Training is skipped; the model is the one in " in output
    assert all(f"\n[{stage}/4] " in output for stage in range(1, 5))


@pytest.mark.parametrize(
    ("minutes", "said"), [(None, "the bar below says how long it takes"), (9.5, "9.5 minutes at most")]
)
def test_demo_says_how_long_it_trains(minutes, said):
    assert load_script("demo").training_time(RecipeArguments(max_minutes=minutes)).startswith(said)


@pytest.mark.slow
def test_demo_trains_in_two_processes(folder, tmp_path, capfd):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {folder / 'model'}\ndataset: {folder / 'data'}\ninputs: [image=picture, audio=speech]\ntarget: name\n"
        "train_split: test\neval_split: null\nuse_cpu: true\nmax_steps: 2\nper_device_train_batch_size: 2\n"
        "report_to: none\nmax_minutes: 5\n"
    )
    argv = ["--recipe", recipe, "--output_dir", tmp_path / "out", "--num_samples", 2, "--num_processes", 2]
    assert len(load_script("demo").main([str(argument) for argument in argv])) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `num_processes` | 2 |" in card and "| `max_steps` | 2 |" in card
    assert (tmp_path / "out" / "model.safetensors").exists() and (tmp_path / "out" / "answers.png").exists()
    with pytest.raises(SystemExit):  # training can't start: no such data set
        load_script("demo").main([*map(str, argv), "--dataset", "/nowhere"])
    assert "error: there is no data set at /nowhere" in capfd.readouterr().err


SAMPLE = {"image": Image.new("RGB", (8, 8)), "answer": "a $5 bill", "truth": "b", "shares": {"image": 0.5}}


def test_plot_answers(tmp_path):
    path = plot_answers([SAMPLE] * 5, tmp_path / "answers.png")
    assert Image.open(path).format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.png"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "`samples` is empty"),
        ([{**SAMPLE, "shares": {"image": 0.7, "audio": 0.7}}], "add up to 1"),
        ([{key: value for key, value in SAMPLE.items() if key != "truth"}], "lacks `truth`"),
    ],
)
def test_plot_answers_refuses(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        plot_answers(samples, tmp_path / "answers.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [1, 3.5])  # per cents, and other numbers
def test_plot_bars_and_curves(tmp_path, scale):
    models = [f"model {number}" for number in range(8)]  # one more than there are colours
    plot_bars({model: {"image": 0.5 * scale, "audio": scale} for model in models}, tmp_path / "bars.png", "accuracy")
    curves = {model: {0.0: scale, 1.0: 0.1} for model in models}
    plot_curves(curves, tmp_path / "curves.png", "accuracy", "corruption")
    for name in ("bars.png", "curves.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert (pixels == (0, 0x72, 0xB2)).all(-1).any()


@pytest.mark.parametrize("values", [{}, {"model": {}}])
def test_plot_bars_and_curves_refuse(tmp_path, values):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_bars(values, tmp_path / "bars.png", "accuracy")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_curves(values, tmp_path / "curves.png", "accuracy", "corruption")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["demo", "compare_fusions"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        load_script(name).main(["--help"])
    output = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"usage: {name}.py" in output and "examples:" in output and "%(default)" not in output


@pytest.mark.slow
def test_help_from_the_command_line():
    # evaluate.py, since Python puts its folder on the path, where it hides the library `evaluate`
    command = [sys.executable, str(SCRIPTS / "evaluate.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
