# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The console command: it is light until it runs, ends with one line, and finds configurations and recipes by name."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import modeling_crossfuse
from crossfuse.errors import one_line
from crossfuse.main import PROGRAMS, main
from crossfuse.recipe import OWN, TASKS, find_recipe
from crossfuse.training_arguments import parse_recipe
from modeling_crossfuse import CrossFuseConfig
from modeling_crossfuse.configuration_crossfuse import ready_config
from modeling_crossfuse.heads import HEADS


ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "numpy", "modeling_crossfuse", "yaml", "datasets")


def crossfuse(*argv: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Runs the console command in a process of its own."""
    path = os.pathsep.join([*filter(None, [environment.pop("PYTHONPATH", "")]), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "crossfuse", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("program", [None, *PROGRAMS])
def test_help_imports_nothing_heavy(program):
    argv = [*([program] if program else []), "--help"]
    code = f"""
import sys
from crossfuse.main import main
try:
    main({argv})
except SystemExit as stopped:
    assert stopped.code == 0
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith(f"usage: crossfuse{' ' + program if program else ''} ")
    assert "exit codes: 0 done, 2 something is wrong" in done.stdout and "%(default)" not in done.stdout
    assert program is None or f"\n    crossfuse {program} " in done.stdout


def test_flags_of_train_are_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert shown == {*OWN, "help_trainer"}


def test_flags_of_the_trainer(capsys):
    main(["train", "--help-trainer"])
    output = capsys.readouterr().out
    assert "--learning_rate" in output and "--predict_with_generate" in output and "--dataset" not in output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "crossfuse: error: argument PROGRAM: invalid choice: 'evalute'"),
        (["--nothing"], "crossfuse: error: "),
        (["train", "--learnin_rate", "1"], "crossfuse train: error: unknown argument --learnin_rate; did you mean"),
        (["train", "--datset", "x"], "did you mean --dataset or"),
        (["train", "--seed", "one"], "crossfuse train: error: argument --seed: invalid int value: 'one'"),
        (["train", "--max_target_length", "long"], "argument --max_target_length: invalid int value: 'long'"),
        (["train", "no/such.yaml"], "crossfuse train: error: [Errno 2] No such file or directory: 'no/such.yaml'"),
        (["train", "{typo}"], "has the key `modle`, which is no flag. Did you mean `model`?"),
        (["train", "{wrong}"], "crossfuse train: error: "),  # a TypeError of transformers
        (
            ["evaluate", "model"],
            "evaluate: error: the following arguments are required: --dataset, --inputs",
        ),
        (["predict", "model", "--imputs", "a=b"], "unknown argument --imputs; did you mean --inputs or"),
        (["export", "model"], "crossfuse export: error: the following arguments are required: --output"),
        (["push", "nowhere", "me/model"], "crossfuse push: error: there is no saved model in nowhere"),
        (["app", "model", "--port", "0"], "crossfuse app: error: --port is 0; expected 1 to 65535"),
    ],
)
def test_one_line_says_what_is_wrong(argv, message, capsys, tmp_path):
    files = {"typo": tmp_path / "typo.yaml", "wrong": tmp_path / "wrong.yaml"}
    files["typo"].write_text("modle: x\n")
    files["wrong"].write_text("num_train_epochs: [1]\nlogging_steps: {}\n")
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(**files) for argument in argv])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1, error


def test_errors_of_programming_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("crossfuse.predict.run", lambda args: args.nothing)
    with pytest.raises(AttributeError):
        main(["predict", "model", "--inputs", "text=a"])


def test_an_interruption_ends_with_130(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("crossfuse.predict.run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "model", "--inputs", "text=a"])
    assert stopped.value.code == 130 and capsys.readouterr().err == "crossfuse predict: interrupted\n"


class Refusing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("`image` of row 7 is bad: ValueError: no pixels")


def test_an_error_of_a_worker_is_one_line():
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker") as caught:
        list(torch.utils.data.DataLoader(Refusing(), num_workers=1))
    assert one_line(caught.value) == "`image` of row 7 is bad: ValueError: no pixels"


@pytest.mark.parametrize(
    ("module", "argv", "extra"),
    [
        ("gradio", ["app"], "app"),
        # Each starts a process, which takes seconds.
        pytest.param("datasets", ["train", "--dataset", "d"], "train", marks=pytest.mark.slow),
        pytest.param(
            "datasets",
            ["evaluate", "m", "--dataset", "d", "--inputs", "a=b", "--target", "c"],
            "train",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_missing_extra_is_one_line(module, argv, extra, tmp_path):
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('no {module}', name='{module}')")
    done = crossfuse(*argv, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr == (
        f"crossfuse {argv[0]}: error: `crossfuse {argv[0]}` needs the module {module}; install it with: "
        f'pip install "crossfuse[{extra}]" (from a clone: pip install -e ".[{extra}]")\n'
    )
    assert crossfuse(argv[0], "--help", PYTHONPATH=str(tmp_path)).returncode == 0


def test_tasks_of_recipes_are_those_of_heads():
    """The command line names them before it imports the heads."""
    assert set(TASKS) <= set(HEADS)


def test_dashes_and_underscores():
    recipe, arguments = parse_recipe(["--max-target-length=9", "--max_minutes", "2", "--learning-rate", "3e-3"])
    assert (recipe.max_target_length, recipe.max_minutes, arguments.learning_rate) == (9, 2.0, 3e-3)


def test_configurations_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = AutoConfig.from_pretrained(ROOT / "configuration" / "tiny").to_diff_dict()
    for name in ("tiny", "configuration/tiny"):
        config = CrossFuseConfig.from_pretrained(name)
        assert type(config) is CrossFuseConfig
        assert config.to_diff_dict() == expected
    assert ready_config("me/tiny") == "me/tiny" and ready_config("tinny") == "tinny"
    CrossFuseConfig(d_model=32).save_pretrained("tiny")
    assert CrossFuseConfig.from_pretrained("tiny").d_model == 32  # a folder of that name wins


def test_recipes_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configuration" / "recipes" / "emoji_demo.yaml"
    assert find_recipe("emoji_demo") == find_recipe("configuration/recipes/emoji_demo.yaml") == path
    recipe, _ = parse_recipe(["emoji_demo"])
    assert recipe == parse_recipe([str(path)])[0] and recipe.dataset == "data/emoji"
    Path("emoji_demo").write_text("dataset: mine\n")
    assert parse_recipe(["emoji_demo"])[0].dataset == "mine"


def test_what_is_public():
    assert set(dir(modeling_crossfuse)) == set(modeling_crossfuse.__all__)
    assert {"CrossFuseTrainer", "explain", "CrossFuseConfig"} <= set(dir(modeling_crossfuse))
    for name in dir(modeling_crossfuse):
        assert getattr(modeling_crossfuse, name) is not None


@pytest.mark.slow
def test_scripts_are_the_programs():
    for script, program in {"evaluate": "evaluate", "push_to_hub": "push", "train": "train"}.items():
        command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: crossfuse {program}")


@pytest.mark.slow
def test_a_process_that_fails_ends_the_training(tmp_path):
    (tmp_path / "fails.yaml").write_text("dataset: /nowhere\nuse_cpu: true\n")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "crossfuse", "train"]
    command = [sys.executable, "-m", *launch, str(tmp_path / "fails.yaml"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "crossfuse train: error: there is no data set at /nowhere" in done.stderr


@pytest.mark.slow
def test_a_wheel_has_all_that_it_needs(tmp_path):
    """Installed by itself, in a folder where nothing else is."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*pip, "wheel", *offline, "-w", tmp_path, copy_of_the_clone(tmp_path)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("configuration/tiny/config.json", "configuration/recipes/emoji.yaml", "training/building.py"):
        assert f"modeling_crossfuse/{name}" in names
    assert "crossfuse/main.py" in names and any(name.endswith("share/crossfuse/model_card.md") for name in names)
    assert not any(name.startswith(("tests", "scripts", "data")) for name in names)
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "site")})
    place = ["--ignore-installed", "--prefix", tmp_path / "site"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-q", *place, wheel], check=True, timeout=300)
    (tmp_path / "empty").mkdir()
    code = (
        "import modeling_crossfuse as m; c = m.CrossFuseConfig.from_pretrained('tiny'); print(m.__file__); "
        "from crossfuse.training_arguments import parse_recipe; r, _ = parse_recipe(['emoji']); "
        "from modeling_crossfuse.training.model_card import template_path; assert template_path().is_file(); "
        "print(r.dataset, m.CrossFuseConfig.from_pretrained(r.model).d_model)"
    )
    environment = {**os.environ, "PYTHONPATH": site, "PYTHONSAFEPATH": "1"}
    settings = {"cwd": tmp_path / "empty", "env": environment, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, **settings)
    assert done.stdout.startswith(str(tmp_path / "site")) and "data/emoji" in done.stdout
    command = [sys.executable, tmp_path / "site" / "bin" / "crossfuse"]
    shown = subprocess.run([*command, "predict", "--help"], capture_output=True, check=True, **settings)
    assert shown.stdout.startswith("usage: crossfuse predict")


def copy_of_the_clone(folder: Path) -> Path:
    """What git tracks, so that building leaves nothing in the clone."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if not name.startswith(("tests/", "data/", "checkpoints/", "docs/")) and (ROOT / name).is_file():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "clone" / name).write_bytes((ROOT / name).read_bytes())
    return folder / "clone"
