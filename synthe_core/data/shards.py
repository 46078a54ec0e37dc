"""Tokens on disk: memory-mapped files of them, read as one long row."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synthe_core.errors import WorkError
from synthe_core.storage.atomic import write_file

FORMAT = 3
OPEN = 64
"""Shards mapped at a time, so that a corpus of any size stays within a process's mappings."""
SIDES = ("train", "validation")
RUN = np.dtype([("digest", "<u8"), ("tokens", "<i8"), ("text_bytes", "<i8"), ("token_bytes", "<i8"), ("ends", "?")])
"""A run of tokens in a shard, all of one document: its digest, counts, and whether it ends there."""


@dataclass
class Side:
    """What was packed for one side: `text_bytes` of UTF-8 went in, and the tokens stand for `token_bytes` of them.

    The two are equal unless the tokenizer changes the text (lower case, unknown words). shards: (file, tokens,
    SHA-256 of the file and of those beside it).
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    token_bytes: int = 0
    shards: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class Index:
    """index.json of a packed source: how far it is, and what is in its shards. Written after the shards it names.

    pieces: how many pieces of the source are in the shards, which is where an interrupted preparation goes on.
    """

    source: str
    tokenizer: str
    dtype: str
    plan: dict[str, Any]
    pieces: int = 0
    complete: bool = False
    sides: dict[str, Side] = field(default_factory=lambda: {side: Side() for side in SIDES})
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Index | None:
        """The index in `folder`, or None where there is none or its shards have other sizes (see `verification`)."""
        try:
            content = json.loads((folder / "index.json").read_text())
            index = cls(**content)
            index.sides = {name: Side(**side) for name, side in content["sides"].items()}
            itemsize = np.dtype(index.dtype).itemsize
            whole = all(
                (folder / file).stat().st_size == tokens * itemsize
                for side in index.sides.values()
                for file, tokens, _ in side.shards
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return index if whole and index.format == FORMAT else None

    def write(self, folder: Path) -> None:
        write_file(folder / "index.json", json.dumps(asdict(self)))


def labels_file(shard: str) -> str:
    """The file beside a shard of labelled text: a JSON list of (label, tokens), one for each run of its tokens."""
    return shard.removesuffix(".bin") + ".labels.json"


def documents_file(shard: str) -> str:
    """The file beside a shard that says whose its tokens are: a RUN for each run of them."""
    return shard.removesuffix(".bin") + ".documents.bin"


def shard_files(folder: Path, shard: str) -> list[Path]:
    """A shard and what lies beside it, in the order of its digest."""
    names = (shard, documents_file(shard), labels_file(shard))
    return [path for name in names if (path := folder / name).exists()]


def cannot_write(folder: Path, error: OSError | WorkError) -> WorkError:
    """One line for a cache folder that takes no more, or nothing."""
    cause = error.__cause__ or error
    return WorkError(
        f"cannot write packed data to {folder}: {getattr(cause, 'strerror', None) or cause}",
        "make room there, or point SYNTHE_CACHE at a disk that has it; packed text is stored",
    )


class _Stretch(NamedTuple):
    """Tokens of a shard that belong to a split."""

    path: Path
    dtype: str
    begin: int
    tokens: int


class Split:
    """The tokens of one side of one or more sources, in order, without the documents whose digest is in `leave_out`.

    tokens, documents: counts. bytes: of UTF-8 text. left_out: the number of documents left out.
    Reads come from memory maps, as int64. leave_out: uint64, sorted.
    """

    def __init__(
        self, parts: Sequence[tuple[Path, Index, str]], widths: np.ndarray, leave_out: np.ndarray | None = None
    ) -> None:
        sides = [(folder, index.dtype, index.sides[side]) for folder, index, side in parts]
        self._stretches: list[_Stretch] = []
        self._stays: list[tuple[Path, np.ndarray | None]] = []
        self._maps: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._widths = widths
        self._digests = {folder / file: digest for folder, _, side in sides for file, _, digest in side.shards}
        self.documents = sum(side.documents for _, _, side in sides)
        self.bytes = sum(side.text_bytes for _, _, side in sides)
        self.left_out = 0
        decoded = sum(side.token_bytes for _, _, side in sides)
        for folder, dtype, side in sides:
            for file, count, _ in side.shards:
                decoded -= self._add(_Stretch(folder / file, dtype, 0, count), leave_out)
        self.documents -= self.left_out
        counts = [stretch.tokens for stretch in self._stretches]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.tokens = int(self._starts[-1])
        self._scale = self.bytes / decoded if decoded and decoded != self.bytes else 1.0

    def _add(self, shard: _Stretch, leave_out: np.ndarray | None) -> int:
        """Adds a shard's tokens; returns the bytes that the tokens left out of it stand for."""
        runs = runs_of(shard.path) if leave_out is not None and len(leave_out) else None
        out = None if runs is None or leave_out is None else is_in(runs["digest"], leave_out)
        if runs is None or out is None or not out.any():
            self._stretches.append(shard)
            self._stays.append((shard.path, None))
            return 0
        self._stays.append((shard.path, ~out))
        ends = np.cumsum(runs["tokens"])
        changes = np.flatnonzero(np.diff(np.concatenate([[True], out, [True]])))
        for first, last in changes.reshape(-1, 2).tolist():  # runs first to last - 1 stay
            begin = int(ends[first - 1]) if first else 0
            self._stretches.append(shard._replace(begin=begin, tokens=int(ends[last - 1]) - begin))
        self.left_out += int(runs["ends"][out].sum())
        self.bytes -= int(runs["text_bytes"][out].sum())
        return int(runs["token_bytes"][out].sum())

    @cached_property
    def digest(self) -> str:
        """Equal for equal tokens, packed in the same way."""
        parts = [(self._digests[stretch.path], stretch.begin, stretch.tokens) for stretch in self._stretches]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def labels(self) -> list[tuple[str, int]]:
        """(label, tokens) of every run of tokens, in order, where the text has labels."""
        labels: list[tuple[str, int]] = []
        for path, stays in self._stays:
            runs = json.loads(path.with_name(labels_file(path.name)).read_text(encoding="utf-8"))
            labels += runs if stays is None else [run for run, stay in zip(runs, stays, strict=True) if stay]
        return labels

    def bytes_in(self, ids: np.ndarray) -> float:
        """UTF-8 bytes of text that `ids` stand for; special tokens stand for none.

        Exact where the tokenizer keeps the text (bytes, byte-level BPE); else by spelling, scaled so that the whole
        split counts its true bytes.
        """
        return float(self._widths[ids].sum()) * self._scale

    def read(self, start: int, length: int) -> np.ndarray:
        """int64 [length]: the tokens from `start` on."""
        return self.gather(np.array([start]), length)[0]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int64 [len(starts), length]: the tokens from each of `starts` on."""
        rows = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            if not 0 <= start <= self.tokens - length:
                raise IndexError(f"tokens {start} to {start + length} of {self.tokens}")
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            done = 0
            while done < length:
                stretch = self._stretches[number]
                skipped = start + done - int(self._starts[number])
                count = min(length - done, stretch.tokens - skipped)
                begin = stretch.begin + skipped
                row[done : done + count] = self._map(stretch)[begin : begin + count]
                done, number = done + count, number + 1
        return rows

    def _map(self, stretch: _Stretch) -> np.ndarray:
        if stretch.path in self._maps:
            self._maps.move_to_end(stretch.path)
            return self._maps[stretch.path]
        if len(self._maps) >= OPEN:
            self._maps.popitem(last=False)
        self._maps[stretch.path] = np.memmap(stretch.path, dtype=stretch.dtype, mode="r")
        return self._maps[stretch.path]


def runs_of(shard: Path) -> np.ndarray:
    """RUN [N]: whose the tokens of a shard are, in order."""
    return np.fromfile(shard.with_name(documents_file(shard.name)), dtype=RUN)


def document_digests(folder: Path, index: Index, side: str) -> np.ndarray:
    """uint64, sorted: the digests of the documents on one side of a source."""
    digests = [np.unique(runs_of(folder / file)["digest"]) for file, _, _ in index.sides[side].shards]
    return np.unique(np.concatenate(digests)) if digests else np.empty(0, np.uint64)


def is_in(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool, of the shape of `values`: whether each is in the sorted `among`, which is not empty."""
    return among[np.minimum(np.searchsorted(among, values), len(among) - 1)] == values
