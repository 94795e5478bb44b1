# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The README and the pages of docs: their Python blocks run, and their commands, links and files exist."""

import ast
import itertools
import re
import shlex
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))]
CARDS = ["checkpoints/emoji/README.md", "data/emoji/README.md"]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES + CARDS}
PROGRAMS = ("train", "evaluate", "predict", "export", "push", "app")
SLOW = ("docs/encoders-of-transformers.md", "docs/explanation.md")
# What the blocks write; the tests put it elsewhere.
WRITTEN = ("my-model", "explanation.png")
PACKAGES = ("modeling_crossfuse", "crossfuse")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of a page's bash blocks, and the commands within its sentences."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]
    prose = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:python|make|crossfuse) [^`]+)`", prose)
    return [*lines, *(" ".join(command.split()) for command in inline)]


def pairs(values) -> list:
    return [
        pytest.param(page, value, id=f"{page}: {value}") for page in TEXTS for value in dict.fromkeys(values(page))
    ]


def links(page: str) -> list[str]:
    return re.findall(r"\]\(((?!http)[^)]+)\)", TEXTS[page])


def anchors(page: Path) -> set[str]:
    """Where GitHub lets a link into a page lead."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def read_tree() -> list[str]:
    """The paths in the README's tree, from top to bottom; those of folders end with a slash."""
    (tree,) = blocks("README.md", "text")
    paths, folders = [], []
    for line in tree.splitlines():
        name = line.split()[0]
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        paths.append("".join([*folders, name]))
        if name.endswith("/"):
            folders.append(name)
        else:
            assert len(line.split()) > 1, f"{name} has no description"
    return paths


def imported_files(path: Path) -> set[Path]:
    """The files of the package that a file imports as it is loaded."""
    found = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and statement.level:
            folder = path.parents[statement.level - 1].joinpath(*(statement.module or "").split("."))
            found |= {folder / f"{name.name}.py" for name in statement.names} | {folder.with_suffix(".py")}
    return {file for file in found if file.exists()}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES if blocks(page, "python")],
)
def test_python_blocks_run(page, hub, monkeypatch, tmp_path):
    """One after the other, as a reader would type them."""
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": page}
    for number, block in enumerate(blocks(page, "python"), start=1):
        for written in WRITTEN:
            block = block.replace(f'"{written}"', repr(str(tmp_path / written)))
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)


@pytest.mark.parametrize(("page", "command"), pairs(commands))
def test_commands_name_what_exists(page, command):
    words = shlex.split(command, comments=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    for before, word in zip(["", *words], words):
        if before == "make":
            assert word in targets
        elif before == "--model" and "/" not in word:
            assert (ROOT / "configuration" / word / "config.json").exists(), word
        elif word.endswith((".py", ".yaml")) or word.startswith(("checkpoints/", "data/", "configuration/")):
            assert (ROOT / word).exists(), word
    if words[0] == "crossfuse" or ("-m", "crossfuse") in itertools.pairwise(words):
        program, *arguments = words[words.index("crossfuse") + 1 :]
        assert program in PROGRAMS
        if program == "train" and arguments and not arguments[0].startswith("-") and "/" not in arguments[0]:
            assert (ROOT / f"configuration/recipes/{arguments[0]}.yaml").exists()


@pytest.mark.parametrize(("page", "link"), pairs(links))
def test_links_lead_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


def test_every_page_is_linked_from_the_readme():
    assert set(PAGES[1:]) <= {link.partition("#")[0] for link in links("README.md")}


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 12 * 1024


def test_tree_has_every_file():
    tree = set(read_tree())
    assert {path for path in tree if not (ROOT / path).exists()} == set()
    files = {str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert {file for file in files - tree if not Path(file).name.startswith("__")} == set()


def test_tree_is_in_the_order_of_imports():
    paths = [ROOT / path for path in read_tree() if path.startswith("modeling_crossfuse/") and path.endswith(".py")]
    places = {path: place for place, path in enumerate(paths)}
    backwards = [
        f"{path.name} imports {file.name}, which stands below it"
        for path in paths
        for file in (imported_files(path) if path.exists() else ())
        if places.get(file, -1) > places[path]
    ]
    assert not backwards


@pytest.mark.parametrize("name", re.findall(r"`([\w/]+\.py)`", TEXTS["docs/developing.md"]))
def test_files_that_developers_are_sent_to(name):
    assert (ROOT / name).exists() or (ROOT / "modeling_crossfuse" / name).exists()
