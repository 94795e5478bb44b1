# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
A web page that asks a model: it has a field for each of the model's modalities, any of which may stay empty, and shows
the answer, what each modality contributed to it, and where in the image, the audio and the text that came from.

With --write_space, writes a folder that is a Space on the Hugging Face Hub as it stands.
"""

import argparse
import importlib.metadata
import shutil
import sys
from pathlib import Path

from .flags import Parser, add_device_arguments


EPILOG = """
examples:
  the emoji model, on http://127.0.0.1:7860:
    crossfuse app
  a model of yours, for everyone in the network:
    crossfuse app outputs/my-model --host 0.0.0.0 --port 8000
  a Space on the Hub, which starts by itself after the upload:
    crossfuse app me/my-model --write_space my-space
    hf upload me/my-space my-space . --repo-type space
"""

# In a Space, the model lies beside app.py; see `write_space`.
SPACE_MODEL, DEMO_MODEL, DEMO_DATA = "model", "checkpoints/emoji", "data/emoji"
# What a Space installs besides gradio, in the versions that this program runs with.
REQUIREMENTS = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
    "soundfile",
    "soxr",
    "av",
    "matplotlib",
    "captum",
    "datasets",
)


def parse_args(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=SPACE_MODEL if Path(SPACE_MODEL).is_dir() else DEMO_MODEL,
        help="folder of a saved model, or its id on the Hub (default: %(default)s)",
    )
    parser.add_argument("--host", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")
    add_device_arguments(parser)
    parser.add_argument("--write_space", type=Path, metavar="FOLDER", help="write a Space instead, into a new folder")
    args = parser.parse_args(argv)
    if args.port is not None and not 1 <= args.port <= 65_535:
        raise ValueError(f"--port is {args.port}; expected 1 to 65535")
    return args


def write_space(folder: Path, model, processor, data: str | None = None):
    """
    Writes a Space: this program, the packages, the model, and what the Hub has to know about them. If the demo's data
    is given, all of it goes along, since its README and licences belong to the images.
    """
    import modeling_crossfuse

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"--write_space: {folder} is not empty")
    model.save_pretrained(folder / SPACE_MODEL)
    processor.save_pretrained(folder / SPACE_MODEL)
    (folder / "app.py").write_text('from crossfuse.main import main\n\nmain(["app"])\n')
    for package in (modeling_crossfuse, sys.modules[__package__]):
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    if data is not None:
        shutil.copytree(data, folder / data)
    versions = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]
    (folder / "requirements.txt").write_text("\n".join(versions) + "\n")
    settings = {
        "title": "CrossFuse",
        "emoji": "🧩",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "python_version": f'"{sys.version_info.major}.{sys.version_info.minor}"',
        "app_file": "app.py",
    }
    lines = [f"{key}: {value}" for key, value in settings.items()]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]), encoding="utf-8")


def run(args: argparse.Namespace):
    """Serves the page until the process is stopped, or writes a Space."""
    from .loading import load_model
    from .page import serve

    model, processor = load_model(args.model, args.device, args.dtype)
    if model.task == "retrieval":
        raise ValueError(f"{args.model} ranks texts; expected a model that generates or classifies")
    # A Space has the demo's data if its model is the demo's.
    has_examples = Path(args.model) in (Path(DEMO_MODEL), Path(SPACE_MODEL)) and Path(DEMO_DATA).is_dir()
    data = DEMO_DATA if has_examples else None
    if args.write_space is not None:
        write_space(args.write_space, model, processor, data)
        print(f"written to {args.write_space}; next: hf upload NAME/SPACE {args.write_space} . --repo-type space")
        return
    serve(model, processor, data, server_name=args.host, server_port=args.port, share=args.share)
