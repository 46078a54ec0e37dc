"""The hub's cache folder, which every tool shares that uses huggingface_hub.

    models--ORG--NAME/blobs/DIGEST                 the content of files
    models--ORG--NAME/snapshots/COMMIT/FILE        links to it
    models--ORG--NAME/refs/REVISION                the commit of a branch or tag

HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME say where it is.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError
from synthe_core.storage.atomic import write_file
from synthe_core.storage.hub.model_id import COMMIT, PREFIX, HubId
from synthe_core.storage.hub.repository import (
    ADAPTER_WEIGHTS,
    BESIDE,
    INDEX,
    TOKENIZER,
    choose_file,
    weights_of,
)
from synthe_core.storage.json_reader import read_json
from synthe_core.storage.path_format import ADAPTER, CONFIG, MANIFEST

FOLDER = re.compile(r"models--(.+?)--(.+)")


class Origin(NamedTuple):
    """Where a path in the hub's cache came from. file: None for the model folder."""

    repo: str
    commit: str
    file: str | None

    @property
    def name(self) -> str:
        """A short name: that of the repository, or of the file."""
        return Path(self.file).stem if self.file else self.repo.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repo}{f'/{self.file}' if self.file else ''}@{self.commit}"


def cache_folder() -> Path:
    """The folder of the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repo_folder(repo: str) -> Path:
    """The folder of a repository in the cache."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def cached_repos() -> list[str]:
    """The repositories of models in the cache."""
    matches = [FOLDER.fullmatch(path.name) for path in sorted(cache_folder().glob("models--*"))]
    return [f"{match[1]}/{match[2]}" for match in matches if match]


def origin_of(path: Path) -> Origin | None:
    """The model of the hub at a path in a cache of the hub; None for any other path."""
    parts = path.absolute().parts
    for place in range(len(parts) - 3, -1, -1):
        match = FOLDER.fullmatch(parts[place])
        if match and parts[place + 1] == "snapshots" and COMMIT.fullmatch(parts[place + 2]):
            return Origin(f"{match[1]}/{match[2]}", parts[place + 2], "/".join(parts[place + 3 :]) or None)
    return None


def source_name(path: Path) -> str:
    """What records name as the source of a model: ORG/NAME@COMMIT of the hub, or the path."""
    return str(origin_of(path) or path)


def model_name(path: Path) -> str:
    """The name that a model has from its path: that of its folder, file or repository."""
    origin = origin_of(path)
    name = origin.name if origin else path.resolve().name
    return name.removesuffix(".synapse").removesuffix(".gguf")


def mend_hint(path: Path) -> str:
    """What to do about a damaged file of a model."""
    origin = origin_of(path)
    return f"fetch it again: synthe models rm {origin.repo}; synthe pull {origin.repo}" if origin else "copy it again"


def commit_of(model: HubId) -> str | None:
    """The commit of a model's revision, as far as it is known here."""
    if COMMIT.fullmatch(model.ref):
        return model.ref
    try:
        text = (repo_folder(model.repo) / "refs" / model.ref).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if COMMIT.fullmatch(text) else None


def snapshot_folder(repo: str, commit: str) -> Path:
    return repo_folder(repo) / "snapshots" / commit


def cached(model: HubId, *, certain: bool = True) -> Path | None:
    """The path of a model of which the cache has every file, None for another.

    certain: a model folder has a tokenizer too. Where the cache has none, the model may have none, or another tool may
    have fetched the weights only.
    """
    if (commit := commit_of(model)) is None:
        return None
    folder = snapshot_folder(model.repo, commit)
    names = files_in(folder)
    try:
        if not names:
            return None
        file = choose_file(model, names)
        if file is not None:
            return folder / file
        return folder if is_whole(folder, names, certain) else None
    except InputError:
        return None


def cached_tokenizer(model: HubId) -> Path | None:
    """The model folder of which the cache has config and tokenizer, None for another."""
    commit = commit_of(model)
    folder = snapshot_folder(model.repo, commit) if commit else None
    single = model.file is not None or model.quant is not None
    if folder is None or single or not all((folder / name).is_file() for name in (CONFIG, TOKENIZER)):
        return None
    return folder


def reference_to(path: Path) -> str:
    """What recipes name as the tokenizer of the model at `path`: hub:ORG/NAME@COMMIT, or the path."""
    origin = origin_of(path)
    return f"{PREFIX}{origin}" if origin else str(path)


def files_in(folder: Path) -> list[str]:
    """The names of the files of a snapshot; links to nothing are left out."""
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def is_whole(folder: Path, names: Collection[str], certain: bool = False) -> bool:
    """Whether a model folder has a config and all of its weights; if `certain`, a tokenizer as well."""
    listed = read_listed(folder, MANIFEST).get("files")
    own = set(listed) if isinstance(listed, dict) else set()
    if not weights_of(read_listed(folder, INDEX), {}, names) or not own <= set(names):
        return False
    if ADAPTER in names:
        return ADAPTER_WEIGHTS in names
    return CONFIG in names and (not certain or bool(own) or TOKENIZER in names)


def read_listed(folder: Path, name: str) -> dict[str, object]:
    """A JSON file of a snapshot; empty if there is none. InputError if it is damaged."""
    return read_json(folder / name) if (folder / name).is_file() else {}


def link(folder: Path, name: str, blob: Path) -> None:
    """Makes a file of a snapshot a link to its content, or a copy of it where the file system has no links."""
    pointer = folder / name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    partial = pointer.with_name(f".{pointer.name}.{os.getpid()}.link")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        try:
            os.link(blob, partial)
        except OSError:
            shutil.copyfile(blob, partial)
    partial.replace(pointer)


def write_ref(model: HubId, commit: str) -> None:
    """Records the commit of a branch or tag."""
    ref = repo_folder(model.repo) / "refs" / model.ref
    if model.ref != commit and commit_of(model) != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_file(ref, commit)


def mark_used(path: Path) -> None:
    """Sets the time of the last use, which `models` shows: the access time of the files, which file systems may not
    record by themselves."""
    files = [path] if path.is_file() else [path / name for name in files_in(path) if BESIDE.fullmatch(name)]
    now = time.time_ns()
    for file in files:
        with suppress(OSError):  # a cache that may only be read
            os.utime(file, ns=(now, file.stat().st_mtime_ns))
