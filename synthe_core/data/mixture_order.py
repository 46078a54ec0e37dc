"""The order in which sequences of several sources are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synthe_core.errors import InputError


class Turns:
    """Which source the next sequence is of. After n sequences each source has given its weight's share of them to
    within one.

    done, drawn: sequences so far, of all and of each source.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        array = np.array(weights, dtype=np.float64)
        self.share = array / array.sum()
        self.done = 0
        self.drawn = np.zeros(len(array), dtype=np.int64)

    def next(self) -> int:
        """The source that is furthest behind its share."""
        return int(np.argmax(self.share * (self.done + 1) - self.drawn))

    def count(self, source: int) -> None:
        """Counts a sequence of a source."""
        self.done += 1
        self.drawn[source] += 1

    def cursor(self) -> dict[str, Any]:
        """The position, as JSON; `seek` restores it."""
        return {"sequences": self.done, "drawn": self.drawn.tolist()}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Moves to the cursor of an order over the same sources and seed. InputError if the sources differ."""
        done, drawn = cursor.get("sequences"), cursor.get("drawn")
        if not isinstance(drawn, list) or not all(type(each) is int and each >= 0 for each in [done, *drawn]):
            raise InputError("the place in the training text is damaged", "resume from another checkpoint of the run")
        if len(drawn) != len(self.drawn):
            raise InputError(
                f"the stream was saved over {len(drawn)} sources, and the recipe names {len(self.drawn)}",
                "resume with the data of the run",
            )
        self.done, self.drawn = cursor["sequences"], np.array(drawn, dtype=np.int64)


class MixtureOrder(Turns):
    """An endless order of the sequences of several sources, which take turns.

    Every epoch of a source visits its sequences in a new pseudo-random order. The order depends on seed, cursor and
    counts alone.

    counts: sequences of each source.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int) -> None:
        super().__init__(weights)
        self._counts, self._seed = list(counts), seed
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def draw(self) -> tuple[int, int]:
        """(source, number of the sequence in it) of the next."""
        source = self.next()
        epoch, position = divmod(int(self.drawn[source]), self._counts[source])
        self.count(source)
        return source, int(self._order(source, epoch)[position])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        cached = self._orders.get(source)
        if cached is None or cached[0] != epoch:
            order = np.arange(self._counts[source], dtype=np.uint32)
            np.random.default_rng([self._seed, source, epoch]).shuffle(order)
            cached = self._orders[source] = (epoch, order)
        return cached[1]
