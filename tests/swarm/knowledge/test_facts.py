"""Facts: said again, superseded, corrected, trusted. The old one stays in the history and out of what is used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.knowledge.fact import Claim, Fact, Source, key
from synthe_core.swarm.knowledge.facts import Added, Facts
from synthe_core.swarm.store import Store

PARIS = Claim("user", "lives in", "Paris", functional=True)
LYON = Claim("user", "lives in", "Lyon", functional=True)
COFFEE = Claim("user", "likes", "coffee")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def facts(location: Path | str, clock: Clock) -> Iterator[Facts]:
    opened = Facts(Store(location, clock=clock))
    yield opened
    opened.store.close()


def say(facts: Facts, claim: Claim, user: str = "ada", **options: object) -> Added:
    return facts.add(user, claim, Source.USER, **{"trusted": True, **options})  # type: ignore[arg-type]


def objects(result: list[Fact]) -> list[str]:
    return [fact.object for fact in result]


def test_the_same_fact_said_again_is_seen_later_and_stays(facts: Facts, clock: Clock) -> None:
    first = say(facts, PARIS, confidence=0.5)
    clock.time = 200
    again = say(facts, Claim("User", "lives_in", "  paris. ", functional=True), confidence=0.7)
    assert (first.outcome, again.outcome) == ("new", "same")
    (fact,) = facts.history("ada")
    assert (fact.id, fact.last_seen, fact.valid_from, fact.times_seen) == (first.fact.id, 200, 100, 2)
    assert fact.is_current and fact.confidence == 0.7 and fact.object == "Paris"


def test_a_correction_takes_the_place_of_the_old_fact_which_stays_in_the_history(facts: Facts, clock: Clock) -> None:
    old = say(facts, PARIS).fact
    clock.time = 200
    added = say(facts, LYON)
    assert added.outcome == "superseding" and objects(list(added.superseded)) == ["Paris"]
    assert objects(facts.current("ada")) == ["Lyon"]
    was, now = facts.history("ada", "user", "lives in")
    assert (was.id, was.valid_until, was.superseded_by) == (old.id, 200, now.id)
    assert now.is_current and now.valid_from == 200


def test_a_fact_that_is_true_again_is_a_new_one(facts: Facts, clock: Clock) -> None:
    for clock.time, claim in ((1, PARIS), (2, LYON), (3, PARIS)):
        say(facts, claim)
    assert objects(facts.history("ada")) == ["Paris", "Lyon", "Paris"]
    assert [fact.is_current for fact in facts.history("ada")] == [False, False, True]


def test_a_relation_with_several_objects_keeps_them(facts: Facts) -> None:
    say(facts, COFFEE)
    say(facts, Claim("user", "likes", "tea"))
    assert objects(facts.current("ada")) == ["coffee", "tea"]


def test_a_negation_ends_the_fact_and_an_affirmation_ends_the_negation(facts: Facts) -> None:
    say(facts, COFFEE)
    added = say(facts, Claim("user", "likes", "coffee", negated=True))
    assert added.outcome == "superseding"
    (fact,) = facts.current("ada")
    assert fact.negated
    say(facts, COFFEE)
    (fact,) = facts.current("ada")
    assert not fact.negated
    assert len(facts.history("ada")) == 3


def test_a_negation_of_one_object_leaves_another(facts: Facts) -> None:
    say(facts, LYON)
    say(facts, Claim("user", "lives in", "Paris", negated=True, functional=True))
    assert sorted((fact.object, fact.negated) for fact in facts.current("ada")) == [("Lyon", False), ("Paris", True)]


def test_an_older_message_that_is_read_later_does_not_win(facts: Facts) -> None:
    say(facts, LYON, at=50.0)
    late = say(facts, PARIS, at=10.0)
    assert late.outcome == "past"
    assert (late.fact.valid_from, late.fact.valid_until) == (10, 50)
    assert objects(facts.current("ada")) == ["Lyon"]
    assert objects(facts.history("ada")) == ["Paris", "Lyon"]


def test_a_correction_of_a_relation_with_several_objects_replaces_the_one(facts: Facts) -> None:
    coffee = say(facts, COFFEE).fact
    say(facts, Claim("user", "likes", "milk"))
    say(facts, Claim("user", "likes", "tea"), instead_of=coffee.id)
    assert objects(facts.current("ada")) == ["milk", "tea"]
    say(facts, Claim("user", "likes", "milk"), instead_of=facts.current("ada")[1].id)
    assert objects(facts.current("ada")) == ["milk"]


def test_what_is_not_trusted_replaces_nothing_that_is(facts: Facts) -> None:
    capital = Claim("France", "capital", "Paris", functional=True)
    true = facts.add("ada", capital, Source.OPERATOR, trusted=True).fact
    poison = Claim("France", "capital", "Lyon", functional=True)
    for options in ({}, {"instead_of": true.id}):
        facts.add("ada", poison, Source.STATEMENT, trusted=False, **options)
    assert objects(facts.current("ada", trusted=True)) == ["Paris"]
    assert objects(facts.current("ada", trusted=False)) == ["Lyon"]
    facts.add("ada", Claim("France", "capital", "Nice", functional=True), Source.STATEMENT, trusted=False)
    assert objects(facts.current("ada", trusted=False)) == ["Nice"]


def test_what_is_not_trusted_makes_no_trusted_claim_a_thing_of_the_past(facts: Facts) -> None:
    say(facts, LYON, trusted=False, at=50.0)
    assert say(facts, PARIS, at=10.0).outcome == "new"
    assert objects(facts.current("ada", trusted=True)) == ["Paris"]
    assert say(facts, LYON, at=20.0).outcome == "same"  # now somebody who is trusted says it
    assert objects(facts.current("ada")) == ["Lyon"]


def test_a_fact_that_is_trusted_later_supersedes_what_it_contradicts(facts: Facts) -> None:
    say(facts, PARIS)
    other = say(facts, LYON, trusted=False).fact
    assert objects(facts.current("ada", trusted=True)) == ["Paris"]
    added = facts.trust("ada", other.id)
    assert objects(list(added.superseded)) == ["Paris"]
    assert objects(facts.current("ada")) == ["Lyon"] and facts.current("ada")[0].trusted
    with pytest.raises(InputError, match="holds no longer"):
        facts.trust("ada", added.superseded[0].id)


def test_saying_it_with_trust_makes_it_trusted(facts: Facts) -> None:
    say(facts, PARIS, trusted=False)
    say(facts, PARIS)
    (fact,) = facts.history("ada")
    assert fact.trusted


def test_an_ended_fact_is_history(facts: Facts) -> None:
    fact = say(facts, COFFEE).fact
    facts.end("ada", fact.id)
    assert facts.current("ada") == []
    assert objects(facts.history("ada")) == ["coffee"]


def test_users_do_not_see_or_change_each_others_facts(facts: Facts) -> None:
    fact = say(facts, PARIS).fact
    assert say(facts, LYON, user="bob").outcome == "new"
    assert objects(facts.current("ada", shared=True)) == ["Paris"]
    for change in (facts.get, facts.end, facts.trust):
        with pytest.raises(InputError, match="no such fact"):
            change("bob", fact.id)
    with pytest.raises(InputError, match="no such fact"):
        say(facts, LYON, user="bob", instead_of=fact.id)
    assert objects(facts.current("bob")) == ["Lyon"]


def test_everybody_sees_shared_facts(facts: Facts) -> None:
    facts.add("", Claim("office", "opens at", "9"), Source.OPERATOR, trusted=True)
    say(facts, PARIS)
    assert objects(facts.current("ada", shared=True)) == ["9", "Paris"]
    assert objects(facts.current("ada")) == ["Paris"]


def test_limits_and_empty_parts_are_errors(tmp_path: Path) -> None:
    facts = Facts(Store(tmp_path / "swarm.db"), max_facts=1)
    say(facts, PARIS)
    with pytest.raises(WorkError, match="1 facts of one user"):
        say(facts, COFFEE)
    say(facts, PARIS)
    say(facts, PARIS, user="bob")
    for claim in (Claim("", "likes", "tea"), Claim("user", "likes", " ?! "), Claim("user", "x" * 1001, "tea")):
        with pytest.raises(InputError, match="of a fact"):
            say(facts, claim)


def test_threads_leave_one_current_object_of_a_functional_relation_each(facts: Facts) -> None:
    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(20):
            say(facts, Claim("user", "lives in", f"town {chance.randrange(5)}", functional=True), user=f"user {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    for number in range(8):
        (fact,) = facts.current(f"user {number}")
        history = facts.history(f"user {number}")
        assert sum(each.times_seen for each in history) == 20
        chance = random.Random(number)
        assert fact.object == [f"town {chance.randrange(5)}" for _ in range(20)][-1]
        assert all(each.superseded_by is not None for each in history if not each.is_current)


@pytest.mark.parametrize(
    ("text", "other"),
    [("The Eiffel Tower", "eiffel tower"), ("lives_in", "Lives in"), (" PARIS. ", "paris"), ("ﬁne", "fine")],
)
def test_spellings_of_one_thing(text: str, other: str) -> None:
    assert key(text) == key(other)


@pytest.mark.parametrize("seed", range(6))
def test_after_any_order_of_claims_what_holds_is_consistent_and_nothing_is_lost(facts: Facts, seed: int) -> None:
    chance, said = random.Random(seed), set[tuple[str, bool]]()
    for step in range(60):
        town, negated, trusted = chance.choice("ABC"), chance.random() < 0.3, chance.random() < 0.7
        claim = Claim("user", "lives in", town, negated, functional=True)
        ids = [fact.id for fact in facts.history("ada")]
        match chance.randrange(6):
            case 0 if ids:
                with suppress(InputError):
                    facts.trust("ada", chance.choice(ids))
            case 1 if ids:
                say(facts, claim, trusted=trusted, at=float(step), instead_of=chance.choice(ids))
                said.add((town, negated))
            case _:
                say(facts, claim, trusted=trusted, at=float(chance.randrange(step + 1)))
                said.add((town, negated))
        consistent(facts)
    assert {(fact.object, fact.negated) for fact in facts.history("ada")} == said
    assert not facts.store.faults()


def consistent(facts: Facts) -> None:
    history = {fact.id: fact for fact in facts.history("ada")}
    for trusted in (True, False):
        now = facts.current("ada", trusted=trusted)
        towns = [fact.object for fact in now if not fact.negated]
        assert len(towns) <= 1
        assert not set(towns) & {fact.object for fact in now if fact.negated}
    for fact in history.values():
        assert fact.is_current or fact.superseded_by in history
        assert fact.is_current or fact.valid_until >= fact.valid_from
        if fact.trusted and fact.superseded_by is not None:
            assert history[fact.superseded_by].trusted
