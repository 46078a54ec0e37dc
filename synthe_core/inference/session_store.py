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
from synthe_core.inference.request import Busy, NotFound
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session, is_session, write_session
from synthe_core.storage.atomic import failure, sweep
from synthe_core.storage.tensor_file import TensorFile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX = ".safetensors"
DAMAGED = "the session is damaged: delete it, or begin another"
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


@dataclass
class _Entry:
    """weights: the fingerprint of the model. session: None if it is in a file."""

    info: SessionInfo
    weights: str
    session: Session | None


class SessionStore:
    """Sessions in files of `folder`. Without a folder they are in memory, at most `limit` bytes, and the least recently
    used are dropped. Every method may be called by any thread."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._entries: dict[str, _Entry] = {}
        self._busy: set[str] = set()
        self._lock = threading.RLock()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder)
            except OSError as error:
                raise failure(folder, error) from None
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                if NAME.fullmatch(path.stem) and (entry := _read_info(path)) is not None:
                    self._entries[path.stem] = entry

    def list(self) -> list[SessionInfo]:
        """All sessions, the last used first."""
        with self._lock:
            return sorted((entry.info for entry in self._entries.values()), key=lambda info: (-info.used, info.id))

    def get(self, id: str) -> SessionInfo:
        return self._get(id).info

    def fork(self, id: str, new_id: str) -> SessionInfo:
        """Copies a session under another name."""
        with self._lock:
            entry = self._get(id)
            _check(new_id)
            if new_id in self._entries:
                raise InputError(f"there is a session '{new_id}' already", "choose another name, or delete it")
            self._reserve(new_id)
            self._reserve(id)
        try:
            now = int(time.time())
            info = replace(entry.info, id=new_id, created=now, used=now)
            if entry.session is None:
                file = TensorFile(self._path(id))
                self._write(info, entry.weights, dict(file), file.metadata.get("model", ""))
            with self._lock:
                self._entries[new_id] = _Entry(info, entry.weights, entry.session)
                self._evict(new_id)
            return info
        finally:
            self.release(new_id)
            self.release(id)

    def delete(self, id: str) -> None:
        with self._lock:
            self._get(id)
            self._reserve(id)
            try:
                if self.folder is not None:
                    self._path(id).unlink(missing_ok=True)
                del self._entries[id]
            finally:
                self._busy.discard(id)

    def claim(self, id: str, weights: str) -> None:
        """Reserves a session, existing or new, for one request until `release`. Raises Busy while another request has
        it, and InputError if it belongs to another model."""
        _check(id)
        with self._lock:
            self._reserve(id)
            entry = self._entries.get(id)
            if entry is not None and entry.weights != weights:
                self._busy.discard(id)
                raise InputError(
                    f"the session '{id}' belongs to {entry.info.model}, or to other weights of that name",
                    "a session goes on only with the model that made it",
                )

    def release(self, id: str) -> None:
        with self._lock:
            self._busy.discard(id)

    def open(self, id: str, model: LanguageModel) -> Session | None:
        """The session of that name; None for a new one."""
        with self._lock:
            entry = self._entries.get(id)
        if entry is None or entry.session is not None:
            return None if entry is None else entry.session
        session = Session.load(self._path(id), model)
        if len(session.pending) != 1:
            raise InputError(f"the session '{id}' has {len(session.pending)} rows; a conversation has one", DAMAGED)
        return session

    def save(self, id: str, model: str, weights: str, shape: str, session: Session) -> SessionInfo:
        """Saves a session; with a folder it is on disk when this returns. weights, shape: the model's fingerprints."""
        with self._lock:
            before = self._entries.get(id)
        now = int(time.time())
        created = now if before is None else before.info.created
        size = states.nbytes(session.state)
        info = SessionInfo(id, model, int(session.state.position[0]) + 1, size, created, now, self.folder is not None)
        if self.folder is not None:
            tensors = states.to_tensors(session.state, "state") | {"pending": session.pending.contiguous()}
            self._write(info, weights, tensors, shape)
        with self._lock:
            self._entries[id] = _Entry(info, weights, session if self.folder is None else None)
            self._evict(id)
        return info

    def _get(self, id: str) -> _Entry:
        with self._lock:
            if id not in self._entries:
                raise NotFound(f"no such session: {id if NAME.fullmatch(id) else 'of that name'}", HINT)
            return self._entries[id]

    def _reserve(self, id: str) -> None:
        if id in self._busy:
            raise Busy(f"the session '{id}' is being used by another request", 1.0)
        self._busy.add(id)

    def _evict(self, newest: str) -> None:
        if self.folder is not None:
            return
        by_age = sorted(self._entries, key=lambda id: self._entries[id].info.used)
        total = sum(entry.info.bytes for entry in self._entries.values())
        for id in by_age:
            if total <= self.limit:
                return
            if id not in self._busy and id != newest:
                total -= self._entries.pop(id).info.bytes

    def _path(self, id: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{id}{SUFFIX}"

    def _write(self, info: SessionInfo, weights: str, tensors: dict[str, Any], shape: str) -> None:
        metadata = {"served": info.model, "weights": weights, "tokens": str(info.tokens), "created": str(info.created)}
        write_session(self._path(info.id), tensors, {"model": shape, **metadata})


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
