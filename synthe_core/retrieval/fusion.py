"""Reciprocal rank fusion: one order from several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CONSTANT = 60.0
"""k of the formula; the value of the paper."""


def reciprocal_rank_fusion(rankings: Iterable[tuple[float, Sequence[int]]]) -> dict[int, float]:
    """The score of each id, the sum over the rankings that have it of weight / (k + rank), best first.

    rankings: each with its weight. Ranks begin at 1; equal scores are in the order of ids. Source: Cormack, Clarke and
    Buettcher, SIGIR 2009, where all weights are 1.
    """
    scores: dict[int, float] = {}
    for weight, ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + weight / (CONSTANT + rank)
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))
