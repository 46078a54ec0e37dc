"""A cache of model states after prefixes of prompts: a request with an equal prefix continues from there."""

from __future__ import annotations

import itertools
import os
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthe_core import state as states
from synthe_core.hardware.free_memory import return_freed_memory

DISK_FACTOR = 8
"""Files may take so many times the bytes that are cached in memory, unless they have a limit of their own."""
SUFFIX = ".state"
INDEX_SHARE = 4
"""One part in so many of the memory may be taken by what is known of the files."""
ENTRY_BYTES, INDEX_BYTES = 1000, 650
"""Memory that an entry takes beside its tensors and tokens: in memory, and in a file (measured)."""
TRIM_SHARE = 8
"""Free pages are given back to the system each time that one part in so many of the memory was freed."""
_FACTOR = np.uint64(int.from_bytes(os.urandom(8), "little") | 1)  # no text from outside can be made to collide


TOKEN = np.dtype(np.int32)
OF = "@"  # in a fingerprint, between the model's and its owner


def owned_fingerprint(weights: str, owner: str) -> str:
    """The fingerprint of states that belong to an owner: other owners do not find them."""
    return f"{weights}{OF}{owner}" if owner else weights


def owner_of(fingerprint: str) -> str:
    """The owner of states with that fingerprint."""
    return fingerprint.partition(OF)[2]


@dataclass
class CachedState:
    """The state of one row after `tokens`, read by the model with that fingerprint. After a whole prompt also the
    `logits` [1, V] and the `confidence` [1] of the next token. resumable: a longer text may continue from here."""

    fingerprint: str
    tokens: Sequence[int] | np.ndarray
    state: Any
    logits: Tensor | None = None
    confidence: Any = None
    resumable: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    def serves(self, length: int) -> bool:
        """Whether a prompt of `length` tokens may continue from here. A whole prompt needs the logits that follow it. A
        longer one must be cut where its own prefill would pause, so that it gets the numbers it would get without the
        cache; or at the end of an answer, where the conversation itself was cut."""
        return self.logits is not None if length == self.length else self.resumable


@dataclass(slots=True)
class _Entry:
    """A cached state in memory; or in a file, which has its tokens too. `cached` is None once that is written, and
    `written` too."""

    cached: CachedState | None
    bytes: int
    resumable: bool = False
    file: Path | None = None
    written: Future[None] | None = None
    device: torch.device | None = None  # where the state was before it was written

    def forget(self, written: Future[None]) -> None:
        """Called when the file is written: whatever happened, the memory is free."""
        self.cached = self.written = None


Key = tuple[str, int, int]  # fingerprint, length, hash of the tokens


def prefix_hashes(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """uint64 [N + 1]: a hash of every prefix of `tokens`."""
    with np.errstate(over="ignore"):
        numbers = np.asarray(tokens, dtype=np.uint64) + np.uint64(1)
        powers = np.cumprod(np.full(len(numbers), _FACTOR, dtype=np.uint64), dtype=np.uint64)
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(numbers * powers, dtype=np.uint64)])


class PrefixCache:
    """At most `limit` bytes in memory, with tokens and Python's objects. The least recently used states are moved to
    files in `folder`, at most `disk_limit` bytes, or dropped if there is no folder. Pinned states are held beside the
    limit, for the requests of every owner. Used by one thread.
    """

    def __init__(self, limit: int, folder: Path | None = None, disk_limit: int | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.disk_limit = DISK_FACTOR * limit if disk_limit is None else disk_limit
        self.bytes = self.spilled_bytes = self.hits = self.misses = self.tokens_saved = 0
        self._pinned: dict[str, CachedState] = {}
        self._in_memory: OrderedDict[Key, _Entry] = OrderedDict()
        self._on_disk: OrderedDict[Key, _Entry] = OrderedDict()
        self._lengths: dict[str, dict[int, int]] = {}  # fingerprint -> length -> number of states
        self._templates: dict[str, Any] = {}  # fingerprint -> a state without values, for the shape of the tree
        self._owned: defaultdict[str, Counter[str]] = defaultdict(Counter)  # figures of `stats` by owner
        self._freed = 0  # bytes since the last `trim`
        self._writing: deque[Future[None]] = deque()
        self._names = itertools.count()
        self._writer = ThreadPoolExecutor(1, "prefix-cache") if folder is not None else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"*{SUFFIX}*"):
                path.unlink(missing_ok=True)

    def stats(self, owner: str = "") -> dict[str, int]:
        """Sizes and counters by name, of an owner's states; of all for the owner ""."""
        if owner:
            own = self._owned.get(owner, Counter())
            return {name: self.limit if name == "limit" else own[name] for name in self.stats()}
        return {
            "entries": len(self._in_memory),
            "bytes": self.bytes,
            "limit": self.limit,
            "spilled": len(self._on_disk),
            "spilled_bytes": self.spilled_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "tokens_saved": self.tokens_saved,
        }

    def put(self, cached: CachedState) -> None:
        """Adds a state, which nobody may write to from now on."""
        size = ENTRY_BYTES + TOKEN.itemsize * cached.length + states.memory_bytes(cached.state)
        size += sum(states.memory_bytes(each) for each in (cached.logits, cached.confidence) if each is not None)
        if size > self.limit or not cached.length:
            return
        cached.tokens = tokens = np.array(cached.tokens, dtype=TOKEN)
        key = (cached.fingerprint, len(tokens), int(prefix_hashes(tokens)[-1]))
        if (old := self._in_memory.get(key)) is not None:
            if cached.logits is None and old.cached is not None and old.cached.logits is not None:
                self._in_memory.move_to_end(key)
                return
            self._drop(key)
        elif key in self._on_disk:
            self._drop(key)
        self._insert(key, _Entry(cached, size, cached.resumable))

    def longest(self, fingerprint: str, tokens: Sequence[int]) -> CachedState | None:
        """The state of the longest prefix of `tokens` that a prompt of these tokens may continue from."""
        lengths, ids = self._lengths.get(fingerprint), np.asarray(tokens, dtype=TOKEN)
        cached = self._lookup(fingerprint, ids, lengths) if lengths else None
        cached = self._longest_pinned(fingerprint.partition(OF)[0], ids, cached)
        if cached is None and not self.limit:
            return None
        self.hits += cached is not None
        self.misses += cached is None
        self.tokens_saved += 0 if cached is None else cached.length
        if cached is None:
            self._add(fingerprint, misses=1)
        else:
            self._add(fingerprint, hits=1, tokens_saved=cached.length)
        return cached

    def _add(self, fingerprint: str, **changes: int) -> None:
        """Adds to the figures of the states' owner."""
        if owner := owner_of(fingerprint):
            self._owned[owner].update(changes)

    def _lookup(self, fingerprint: str, tokens: np.ndarray, lengths: dict[int, int]) -> CachedState | None:
        known = prefix_hashes(tokens)
        for length in sorted((n for n in lengths if n <= len(tokens)), reverse=True):
            key = (fingerprint, length, int(known[length]))
            entry = self._in_memory.get(key) or self._on_disk.get(key)
            if entry is None:
                continue
            cached = entry.cached or self._load(key, entry)
            if cached is None or not np.array_equal(cached.tokens, tokens[:length]) or not cached.serves(len(tokens)):
                continue
            if key in self._in_memory:
                self._in_memory.move_to_end(key)
            return cached
        return None

    def pin(self, name: str, cached: CachedState) -> None:
        """Holds a resumable state, which nobody may write to from now on, in place of the one of that name."""
        cached.tokens = np.array(cached.tokens, dtype=TOKEN)
        self._pinned[name] = cached

    def unpin(self, name: str) -> None:
        """Drops the state of that name, if there is one."""
        self._pinned.pop(name, None)

    def _longest_pinned(self, weights: str, tokens: np.ndarray, cached: CachedState | None) -> CachedState | None:
        """The longest pinned prefix of `tokens` that is longer than `cached`, or `cached`."""
        for each in self._pinned.values():
            is_longer = (0 if cached is None else cached.length) < each.length < len(tokens)
            if is_longer and each.fingerprint == weights and np.array_equal(each.tokens, tokens[: each.length]):
                cached = each
        return cached

    def drop_model(self, weights: str) -> None:
        """Drops every state of a model, whosever it is, pinned ones too."""
        self._pinned = {name: each for name, each in self._pinned.items() if each.fingerprint != weights}
        for key in [key for key in [*self._in_memory, *self._on_disk] if key[0].partition(OF)[0] == weights]:
            self._drop(key)
        self._templates = {key: each for key, each in self._templates.items() if key.partition(OF)[0] != weights}

    def close(self) -> None:
        """Removes everything, the files included: they are of this process's requests."""
        if self._writer is not None:
            self._writer.shutdown(wait=True, cancel_futures=True)
        for path in self.folder.glob(f"*{SUFFIX}") if self.folder is not None else ():
            path.unlink(missing_ok=True)
        self._pinned.clear()
        self._in_memory.clear()
        self._on_disk.clear()
        self._lengths.clear()
        self._templates.clear()

    def _insert(self, key: Key, entry: _Entry) -> None:
        self._in_memory[key] = entry
        self.bytes += entry.bytes
        self._add(key[0], entries=1, bytes=entry.bytes)
        self._count(key, 1)
        while self._in_memory and self.bytes + INDEX_BYTES * len(self._on_disk) > self.limit:
            oldest = next(iter(self._in_memory))
            entry = self._in_memory[oldest]
            self._drop(oldest)
            if self.folder is not None:
                self._spill(oldest, entry)
        if self._freed > self.limit // TRIM_SHARE:
            self._freed = 0
            return_freed_memory()

    def _drop(self, key: Key) -> None:
        if (entry := self._in_memory.pop(key, None)) is not None:
            self.bytes -= entry.bytes
            self._add(key[0], entries=-1, bytes=-entry.bytes)
            self._freed += entry.bytes
            self._count(key, -1)
        if (entry := self._on_disk.pop(key, None)) is not None:
            self.spilled_bytes -= entry.bytes
            self._add(key[0], spilled=-1, spilled_bytes=-entry.bytes)
            self._count(key, -1)
            assert self._writer is not None and entry.file is not None
            self._writer.submit(entry.file.unlink, missing_ok=True)

    def _count(self, key: Key, change: int) -> None:
        lengths = self._lengths.setdefault(key[0], {})
        lengths[key[1]] = lengths.get(key[1], 0) + change
        if not lengths[key[1]]:
            del lengths[key[1]]
        if not lengths:
            del self._lengths[key[0]]

    def _spill(self, key: Key, entry: _Entry) -> None:
        """Moves a state to a file. Waits for files that are still being written: their states take memory."""
        assert self.folder is not None and self._writer is not None and entry.cached is not None
        if entry.bytes > self.disk_limit:
            return
        while self._writing:
            wait([self._writing.popleft()])
        cached = entry.cached
        if key[0] not in self._templates:
            self._templates[key[0]] = states.map_leaves(lambda leaf: leaf.to("meta"), cached.state)
        entry.device = next((leaf.device for _, leaf in states.named_leaves(cached.state)), None)
        entry.file = self.folder / f"{next(self._names)}{SUFFIX}"
        entry.written = written = self._writer.submit(_write, entry.file, cached)
        written.add_done_callback(entry.forget)
        self._writing.append(written)
        self._on_disk[key] = entry
        self.spilled_bytes += entry.bytes
        self._add(key[0], spilled=1, spilled_bytes=entry.bytes)
        self._count(key, 1)
        most = self.limit // INDEX_SHARE // INDEX_BYTES
        while self.spilled_bytes > self.disk_limit or len(self._on_disk) > max(1, most):
            self._drop(next(iter(self._on_disk)))

    def _load(self, key: Key, entry: _Entry) -> CachedState | None:
        """A state from its file; None if the file is not what was written."""
        assert entry.file is not None
        try:
            if (written := entry.written) is not None:
                written.result()
            loaded = load_file(entry.file)
            tokens = loaded.pop("tokens").numpy()
            tensors = {name: tensor.to(entry.device) for name, tensor in loaded.items()}
            template = self._templates[key[0]]
            values = iter([tensors[name] for name, _ in states.named_leaves(template, "state")])
            state = states.map_leaves(lambda _: next(values), template)
        except (OSError, SafetensorError, KeyError):
            self._drop(key)
            return None
        cached = CachedState(key[0], tokens, state, tensors.get("logits"), tensors.get("confidence"), entry.resumable)
        self._drop(key)
        self._insert(key, _Entry(cached, entry.bytes, entry.resumable))
        return cached


def _write(path: Path, cached: CachedState) -> None:
    tensors = {**states.to_tensors(cached.state, "state"), "tokens": torch.from_numpy(cached.tokens)}
    if cached.logits is not None and cached.confidence is not None:
        tensors |= {"logits": cached.logits, "confidence": cached.confidence}
    with torch.inference_mode():
        save_file({name: tensor.cpu().clone() for name, tensor in tensors.items()}, path)
