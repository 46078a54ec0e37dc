"""A day of 512 ranks with a fake clock: over failures and resizes no sample is read twice, and none is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from synthe_core.data.stream import Stream
from synthe_core.training.distributed.ranks import Ranks

DAY, STEP, SAVING, EVERY = 86_400.0, 900.0, 2_000.0, 2_700.0
"""Seconds: of the day, of a step, of writing a checkpoint, and between two."""
BATCH, SIZES = 1536, (512, 384, 256, 192)
WATCHED = 6
"""Ranks with a stream of their own; the rows of the others are cut from one stream's."""


class VirtualRank(Ranks):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@dataclass
class Cluster:
    """Ranks that fail at random, and go on from the newest checkpoint that was whole, with as many as are left."""

    data: Any
    draw: random.Random
    clock: float = 0.0
    trained: list[list[int]] = field(default_factory=list)  # samples of each step that still counts
    committed: tuple[int, dict[str, Any] | None] = (0, None)
    failures: int = 0

    def stream(self, cursor: dict[str, Any] | None) -> Stream:
        stream = Stream(self.data, BATCH, 3, seed=5)
        if cursor is not None:
            stream.seek(cursor)
        return stream

    def run(self, size: int) -> None:
        """Trains until the day is over or a rank fails."""
        step, cursor = self.committed
        del self.trained[step:]
        whole = self.stream(cursor)
        watched = {rank: self.stream(cursor) for rank in self.draw.sample(range(size), WATCHED)}
        fails, saved, saving = self.clock + self.draw.expovariate(1 / 7_200), self.clock, None
        while self.clock < DAY:
            rows = whole.next(BATCH).inputs
            for rank, stream in watched.items():
                mine = VirtualRank(rank, size).rows(BATCH)
                assert torch.equal(stream.next(BATCH, mine).inputs, rows[mine])
            parts = [VirtualRank(rank, size).rows(BATCH) for rank in range(size)]
            assert [row for part in parts for row in range(BATCH)[part]] == list(range(BATCH))
            self.trained.append(rows[:, 0].tolist())
            self.clock += STEP
            if saving is not None and self.clock >= saving[0]:
                self.committed, saving = saving[1], None
            if self.clock >= fails:
                self.failures += 1
                return
            if saving is None and self.clock - saved >= EVERY:
                saved = self.clock
                saving = (self.clock + SAVING, (len(self.trained), whole.cursor()))


COUNT = 12_000
"""Sequences of the text, each of which has its number in place of its tokens."""


class NumberedSequences:
    """A text whose sequences of three tokens are their numbers."""

    tokens = 3 * COUNT + 1

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.repeat(starts[:, None] // 3, length, 1)


class Source:
    name, weight, train = "numbers", 1.0, NumberedSequences()


class Numbered:
    """A packed text of one source."""

    train = (Source(),)


def test_no_sample_is_read_twice_or_lost() -> None:
    cluster = Cluster(Numbered(), random.Random(1))
    sizes = []
    while cluster.clock < DAY:
        sizes.append(cluster.draw.choice(SIZES))
        cluster.run(sizes[-1])
    assert cluster.failures >= 5 and len(set(sizes)) >= 3, (cluster.failures, sizes)
    uninterrupted = cluster.stream(None)
    for step in cluster.trained:
        assert step == uninterrupted.next(BATCH).inputs[:, 0].tolist()
    everything = [sample for step in cluster.trained for sample in step]
    epochs = [everything[first : first + COUNT] for first in range(0, len(everything), COUNT)]
    assert len(epochs) > 2
    for epoch in epochs[:-1]:
        assert sorted(epoch) == list(range(COUNT))
    assert len(set(epochs[-1])) == len(epochs[-1])
