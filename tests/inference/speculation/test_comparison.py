"""Which way several sequences are decoded: by what both ways brought, from one request to the next."""

from __future__ import annotations

from itertools import pairwise

from synthe_core.inference.speculation.comparison import EARLY, FIRST_WAIT, LONGEST_WAIT, TRIAL, Comparison
from synthe_core.inference.speculation.draft_length import PassCosts


def costs(seconds: float) -> PassCosts:
    """Of a pass of the batch, of four sequences."""
    made = PassCosts()
    made.record(4, seconds)
    return made


def passes(comparison: Comparison, batch: PassCosts, tokens: float, count: int) -> list[bool]:
    """Which way each of the next passes went; one with drafts brings `tokens` in a second."""
    ways = []
    for _ in range(count):
        ways.append(comparison.decide(4, batch))
        if ways[-1]:
            comparison.record(tokens, 1.0)
    return ways


def test_drafts_that_bring_more_stay() -> None:
    ways = passes(Comparison(), costs(1.0), 6, 200)
    assert not any(ways[:FIRST_WAIT]) and all(ways[FIRST_WAIT:])


def test_drafts_that_lose_are_tried_less_and_less() -> None:
    ways = passes(Comparison(), costs(1.0), 3, 5000)
    tried = [place for place, way in enumerate(ways) if way and not ways[place - 1]]
    waits = [later - earlier - EARLY for earlier, later in pairwise(tried)]
    assert waits[:4] == [2 * FIRST_WAIT, 4 * FIRST_WAIT, 8 * FIRST_WAIT, 16 * FIRST_WAIT]
    assert max(waits) == LONGEST_WAIT
    assert sum(ways) < 0.05 * len(ways)


def test_drafts_that_lose_a_little_get_a_whole_trial() -> None:
    ways = passes(Comparison(), costs(1.0), 3.8, FIRST_WAIT + TRIAL + 1)
    assert ways == [False] * FIRST_WAIT + [True] * TRIAL + [False]


def test_a_new_request_does_not_pay_for_another_trial() -> None:
    comparison = Comparison()
    passes(comparison, costs(1.0), 3, FIRST_WAIT + EARLY + 1)
    assert not any(passes(comparison, costs(1.0), 3, 2 * FIRST_WAIT - 1))


def test_what_won_once_is_dropped_when_it_loses() -> None:
    comparison = Comparison()
    assert passes(comparison, costs(1.0), 6, 60)[-1]
    assert not passes(comparison, costs(1.0), 2, 60)[-1]


def test_without_a_pass_of_the_batch_there_is_nothing_to_compare() -> None:
    assert all(passes(Comparison(), PassCosts(), 1, 100)[FIRST_WAIT:])
