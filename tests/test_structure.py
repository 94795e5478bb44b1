# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The order of the files, read from their imports: what travels to the Hub is flat, and later rooms import earlier."""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGE, PROGRAMS = "modeling_crossfuse", "crossfuse"
ROOMS = ("data", "evaluation", "explanation", "training", "export")
STAY = {"__init__", "messages"}
ENTRIES = ("heads", "processing_crossfuse")
REQUIRED = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL"}
MAX_LINES = 700


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for folder in (PACKAGE, PROGRAMS) for path in sorted((ROOT / folder).rglob("*.py"))}
FLAT = {name: path for name, path in FILES.items() if path.parent == ROOT / PACKAGE}


@dataclass(frozen=True)
class Import:
    """One imported name: where it is written, and what file of ours, or package of others, it comes from."""

    path: Path
    node: ast.Import | ast.ImportFrom
    target: str
    in_function: bool

    @property
    def is_ours(self) -> bool:
        return self.target in FILES

    def __str__(self):
        return f"{self.path.relative_to(ROOT)}:{self.node.lineno}: {ast.unparse(self.node)}"


def targets(path: Path, node: ast.Import | ast.ImportFrom) -> set[str]:
    """The files of ours that an import statement reads, or the names of others' packages."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        package = list(path.relative_to(ROOT).parent.parts)
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        base = base if node.level else node.module
        # `from . import layers` reads a file; `from .layers import Norm` reads the file before it.
        names = [name if (name := f"{base}.{alias.name}") in FILES else base for alias in node.names]
    return {name if name in FILES else name.partition(".")[0] for name in names}


def read_imports(path: Path) -> list[Import]:
    """All imports of a file, those inside functions included."""
    imports = []

    def visit(node: ast.AST, in_function: bool):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                imports.extend(Import(path, child, target, in_function) for target in targets(path, child))
            visit(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return imports


IMPORTS = {name: read_imports(path) for name, path in FILES.items()}


def reached_from(names) -> set[str]:
    """The flat files that `names` lead to by `from .x import y`."""
    reached, waiting = set(), [f"{PACKAGE}.{name}" for name in names]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [found.target for found in IMPORTS[name] if found.target in FLAT]
    return reached


TRAVELLERS = sorted(reached_from(ENTRIES))


def find_circle(start: str) -> list[Import] | None:
    """The shortest way from a file by its imports back to it."""
    ways, seen = [[found] for found in IMPORTS[start] if found.is_ours], set()
    for way in ways:  # which grows
        last = way[-1].target
        if last == start:
            return way
        if last not in seen:
            seen.add(last)
            ways += [[*way, found] for found in IMPORTS[last] if found.is_ours]
    return None


def test_no_file_imports_itself_by_way_of_others():
    circles = sorted(filter(None, map(find_circle, FILES)), key=len)
    assert not circles, "imports in a circle, the shortest of all:\n" + "\n".join(map(str, circles[0]))


def room_of(name: str) -> str | None:
    """The room of a file of the package; `None` for flat files."""
    package, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    return room if package == PACKAGE and room and (ROOT / PACKAGE / room).is_dir() else None


def test_the_rooms_are_those_that_have_an_order():
    others = [name for name in FILES if name.startswith(f"{PACKAGE}.") and room_of(name) not in (None, *ROOMS)]
    assert not others, f"in none of the rooms {', '.join(ROOMS)}: {', '.join(others)}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_earlier_rooms(room):
    allowed = (None, *ROOMS[: ROOMS.index(room) + 1])
    found = [found for name in FILES if room_of(name) == room for found in IMPORTS[name]]
    # The package itself, whose names are those of all rooms, is later than each of them.
    late = [part for part in found if part.target.startswith(PACKAGE)]
    late = [str(part) for part in late if part.target == PACKAGE or room_of(part.target) not in allowed]
    assert not late, f"a later room is imported by {room}/:\n" + "\n".join(late)


@pytest.mark.parametrize("name", TRAVELLERS)
def test_what_travels_imports_what_travels(name):
    """`save_pretrained` copies what `from .x import y` names, from one folder; all else has to be installed there."""
    for found in IMPORTS[name]:
        node = found.node
        if found.target.partition(".")[0] in (PACKAGE, PROGRAMS) or getattr(node, "level", 0):
            form = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and "." not in node.module
            assert form, f"not of the form `from .x import y`: {found}"
            assert found.target in TRAVELLERS, f"imports what stays: {found}"
        elif not found.in_function:
            allowed = found.target in REQUIRED or found.target in sys.stdlib_module_names
            assert allowed, f"an optional package at the top level: {found}"


def test_every_flat_file_travels():
    stay = sorted(path.name for name, path in FLAT.items() if path.stem not in STAY and name not in TRAVELLERS)
    assert not stay, f"reached from none of {', '.join(ENTRIES)}; files that stay belong in a room: {', '.join(stay)}"
    travel = [name for name in TRAVELLERS if FILES[name].stem in STAY]
    assert not travel, f"files that stay are imported by files that travel: {', '.join(travel)}"


def test_the_package_imports_no_program():
    names = [name for name in FILES if name.split(".")[0] == PACKAGE]
    wrong = [str(found) for name in names for found in IMPORTS[name] if found.target.split(".")[0] == PROGRAMS]
    assert not wrong, "the package imports a program:\n" + "\n".join(wrong)


def test_files_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values()}
    long = [f"{path.relative_to(ROOT)} has {count} lines" for path, count in lines.items() if count > MAX_LINES]
    assert not long, f"more than {MAX_LINES} lines; split what has two subjects: " + ", ".join(long)
