"""Packing: a source's documents, tokenized once, in shards under the cache folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from synthe_core.data.bpe import decoded
from synthe_core.data.documents import Piece, Source, limited
from synthe_core.data.shards import (
    FORMAT,
    RUN,
    SIDES,
    Index,
    cannot_write,
    documents_file,
    labels_file,
)
from synthe_core.data.splitting import Part, Plan, survey
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.data.verification import read_intact
from synthe_core.errors import InputError, WorkError
from synthe_core.events import Event, Notice, Progress
from synthe_core.hardware.probe import cache_dir
from synthe_core.storage.atomic import write_file
from synthe_core.storage.claim import sweep

SHARD = 2**24
"""Tokens between two saves: what a killed preparation loses at most."""
BATCH = 2 * 2**20
"""Bytes of text tokenized at a time."""


class NoText(InputError):
    """A source without a single byte."""


@dataclass(frozen=True)
class Corpus:
    """A source as a recipe uses it: at most `limit` bytes of it, the `fraction` of it for validation.

    labels: as in the recipe; where there are any, each shard has a file beside it that says whose its tokens are.
    """

    source: Source
    limit: int | None
    fraction: float
    labels: str | None = None

    def identity(self) -> list[object]:
        labels = [] if self.labels is None else [self.labels]
        return [self.source.identity(), self.limit, self.fraction, *labels]


@dataclass
class _Pending:
    """What is not written yet of one side: tokens, RUNs, and the label and the number of tokens of each run."""

    tokens: list[np.ndarray] = field(default_factory=list)
    runs: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    labels: list[tuple[str, int]] = field(default_factory=list)
    count: int = 0

    def add(self, part: Part, ids: np.ndarray, ends: np.ndarray, token_bytes: int) -> int:
        """Adds a part in tokens, and the end of its document if that is there; returns the number of tokens."""
        tokens = len(ids) + part.ends
        self.tokens += [ids.astype(ends.dtype), ends] if part.ends else [ids.astype(ends.dtype)]
        digest = int.from_bytes(part.digest, "little")
        self.runs.append((digest, tokens, len(part.text), token_bytes, part.ends))
        self.labels.append((part.label, tokens))
        self.count += tokens
        return tokens


def pack(corpus: Corpus, tokenizer: Tokenizer) -> Generator[Event, None, tuple[Path, Index]]:
    """The folder that holds `corpus` in tokens of `tokenizer`, and its index; made now if it is not there yet.

    Cached under a digest of what the source is and of the tokenizer. Shards appear whole, and the index names only
    whole ones, so a preparation that was killed goes on after the last of them. Two processes do not do the work
    twice: the second waits. Raises InputError for text that cannot be read, WorkError for a disk that cannot be
    written.
    """
    identity = json.dumps([FORMAT, corpus.identity(), tokenizer.digest])
    folder = cache_dir() / "data" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if (index := (yield from read_intact(folder))) is not None and index.complete:
        return folder, index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield Notice(f"another process is preparing {corpus.source.name}: waiting for it")
            lock.acquire()
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        index = yield from read_intact(folder)
        if index is None or not index.complete:
            index = yield from _pack(corpus, tokenizer, folder, index)
        return folder, index
    finally:
        lock.release()


def _pack(corpus: Corpus, tokenizer: Tokenizer, folder: Path, index: Index | None) -> Generator[Event, None, Index]:
    name = corpus.source.name
    sweep(folder)
    if index is None:
        plan = yield from survey(corpus.source, corpus.fraction, corpus.limit)
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        index = Index(name, tokenizer.name, dtype, plan.to_json())
    else:
        plan = Plan(**index.plan)
        if index.pieces:
            yield Notice(f"{name}: going on after {_packed_bytes(index):,} bytes that were packed before")
    total = plan.total if plan.total is not None else corpus.source.size()
    if corpus.limit is not None:
        total = min(corpus.limit, total) if total is not None else corpus.limit
    ends = np.array([tokenizer.end], dtype=index.dtype)
    pending = {side: _Pending() for side in SIDES}
    began, before, shown = time.monotonic(), _packed_bytes(index), 0.0
    rest = None if corpus.limit is None else corpus.limit - before
    pieces = limited(corpus.source.pieces(index.pieces), rest)
    while batch := _batch(pieces):
        index.pieces += len(batch)
        parts = [part for piece in batch if piece.text or piece.offset for part in plan.parts(piece)]
        for part, ids in zip(parts, tokenizer.encode_batch(encodable(parts, tokenizer)), strict=True):
            side = "train" if part.train else "validation"
            token_bytes = int(tokenizer.widths[ids].sum())
            figures = index.sides[side]
            figures.tokens += pending[side].add(part, ids, ends, token_bytes)
            figures.text_bytes += len(part.text)
            figures.token_bytes += token_bytes
            figures.documents += part.ends
        if sum(each.count for each in pending.values()) >= SHARD:
            _save(folder, index, pending, corpus.labels is not None)
        if (now := time.monotonic()) - shown > 0.2:
            shown, done = now, _packed_bytes(index)
            rate = (done - before) / max(now - began, 1e-9)
            eta = max(0.0, total - done) / rate if total is not None and rate > 0 else None
            yield Progress(f"packing {name}", done, None if total is None else max(total, done), "B", eta)
    if _packed_bytes(index) == 0:
        raise NoText(f"'{name}' holds no text", "name a source with text in it")
    index.complete = True
    _save(folder, index, pending, corpus.labels is not None)
    done = _packed_bytes(index)
    yield Progress(f"packing {name}", done, done, "B", 0.0)
    return index


def _packed_bytes(index: Index) -> int:
    return sum(side.text_bytes for side in index.sides.values())


def _batch(pieces: Iterator[Piece]) -> list[Piece]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            break
    return batch


def encodable(parts: Sequence[Part | Piece], tokenizer: Tokenizer) -> list[str | bytes]:
    """The texts as the tokenizer reads them. InputError for one that is no UTF-8, where it reads no bytes."""
    if tokenizer.reads_bytes:
        return [part.text for part in parts]
    return [decoded(part.text, part.name, part.offset) for part in parts]


def _save(folder: Path, index: Index, pending: dict[str, _Pending], labelled: bool) -> None:
    """Writes what is pending as shards, with their labels where there are any, then the index that names them."""
    try:
        for side, waiting in pending.items():
            if not waiting.count:
                continue
            file = f"{side}-{len(index.sides[side].shards):05d}.bin"
            contents = {
                file: np.concatenate(waiting.tokens).tobytes(),
                documents_file(file): np.array(waiting.runs, dtype=RUN).tobytes(),
            }
            if labelled:
                contents[labels_file(file)] = json.dumps(waiting.labels).encode()
            digest = hashlib.sha256()
            for name, content in contents.items():
                write_file(folder / name, content)
                digest.update(content)
            index.sides[side].shards.append((file, waiting.count, digest.hexdigest()))
            pending[side] = _Pending()
        index.write(folder)
    except (OSError, WorkError) as error:
        raise cannot_write(folder, error) from error
