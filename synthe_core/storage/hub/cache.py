"""What the hub's cache holds: listing the models there, and removing them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Result
from synthe_core.storage.claim import failure, partial_path, sweep
from synthe_core.storage.hub import snapshot
from synthe_core.storage.hub.model_id import COMMIT, HubId
from synthe_core.storage.hub.repository import GGUF, SYNAPSE, choose_file, is_folder
from synthe_core.storage.hub.usage import alone
from synthe_core.storage.path_format import ADAPTER, MANIFEST

INCOMPLETE = "incomplete"
SHORTEST = 7  # letters of a commit that name it, as with git


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache, or what there is of one.

    name: what commands take. kind: safetensors, checkpoint (of synthe), adapter, gguf, synapse, or INCOMPLETE. bytes:
    of its files, some of which may belong to another commit too. used: when it was last used, in seconds since 1970.
    """

    name: str
    repo: str
    commit: str
    kind: str
    path: Path
    files: tuple[str, ...]
    bytes: int
    used: float

    def values(self) -> dict[str, object]:
        """The model as a Result lists it."""
        used = datetime.fromtimestamp(self.used, UTC).isoformat(timespec="seconds")
        source = f"{self.repo}@{self.commit}" if self.commit else self.repo
        return {
            "name": self.name, "kind": self.kind, "bytes": self.bytes, "source": source, "used": used,
            "path": str(self.path),
        }  # fmt: skip


def list_models() -> Iterator[Event]:
    """A Result with the models of the cache, the one last used first."""
    models = sorted(cached_models(), key=lambda each: (-each.used, each.name))
    yield Result({"models": [each.values() for each in models], "folder": str(snapshot.cache_folder())})


def cached_models(repo: str | None = None) -> Iterator[CachedModel]:
    """The models of every repository in the cache, or of one. Repositories of other kinds are left out."""
    folders = [snapshot.repo_folder(repo)] if repo else sorted(snapshot.cache_folder().glob("models--*"))
    for folder in folders:
        if (match := snapshot.FOLDER.fullmatch(folder.name)) and folder.is_dir():
            yield from _models_of(f"{match[1]}/{match[2]}", folder)


def remove_model(text: str) -> Iterator[Event]:
    """Removes the model of that name from the cache: without a file and revision, everything of the repository.

    Yields a Result with the bytes that are free now. InputError if the cache has no such model, Busy while another
    process uses the repository.
    """
    model = HubId.parse(text)
    folder = snapshot.repo_folder(model.repo) if model else Path()
    every = list(cached_models(model.repo)) if model else []
    chosen = [each for each in every if model and _is_meant(model, each)]
    if model is None or not chosen:
        raise unknown("model in the cache", text, [each.name for each in cached_models()])
    with alone(folder):
        before = _bytes_in(folder)
        try:
            if len(chosen) == len(every):
                _remove_folder(folder)
            else:
                for each in chosen:
                    _remove_files(folder, each)
        except OSError as error:
            raise failure(folder, error) from error
        freed = before - _bytes_in(folder)
    yield Result({"removed": [each.name for each in chosen], "bytes": freed})


def _models_of(repo: str, folder: Path) -> Iterator[CachedModel]:
    names: dict[str, str] = {}  # commit -> what commands write after @, if it is not the branch main
    for ref in sorted(path for path in (folder / "refs").rglob("*") if path.is_file()):
        revision = ref.relative_to(folder / "refs").as_posix()
        if (commit := snapshot.commit_of(HubId(repo, revision=revision))) and names.get(commit) != "":
            names[commit] = "" if revision == "main" else f"@{revision}"
    partial = True
    for place in sorted((folder / "snapshots").glob("*")):
        files = snapshot.files_in(place)
        if not COMMIT.fullmatch(place.name) or not files:
            continue
        partial, at = False, names.get(place.name, f"@{place.name}")
        single = [name for name in files if name.endswith((GGUF, SYNAPSE))]
        for name in single:
            kind = name.rpartition(".")[2]
            yield _entry(f"{repo}/{name}{at}", repo, place, kind, place / name, [name])
        if rest := [name for name in files if name not in single]:
            kind = _folder_kind(place, rest)
            if kind != INCOMPLETE or not single:
                yield _entry(f"{repo}{at}", repo, place, kind, place, rest)
    parts = sorted((folder / "blobs").glob("*.incomplete"))
    if parts or partial:
        used = max((part.stat().st_atime for part in parts), default=folder.stat().st_mtime)
        size = sum(part.stat().st_size for part in parts)
        yield CachedModel(repo, repo, "", INCOMPLETE, folder, (), size, used)


def _folder_kind(place: Path, names: list[str]) -> str:
    try:
        whole = is_folder(names) and snapshot.is_whole(place, names)
    except InputError:  # a damaged index
        whole = False
    if not whole:
        return INCOMPLETE
    return "adapter" if ADAPTER in names else "checkpoint" if MANIFEST in names else "safetensors"


def _entry(name: str, repo: str, place: Path, kind: str, path: Path, files: list[str]) -> CachedModel:
    facts = [(place / file).stat() for file in files]
    used = max(each.st_atime for each in facts)
    return CachedModel(name, repo, place.name, kind, path, tuple(files), sum(f.st_size for f in facts), used)


def _is_meant(model: HubId, each: CachedModel) -> bool:
    """Whether a name means an entry of the cache."""
    revision = model.revision
    is_short = revision is not None and len(revision) >= SHORTEST and each.commit.startswith(revision)
    if revision is not None and not is_short and each.commit != snapshot.commit_of(model):
        return False
    if model.file is None and model.quant is None:
        return True
    try:
        return bool(each.files) and choose_file(model, each.files) == each.files[0]
    except InputError:
        return False


def _remove_folder(folder: Path) -> None:
    """Removes a repository: at once under its name, then its files."""
    removed = partial_path(folder)
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
    sweep(folder.parent)


def _remove_files(folder: Path, model: CachedModel) -> None:
    """Removes the files of one model, and the contents that no other file of the repository is."""
    if not model.commit:  # unfinished downloads
        for part in (folder / "blobs").glob("*.incomplete"):
            part.unlink()
        return
    place = folder / "snapshots" / model.commit
    for name in model.files:
        (place / name).unlink()
    for empty in sorted((path for path in [place, *place.rglob("*")] if path.is_dir()), reverse=True):
        if not any(empty.iterdir()):
            empty.rmdir()
    linked = {os.path.realpath(path) for path in (folder / "snapshots").rglob("*")}
    for blob in (folder / "blobs").iterdir():
        if blob.is_file() and blob.suffix != ".incomplete" and os.path.realpath(blob) not in linked:
            blob.unlink()


def _bytes_in(folder: Path) -> int:
    """The bytes of the contents in the folder of a repository, links not followed."""
    paths = [path for part in ("blobs", "snapshots") for path in (folder / part).rglob("*")]
    return sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())
