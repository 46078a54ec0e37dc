"""Models of the Hugging Face hub. Only the files that a merge needs are downloaded, never pickles."""

from __future__ import annotations

import re
from pathlib import Path

from synthe_core.data.hub import TIMEOUT, explain, offline, unreachable
from synthe_core.errors import SyntheError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt"]


def is_hub_id(text: str) -> bool:
    """Whether `text` is ORG/NAME or hub:NAME, with or without @REVISION. If a folder ORG exists, it is a path."""
    if text.startswith("hub:"):
        return True
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", text)) and not Path(text).parent.is_dir()


def from_hub(text: str) -> Path:
    """The folder of a model in the hub's cache, downloaded if it is not there yet."""
    from huggingface_hub import HfApi, snapshot_download, utils  # slow to import, and only needed here

    name, _, revision = text.removeprefix("hub:").partition("@")
    what = f"model '{name}'"
    utils.disable_progress_bars()
    try:
        if not offline():
            HfApi().model_info(
                name, revision=revision or None, timeout=TIMEOUT
            )  # fails at once where a download would retry
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=PATTERNS, local_files_only=offline())
        )
    except SyntheError:
        raise
    except Exception as error:  # the hub's library raises errors of many packages
        if offline():
            raise unreachable(what, error) from error
        raise explain(what, error) from error
