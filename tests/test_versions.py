# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The versions that are allowed are those that `make test-versions` tests; what is deprecated fails a test."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.utils.deprecation import deprecate_kwarg


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
BOUNDS = {
    requirement.name.replace("_", "-"): Version(part.version)
    for requirement in REQUIREMENTS
    for part in requirement.specifier
    if part.operator == ">="
}


def pins(name: str) -> dict[str, set[Version]]:
    """A file of constraints: packages to the versions of all platforms and Pythons."""
    pinned = {}
    for package, version in re.findall(r"^([\w-]+)==([^\s;]+)", (ROOT / name).read_text(), flags=re.MULTILINE):
        pinned.setdefault(package, set()).add(Version(version))
    return pinned


@pytest.mark.parametrize("package", BOUNDS)
def test_a_lower_bound_is_the_version_that_is_tested(package):
    assert BOUNDS[package] == min(pins("constraints-lowest.txt")[package])


# As from a line of the package, of a test, and of transformers on their behalf.
@pytest.mark.parametrize("module", ["modeling_crossfuse.layers", "tests.test_model", "transformers.generation.utils"])
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_what_is_deprecated_fails(module, category):
    with pytest.raises(category, match="renamed"):
        exec('warnings.warn("renamed", category)', {"__name__": module, "warnings": warnings, "category": category})


def test_a_renamed_argument_of_transformers_fails():
    renamed = deprecate_kwarg("past", new_name="cache", version="99.0")(lambda cache: cache)
    with pytest.raises(FutureWarning, match="past"):
        renamed(past=1)


def test_what_other_libraries_do_is_their_affair():
    with pytest.warns(DeprecationWarning, match="renamed"):
        exec('warnings.warn("renamed", DeprecationWarning)', {"__name__": "captum.attr", "warnings": warnings})
