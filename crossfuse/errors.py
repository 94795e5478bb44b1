# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The one way in which a program ends with an error."""

import contextlib
import re
import sys
from collections.abc import Iterator


def one_line(error: Exception) -> str:
    """The first line of an error's message that says something, with the next where it ends with a colon."""
    text = str(error)
    if re.match(r"Caught \w+ in \w+ worker process", text):  # the message of PyTorch's DataLoader ends in a traceback
        text = re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


@contextlib.contextmanager
def ends_in_one_line(program: str, extra: str | None = None) -> Iterator[None]:
    """
    Turns an error about arguments, files, models or data into one line on standard error and the exit code 2, and an
    interruption into 130. Errors of programming stay tracebacks. If a module is missing, `extra` is what to install.
    """
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"{program}: error: {_message(program, error, extra)}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(130) from error


def _message(program: str, error: Exception, extra: str | None) -> str:
    if not isinstance(error, ModuleNotFoundError) or error.name is None or extra is None:
        return one_line(error)
    from modeling_crossfuse.extras import needs

    return str(needs(f"`{program}` needs the module {error.name}", extra))
