# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The one way in which a program ends with an error."""

import contextlib
import sys
from collections.abc import Iterator


def one_line(error: Exception) -> str:
    """The first line of an error's message that says something, with the next where it ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


@contextlib.contextmanager
def ends_in_one_line(program: str, extra: str | None = None) -> Iterator[None]:
    """
    Turns an error about arguments, files, models or data into one line on standard error. Errors of programming stay
    tracebacks.

    Args:
        program (`str`): the program's name, which the line begins with.
        extra (`str`, *optional*): the extra of pyproject.toml to install if a module is missing.

    Raises:
        SystemExit: with code 2 in place of such an error, and with 130 if the program was interrupted.
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
    if not isinstance(error, ModuleNotFoundError) or extra is None:
        return one_line(error)
    from modeling_crossfuse.extras import needs

    return str(needs(f"`{program}` needs the module {error.name}", extra))
