"""Fetching a model of the hub into the cache, as far as it is not there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from synthe_core.errors import Interrupted, SyntheError, WorkError
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.storage.claim import Busy, claim, failure
from synthe_core.storage.hub import snapshot
from synthe_core.storage.hub.access import offline
from synthe_core.storage.hub.download import RemoteFile, download
from synthe_core.storage.hub.model_id import HubId
from synthe_core.storage.hub.repository import BESIDE, INDEX, Repository, choose_file, weights_of
from synthe_core.storage.hub.usage import hold
from synthe_core.storage.path_format import CONFIG, MANIFEST
from synthe_core.units import format_size

POLL = 0.2  # seconds between two looks at a file that another process downloads
RATE_AFTER = 0.5  # seconds of download before it is said how long the rest takes
Check = Callable[[str, dict[str, Any]], None]


def fetch(
    model: HubId, *, update: bool = False, check: Check | None = None, without_weights: bool = False
) -> Iterator[Event]:
    """Yields events; the last is a Result with the path of the model in the cache: its folder, or its one file.

    A model that is in the cache is taken as it is, without a request. `update` looks for the newest commit of the
    revision on the hub, and fetches what is new of it. If the hub cannot be reached, a copy in the cache is used.
    Files that other tools fetched are used; a download that was interrupted is resumed.

    check: called with the id and the content of config.json before the weights are fetched; it may raise.
    without_weights: of a model folder, config and tokenizer are enough.
    InputError for a model that does not exist, may not be read or is of no format that synthe reads; WorkError if the
    disk has not enough space or the hub cannot be reached.
    """
    hold(snapshot.repo_folder(model.repo))
    path = snapshot.cached(model) or (snapshot.cached_tokenizer(model) if without_weights else None)
    if path is None or update:
        known = path or snapshot.cached(model, certain=False)
        try:
            repository = Repository.read(model)
        except SyntheError as error:
            if known is None:
                raise _not_here(model, error) from error
            reason = "offline mode is on" if offline() else error.message
            if update or not offline():
                yield Notice(f"{reason}: the copy in the cache is used", "warning")
            path = known
        else:
            path = yield from _download(model, repository, check, without_weights)
    snapshot.mark_used(path)
    origin = snapshot.origin_of(path)
    assert origin is not None
    yield Result({"model": str(model), "commit": origin.commit, "bytes": _size(path)}, path)


def mark_path(path: Path) -> Path:
    """The path; one inside of a cache of the hub counts as used, as if its model had been named by its id."""
    if snapshot.origin_of(path) is not None and path.exists():
        hold(next(each for each in path.absolute().parents if snapshot.FOLDER.fullmatch(each.name)))
        snapshot.mark_used(path)
    return path


def _not_here(model: HubId, error: SyntheError) -> SyntheError:
    """The error for a name that is neither a path nor a model that can be fetched."""
    return type(error)(error.message, f"{error.hint}; there is no local path {model} either")


def _download(
    model: HubId, repository: Repository, check: Check | None, without_weights: bool
) -> Generator[Event, None, Path]:
    """Fetches the files of a model that the cache lacks, and returns its path."""
    folder = snapshot.snapshot_folder(model.repo, repository.commit)
    file = choose_file(model, repository.files)
    try:
        if file is not None:
            yield from _fetch_files(model, [repository.files[file]])
            path = folder / file
        else:
            small = [each for name, each in repository.files.items() if BESIDE.fullmatch(name)]
            yield from _fetch_files(model, sorted(small, key=lambda each: (each.name != CONFIG, each.name)))
            if check is not None:
                check(str(model), snapshot.read_listed(folder, CONFIG))
            index, manifest = (snapshot.read_listed(folder, name) for name in (INDEX, MANIFEST))
            names = [] if without_weights else weights_of(index, manifest, repository.files)
            yield from _fetch_files(model, [repository.files[name] for name in names])
            path = folder
        snapshot.write_ref(model, repository.commit)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the downloaded part stays in the cache", "repeat the command to resume") from None
    except OSError as error:
        raise failure(folder, error) from error
    return path


def _fetch_files(model: HubId, files: Iterable[RemoteFile]) -> Iterator[Event]:
    """Fetches files that the snapshot lacks, after the space for them was checked."""
    missing = [file for file in files if not _is_here(file)]
    blobs = snapshot.repo_folder(model.repo) / "blobs"
    sizes = {file.name: _part_size(blobs, file) for file in missing}
    total, came = sum(file.size for file in missing), sum(sizes.values())
    _check_space(model, blobs, total - came)
    if came:
        yield Notice(f"resuming at {format_size(came)} of {format_size(total)}")
    began = time.monotonic()
    for file in missing:
        for step in _fetch_file(blobs, file):
            if isinstance(step, Event):
                yield step
                continue
            sizes[file.name] = step
            done, seconds = sum(sizes.values()), time.monotonic() - began
            rate = (done - came) / seconds if seconds > RATE_AFTER else 0
            yield Progress(f"pull {model}", done, total, "bytes", (total - done) / rate if rate > 0 else None)
        sizes[file.name] = file.size
        snapshot.link(snapshot.snapshot_folder(file.repo, file.commit), file.name, blobs / file.blob)


def _fetch_file(blobs: Path, file: RemoteFile) -> Iterator[int | Event]:
    """Downloads the content of a file; yields the number of bytes that are there. While another process downloads it,
    its progress is shown."""
    blob, waits = blobs / file.blob, False
    while not (blob.is_file() and blob.stat().st_size == file.size):
        try:
            with claim(blob, "downloading", parents=True):
                if blob.is_file() and blob.stat().st_size == file.size:
                    break
                yield from download(file, part_path(blobs, file))
                part_path(blobs, file).replace(blob)
        except Busy:
            if not waits:
                yield Notice(f"another process is downloading {file.name}: waiting for it")
            waits = True
            time.sleep(POLL)
            yield _part_size(blobs, file)


def _is_here(file: RemoteFile) -> bool:
    """Whether the snapshot has a file, of the size that it should have."""
    path = snapshot.snapshot_folder(file.repo, file.commit) / file.name
    return path.is_file() and path.stat().st_size == file.size


def part_path(blobs: Path, file: RemoteFile) -> Path:
    """The file of an unfinished download. Tools of huggingface_hub that clean the cache know its ending."""
    return blobs / f"{file.blob}.synthe.incomplete"


def _part_size(blobs: Path, file: RemoteFile) -> int:
    blob, part = blobs / file.blob, part_path(blobs, file)
    for path in (blob, part):
        if path.is_file() and path.stat().st_size <= file.size:
            return path.stat().st_size
    return 0


def _check_space(model: HubId, folder: Path, needed: int) -> None:
    """WorkError if the disk of the cache has less space than the rest of a download needs."""
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WorkError(
            f"{model} needs {format_size(needed)} more, and {snapshot.cache_folder()} has {format_size(free)} free",
            "remove models with `synthe models rm`, or set HF_HOME to a folder on another disk",
        )


def _size(path: Path) -> int:
    """The bytes of a file, or of all files of a folder."""
    files = [path / name for name in snapshot.files_in(path)] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
