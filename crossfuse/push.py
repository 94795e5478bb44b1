# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Pushes a saved CrossFuse model to the Hub, in one commit: its weights as safetensors, its processor, its card, and the
code that loads it where CrossFuse is not installed. Nothing else that lies in the folder goes along.

The token is that of `hf auth login`, or of the environment variable HF_TOKEN. HF_ENDPOINT leads to another Hub.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

from .errors import one_line
from .flags import Parser


EPILOG = """
examples:
  a trained model, for everyone:
    crossfuse push checkpoints/emoji me/emoji
  a private one, on a branch:
    crossfuse push outputs/photos me/photos --private --revision experiment
"""

# What a card's example loads, up to where from.
_LOADS_OURS = re.compile(r"((?:model|processor) = \w+\.from_pretrained\()\"[^\"]*\"")
# Weights of an earlier push that this one may not have: beside it, they could be loaded in its place.
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]


def parse_args(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model")
    parser.add_argument("repo_id", metavar="REPO_ID", help="where to: user/name or organization/name")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if it does not exist (default: main)")
    parser.add_argument("--message", default="Upload model", help="of the commit (default: Upload model)")
    parser.add_argument("--token", help="token with the right to write (default: that of `hf auth login` or HF_TOKEN)")
    args = parser.parse_args(argv)
    if not Path(args.model, "config.json").is_file():
        raise ValueError(f"there is no saved model in {args.model}: it has no config.json")
    return args


def prepare(source: Path, folder: Path, repo_id: str):
    """Saves a model anew, with all that goes along with it and nothing else."""
    from transformers import AutoProcessor

    from modeling_crossfuse import save_code
    from modeling_crossfuse.evaluation.pipeline import AutoModelForCrossFuse
    from modeling_crossfuse.files import write_whole
    from modeling_crossfuse.training.model_card import write_model_card

    model = AutoModelForCrossFuse.from_pretrained(source, dtype="auto")
    model.save_pretrained(folder)
    processor = None
    if (source / "processor_config.json").is_file():
        processor = AutoProcessor.from_pretrained(source)
        processor.save_pretrained(folder)
    save_code(folder)
    if (source / "README.md").is_file():
        # Its example loads the model from where it was saved.
        card = (source / "README.md").read_text(encoding="utf-8")
        write_whole(folder / "README.md", _LOADS_OURS.sub(rf"\g<1>{json.dumps(repo_id)}", card))
    else:
        write_model_card(folder, model, processor, model_id=repo_id)


def push(folder: Path, args: argparse.Namespace):
    """Uploads a folder in one commit, into a repository that is made if it does not exist."""
    from huggingface_hub import HfApi

    api = HfApi(token=args.token)
    try:
        repo_id = api.create_repo(args.repo_id, private=args.private or None, exist_ok=True).repo_id
        if args.revision is not None:
            api.create_branch(repo_id, branch=args.revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=args.revision,
            commit_message=args.message,
            delete_patterns=_WEIGHTS,
        )
    except ValueError as error:  # says on several lines what is wrong with the card
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:  # the client lets through those of the library that it sends requests with
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        advice = (
            "Log in with `hf auth login`, or give a --token with the right to write."
            if refused
            else "Run it again: the Hub has a push whole or not at all, and what arrived is not sent twice."
        )
        raise OSError(f"the push to {args.repo_id} failed: {one_line(error)} {advice}") from error


def run(args: argparse.Namespace):
    """Pushes a model, and returns the `huggingface_hub.CommitInfo`."""
    from huggingface_hub.utils import validate_repo_id

    from .loading import silence_transformers

    validate_repo_id(args.repo_id)
    silence_transformers()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(args.model), Path(folder), args.repo_id)
        commit = push(Path(folder), args)
    print(f"pushed to {commit.commit_url}")
    return commit
