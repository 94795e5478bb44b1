# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Writing a file whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes):
    """
    Writes a file whole or not at all: a reader never sees half of it, and a failure leaves what was there before.

    Args:
        path (`str` or `Path`): the file; its folder must exist.
        content (`str` or `bytes`): text is written as UTF-8.
    """
    path = Path(path)
    content = content.encode("utf-8") if isinstance(content, str) else content
    # In the same folder, since only within one file system a file can be replaced at once.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp lets nobody else read the file; give it what `open` would have.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
