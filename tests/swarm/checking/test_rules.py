"""Conflicts that rules see: numbers, units, dates, negation, opposites; and what is no conflict."""

from __future__ import annotations

import pytest

from synthe_core.swarm.checking.check import check_answer, object_conflict
from synthe_core.swarm.checking.dates import Date, dates
from synthe_core.swarm.checking.quantities import quantities
from synthe_core.swarm.checking.rules import conflicts, negation_and_overlap
from synthe_core.swarm.checking.words import content, opposites, words
from synthe_core.swarm.extraction.patterns import claims
from synthe_core.swarm.extraction.relations import is_functional
from synthe_core.swarm.knowledge.fact import Fact
from synthe_core.swarm.knowledge.spoken import spoken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("about 5 km", [(5000, "length", "", "about")]),
        ("5,000 m", [(5000, "length", "", "exact")]),
        ("$3.5m, 3 million dollars", [(3.5e6, "dollar", "", "exact"), (3e6, "dollar", "", "exact")]),
        ("twenty-one boys", [(21, "count", "boys", "exact")]),
        ("over 35%", [(35, "share", "", "least")]),
        ("3 per cent", [(3, "share", "", "exact")]),
        ("fewer than 10 hours", [(36000, "time", "", "most")]),
        ("the 3rd", [(3, "ordinal", "", "exact")]),
        ("-4 degrees", [(-4, "angle", "", "exact")]),
        ("v2.0 of abc123", []),
    ],
)
def test_quantities(text: str, expected: list[tuple[float, str, str, str]]) -> None:
    assert [(q.value, q.dimension, q.noun, q.bound) for q in quantities(text)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on 12 May 1990", (1990, 5, 12)),
        ("May 12th, 1990", (1990, 5, 12)),
        ("1990-05-12", (1990, 5, 12)),
        ("the 3rd of June", (None, 6, 3)),
        ("in March 2020", (2020, 3, None)),
        ("since 1998.", (1998, None, None)),
    ],
)
def test_dates(text: str, expected: tuple[int | None, ...]) -> None:
    (result,) = dates(text)
    assert (result.year, result.month, result.day) == expected


@pytest.mark.parametrize("text", ["2000 people", "$1500", "it may rain", "1,990", "version 3.1990"])
def test_no_dates(text: str) -> None:
    assert dates(text) == []


def test_dates_agree_where_a_part_is_open() -> None:
    assert Date(1990, 5, 12).agrees(Date(1990))
    assert Date(None, 5, 12).agrees(Date(1990, 5))
    assert not Date(1990, 5, 12).agrees(Date(1990, 6))


@pytest.mark.parametrize(
    ("known", "stated", "kind"),
    [
        ("Paris", "paris, France", None),
        ("software engineer", "engineer", None),
        ("Paris", "Lyon", "relation"),
        ("12 May 1990", "1990", None),
        ("12 May 1990", "May 1991", "date"),
        ("5 km", "5,000 m", None),
        ("5 km", "5 miles", "unit"),
        ("5 km", "7 km", "number"),
        ("34", "35", "number"),
        ("about 100 dollars", "$105", None),
        ("more than 50 people", "60 people", None),
    ],
)
def test_objects_of_a_functional_relation(known: str, stated: str, kind: str | None) -> None:
    assert object_conflict(known, stated) == kind
    assert object_conflict(stated, known) == kind


@pytest.mark.parametrize(
    ("known", "stated", "kinds"),
    [
        ("The film earned 12 million dollars", "The film earned 15 million dollars", {"number"}),
        ("The film earned over 12 million dollars", "The film earned 15 million dollars", set()),
        ("The tower is 300 metres tall", "The tower is 300 feet tall", {"unit"}),
        ("The war ended in 1918", "The war ended in November 1919", {"date"}),
        ("The war ended in 1918", "The war ended in November 1918", set()),
        ("A man is playing a guitar", "A man is not playing a guitar", {"negation"}),
        ("A man is sitting on a bench", "A man is standing on a bench", {"opposite"}),
        ("A man is playing a guitar", "Two dogs do not swim in 1990", set()),
    ],
)
def test_conflicts_of_sentences(known: str, stated: str, kinds: set[str]) -> None:
    assert {conflict.kind for conflict in conflicts(known, stated)} == kinds


def test_words_are_compared_by_their_stems() -> None:
    assert content("The boys weren't running") == content("a boy runs") == ["boy", "run"]
    assert words("can't won't isn't Ada's") == ["can", "not", "will", "not", "is", "not", "ada"]
    assert opposites("The man sits", "A woman sat, standing") == [("man", "woman"), ("sit", "stand")]
    assert negation_and_overlap("A man sings", "A man is not singing") == 1.0
    assert negation_and_overlap("A man sings", "Dogs do not bark") == 0.0


def fact(subject: str, predicate: str, object: str, id: int = 1, negated: bool = False) -> Fact:
    return Fact(subject, predicate, object, negated, is_functional(predicate), id=id, trusted=True)


HOME = fact("user", "lives in", "Paris")


@pytest.mark.parametrize(
    ("known", "answer", "kind"),
    [
        (HOME, "You live in Paris.", None),
        (HOME, "You live in Paris, France.", None),
        (HOME, "You live in Rome.", "relation"),
        (HOME, "You don't live in Paris.", "negation"),
        (HOME, "You don't live in Rome.", None),
        (HOME, "Do you live in Rome?", None),
        (HOME, "If you lived in Rome, you could walk.", None),
        (HOME, "I live in Rome.", None),
        (HOME, "Bob lives in Rome.", None),
        (fact("user", "likes", "tea"), "You like coffee.", None),
        (fact("user", "likes", "tea"), "You don't like tea.", "negation"),
        (fact("user", "likes", "tea", negated=True), "You like tea.", "negation"),
        (fact("user", "born on", "12 May 1990"), "You were born on 12 May 1991.", "date"),
        (fact("France", "capital", "Paris"), "Well, the capital of France is Lyon.", "relation"),
        (fact("Berlin", "population", "3.7 million"), "Berlin has a population of 5 million people.", "number"),
        (fact("Berlin", "population", "3.7 million"), "Berlin has a population of 3.7 million people.", None),
        (fact("Berlin", "population", "3.7 million"), "Paris has a population of 5 million people.", None),
        (fact("Acme", "deadline", "3 June"), "Note that the deadline of Acme is 5 June.", "date"),
        (fact("ticket", "price", "12 euros"), "The price of the ticket is 12 dollars.", "unit"),
    ],
)
def test_answers(known: Fact, answer: str, kind: str | None) -> None:
    result = check_answer(answer, [known], [known])
    assert [each.kind for each in result] == ([] if kind is None else [kind])
    assert all(answer[each.start : each.end] == each.sentence for each in result)


def test_a_number_in_a_name_is_a_part_of_the_name() -> None:
    servers = [fact("user", "name", "Ada"), *(fact(f"server {n}", "address", f"10.0.0.{n}", id=n) for n in range(2, 9))]
    contradictions = check_answer("The address of server 7 is 10.9.9.9.", servers, servers)
    assert [each.fact.id for each in contradictions] == [7]


def test_the_place_of_a_sentence_has_any_spaces() -> None:
    answer = "So:\n\nYou  live\nin Rome. Bye."
    result = check_answer(answer, [HOME], [])
    assert [answer[each.start : each.end] for each in result] == []  # a line ends a sentence
    answer = "So:\n\nYou  live  in Rome. Bye."
    assert [answer[each.start : each.end] for each in check_answer(answer, [HOME], [])] == ["You  live  in Rome."]


def test_a_sentence_that_comes_twice_has_two_places() -> None:
    answer = "You live in Rome. Well. You live in Rome."
    assert [each.start for each in check_answer(answer, [HOME], [])] == [0, 24]


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (HOME, "You live in Paris."),
        (fact("user", "name", "Ada"), "Your name is Ada."),
        (fact("user", "likes", "tea", negated=True), "You do not like tea."),
        (fact("user", "born in", "1990"), "You were born in 1990."),
        (fact("user", "allergic to", "nuts"), "You are allergic to nuts."),
        (fact("Acme", "founded in", "1998"), "Acme was founded in 1998."),
        (fact("Bob", "works at", "Acme", negated=True), "Bob does not work at Acme."),
        (fact("France", "capital", "Paris"), "France's capital is Paris."),
    ],
)
def test_a_fact_as_a_sentence_claims_the_fact(known: Fact, sentence: str) -> None:
    assert spoken(known) == sentence
    (claim,) = claims(sentence, "assistant")
    assert (claim.predicate, claim.object, claim.negated) == (known.predicate, known.object, known.negated)
