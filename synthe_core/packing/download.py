"""A file of the hub, a block at a time, so that a download that was cut off goes on where it stopped.

huggingface_hub's own download starts over in a new process: since its version 1 every process writes to a file of its
own, which it removes when it fails. Its client, addresses, token and retries are used here all the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from synthe_core.data.hub import TIMEOUT, explain, offline, unreachable
from synthe_core.errors import InputError, WorkError, unknown
from synthe_core.events import Event, Notice, Progress
from synthe_core.hardware.probe import cache_dir
from synthe_core.storage.atomic import failure
from synthe_core.units import format_size

BLOCK = 16 << 20
SUFFIX = ".synapse"


class Remote(NamedTuple):
    """A file of a repository at a revision, which is a commit. sha256: None where the hub does not say."""

    repo: str
    commit: str
    name: str
    size: int
    sha256: str | None


def find(repo: str, revision: str | None = None, name: str | None = None) -> Remote:
    """The .synapse file of a repository of the hub, `name` where it has several."""
    from huggingface_hub import HfApi  # slow to import, and only needed here

    check_name(repo)
    what = f"'{repo}'" + (f" at {revision}" if revision else "")
    if offline():
        raise unreachable(what)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except Exception as error:  # the hub's library raises errors of many packages
        raise explain(what, error) from error
    files = {each.rfilename: each for each in info.siblings or [] if each.rfilename.endswith(SUFFIX)}
    if not files:
        raise InputError(f"{repo} holds no {SUFFIX} file", "`synthe hub search` finds repositories that do")
    if name is None and len(files) > 1:
        raise InputError(
            f"{repo} holds {len(files)} {SUFFIX} files", f"name one with --file: {', '.join(sorted(files))}"
        )
    name = name or next(iter(files))
    if name not in files:
        raise unknown(f"{SUFFIX} file of {repo}", name, files)
    found = files[name]
    return Remote(repo, info.sha or "main", name, found.size or 0, found.lfs.sha256 if found.lfs else None)


def check_name(repo: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise InputError(f"'{repo}' is no name of the hub", "a name is ORG/NAME")


def download(remote: Remote, target: Path) -> Iterator[Event]:
    """Fetches a file to `target`, whole or not at all. What an interrupted download left beside it is gone on from."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    part = target.with_name(f".{target.name}.{(remote.sha256 or remote.commit)[:16]}.part")
    what = f"pull {remote.name}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            done = file.tell()
            if done > remote.size:
                file.truncate(done := 0)
            if done:
                yield Notice(f"resuming at {format_size(done)} of {format_size(remote.size)}")
            url = hf_hub_url(remote.repo, remote.name, revision=remote.commit)
            while done < remote.size:
                yield Progress(what, done, remote.size, "bytes")
                last = min(done + BLOCK, remote.size) - 1
                headers = {**build_hf_headers(), "Range": f"bytes={done}-{last}"}
                try:
                    answer = http_backoff("GET", url, headers=headers, timeout=TIMEOUT)
                    hf_raise_for_status(answer)
                except Exception as error:  # the hub's library raises errors of many packages
                    stopped = explain(f"'{remote.repo}'", error)
                    raise type(stopped)(stopped.message, "what came is kept: the same command goes on") from error
                block = answer.content
                if answer.status_code != 206:  # it sent all of it, from the start
                    block = block[done:]
                if not block:
                    raise WorkError(f"{remote.repo} sent nothing from byte {done} on", "try again later")
                file.write(block)
                file.flush()
                done += len(block)
            yield Progress(what, done, remote.size, "bytes")
    except OSError as error:
        raise failure(target, error) from error
    with part.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if done != remote.size or digest != (remote.sha256 or digest):
        part.unlink()
        raise WorkError(f"{remote.name} came damaged: its SHA-256 is not the hub's", "what came was removed: try again")
    part.replace(target)


def fetch_base(repo: str, revision: str | None) -> Path:
    """The base model of a file that does not carry it, kept in the cache."""
    known = cache_dir() / "bases" / re.sub(r"[^\w.-]+", "--", f"{repo}@{revision}{SUFFIX}")
    if revision is None or not known.is_file():
        for _ in download(find(repo, revision), known):
            pass
    return known
