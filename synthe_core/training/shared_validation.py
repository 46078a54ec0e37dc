"""Validation that is shared: every process reads some of the windows, and all have the figures of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from synthe_core.evaluation.bits_per_byte import TextScore
from synthe_core.training.distributed.ranks import Ranks


def divided(batches: Iterable[Any], ranks: Ranks) -> tuple[Sequence[Any], Sequence[Any]]:
    """The batches of this process; and one more that does not count, where others have one more than it: of a sharded
    model all processes run as many passes."""
    whole = list(batches)
    mine = whole[ranks.rank :: ranks.size]
    return mine, whole[:1] if len(mine) * ranks.size < len(whole) else []


def shared_scores(
    evaluate: Callable[[Iterable[Any]], Iterator[TextScore]], batches: Iterable[Any], ranks: Ranks
) -> Iterator[TextScore]:
    """The running score of this process's windows, and at last that of all: its loss has the bits of one process."""
    mine, spare = divided(batches, ranks)
    score = TextScore()
    for each in evaluate(mine):
        score = each
        yield score
    for _ in evaluate(spare):
        yield score
    yield score.joined(ranks.gather(score.sums()))
