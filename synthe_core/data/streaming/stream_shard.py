"""Shards of a streamed source: some of its sequences, on disk until others take their place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthe_core.data.shards import cannot_write
from synthe_core.data.streaming.position import Position
from synthe_core.data.streaming.token_reader import TokenReader
from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.storage.atomic import write_file
from synthe_core.storage.claim import claim, sweep

SHARD = 2**21
"""Tokens of a shard, about: among them sequences are shuffled."""
ON_DISK = 4
"""Shards of a source on disk: the one that is trained on, those made ahead, and the one before."""
MAKING = 600.0
"""Seconds for which a process waits for a shard that another one makes."""


class StreamShard(NamedTuple):
    """Some tokens of a source, one after another.

    number: of the shard in the stream, from 0 on, epochs included.
    tokens: int64 [N * sequence + 1]; the last one is the first of the next shard.
    start, following: the positions of the first token, and of the next shard's first.
    digest: SHA-256 of the tokens.
    """

    number: int
    tokens: np.ndarray
    start: Position
    following: Position
    digest: str


def make_shard(reader: TokenReader, number: int, sequence: int) -> StreamShard:
    """The next shard of a reader. It ends where an epoch does; tokens that fill no sequence there begin the next."""
    start, wanted = reader.position, max(1, SHARD // sequence) * sequence + 1
    while len(tokens := reader.read(wanted)) <= sequence:
        reader.begin_again(sequence + 1)
    used = (len(tokens) - 1) // sequence * sequence
    reader.skip(used)
    tokens = tokens[: used + 1]
    return StreamShard(number, tokens, start, reader.position, _digest(tokens))


class ShardFolder:
    """The newest shards of a source on disk: `NUMBER.bin`, and `NUMBER.json` with their positions and digest."""

    def __init__(self, path: Path, vocab: int) -> None:
        self.path = path
        self._dtype = np.dtype("<u2" if vocab <= 2**16 else "<u4")

    def read(self, number: int, start: Position) -> StreamShard | None:
        """The shard that begins at `start`; None where it is not there, or is damaged."""
        try:
            facts = json.loads(self._file(number, "json").read_text(encoding="utf-8"))
            tokens = np.fromfile(self._file(number, "bin"), dtype=self._dtype).astype(np.int64)
            shard = StreamShard(
                number,
                tokens,
                Position.from_json(facts["start"]),
                Position.from_json(facts["following"]),
                facts["digest"],
            )
        except (OSError, ValueError, TypeError, KeyError, InputError, RecursionError):
            return None
        return shard if shard.start.is_at(start) and shard.digest == _digest(tokens) else None

    @contextmanager
    def making(self, number: int) -> Iterator[None]:
        """Within the block no other process of the machine makes the shard of that number; those that want it wait, and
        read it afterwards. One that has waited long, or cannot lock files, makes it itself."""
        with ExitStack() as stack:
            with suppress(SyntheError, OSError):
                stack.enter_context(claim(self.path / f"{number:08d}", "tokenizing", parents=True, wait=MAKING))
            yield

    def write(self, shard: StreamShard) -> None:
        """Stores a shard. WorkError if the disk takes no more."""
        facts = {"start": shard.start.to_json(), "following": shard.following.to_json(), "digest": shard.digest}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_file(self._file(shard.number, "bin"), shard.tokens.astype(self._dtype).tobytes())
            write_file(self._file(shard.number, "json"), json.dumps(facts))
        except (OSError, WorkError) as error:
            raise cannot_write(self.path, error) from error

    def remove_old(self, number: int) -> None:
        """Removes shards but the newest few and those from `number` on, and what killed processes left half written."""
        if not self.path.is_dir():
            return
        sweep(self.path)
        needed = {f"{each:08d}" for each in range(number, number + ON_DISK)}
        try:
            for path in sorted(self.path.glob("*.bin"), key=_changed)[:-ON_DISK]:
                if path.stem not in needed:
                    path.with_suffix(".json").unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _file(self, number: int, suffix: str) -> Path:
        return self.path / f"{number:08d}.{suffix}"


def _changed(path: Path) -> int:
    """When a file was written; 0 for one that another process has removed."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
