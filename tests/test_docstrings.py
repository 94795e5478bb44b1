# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The examples in the package's docstrings: each runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re

import pytest
import torch

import modeling_crossfuse


class MarkdownParser(doctest.DocTestParser):
    """Leaves out the lines that end a block of Markdown, which otherwise would count as expected output."""

    def parse(self, string, name="<string>"):
        return super().parse(re.sub(r"^[ \t]*```[ \t]*$", "", string, flags=re.MULTILINE), name)


def collect() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(parser=MarkdownParser(), exclude_empty=True)
    found = pkgutil.walk_packages(modeling_crossfuse.__path__, "modeling_crossfuse.")
    modules = [importlib.import_module(name) for name in sorted(module.name for module in found)]
    return [test for module in modules for test in finder.find(module) if test.examples]


@pytest.mark.parametrize("example", collect(), ids=lambda test: test.name.removeprefix("modeling_crossfuse."))
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    example.globs = {"__name__": "__main__"}  # what an example needs, it imports
    report = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not failed, "".join(report)


def test_a_wrong_example_fails():
    parser = MarkdownParser()
    text = "```python\n>>> 1 + 1\n3\n```\n"
    test = parser.get_doctest(text, {}, "wrong", None, 0)
    assert test.examples[0].want == "3\n"
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1
