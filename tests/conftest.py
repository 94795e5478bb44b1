# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Every test finds the registered fusions and the logging of transformers as they were."""

import gc
import importlib
import os
import sys

import pytest

from .hub_server import TOKEN, serve


# Its bars stand on standard error, where tests expect one line, whenever a data set is not in the cache yet.
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


imported = 0  # modules that are left out of the search for garbage


def pytest_collectstart():
    """
    Imports the package before any test's file imports transformers, which then keeps quiet. The process that only
    hands tests to others collects none, and starts without it.
    """
    gc.disable()  # modules are no garbage
    importlib.import_module("modeling_crossfuse")


def pytest_collection_finish():
    gc.enable()


def pytest_runtest_setup():
    """Leaves modules out of the search for garbage: each Trainer starts one, which takes a third of a second else."""
    global imported
    if len(sys.modules) > imported:
        gc.collect()
        gc.freeze()
        imported = len(sys.modules)


def kept_verbosity():
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    hub_logging.set_verbosity(hub_verbosity)


# Programs log nothing but errors. The fixtures of a module may run one before any of its tests begins.
module_keeps_verbosity = pytest.fixture(scope="module", autouse=True)(kept_verbosity)
test_keeps_verbosity = pytest.fixture(autouse=True)(kept_verbosity)


@pytest.fixture(autouse=True)
def restore_global_state():
    import torch

    from modeling_crossfuse.configuration_crossfuse import FUSION_TYPES
    from modeling_crossfuse.fusion import FUSIONS

    fusions, types = dict(FUSIONS), list(FUSION_TYPES)
    threads = torch.get_num_threads()  # with others, sums come in another order
    yield
    FUSIONS.clear()
    FUSIONS.update(fusions)
    FUSION_TYPES[:] = types
    torch.set_num_threads(threads)


@pytest.fixture
def spoken(caplog):
    """A function that gives what the package has logged so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("modeling_crossfuse")]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of its own for a test, which is logged in; its cache is empty."""
    import huggingface_hub
    from huggingface_hub import constants

    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
