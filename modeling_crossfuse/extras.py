# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What is said where an optional package is not installed."""


def needs(what: str, extra: str) -> ImportError:
    """
    The error to raise where a package of an extra of pyproject.toml is missing.

    Args:
        what (`str`): what needs which package, such as `"reading audio files needs soundfile"`.
        extra (`str`): the extra that has the package.
    """
    return ImportError(
        f'{what}; install it with: pip install "crossfuse[{extra}]" (from a clone: pip install -e ".[{extra}]")'
    )
