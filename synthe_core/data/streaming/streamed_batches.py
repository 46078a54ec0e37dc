"""Batches of streamed tokens, in an order that a cursor restores exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from synthe_core.data.mixture_order import Turns
from synthe_core.data.stream import ALL_ROWS, Batch
from synthe_core.data.streaming.position import Position, damaged_place
from synthe_core.data.streaming.shard_supply import ShardSupply
from synthe_core.data.streaming.stream_shard import StreamShard


class StreamedSource:
    """The training sequences of a source, shard after shard; those of a shard in a pseudo-random order of its own.

    seed: of the order.
    """

    def __init__(self, supply: ShardSupply, sequence: int, seed: Sequence[int]) -> None:
        self.supply = supply
        self._sequence, self._seed = sequence, list(seed)
        self._shard: StreamShard | None = None
        self._number, self._start, self._used = 0, Position(), 0
        self._digest: str | None = None

    def draw(self) -> np.ndarray:
        """int64 [sequence + 1]: the next sequence."""
        if self._shard is None:
            self._enter(self.supply.first(self._number, self._start, self._digest), self._used)
        if self._used == len(self._order):
            self._enter(self.supply.next(), 0)
        assert self._shard is not None
        first = int(self._order[self._used]) * self._sequence
        self._used += 1
        return self._shard.tokens[first : first + self._sequence + 1]

    def _enter(self, shard: StreamShard, used: int) -> None:
        self._shard, self._number, self._start, self._digest = shard, shard.number, shard.start, shard.digest
        count = (len(shard.tokens) - 1) // self._sequence
        self._order = np.random.default_rng([*self._seed, shard.number]).permutation(count)
        if used > count:
            raise damaged_place()
        self._used = used

    def cursor(self) -> dict[str, Any]:
        """Shard, position of its first token, digest, and the number of its sequences that were drawn; as JSON."""
        return {"shard": self._number, "start": self._start.to_json(), "digest": self._digest, "drawn": self._used}

    def seek(self, cursor: Any) -> None:
        """Moves to a cursor; the shard is read when the next sequence is drawn. InputError for what is no cursor."""
        if not isinstance(cursor, dict):
            raise damaged_place()
        number, digest, drawn = (cursor.get(name) for name in ("shard", "digest", "drawn"))
        if not all(type(each) is int and each >= 0 for each in (number, drawn)) or not isinstance(digest, str | None):
            raise damaged_place()
        self._start = Position.from_json(cursor.get("start"))
        self._shard, self._number, self._digest, self._used = None, cursor["shard"], digest, cursor["drawn"]


class StreamedBatches:
    """An endless stream of training sequences of several sources, which take turns by weight.

    `next(8)` is `next(4)` twice. The order depends on seed, cursor and text alone.
    """

    def __init__(self, supplies: Sequence[ShardSupply], weights: Sequence[float], sequence: int, seed: int) -> None:
        self._sources = [StreamedSource(each, sequence, [seed, number]) for number, each in enumerate(supplies)]
        self._turns = Turns(weights)

    def next(self, count: int, rows: slice | None = None) -> Batch:
        """The next `count` sequences, or only these `rows` of them. Raises Interrupted where the run is stopped before
        their text is there."""
        drawn = []
        for _ in range(count):
            source = self._turns.next()
            drawn.append(self._sources[source].draw())
            self._turns.count(source)
        tokens = torch.from_numpy(np.stack(drawn[rows or ALL_ROWS]))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def cursor(self) -> dict[str, Any]:
        """The position of the stream, as JSON; `seek` restores it."""
        return {**self._turns.cursor(), "sources": [source.cursor() for source in self._sources]}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Moves to the cursor of a stream of the same data, sequence and seed. InputError if it is none."""
        self._turns.seek(cursor)
        places = cursor.get("sources")
        if not isinstance(places, list) or len(places) != len(self._sources):
            raise damaged_place()
        for source, place in zip(self._sources, places, strict=True):
            source.seek(place)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        for source in self._sources:
            source.supply.close()
