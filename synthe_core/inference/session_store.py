"""Saved sessions by name: a later request continues them, also after a restart."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.inference.request import Busy, NotFound, QuotaExceeded
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session, is_session, write_session
from synthe_core.storage.atomic import failure
from synthe_core.storage.claim import sweep
from synthe_core.storage.tensor_file import TensorFile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX = ".safetensors"
DAMAGED = "the session is damaged: delete it, or begin another"
OWNER = re.compile(r"[0-9a-f]{32}")
"""An owner other than "": the digest of an API key."""
HINT = "a session's name has letters, digits, - and _, at most 64 characters"


@dataclass(frozen=True)
class SessionInfo:
    """id, the model (`base:adapter`) that it belongs to, its tokens and the bytes of its state; when it was created and
    last used (Unix seconds), and whether it is in a file."""

    id: str
    model: str
    tokens: int
    bytes: int
    created: int
    used: int
    saved: bool


@dataclass(frozen=True)
class SessionLimits:
    """What one owner may save: so many sessions, of so many bytes together. None: any number."""

    max_count: int | None = None
    max_bytes: int | None = None


@dataclass
class _Entry:
    """weights: the fingerprint of the model. session: None if it is in a file."""

    info: SessionInfo
    weights: str
    session: Session | None


class SessionStore:
    """Sessions of each owner in files of `folder`, those of "" in itself and others in a folder named like the owner.

    Over an owner's limits a new session is refused. Without a folder sessions are in memory, at most `limit` bytes, and
    the least recently used are dropped: those of the owner that has most. Every method may be called by any thread; an
    owner's sessions do not exist for another.
    """

    def __init__(self, folder: Path | None, limit: int, limits: SessionLimits | None = None) -> None:
        folder = None if folder is None else folder.absolute()  # which the server leaves out of its answers
        self.folder, self.limit, self.limits = folder, limit, limits or SessionLimits()
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._busy: dict[tuple[str, str], int] = {}  # what each reserved session may still grow by, in bytes
        self._lock = threading.RLock()
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._read(folder, "")
            for each in sorted(folder.iterdir()):
                if OWNER.fullmatch(each.name) and each.is_dir():
                    self._read(each, each.name)
        except OSError as error:
            raise failure(folder, error) from None

    def _read(self, folder: Path, owner: str) -> None:
        sweep(folder)
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if NAME.fullmatch(path.stem) and (entry := _read_info(path)) is not None:
                self._of(owner)[path.stem] = entry

    def list(self, owner: str = "") -> list[SessionInfo]:
        """An owner's sessions, the last used first."""
        with self._lock:
            infos = (entry.info for entry in self._of(owner).values())
            return sorted(infos, key=lambda info: (-info.used, info.id))

    def count(self) -> int:
        """The number of sessions of all owners."""
        with self._lock:
            return sum(map(len, self._entries.values()))

    def get(self, id: str, owner: str = "") -> SessionInfo:
        return self._get(id, owner).info

    def fork(self, id: str, new_id: str, owner: str = "") -> SessionInfo:
        """Copies a session under another name."""
        with self._lock:
            entry = self._get(id, owner)
            _check(new_id)
            if new_id in self._of(owner):
                raise InputError(f"there is a session '{new_id}' already", "choose another name, or delete it")
            self._reserve(id, owner)
            try:
                self._reserve(new_id, owner, entry.info.bytes)
            except BaseException:
                self.release(id, owner)
                raise
        try:
            now = int(time.time())
            info = replace(entry.info, id=new_id, created=now, used=now)
            if entry.session is None:
                file = TensorFile(self._path(id, owner))
                self._write(info, owner, entry.weights, dict(file), file.metadata.get("model", ""))
            self._put(owner, _Entry(info, entry.weights, entry.session))
            return info
        finally:
            self.release(new_id, owner)
            self.release(id, owner)

    def delete(self, id: str, owner: str = "") -> None:
        with self._lock:
            self._get(id, owner)
            self._reserve(id, owner)
            try:
                if self.folder is not None:
                    self._path(id, owner).unlink(missing_ok=True)
                del self._of(owner)[id]
            except OSError as error:
                raise failure(self._path(id, owner), error) from None
            finally:
                self.release(id, owner)

    def claim(self, id: str, weights: str, owner: str = "", size: int = 0) -> None:
        """Reserves a session, existing or new, for one request until `release`; it may take up to `size` bytes.

        Raises Busy while another request has it, QuotaExceeded beyond the owner's limits, and InputError if the session
        belongs to another model."""
        _check(id)
        with self._lock:
            entry = self._of(owner).get(id)
            if entry is not None and entry.weights != weights and (owner, id) not in self._busy:
                raise InputError(
                    f"the session '{id}' belongs to {entry.info.model}, or to other weights of that name",
                    "a session goes on only with the model that made it",
                )
            self._reserve(id, owner, size)

    def release(self, id: str, owner: str = "") -> None:
        with self._lock:
            self._busy.pop((owner, id), None)

    def open(self, id: str, model: LanguageModel, owner: str = "") -> Session | None:
        """The session of that name; None for a new one."""
        with self._lock:
            entry = self._of(owner).get(id)
        if entry is None or entry.session is not None:
            return None if entry is None else entry.session
        session = Session.load(self._path(id, owner), model)
        if len(session.pending) != 1:
            raise InputError(f"the session '{id}' has {len(session.pending)} rows; a conversation has one", DAMAGED)
        return session

    def save(self, id: str, model: str, weights: str, shape: str, session: Session, owner: str = "") -> SessionInfo:
        """Saves a session; with a folder it is on disk when this returns. weights, shape: the model's fingerprints."""
        with self._lock:
            before = self._of(owner).get(id)
        now = int(time.time())
        created = now if before is None else before.info.created
        size = states.nbytes(session.state)
        info = SessionInfo(id, model, int(session.state.position[0]) + 1, size, created, now, self.folder is not None)
        if self.folder is not None:
            tensors = states.to_tensors(session.state, "state") | {"pending": session.pending.contiguous()}
            self._write(info, owner, weights, tensors, shape)
        self._put(owner, _Entry(info, weights, session if self.folder is None else None))
        return info

    def _of(self, owner: str) -> dict[str, _Entry]:
        """An owner's sessions, the least recently saved first."""
        return self._entries.setdefault(owner, {})

    def _get(self, id: str, owner: str) -> _Entry:
        with self._lock:
            if (entry := self._of(owner).get(id)) is None:
                if NAME.fullmatch(id):
                    raise NotFound(f"no such session: {id}")
                raise NotFound("no such session: of that name", HINT)
            return entry

    def _put(self, owner: str, entry: _Entry) -> None:
        with self._lock:
            own = self._of(owner)
            own.pop(entry.info.id, None)
            own[entry.info.id] = entry
            if self.folder is None:
                self._evict(owner, entry.info.id)

    def _reserve(self, id: str, owner: str, size: int = 0) -> None:
        """Reserves a session that may take up to `size` bytes."""
        if (owner, id) in self._busy:
            raise Busy(f"the session '{id}' is being used by another request", 1.0)
        own = self._of(owner)
        growth = max(0, size - (own[id].info.bytes if id in own else 0))
        if self.folder is not None:
            self._check_limits(id, owner, growth)
        self._busy[owner, id] = growth

    def _check_limits(self, id: str, owner: str, growth: int) -> None:
        own, limits = self._of(owner), self.limits
        names = {*own, *(name for holder, name in self._busy if holder == owner)}
        if limits.max_count is not None and id not in names and len(names) >= limits.max_count:
            raise QuotaExceeded(f"{len(names)} sessions are saved, as many as are allowed", "delete some")
        taken = sum(entry.info.bytes for entry in own.values())
        taken += sum(size for (holder, _), size in self._busy.items() if holder == owner)
        if limits.max_bytes is not None and growth and taken + growth > limits.max_bytes:
            raise QuotaExceeded(
                f"sessions take {taken:,} bytes, this one may take {growth:,}, and {limits.max_bytes:,} are allowed",
                "delete some",
            )

    def _evict(self, owner: str, newest: str) -> None:
        """Drops sessions in memory beyond the owner's limits, and then beyond the limit of all."""
        sizes = {each: sum(entry.info.bytes for entry in own.values()) for each, own in self._entries.items()}

        def drop(holder: str) -> bool:
            own = self._of(holder)
            free = (id for id in own if (holder, id) not in self._busy and (holder, id) != (owner, newest))
            if (id := next(free, None)) is None:
                return False
            sizes[holder] -= own.pop(id).info.bytes
            return True

        count, most = self.limits.max_count, self.limits.max_bytes
        while (count is not None and len(self._of(owner)) > count) or (most is not None and sizes[owner] > most):
            if not drop(owner):
                break
        while sum(sizes.values()) > self.limit:
            if not any(drop(holder) for holder in sorted(sizes, key=sizes.__getitem__, reverse=True)):
                break

    def _path(self, id: str, owner: str) -> Path:
        assert self.folder is not None
        return self.folder / owner / f"{id}{SUFFIX}"

    def _write(self, info: SessionInfo, owner: str, weights: str, tensors: dict[str, Any], shape: str) -> None:
        metadata = {"served": info.model, "weights": weights, "tokens": str(info.tokens), "created": str(info.created)}
        path = self._path(info.id, owner)
        if owner:
            path.parent.mkdir(exist_ok=True)
        write_session(path, tensors, {"model": shape, **metadata})


def _check(id: str) -> None:
    if not NAME.fullmatch(id):
        raise InputError("invalid session name", HINT)


def _read_info(path: Path) -> _Entry | None:
    """The entry of a file; None if it is not a session of a server."""
    try:
        file = TensorFile(path)
        metadata, facts = file.metadata, path.stat()
        if not is_session(file) or "weights" not in metadata:
            return None
        size = sum(entry.end - entry.begin for name, entry in file.entries.items() if name != "pending")
        info = SessionInfo(
            path.stem,
            metadata["served"],
            int(metadata["tokens"]),
            size,
            int(metadata["created"]),
            int(facts.st_mtime),
            True,
        )
        return _Entry(info, metadata["weights"], None)
    except (InputError, OSError, ValueError, KeyError):
        return None
