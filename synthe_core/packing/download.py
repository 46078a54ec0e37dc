"""Downloading a file of the hub in blocks, so that an interrupted download is resumed.

huggingface_hub's own download starts over in a new process: since version 1 every process writes to its own file, which
it removes on failure. Its client, addresses, token and retries are used here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from synthe_core.data.hub import TIMEOUT, explain, offline, unreachable
from synthe_core.errors import InputError, WorkError, unknown
from synthe_core.events import Event, Notice, Progress
from synthe_core.hardware.probe import cache_dir
from synthe_core.storage.claim import claim, failure
from synthe_core.units import format_size

BLOCK = 16 << 20
SUFFIX = ".synapse"


class Remote(NamedTuple):
    """A file of a repository at a revision, which is a commit. sha256: None if the hub does not give it."""

    repo: str
    commit: str
    name: str
    size: int
    sha256: str | None


def find(repo: str, revision: str | None = None, name: str | None = None) -> Remote:
    """The .synapse file of a repository of the hub, `name` if it has several."""
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
        raise InputError(f"{repo} has no {SUFFIX} file", "`synthe hub search` finds repositories that do")
    if name is None and len(files) > 1:
        raise InputError(f"{repo} has {len(files)} {SUFFIX} files", f"name one with --file: {', '.join(sorted(files))}")
    name = name or next(iter(files))
    if name not in files:
        raise unknown(f"{SUFFIX} file of {repo}", name, files)
    file = files[name]
    return Remote(repo, info.sha or "main", name, file.size or 0, file.lfs.sha256 if file.lfs else None)


def check_name(repo: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise InputError(f"'{repo}' is not a repository name of the hub", "a name is ORG/NAME")


def download(remote: Remote, target: Path) -> Iterator[Event]:
    """Downloads a file to `target`, which the caller has claimed, atomically; resumes an interrupted download."""
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
                    raise type(stopped)(
                        stopped.message, "the part that was downloaded is kept: repeat the command to resume"
                    ) from error
                block = answer.content
                if answer.status_code != 206:  # it sent the whole file
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
        raise WorkError(
            f"{remote.name} is damaged: its SHA-256 is not the hub's", "the download was removed: try again"
        )
    part.replace(os.path.realpath(target))


def fetch_base(repo: str, revision: str | None) -> Path:
    """The base model of a file that does not contain it, in the cache."""
    cached = cache_dir() / "bases" / re.sub(r"[^\w.-]+", "--", f"{repo}@{revision}{SUFFIX}")
    if revision is None or not cached.is_file():
        remote = find(repo, revision)
        with claim(cached, "downloading", parents=True):
            for _ in download(remote, cached):
                pass
    return cached
