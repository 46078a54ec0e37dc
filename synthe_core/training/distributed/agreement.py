"""Work before training that all processes do, and what an error on one of them means for the others."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from synthe_core.errors import SyntheError
from synthe_core.events import Event
from synthe_core.training.distributed.ranks import Ranks

T = TypeVar("T")


def from_rank_0(ranks: Ranks, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, which alone does it. Its error is raised on all."""
    if ranks.size == 1:
        return work()
    result: T | None = None
    error: SyntheError | None = None
    if ranks.leads:
        try:
            result = work()
        except SyntheError as each:
            error = each
    result, error = ranks.share((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def in_turns(ranks: Ranks, work: Generator[Event, None, T]) -> Generator[Event, None, T]:
    """What `work` returns: first on the first process of every machine, which fills the machine's cache, then on the
    others, which find it filled. An error of any process is raised on all."""
    if ranks.size == 1:
        return (yield from work)
    result: T | None = None
    for turn in (True, False):
        error: SyntheError | None = None
        if (ranks.local_rank == 0) == turn:
            try:
                result = yield from work
            except SyntheError as each:
                error = each
        ranks.meet()
        first = next((each for each in ranks.gather(error) if each is not None), None)
        if first is not None:
            raise first
    return result  # type: ignore[return-value]
