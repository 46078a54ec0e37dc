"""How many threads a pass of so many tokens has: the number with which such passes were fastest on this machine.

Threads that share a product wait for each other several times a learner. For a small model and few tokens that costs
more than it brings. A model's own passes are timed, the first of every size, with each number of threads in turns; so
nothing is computed only to be measured. Choices are stored by the machine's fingerprint and the shapes of the maps, are
read by later processes, and are measured again now and then, as other programs come and go.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from synthe_core.errors import SyntheError
from synthe_core.hardware.probe import cache_dir, fingerprint, probe
from synthe_core.storage.atomic import write_file

ROUNDS, PASSES = 2, 5
"""Each number of threads has so many turns, of so many passes each; the first one of a turn is not counted."""
MIN_SPEEDUP = 1.05
"""More threads must be this much faster: less is noise, and they may serve other work."""
LASTS, MOST_LASTS = 2048, 1 << 16
"""Passes of a size after which its choice is measured again; twice as many each time that it stays."""


def numbers_of_threads(most: int) -> list[int]:
    """1, 2, 4 and so on, up to `most`, which is one of them."""
    return sorted({most} | {1 << power for power in range(most.bit_length()) if 1 << power <= most})


class _Trial:
    """The passes of one size that are timed: which number of threads each of them has."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._plan = [(number, place > 0) for _ in range(ROUNDS) for number in numbers for place in range(PASSES)]
        self._seconds: dict[int, list[float]] = {number: [] for number in numbers}
        self._next = 0

    @property
    def threads(self) -> int:
        return self._plan[self._next][0]

    def record(self, seconds: float) -> int | None:
        """Takes the time of the next pass; returns the choice after the last one."""
        number, is_counted = self._plan[self._next]
        if is_counted:
            self._seconds[number].append(seconds)
        self._next += 1
        if self._next < len(self._plan):
            return None
        best, *others = self._seconds
        for each in others:
            if median(self._seconds[best]) > MIN_SPEEDUP * median(self._seconds[each]):
                best = each
        return best


class ThreadChoice:
    """Of one model and at most `most` threads. A size is the number of tokens of a pass, up to the next power of two.

    path: where choices are stored; None: nowhere.
    """

    def __init__(self, most: int, path: Path | None = None) -> None:
        self._numbers, self._path = numbers_of_threads(most), path
        self.chosen: dict[int, int] = {} if path is None else _stored(path, self._numbers)
        self._left = dict.fromkeys(self.chosen, LASTS)
        self._lasts = dict(self._left)
        self._trials: dict[int, _Trial] = {}

    @classmethod
    def of(cls, shapes: str, most: int) -> ThreadChoice:
        """Of a model that `shapes` identifies, with the choices that are stored for it on this machine."""
        return cls(most, cache_dir() / "threads" / f"{fingerprint(probe(), most)}-{shapes}.json")

    def threads(self, num_tokens: int) -> int:
        """Of the next pass of so many tokens."""
        size = num_tokens.bit_length()
        if len(self._numbers) == 1 or self._left.get(size, 0) > 0:
            return self.chosen.get(size, self._numbers[0])
        if size not in self._trials:
            self._trials[size] = _Trial(self._numbers)
        return self._trials[size].threads

    def settled(self, num_tokens: int) -> int | None:
        """The choice for passes of so many tokens; None before their first measurement is complete."""
        return self.chosen.get(num_tokens.bit_length())

    def record(self, num_tokens: int, seconds: float) -> None:
        """Takes the time of a pass with that number of threads."""
        size = num_tokens.bit_length()
        if self._left.get(size, 0) > 0:
            self._left[size] -= 1
        elif (trial := self._trials.get(size)) is not None and (choice := trial.record(seconds)) is not None:
            del self._trials[size]
            is_new = self.chosen.get(size) != choice
            self._lasts[size] = LASTS if is_new else min(2 * self._lasts[size], MOST_LASTS)
            self.chosen[size], self._left[size] = choice, self._lasts[size]
            if is_new and self._path is not None:
                self._store(self._path)

    def _store(self, path: Path) -> None:
        """A cache folder that cannot be written costs nothing but another measurement."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps({str(1 << size - 1): count for size, count in self.chosen.items()}) + "\n")
        except (OSError, SyntheError):
            self._path = None


def _stored(path: Path, numbers: Sequence[int]) -> dict[int, int]:
    """Choices by the bits of a size; none where the file is missing or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {int(least).bit_length(): count for least, count in stored.items() if count in numbers}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


class _Limit(threading.local):
    outer: int | None = None  # torch's number around the block


_limit = _Limit()


@contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Within the block torch's operators on this thread have so many threads; None: as many as before."""
    outer = torch.get_num_threads()
    if threads is None or threads == outer or _limit.outer is not None:
        yield
        return
    _limit.outer = outer
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(outer)
        _limit.outer = None


def most_threads() -> int:
    """Torch's number of threads, outside of such a block."""
    return _limit.outer or torch.get_num_threads()
