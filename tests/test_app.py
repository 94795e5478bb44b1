# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The web page: its fields, what it answers and refuses, its server, the Space that it writes, and a browser."""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import wave
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from crossfuse import app
from crossfuse.flags import Parser
from crossfuse.loading import load_model
from crossfuse.main import main
from modeling_crossfuse import (
    CrossFuseForConditionalGeneration,
    CrossFuseForSequenceClassification,
    CrossFuseProcessor,
)
from modeling_crossfuse.training import train_tokenizer

from .helpers import tiny_config, tiny_model


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
gradio = pytest.importorskip("gradio", reason="the web page needs gradio")
gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")
av = pytest.importorskip("av", reason="the web page needs PyAV")
page = importlib.import_module("crossfuse.page")

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("text", "image", "video", "audio", "wrist")
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


def save_model(folder: Path, *modalities: str, model_class=CrossFuseForConditionalGeneration, **settings) -> Path:
    """A tiny model with its processor."""
    config = tiny_config(*modalities, decoder={"vocab_size": 280, "num_hidden_layers": 1}, **settings)
    tokenizer = train_tokenizer(["name in French", "red"], vocab_size=280)
    config.vocab_size = len(tokenizer)
    if "text" in modalities:
        config.modalities["text"].vocab_size = len(tokenizer)
    model = tiny_model(config, model_class)
    if model.can_generate():
        model.generation_config.max_new_tokens = 3
    model.save_pretrained(folder)
    CrossFuseProcessor.from_config(config, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A value of each kind, and some that are wrong."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGBA", (20, 12), (255, 0, 0, 128)).save(folder / "red.png")
    with wave.open(str(folder / "red.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.random.default_rng(0).standard_normal(1600) * 3000).astype("<i2").tobytes())
    with wave.open(str(folder / "long.wav"), "wb") as file:
        file.setparams((1, 2, 100, 0, "NONE", ""))
        file.writeframes(bytes(2 * 100 * 61))
    with av.open(str(folder / "long.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 61 * 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    np.savetxt(folder / "wrist.csv", np.ones((4, 3)), delimiter=",")
    np.save(folder / "wrist.npy", np.ones((4, 3)))
    np.save(folder / "long.npy", np.ones((10_001, 3)))
    np.save(folder / "cube.npy", np.ones((4, 8, 3)))
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue", "white")]
    frames[0].save(folder / "video.gif", save_all=True, append_images=frames[1:])
    (folder / "empty.npy").write_bytes(b"")
    for name in ("words.csv", "<b>.wav", "broken.png"):
        (folder / name).write_text("a,b,c\n")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), *KINDS)


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder))


@pytest.fixture
def fill(loaded, files):
    """The values of all fields, where a few are given by name."""

    def fill(**given):
        return [files.get(given.get(name), given.get(name)) for name in loaded[0].config.modalities]

    return fill


def test_a_field_for_each_modality_by_its_kind(loaded):
    blocks = page.build_page(*loaded)
    inputs = next(iter(blocks.fns.values())).inputs
    labels = [field.label.split(" (")[0] for field in inputs]
    expected = [gradio.Textbox, gradio.Image, gradio.Video, gradio.Audio, gradio.File]
    assert labels == list(KINDS)
    assert all(isinstance(field, kind) for field, kind in zip(inputs, expected))


@pytest.mark.parametrize(
    "given",
    [
        {"text": "name in French"},
        {"image": "red.png"},
        {"audio": "red.wav", "wrist": "wrist.csv"},
        {"text": "  ", "wrist": "wrist.npy"},
        {"text": "name", "image": "red.png", "video": "video.gif", "audio": "red.wav", "wrist": "wrist.npy"},
    ],
)
def test_what_is_given_is_answered_and_explained(loaded, fill, given):
    early, whole = page.respond(*loaded, *fill(**given))
    assert early == (*whole[:2], None)
    answer, shares, picture = whole
    assert isinstance(answer, str) and answer
    assert list(shares) == [name for name in KINDS if given.get(name, "").strip()]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3) or set(shares.values()) == {0.0}
    assert picture.width > 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Nothing is given; expected at least one of text, image, video, audio, wrist"),
        ({"text": " \n"}, "Nothing is given"),
        ({"text": "a" * 1001}, "text has 1,001 letters; expected 1,000 at most"),
        ({"image": "broken.png"}, "(broken.png) is not a readable image"),
        ({"audio": "<b>.wav"}, "(&lt;b&gt;.wav) is not a readable audio file"),
        ({"audio": "wrist.npy"}, "(wrist.npy) is not a readable audio file"),
        ({"audio": "long.wav"}, "audio has 61 seconds; expected 60 at most"),
        ({"audio": "long.m4a"}, "audio has 61 seconds; expected 60 at most"),
        ({"video": "broken.png"}, "(broken.png) is not a readable video"),
        ({"wrist": "words.csv"}, "words.csv is not a table of numbers"),
        ({"wrist": "empty.npy"}, "empty.npy is not a table of numbers"),
        ({"wrist": "red.png"}, "red.png is no series: expected a .npy or .csv file"),
        ({"wrist": "long.npy"}, "wrist has 10,001 steps; expected 10,000 at most"),
        ({"wrist": "cube.npy"}, "expected `(steps, 3)`"),
        ({"wrist": "/no/such.csv"}, "there is no file such.csv"),
    ],
)
def test_wrong_values_are_refused_in_words(loaded, fill, given, message):
    with pytest.raises(gradio.Error) as error:
        list(page.respond(*loaded, *fill(**given)))
    assert message in error.value.message and "/" not in error.value.message.replace("/b", "")
    assert not error.value.print_exception


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"id2label": {0: "cat", 1: "dog", 2: "cow"}}, 1),
        ({"id2label": {0: "cat", 1: "dog"}, "problem_type": "multi_label_classification"}, None),
        ({"id2label": {0: "weight"}, "problem_type": "regression"}, None),
    ],
)
def test_classifiers_show_their_classes(tmp_path, files, settings, total):
    folder = save_model(tmp_path, "image", "wrist", model_class=CrossFuseForSequenceClassification, **settings)
    model, processor = load_model(str(folder))
    _, (answer, shares, picture) = page.respond(model, processor, files["red.png"], None)
    assert list(shares) == ["image"] and picture.width > 1000
    if settings.get("problem_type") == "regression":
        assert answer.startswith("weight: ") and float(answer.removeprefix("weight: "))
        assert isinstance(page.answer_component(model), gradio.Textbox)
        return
    assert list(answer) == list(settings["id2label"].values()) and all(0 < score < 1 for score in answer.values())
    assert total is None or sum(answer.values()) == pytest.approx(total)
    assert isinstance(page.answer_component(model), gradio.Label)


def test_the_demo_has_examples(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    examples = page.demo_examples(app.DEMO_DATA, ["text", "image", "audio"], tmp_path)
    assert len(examples) == len(page.EXAMPLES)
    assert examples[0][0] == "name in French" and all(Path(path).is_file() for path in examples[0][1:])


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["no/such/model"], "there is no model at no/such/model"), (["{model}", "--device", "moon"], "is no device")],
)
def test_wrong_arguments_are_refused(capsys, folder, argv, message):
    with pytest.raises(SystemExit) as stopped:
        main(["app", *(argument.format(model=folder) for argument in argv)])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_full_folder_is_no_place_for_a_space(capsys, folder):
    with pytest.raises(SystemExit):
        main(["app", str(folder), "--write_space", str(folder)])
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_without_gradio_it_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('no gradio', name='gradio')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "scripts" / "app.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
    assert "crossfuse app: error: `crossfuse app` needs the module gradio; install it with: pip install" in run.stderr


@contextlib.contextmanager
def served(folder: Path, program: str, log_file: Path, **environment: str):
    """The address of the page that a program serves, run in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with log_file.open("w") as log:
        command = [sys.executable, "-W", "ignore", program]
        process = subprocess.Popen(command, cwd=folder, env=os.environ | offline | environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            assert process.poll() is None, log_file.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(address):
                break
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


def test_a_server_answers_several_at_once(loaded, files):
    blocks = page.build_page(*loaded)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, max_file_size="100kb", show_error=True)
    try:
        client = gradio_client.Client(address, verbose=False)
        samples = [("name", None), ("name in French", files["red.png"]), (None, files["red.png"])]
        jobs = [
            client.submit(text, image and gradio_client.handle_file(image), None, None, None, api_name="/answer")
            for text, image in samples
        ]
        for (text, image), job in zip(samples, jobs):
            answer, shares, picture = job.result(timeout=120)
            *_, (expected, expected_shares, _) = page.respond(*loaded, text, image, None, None, None)
            assert answer == expected and Path(picture).is_file()
            assert {entry["label"] for entry in shares["confidences"]} == set(expected_shares)
        with pytest.raises(gradio_client.exceptions.AppError, match="Nothing is given"):
            client.predict("", None, None, None, None, api_name="/answer")
        video, series = (gradio_client.handle_file(files[name]) for name in ("video.gif", "wrist.csv"))
        assert client.predict(None, None, video, None, series, api_name="/answer")[0]
        broken = gradio_client.handle_file(files["broken.png"])
        with pytest.raises(gradio_client.exceptions.AppError, match="not a readable image"):
            client.predict("", broken, None, None, None, api_name="/answer")
        with pytest.raises(Exception, match=r"413|size|large"):  # more than `max_file_size`
            client.predict("", None, None, None, gradio_client.handle_file(files["long.npy"]), api_name="/answer")
        call = f"{address}gradio_api/call/answer"
        secret = {"path": str(ROOT / "docs" / "app.png"), "meta": {"_type": "gradio.FileData"}}  # the server's own
        event = httpx.post(call, json={"data": [None, secret, None, None, None]}).json()["event_id"]
        assert "was not uploaded by a user" in httpx.get(f"{call}/{event}", timeout=60).text
    finally:
        blocks.close()


@pytest.mark.slow
def test_the_space_that_it_writes_starts_by_itself(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    space = tmp_path / "space"
    main(["app", app.DEMO_MODEL, "--write_space", str(space)])
    assert f"hf upload NAME/SPACE {space} . --repo-type space" in capsys.readouterr().out
    settings = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py"
    assert settings["sdk_version"] == gradio.__version__ and settings["python_version"] == python
    required = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    assert all(requirement.specifier.contains(version(requirement.name)) for requirement in required)
    rocket = page.demo_examples(app.DEMO_DATA, ["image", "audio"], tmp_path)[0]
    with served(space, "app.py", tmp_path / "server.log", PYTHONPATH="") as address:
        client = gradio_client.Client(address, verbose=False)
        files = [gradio_client.handle_file(path) for path in rocket]
        answer, shares, picture = client.predict("name in French", *files, api_name="/answer")
        assert answer == "fusée" and len(shares["confidences"]) == 3 and Path(picture).is_file()
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def test_a_space_of_another_model_has_no_examples(monkeypatch, folder, tmp_path):
    monkeypatch.chdir(ROOT)
    main(["app", str(folder), "--write_space", str(tmp_path / "space")])
    written = {path.name for path in (tmp_path / "space").iterdir()}
    assert written == {"app.py", "README.md", "requirements.txt", "crossfuse", "modeling_crossfuse", "model"}
    monkeypatch.chdir(tmp_path / "space")
    assert app.parse_args(Parser("app", ""), []).model == "model"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason="needs Debian's packages chromium and chromium-driver"
)
def test_a_browser_uploads_asks_and_sees_the_answer(files, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser")
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    # No address but this machine's: the page must not need the network.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,1700"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with served(ROOT, "scripts/app.py", tmp_path / "server.log", PYTHONPATH=str(ROOT)) as address:
        browser = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
        try:
            wait = WebDriverWait(browser, 120)

            def find(selector: str):
                return wait.until(lambda browser: browser.find_element("css selector", selector))

            def has_text(selector: str, *words: str):
                wait.until(lambda browser: all(word in find(selector).text for word in words))  # it may fade in

            browser.get(address)
            find("#ask").click()
            has_text(".toast-body", "Nothing is given")
            find("input[type=file]").send_keys(files["red.png"])
            find("textarea").send_keys("name in French")
            find("[data-testid=image] img, .image-frame img")
            find("#ask").click()
            find("#explanation img")
            wait.until(lambda browser: find("#answer textarea").get_property("value"))
            has_text("#shares", "text", "image")
            find(".tr-body").click()
            wait.until(lambda browser: find("[data-testid=waveform-audio], #waveform, audio"))
            find("#ask").click()
            has_text("#shares", "audio")
            wait.until(lambda browser: find("#answer textarea").get_property("value") == "fusée")
            find("#explanation img")
            assert browser.save_screenshot(str(tmp_path / "page.png"))
            assert Image.open(tmp_path / "page.png").convert("L").getextrema()[0] < 100  # not blank
            messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        finally:
            browser.quit()
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)
