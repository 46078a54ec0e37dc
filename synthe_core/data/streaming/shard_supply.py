"""The shards of a streamed source in order, each made ahead of its use."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, wait
from threading import Event as Stop

from synthe_core.data.streaming.position import Position
from synthe_core.data.streaming.reading_thread import ReadingThread
from synthe_core.data.streaming.stream_shard import ShardFolder, StreamShard, make_shard
from synthe_core.data.streaming.token_reader import StreamedText, TokenReader, stopped
from synthe_core.errors import InputError

AHEAD = 2
"""Shards that are made before they are needed."""
CHECK_SECONDS = 0.1
"""How often a wait for a shard looks whether the run is stopped."""


class ShardSupply:
    """Reads and makes the shards of a source in one thread of its own; errors arise where a shard is taken.

    A shard is what its position says, whoever makes it, so one that is missing or damaged on disk is made again.
    stop: once set, waiting for a shard that is not there yet raises Interrupted.
    """

    def __init__(self, text: StreamedText, folder: ShardFolder, sequence: int, stop: Stop) -> None:
        self._text, self._folder, self._sequence, self._stop = text, folder, sequence, stop
        self._closed = Stop()
        self._thread = ReadingThread("streaming")
        self._reader: TokenReader | None = None
        self._ahead: deque[Future[StreamShard]] = deque()

    def first(self, number: int, start: Position, digest: str | None) -> StreamShard:
        """The shard that begins at `start`; `digest` is what it was in an earlier process, None if there was none.

        InputError if the source has changed since.
        """
        self._ahead.clear()
        shard = self._wait(self._thread.submit(self._shard, number, start, digest))
        self._order(shard)
        return shard

    def next(self) -> StreamShard:
        """The shard after the one that was taken last."""
        shard = self._wait(self._ahead[0])  # one that failed stays, and fails again
        self._ahead.popleft()
        self._order(shard)
        return shard

    def close(self) -> None:
        """Ends the thread at the next document that it reads. Nobody waits for one that takes long to come."""
        self._closed.set()
        self._thread.close()

    def _wait(self, shard: Future[StreamShard]) -> StreamShard:
        while not wait([shard], CHECK_SECONDS).done:
            if self._stop.is_set():
                raise stopped()
        return shard.result()

    def _order(self, taken: StreamShard) -> None:
        """Has the shards after `taken` made, in order."""
        while len(self._ahead) < AHEAD:
            before = self._ahead[-1] if self._ahead else taken
            self._ahead.append(self._thread.submit(self._after, before, taken.number))

    def _after(self, before: StreamShard | Future[StreamShard], used: int) -> StreamShard:
        shard = before if isinstance(before, StreamShard) else before.result()  # the thread has made it before
        self._folder.remove_old(max(0, used - 1))
        return self._shard(shard.number + 1, shard.following)

    def _shard(self, number: int, start: Position, digest: str | None = None) -> StreamShard:
        stored = self._folder.read(number, start)
        if stored is not None and digest in (None, stored.digest):
            return stored
        with self._folder.making(number):
            stored = self._folder.read(number, start)  # of a process that was quicker
            if stored is not None and digest in (None, stored.digest):
                return stored
            return self._made(number, start, digest)

    def _made(self, number: int, start: Position, digest: str | None) -> StreamShard:
        reader, self._reader = self._reader, None  # one that fails is not read on
        if reader is None or not reader.position.is_at(start):
            reader = TokenReader(self._text, start, self._closed)
        shard = make_shard(reader, number, self._sequence)
        self._reader = reader
        if digest not in (None, shard.digest):
            raise InputError(
                f"'{self._text.name}' has changed since the run began: what was read last is no longer there",
                "restore the old text, or name its revision; or start a new run from the newest weights",
            )
        self._folder.write(shard)
        return shard
