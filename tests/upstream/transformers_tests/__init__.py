# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The tests of the installed transformers, as an importable package.

Its modules are found in two folders: this one, which holds stand-ins for what transformers' source package lacks, and
the `tests` folder of that source package, downloaded once into `~/.cache/crossfuse/transformers-tests/<version>`, or
into the folder that the environment variable `CROSSFUSE_TRANSFORMERS_TESTS` names.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


CACHE = os.environ.get("CROSSFUSE_TRANSFORMERS_TESTS", "~/.cache/crossfuse/transformers-tests")


def fetch_tests(cache: Path, version: str) -> Path:
    """
    The `tests` folder of a transformers source package.

    Args:
        cache (`Path`): folder that keeps one folder per version.
        version (`str`): a version of transformers.

    Raises:
        RuntimeError: if the package can't be downloaded.
    """
    target = cache / version
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _unpack(_download(version, folder), Path(folder))
            try:
                os.rename(Path(folder, "unpacked"), target)
            except OSError:
                if not target.is_dir():  # otherwise another process was faster
                    raise
    return target / "tests"


def _download(version: str, folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    result = subprocess.run(
        [*command, "--dest", folder, f"transformers=={version}"], capture_output=True, text=True, timeout=600
    )
    archives = list(Path(folder).glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        raise RuntimeError(
            f"The upstream tests need the source package of transformers {version}, and pip can't download it. Put "
            f"its `tests` folder into `<folder>/{version}/tests` and set CROSSFUSE_TRANSFORMERS_TESTS=<folder>. "
            f"pip says:\n{result.stderr[-2000:]}"
        )
    return archives[0]


def _unpack(archive: Path, folder: Path):
    """Only `tests`, as `folder/unpacked/tests`."""
    with tarfile.open(archive) as tar:
        root = tar.getnames()[0].split("/")[0]
        members = [member for member in tar.getmembers() if member.name.startswith(f"{root}/tests/")]
        tar.extractall(folder, members=members, filter="data")
    shutil.move(folder / root, folder / "unpacked")
    # The source package leaves it out, and `test_configuration_common` loads it.
    (folder / "unpacked" / "tests" / "__init__.py").touch()


__path__.append(str(fetch_tests(Path(CACHE).expanduser(), transformers.__version__)))

# `test_processing_common` imports it by this bare name.
sys.modules.setdefault(
    "fetch_hub_objects_for_ci", importlib.import_module(".utils.fetch_hub_objects_for_ci", __name__)
)
