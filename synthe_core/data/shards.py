"""Tokens on disk: memory-mapped files of them, read as one long row."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synthe_core.errors import WorkError

FORMAT = 1
OPEN = 64
"""Shards mapped at a time, so that a corpus of any size stays within a process's mappings."""
SIDES = ("train", "validation")


@dataclass
class Side:
    """What was packed for one side: `text_bytes` of UTF-8 went in, and the tokens stand for `token_bytes` of them.

    The two are equal unless the tokenizer changes the text (lower case, unknown words). shards: (file, tokens).
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    token_bytes: int = 0
    shards: list[tuple[str, int]] = field(default_factory=list)


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
        """The index in `folder`, or None where there is none or its shards are not what it says."""
        try:
            content = json.loads((folder / "index.json").read_text())
            index = cls(**content)
            index.sides = {name: Side(**side) for name, side in content["sides"].items()}
            itemsize = np.dtype(index.dtype).itemsize
            whole = all(
                (folder / file).stat().st_size == tokens * itemsize
                for side in index.sides.values()
                for file, tokens in side.shards
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return index if whole and index.format == FORMAT else None

    def write(self, folder: Path) -> None:
        write_whole(folder / "index.json", json.dumps(asdict(self)).encode())


def labels_file(shard: str) -> str:
    """The file beside a shard of labelled text: a JSON list of (label, tokens), one for each run of its tokens."""
    return shard.removesuffix(".bin") + ".labels.json"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def cannot_write(folder: Path, error: OSError) -> WorkError:
    """One line for a cache folder that takes no more, or nothing."""
    return WorkError(
        f"cannot write packed data to {folder}: {error.strerror or error}",
        "make room there, or point SYNTHE_CACHE at a disk that has it; packed text is stored",
    )


class Split:
    """The tokens of one side of one or more sources, in order.

    tokens, documents: counts. bytes: of UTF-8 text. shards: the files in order. Reads come from memory maps, as int64.
    """

    def __init__(self, parts: Sequence[tuple[Path, Index, str]], widths: np.ndarray) -> None:
        sides = [(folder, index.dtype, index.sides[side]) for folder, index, side in parts]
        self._files = [(folder / file, dtype, n) for folder, dtype, side in sides for file, n in side.shards]
        self._starts = np.concatenate([[0], np.cumsum([n for _, _, n in self._files], dtype=np.int64)])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._widths = widths
        self.tokens = int(self._starts[-1])
        self.shards = [path for path, _, _ in self._files]
        self.documents = sum(side.documents for _, _, side in sides)
        self.bytes = sum(side.text_bytes for _, _, side in sides)
        decoded = sum(side.token_bytes for _, _, side in sides)
        self._scale = self.bytes / decoded if decoded and decoded != self.bytes else 1.0

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
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            done = 0
            while done < length:
                tokens = self._map(shard)
                begin = start + done - int(self._starts[shard])
                count = min(length - done, len(tokens) - begin)
                row[done : done + count] = tokens[begin : begin + count]
                done, shard = done + count, shard + 1
        return rows

    def _map(self, shard: int) -> np.ndarray:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        if len(self._maps) >= OPEN:
            self._maps.popitem(last=False)
        path, dtype, _ = self._files[shard]
        self._maps[shard] = np.memmap(path, dtype=dtype, mode="r")
        return self._maps[shard]
