"""Pairs: stored once and redacted, reviewed before they are learned, limited, and never both ways round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synthe_core.data.conversations.rows import Preference, parse
from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.feedback.pairs import Pair, PairLimits, Pairs, PairSource, PairState, parse_state
from synthe_core.swarm.redaction import EMAIL, SECRET
from synthe_core.swarm.store import Store


@pytest.fixture
def pairs(location: Path | str) -> Iterator[Pairs]:
    opened = Pairs(Store(location), PairLimits(max_pairs=8, max_pairs_per_user=5))
    yield opened
    opened.store.close()


def add(pairs: Pairs, chosen: str = "yes", rejected: str = "no", prompt: str = "is it?", user: str = "ada") -> Pair:
    return pairs.add(user, prompt, chosen, rejected, source=PairSource.CORRECTION)


def test_a_pair_is_redacted_and_new(pairs: Pairs) -> None:
    pair = add(pairs, "write to ada@example.org", "sk-0123456789abcdefghij", "my password is swordfish")
    assert (pair.chosen, pair.rejected) == (f"write to {EMAIL}", SECRET)
    assert pair.prompt == f"my password is {SECRET}"
    assert (pair.state, pair.reviewer) == (PairState.NEW, None)
    assert pairs.entries() == [pair]


def test_the_same_pair_is_stored_once(pairs: Pairs) -> None:
    first = add(pairs)
    assert add(pairs, " yes\n", "no", user="bob") == first
    assert pairs.counts() == {"new": 1, "approved": 0, "rejected": 0, "learned": 0, "refused": 0}


def test_only_approved_pairs_are_learned(pairs: Pairs) -> None:
    first, second, third = (add(pairs, f"yes {number}") for number in range(3))
    approved = pairs.review(first.id, PairState.APPROVED, "bob", chosen="yes, and ada@example.org")
    assert (approved.chosen, approved.reviewer, approved.state) == (f"yes, and {EMAIL}", "bob", "approved")
    pairs.review(second.id, PairState.REJECTED, "bob")
    assert pairs.mark_learned([first.id, second.id, third.id]) == 1
    assert [pair.state for pair in pairs.entries()] == ["learned", "rejected", "new"]
    with pytest.raises(InputError, match="was learned already"):
        pairs.review(first.id, PairState.REJECTED, "bob")
    assert [pair.id for pair in pairs.entries(PairState.NEW)] == [third.id]
    assert pairs.mark_refused([first.id, second.id, third.id]) == 1
    assert pairs.get(first.id).state == "refused"
    assert pairs.review(first.id, PairState.APPROVED, "bob").state == "approved"


def test_a_pair_the_other_way_round_is_marked_and_not_approved_too(pairs: Pairs) -> None:
    right, flipped = add(pairs, "yes", "no"), add(pairs, "no", "yes", user="eve")
    assert (right.conflicts_with, flipped.conflicts_with) == (None, right.id)
    pairs.review(right.id, PairState.APPROVED, "bob")
    with pytest.raises(InputError, match=f"prefers what pair {right.id} rejects"):
        pairs.review(flipped.id, PairState.APPROVED, "bob")
    pairs.review(right.id, PairState.REJECTED, "bob")
    pairs.review(flipped.id, PairState.APPROVED, "bob")


def test_an_edit_that_makes_two_pairs_the_same_is_refused(pairs: Pairs) -> None:
    first, second = add(pairs, "yes"), add(pairs, "maybe")
    with pytest.raises(InputError, match=f"pair {first.id} is the same"):
        pairs.review(second.id, PairState.APPROVED, "bob", chosen="yes")
    assert pairs.get(second.id).state is PairState.NEW


def test_limits(pairs: Pairs) -> None:
    for number in range(5):
        add(pairs, f"yes {number}")
    with pytest.raises(WorkError, match="5 pairs of one user"):
        add(pairs, "yes 5")
    for number in range(3):
        add(pairs, f"yes {number}", prompt="other", user="bob")
    with pytest.raises(WorkError, match="8 pairs already"):
        add(pairs, "yes", user="eve")


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [("", "no", "is empty"), ("yes", " \n", "is empty"), ("a  b", "a b", "the same"), ("x" * 32_001, "no", "32001")],
)
def test_what_is_no_pair_is_refused(pairs: Pairs, chosen: str, rejected: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add(pairs, chosen, rejected)


def test_states_are_named() -> None:
    assert parse_state("approved") is PairState.APPROVED
    with pytest.raises(InputError, match="unknown state of a pair 'aproved'"):
        parse_state("aproved")


def test_a_pair_is_a_row_of_training_data(pairs: Pairs) -> None:
    row = json.loads(json.dumps(add(pairs).row()))
    preference = parse(row, "row 1")
    assert isinstance(preference, Preference)
    assert preference.chosen[-1]["content"] == "yes"
    assert preference.rejected[-1]["content"] == "no"
    assert preference.prompt[-1]["content"] == "is it?"


def test_threads_that_add_the_same_pair_store_it_once(pairs: Pairs) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = {pair.id for pair in pool.map(lambda number: add(pairs, f"yes {number % 4}"), range(80))}
    assert len(ids) == 4 == len(pairs.entries())
