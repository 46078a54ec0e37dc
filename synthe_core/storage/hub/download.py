"""Downloading a file of the hub so that an interrupted download is resumed, also by another process.

huggingface_hub's own download starts over in a new process: since version 1 every process writes to its own file, which
it removes on failure. Its client, addresses, token and retries are used here.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from synthe_core.errors import SyntheError, WorkError
from synthe_core.storage.claim import failure
from synthe_core.storage.hub.access import TIMEOUT, explain

BLOCK = 1 << 18
"""Bytes that are read between two reports."""
ATTEMPTS = 5
"""Connections in a row that may end without a byte."""
DELAY = 0.25  # seconds, doubled with each of them
RESUMABLE = "the downloaded part stays: repeat the command to resume"


class RemoteFile(NamedTuple):
    """A file of a repository at a commit. sha256 (of its content) or git_sha1 (of it as a blob of git): the digest that
    the hub gives; at least one for every file of a listing."""

    repo: str
    commit: str
    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def blob(self) -> str:
        """The name of the content in the hub's cache."""
        return self.sha256 or self.git_sha1 or ""


class PartFile:
    """What is there of a file: `done` bytes, and the hash of them."""

    def __init__(self, remote: RemoteFile, file: BinaryIO) -> None:
        self.remote, self.file = remote, file
        if file.seek(0, os.SEEK_END) > remote.size:
            file.truncate(0)
        self._begin()
        file.seek(0)
        while block := file.read(BLOCK):
            self._count(block)

    def _begin(self) -> None:
        self.done = 0
        self.digest = hashlib.sha256() if self.remote.sha256 else hashlib.sha1(b"blob %d\0" % self.remote.size)

    def _count(self, block: bytes) -> None:
        self.digest.update(block)
        self.done += len(block)

    def restart(self) -> None:
        """Drops what is there."""
        self.file.truncate(0)
        self._begin()

    def append(self, block: bytes) -> None:
        """Adds bytes, of which those past the file's size are dropped."""
        block = block[: self.remote.size - self.done]
        self.file.write(block)
        self.file.flush()
        self._count(block)


def download(remote: RemoteFile, path: Path) -> Iterator[int]:
    """Appends to the file at `path` what it lacks, and yields the number of bytes that are there.

    At the end the file is complete, and its digest is the hub's. WorkError if not: the file is then removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            part = PartFile(remote, file)
            yield part.done
            attempts = 0
            while part.done < remote.size:
                before = part.done
                for _ in _receive(part, last=attempts == ATTEMPTS - 1):
                    yield part.done
                attempts = attempts + 1 if part.done == before else 0
                if attempts == ATTEMPTS:
                    raise WorkError(f"{remote.repo} sends no more of {remote.name} after {before:,} bytes", RESUMABLE)
                if attempts:
                    time.sleep(DELAY * 2**attempts)
            os.fsync(file.fileno())
    except OSError as error:
        raise failure(path, error) from error
    if part.digest.hexdigest() != remote.blob:
        path.unlink()
        raise WorkError(
            f"{remote.name} of {remote.repo} is damaged: it is not what the hub's listing says",
            "the download was removed: try again",
        )


def _receive(part: PartFile, last: bool) -> Iterator[None]:
    """Appends what one connection delivers, and yields after every block. A connection that is cut or not made ends it,
    and is an error if it is the `last` to be tried."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    remote, start = part.remote, part.done
    url = hf_hub_url(remote.repo, remote.name, revision=remote.commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{remote.size - 1}"}
    try:
        with _stream(url, headers) as (answer, blocks):
            if answer.status_code == 416:
                raise WorkError(
                    f"{remote.name} of {remote.repo} ends after {start:,} bytes, and its listing says {remote.size:,}",
                    "the repository is damaged, or being changed: try again later",
                )
            hf_raise_for_status(answer)
            if answer.status_code != 206 and start:  # the server sends the whole file
                part.restart()
            for block in blocks:
                part.append(block)
                yield
                if part.done == remote.size:
                    return
    except SyntheError:
        raise
    except Exception as error:  # the hub's library raises errors of many packages
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        if part.done > start or (getattr(error, "response", None) is None and not last):
            return
        stopped = explain(f"'{remote.repo}'", error)
        raise type(stopped)(stopped.message, RESUMABLE if start else stopped.hint) from error


@contextmanager
def _stream(url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """An answer of the hub and the blocks of its body. Before version 1 the hub's client is that of `requests`.

    The library repeats a request that a busy hub refuses, but none that was cut: it would repeat what was read.
    """
    from huggingface_hub import utils

    if hasattr(utils, "http_stream_backoff"):
        options: dict[str, Any] = {"headers": headers, "timeout": TIMEOUT, "retry_on_exceptions": ()}
        with utils.http_stream_backoff("GET", url, **options) as answer:
            yield answer, answer.iter_bytes(BLOCK)
    else:
        older: Any = utils.http_backoff
        with older("GET", url, headers=headers, timeout=TIMEOUT, stream=True) as answer:
            yield answer, answer.iter_content(BLOCK)
