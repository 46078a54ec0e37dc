"""States kept at places of texts that were read, so that whoever begins alike goes on from there."""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthe_core import state as states

SPILLED = 8
"""How many times the bytes that are kept in memory may lie on disk."""
SUFFIX = ".snapshot"
EXACT = 16
"""Places at whose multiples a text can be cut for two passes and give the same numbers as in one."""
_FACTOR = np.uint64(int.from_bytes(os.urandom(8), "little") | 1)  # no text from outside can be made to collide


@dataclass
class Snapshot:
    """The state of one row after `tokens`, read by the model whose fingerprint is `print`; where they are the whole of
    a prompt, also the `logits` [1, V] and the `confidence` [1] of what comes next. turn: they end in an answer."""

    print: str
    tokens: Sequence[int] | np.ndarray
    state: Any
    logits: Tensor | None = None
    confidence: Any = None
    turn: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    def serves(self, length: int) -> bool:
        """Whether a text of so many tokens may go on from here: all of it where what comes next is known, and a longer
        one where an answer ended, as that conversation would have, or where its own reading would have paused: then it
        gets the numbers that it would have got without."""
        return self.logits is not None if length == self.length else self.turn or self.length % EXACT == 0


@dataclass
class _Entry:
    """A snapshot in memory, or in a file: then `state` holds meta tensors, from which the tree is made again."""

    tokens: np.ndarray
    snapshot: Snapshot | None
    bytes: int
    file: Path | None = None
    written: Future[None] | None = None
    template: Any = None
    turn: bool = False


Key = tuple[str, int, int]  # fingerprint, length, hash of the tokens


def hashes(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """uint64 [N + 1]: a hash of every beginning of `tokens`."""
    with np.errstate(over="ignore"):
        numbers = np.asarray(tokens, dtype=np.uint64) + np.uint64(1)
        powers = np.cumprod(np.full(len(numbers), _FACTOR, dtype=np.uint64), dtype=np.uint64)
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(numbers * powers, dtype=np.uint64)])


class Snapshots:
    """At most `limit` bytes in memory, the least lately used go first: to files in `folder` where there is one, at most
    `SPILLED` times as many, and else for good. Used by one thread."""

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.bytes = self.spilled_bytes = self.hits = self.misses = self.tokens_saved = 0
        self._held: OrderedDict[Key, _Entry] = OrderedDict()
        self._spilled: OrderedDict[Key, _Entry] = OrderedDict()
        self._lengths: dict[str, dict[int, int]] = {}  # of each fingerprint, how many snapshots have which length
        self._names = itertools.count()
        self._writer = ThreadPoolExecutor(1, "snapshots") if folder is not None else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"*{SUFFIX}*"):
                old.unlink(missing_ok=True)

    def told(self) -> dict[str, int]:
        """What there is of them, by name."""
        return {
            "entries": len(self._held),
            "bytes": self.bytes,
            "limit": self.limit,
            "spilled": len(self._spilled),
            "spilled_bytes": self.spilled_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "tokens_saved": self.tokens_saved,
        }

    def keep(self, snapshot: Snapshot) -> None:
        """Keeps a snapshot, which nobody may write to from now on."""
        size = states.nbytes(snapshot.state) + 8 * snapshot.length + 1024
        size += 0 if snapshot.logits is None else states.nbytes(snapshot.logits)
        if size > self.limit or not snapshot.length:
            return
        tokens = np.asarray(snapshot.tokens, dtype=np.int64)
        key = (snapshot.print, len(tokens), int(hashes(tokens)[-1]))
        if (old := self._held.get(key)) is not None:
            if snapshot.logits is None and old.snapshot is not None and old.snapshot.logits is not None:
                self._held.move_to_end(key)  # the old one serves for more; and one that ends a turn need not be said so
                return
            self._forget(key)
        elif key in self._spilled:
            self._forget(key)
        self._hold(key, _Entry(tokens, snapshot, size, turn=snapshot.turn))

    def longest(self, print_: str, tokens: Sequence[int]) -> Snapshot | None:
        """The snapshot of the longest beginning of `tokens`: all of them only where what comes next is known too."""
        lengths = self._lengths.get(print_)
        found = self._find(print_, np.asarray(tokens, dtype=np.int64), lengths) if lengths else None
        self.hits += found is not None
        self.misses += found is None
        self.tokens_saved += 0 if found is None else found.length
        return found

    def _find(self, print_: str, tokens: np.ndarray, lengths: dict[int, int]) -> Snapshot | None:
        known = hashes(tokens)
        for length in sorted((n for n in lengths if n <= len(tokens)), reverse=True):
            key = (print_, length, int(known[length]))
            entry = self._held.get(key) or self._spilled.get(key)
            if entry is None or not np.array_equal(entry.tokens, tokens[:length]):
                continue
            snapshot = entry.snapshot or self._load(key, entry)
            if snapshot is None or not snapshot.serves(len(tokens)):
                continue
            if key in self._held:
                self._held.move_to_end(key)
            return snapshot
        return None

    def forget(self, print_: str) -> None:
        """Drops every snapshot of a model that is served no more."""
        for key in [key for key in [*self._held, *self._spilled] if key[0] == print_]:
            self._forget(key)

    def close(self) -> None:
        """Removes the files: what they hold is of this process's requests."""
        if self._writer is not None:
            self._writer.shutdown(wait=True, cancel_futures=True)
        for left in self.folder.glob(f"*{SUFFIX}") if self.folder is not None else ():
            left.unlink(missing_ok=True)
        self._held.clear()
        self._spilled.clear()
        self._lengths.clear()

    def _hold(self, key: Key, entry: _Entry) -> None:
        self._held[key] = entry
        self.bytes += entry.bytes
        self._count(key, 1)
        while self.bytes > self.limit:
            oldest = next(iter(self._held))
            moved = self._held[oldest]
            self._forget(oldest)
            if self.folder is not None:
                self._spill(oldest, moved)

    def _forget(self, key: Key) -> None:
        if (entry := self._held.pop(key, None)) is not None:
            self.bytes -= entry.bytes
            self._count(key, -1)
        if (entry := self._spilled.pop(key, None)) is not None:
            self.spilled_bytes -= entry.bytes
            self._count(key, -1)
            assert self._writer is not None and entry.file is not None
            self._writer.submit(entry.file.unlink, missing_ok=True)

    def _count(self, key: Key, change: int) -> None:
        lengths = self._lengths.setdefault(key[0], {})
        lengths[key[1]] = lengths.get(key[1], 0) + change
        if not lengths[key[1]]:
            del lengths[key[1]]

    def _spill(self, key: Key, entry: _Entry) -> None:
        assert self.folder is not None and self._writer is not None and entry.snapshot is not None
        if entry.bytes > SPILLED * self.limit:
            return
        kept = entry.snapshot
        entry.template = states.map_leaves(lambda leaf: leaf.to("meta"), kept.state)
        entry.file = self.folder / f"{next(self._names)}{SUFFIX}"
        entry.written = self._writer.submit(_write, entry.file, kept)
        entry.written.add_done_callback(lambda _: setattr(entry, "snapshot", None))
        self._spilled[key] = entry
        self.spilled_bytes += entry.bytes
        self._count(key, 1)
        while self.spilled_bytes > SPILLED * self.limit:
            self._forget(next(iter(self._spilled)))

    def _load(self, key: Key, entry: _Entry) -> Snapshot | None:
        """A snapshot back from its file; None where the file is not what was written."""
        assert entry.file is not None and entry.written is not None
        try:
            entry.written.result()
            tensors = load_file(entry.file)
            values = iter([tensors[name] for name, _ in states.named_leaves(entry.template, "state")])
            state = states.map_leaves(lambda _: next(values), entry.template)
        except (OSError, SafetensorError, KeyError):
            self._forget(key)
            return None
        snapshot = Snapshot(key[0], entry.tokens, state, tensors.get("logits"), tensors.get("confidence"), entry.turn)
        size = entry.bytes
        self._forget(key)
        self._hold(key, _Entry(entry.tokens, snapshot, size, turn=entry.turn))
        return snapshot


def _write(path: Path, snapshot: Snapshot) -> None:
    tensors = states.to_tensors(snapshot.state, "state")
    if snapshot.logits is not None and snapshot.confidence is not None:
        tensors |= {"logits": snapshot.logits, "confidence": snapshot.confidence}
    with torch.inference_mode():
        save_file({name: tensor.cpu().clone() for name, tensor in tensors.items()}, path)
