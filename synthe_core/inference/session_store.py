"""Conversations that are kept under a name, so that a later request goes on from them, after a restart too."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.inference.request import Busy, NotFound
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import FORMAT, Session, is_session
from synthe_core.storage.atomic import PARTIAL, failure, sweep
from synthe_core.storage.tensor_file import TensorFile

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX = ".safetensors"
HINT = "a session's name is of letters, digits, - and _, at most 64 of them"


@dataclass(frozen=True)
class SessionInfo:
    """id, the model (`base:adapter`) that it belongs to, how many tokens it has read and how many bytes it takes; when
    it was created and last used (Unix seconds), and whether it is in a file."""

    id: str
    model: str
    tokens: int
    bytes: int
    created: int
    used: int
    saved: bool


@dataclass
class _Kept:
    info: SessionInfo
    weights: str
    session: Session | None  # where there is no folder


class SessionStore:
    """Sessions in files of `folder`, or in memory where there is none: then at most `limit` bytes of them, and the
    least lately used go first. Every method may be called from any thread."""

    def __init__(self, folder: Path | None, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._kept: dict[str, _Kept] = {}
        self._busy: set[str] = set()
        self._lock = threading.RLock()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder)
            except OSError as error:
                raise failure(folder, error) from None
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                if NAME.fullmatch(path.stem) and (kept := _read_info(path)) is not None:
                    self._kept[path.stem] = kept

    def list(self) -> list[SessionInfo]:
        """All of them, the last used first."""
        with self._lock:
            return sorted((kept.info for kept in self._kept.values()), key=lambda info: (-info.used, info.id))

    def get(self, id: str) -> SessionInfo:
        return self._get(id).info

    def fork(self, id: str, new_id: str) -> SessionInfo:
        """Another session with the same past."""
        with self._lock:
            kept = self._get(id)
            _check(new_id)
            if new_id in self._kept:
                raise InputError(f"there is a session '{new_id}' already", "choose another name, or delete it")
            self._reserve(new_id)
            self._reserve(id)
        try:
            now = int(time.time())
            info = SessionInfo(new_id, kept.info.model, kept.info.tokens, kept.info.bytes, now, now, kept.info.saved)
            if kept.session is None:
                self._write(info, kept.weights, dict(TensorFile(self._path(id))), _metadata(self._path(id)))
            with self._lock:
                self._kept[new_id] = _Kept(info, kept.weights, kept.session)
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
                del self._kept[id]
            finally:
                self._busy.discard(id)

    def claim(self, id: str, weights: str) -> None:
        """Takes a session, there already or new, for one request until it is `release`d. Raises Busy while another has
        it, and InputError where it is of another model."""
        _check(id)
        with self._lock:
            self._reserve(id)
            kept = self._kept.get(id)
            if kept is not None and kept.weights != weights:
                self._busy.discard(id)
                raise InputError(
                    f"the session '{id}' belongs to {kept.info.model}, or to other weights of that name",
                    "a session goes on only with the model that made it",
                )

    def release(self, id: str) -> None:
        with self._lock:
            self._busy.discard(id)

    def open(self, id: str, model: LanguageModel) -> Session | None:
        """The session of that name, None for a new one."""
        with self._lock:
            kept = self._kept.get(id)
        if kept is None or kept.session is not None:
            return None if kept is None else kept.session
        return Session.load(self._path(id), model)

    def save(self, id: str, model: str, weights: str, shape: str, session: Session) -> SessionInfo:
        """Keeps a session; with a folder it is on disk, whole, when this returns. `shape` is what
        `model.session.fingerprint` says of the model."""
        with self._lock:
            before = self._kept.get(id)
        now = int(time.time())
        created = now if before is None else before.info.created
        size = states.nbytes(session.state)
        info = SessionInfo(id, model, int(session.state.position[0]) + 1, size, created, now, self.folder is not None)
        if self.folder is not None:
            tensors = states.to_tensors(session.state, "state") | {"pending": session.pending.contiguous()}
            self._write(info, weights, tensors, {"model": shape})
        with self._lock:
            self._kept[id] = _Kept(info, weights, session if self.folder is None else None)
            self._evict(id)
        return info

    def _get(self, id: str) -> _Kept:
        with self._lock:
            if id not in self._kept:
                raise NotFound(f"no such session: {id if NAME.fullmatch(id) else 'of that name'}", HINT)
            return self._kept[id]

    def _reserve(self, id: str) -> None:
        if id in self._busy:
            raise Busy(f"the session '{id}' is being used by another request", 1.0)
        self._busy.add(id)

    def _evict(self, newest: str) -> None:
        if self.folder is not None:
            return
        by_age = sorted(self._kept, key=lambda id: self._kept[id].info.used)
        total = sum(kept.info.bytes for kept in self._kept.values())
        for id in by_age:
            if total <= self.limit:
                return
            if id not in self._busy and id != newest:
                total -= self._kept.pop(id).info.bytes

    def _path(self, id: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{id}{SUFFIX}"

    def _write(self, info: SessionInfo, weights: str, tensors: dict[str, Any], more: dict[str, str]) -> None:
        path = self._path(info.id)
        partial = path.with_name(f".{path.name}{PARTIAL}")
        told = {"served": info.model, "weights": weights, "tokens": str(info.tokens), "created": str(info.created)}
        try:
            save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, partial, {"format": FORMAT} | more | told)
            for place in (partial, None):
                if place is None:
                    os.replace(partial, path)
                handle = os.open(path.parent if place is None else place, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise failure(path, error) from None


def _check(id: str) -> None:
    if not NAME.fullmatch(id):
        raise InputError("that cannot be the name of a session", HINT)


def _metadata(path: Path) -> dict[str, str]:
    return {"model": TensorFile(path).metadata.get("model", "")}


def _read_info(path: Path) -> _Kept | None:
    """What a file tells of its session; None for one that is no session of a server."""
    try:
        file = TensorFile(path)
        told, facts = file.metadata, path.stat()
        if not is_session(file) or "weights" not in told:
            return None
        size = sum(entry.end - entry.begin for name, entry in file.entries.items() if name != "pending")
        info = SessionInfo(
            path.stem, told["served"], int(told["tokens"]), size, int(told["created"]), int(facts.st_mtime), True
        )
        return _Kept(info, told["weights"], None)
    except (InputError, OSError, ValueError, KeyError):
        return None
