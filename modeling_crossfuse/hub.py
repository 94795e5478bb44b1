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
"""What a model takes to the Hub beside its weights: a card, and the code that loads it without CrossFuse installed."""

import json
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging
from transformers.utils.hub import hf_api

from .model_card import write_whole


logger = logging.get_logger(__name__)

__version__ = "0.1.0"

# Not a class, as those of the models are below: its files need Pillow, which a model does without.
_PROCESSOR = "processing_crossfuse.CrossFuseProcessor"


def model_classes() -> dict[str, type]:
    """
    The model that each Auto class stands for, by the Auto class's name.

    Example:

    ```python
    >>> from modeling_crossfuse.hub import model_classes

    >>> model_classes()["AutoModelForSeq2SeqLM"].__name__
    'CrossFuseForConditionalGeneration'
    ```
    """
    # Imported here, since these modules import this one. transformers reads the lines, too: with any model, the code
    # of all of them is loaded from a repository, so that it can be saved whole again.
    from .classification import CrossFuseForSequenceClassification, CrossFuseForTokenClassification
    from .modeling_crossfuse import CrossFuseForConditionalGeneration, CrossFuseModel
    from .retrieval import CrossFuseForRetrieval

    return {
        "AutoModel": CrossFuseModel,
        "AutoModelForSeq2SeqLM": CrossFuseForConditionalGeneration,
        "AutoModelForMultimodalLM": CrossFuseForConditionalGeneration,
        "AutoModelForImageTextToText": CrossFuseForConditionalGeneration,
        "AutoModelForSequenceClassification": CrossFuseForSequenceClassification,
        "AutoModelForImageClassification": CrossFuseForSequenceClassification,
        "AutoModelForVideoClassification": CrossFuseForSequenceClassification,
        "AutoModelForAudioClassification": CrossFuseForSequenceClassification,
        "AutoModelForTokenClassification": CrossFuseForTokenClassification,
        "AutoModelForZeroShotImageClassification": CrossFuseForRetrieval,
    }


def _auto_maps() -> dict[str, dict[str, str]]:
    """For each file of a saved model or processor: the Auto classes, and where the code of theirs is."""
    models = {name: f"{model.__module__.split('.')[-1]}.{model.__name__}" for name, model in model_classes().items()}
    return {
        "config.json": {"AutoConfig": "configuration_crossfuse.CrossFuseConfig", **models},
        "processor_config.json": {"AutoProcessor": _PROCESSOR},
    }


def _code_files(auto_maps: dict[str, dict[str, str]]) -> list[Path]:
    """The files of the code that the Auto classes need, as far as they are here."""
    here = Path(__file__).parent
    modules = {reference.split(".")[0] for auto_map in auto_maps.values() for reference in auto_map.values()}
    roots = [here / f"{module}.py" for module in sorted(modules)]
    # A model that was loaded with its code from the Hub came without the processor's.
    roots = [root for root in roots if root.exists()]
    return sorted({*roots, *(Path(file) for root in roots for file in get_relative_import_files(root))})


def save_code(folder: str | Path):
    """
    Puts the code of CrossFuse into the folder of a saved model, processor or both, and into their files which Auto
    class needs what of it. From then on, `trust_remote_code=True` loads them where CrossFuse is not installed.

    `push_to_hub` does so by itself, and so does every `save_pretrained` after `register_for_auto_class`.

    Args:
        folder (`str` or `Path`): the folder. One that holds neither, as that of an adapter, is left as it is.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from modeling_crossfuse import CrossFuseConfig, CrossFuseModel
    >>> from modeling_crossfuse.hub import save_code

    >>> model = CrossFuseModel(CrossFuseConfig(d_model=32, num_hidden_layers=1, src_vocab_size=50, tgt_vocab_size=60))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     save_code(folder)
    ...     Path(folder, "modeling_crossfuse.py").exists()
    True
    ```
    """
    folder, auto_maps = Path(folder), _auto_maps()
    saved = [folder / name for name in auto_maps if (folder / name).is_file()]
    for file in _code_files(auto_maps) if saved else ():
        shutil.copyfile(file, folder / file.name)
    for path in saved:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["auto_map"] = auto_maps[path.name]
        if path.name == "config.json":
            settings["crossfuse_version"] = __version__
        write_whole(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def warn_of_other_version(config):
    """Says so where a model brings code of another version along, in place of which the installed code runs."""
    theirs = config.crossfuse_version
    if theirs not in (None, __version__):
        logger.warning(
            f"{config.name_or_path} brings the code of CrossFuse {theirs} along, but CrossFuse {__version__} is "
            f"installed and used instead. To use the other: `pip install crossfuse=={theirs}`"
        )


class CodeToHubMixin:
    """Makes `push_to_hub` of a model or a processor take the code along, in the same commit."""

    def save_pretrained(self, save_directory, *args, **kwargs):
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if self._auto_class is not None:  # transformers has copied the code of this class alone
            save_code(save_directory)
        return saved

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, token=None, **kwargs):
        save_code(working_dir)
        if not hf_api().file_exists(repo_id, "README.md", token=token):
            self._make_card(Path(working_dir), repo_id, is_new="README.md" not in files_timestamps)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, token=token, **kwargs)

    def _make_card(self, folder: Path, repo_id: str, is_new: bool):
        """For a new repository, transformers has made an empty card. The model brings a better one; others none."""
        if is_new:
            (folder / "README.md").unlink(missing_ok=True)


__all__ = ["model_classes", "save_code"]
