# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a model takes to the Hub beside its weights: a card, and the code that loads it without CrossFuse installed."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging
from transformers.utils.hub import hf_api

from .files import write_whole


logger = logging.get_logger(__name__)

__version__ = "0.1.0"

# Parts of a processor that may be ours, by name: a model does not need what their classes import.
_SUB_PROCESSORS = {
    "feature_extractor": ("AutoFeatureExtractor", "feature_extraction_crossfuse.CrossFuseFeatureExtractor"),
    "image_processor": ("AutoImageProcessor", "image_processing_crossfuse.CrossFuseVideoImageProcessor"),
}

# The models that each Auto class loads, by the name of the Auto class; `heads.py` fills it. The `architectures` of a
# checkpoint choose among several, and the first is for a checkpoint that names none of them.
AUTO_CLASSES: dict[str, list[type]] = {}


def _reference(classes: list[type], architectures: list[str]) -> str:
    """Where the code of a model is, as an `auto_map` says it."""
    model = next((model for model in classes if model.__name__ in architectures), classes[0])
    return f"heads.{model.__name__}"


def _describe_model_code(settings: dict[str, Any]):
    """Adds to the settings of a model where its code is, if the code of models has been loaded."""
    if not AUTO_CLASSES:
        return
    architectures = settings.get("architectures") or []
    models = {name: _reference(classes, architectures) for name, classes in AUTO_CLASSES.items()}
    settings["auto_map"] = {"AutoConfig": "configuration_crossfuse.CrossFuseConfig", **models}
    settings["crossfuse_version"] = __version__


def _describe_processor_code(settings: dict[str, Any]):
    """Adds to the settings of a processor, and of its parts that are ours, where their code is."""
    settings["auto_map"] = {"AutoProcessor": "processing_crossfuse.CrossFuseProcessor"}
    for part, (auto_class, reference) in _SUB_PROCESSORS.items():
        own = settings.get(part) or {}
        if own.get(f"{part}_type") == reference.split(".")[1]:
            own["auto_map"] = {auto_class: reference}


# The file of a saved model, or processor: the module that reaches all of its code, and what describes it in the file.
_SAVED = {
    "config.json": ("heads", _describe_model_code),
    "processor_config.json": ("processing_crossfuse", _describe_processor_code),
}


@functools.cache
def _code_files() -> set[Path]:
    """The files of the code that are here. Those of the processor are missing beside a model from the Hub."""
    here = Path(__file__).parent
    roots = [here / f"{module}.py" for module, _ in _SAVED.values() if (here / f"{module}.py").exists()]
    return {*roots, *(Path(file) for root in roots for file in get_relative_import_files(root))}


def save_code(folder: str | Path):
    """
    Copies the code of CrossFuse into the folder of a saved model, processor or both, and writes into their files what
    of it each Auto class needs. `trust_remote_code=True` then loads them where CrossFuse is not installed.

    `save_pretrained` and `push_to_hub` of models and processors do so by themselves.

    Args:
        folder (`str` or `Path`): the folder. One that holds neither, as that of an adapter, is left as it is.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseModel, save_code

    >>> model = CrossFuseModel(CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50, tgt_vocab_size=60))
    >>> model.saves_code = False
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     print(Path(folder, "modeling_crossfuse.py").exists())
    ...     save_code(folder)
    ...     print(Path(folder, "modeling_crossfuse.py").exists())
    False
    True
    ```
    """
    folder = Path(folder)
    saved = [name for name in _SAVED if (folder / name).is_file()]
    for file in _code_files() if saved else ():
        shutil.copyfile(file, folder / file.name)
    for name in saved:
        _, describe_code = _SAVED[name]
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        describe_code(settings)
        write_whole(folder / name, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def warn_of_other_version(config):
    """Warns if a model brings along the code of another version, since the installed code runs in its place."""
    theirs = config.crossfuse_version
    if theirs not in (None, __version__):
        logger.warning(
            f"{config.name_or_path} brings the code of CrossFuse {theirs} along, but CrossFuse {__version__} is "
            f"installed and used instead. To use the other: `pip install crossfuse=={theirs}`"
        )


class CodeToHubMixin:
    """
    Makes `save_pretrained` and `push_to_hub` of a model or a processor take the code along.

    Args:
        saves_code (`bool`, defaults to `True`): whether `save_pretrained` does so. A folder may be uploaded by hand.
    """

    saves_code: bool = True

    def save_pretrained(self, save_directory, *args, **kwargs):
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        # Of a registered class, transformers has copied the code of this class alone.
        if kwargs.get("is_main_process", True) and (self.saves_code or self._auto_class is not None):
            save_code(save_directory)
        return saved

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, token=None, **kwargs):
        save_code(working_dir)
        if not hf_api().file_exists(repo_id, "README.md", token=token):
            self._make_card(Path(working_dir), repo_id, is_new="README.md" not in files_timestamps)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, token=token, **kwargs)

    def _make_card(self, folder: Path, repo_id: str, is_new: bool):
        """Removes the empty card that transformers has made for a new repository. A model writes a better one."""
        if is_new:
            (folder / "README.md").unlink(missing_ok=True)


__all__ = ["save_code"]
