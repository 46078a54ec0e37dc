"""What patterns read: claims of a person, of an answer about them, and of the world; and what claims nothing."""

from __future__ import annotations

import pytest

from synthe_core.swarm.extraction.patterns import claims
from synthe_core.swarm.extraction.relations import is_functional, relation
from synthe_core.swarm.extraction.sentences import sentences
from tests.swarm.extraction.claims import in_words


def said(text: str, speaker: str = "user") -> list[str]:
    return [in_words(claim) for claim in claims(text, speaker)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Ada and I live in Paris.", ["user: name: Ada", "user: lives in: Paris"]),
        ("Actually, I moved to Lyon now!", ["user: lives in: Lyon"]),
        ("I'm 34 years old.", ["user: age: 34"]),
        ("I'm a software engineer, but I don't like coffee.", ["user: occupation: software engineer",
                                                               "user: not likes: coffee"]),
        ("I no longer work at Acme Corp.", ["user: not works at: Acme Corp"]),
        ("I hate spiders.", ["user: not likes: spiders"]),
        ("I can't speak German", ["user: not speaks: German"]),
        ("My dog's name is Rex and my favorite colour is blue.", ["user: dog's name: Rex",
                                                                  "user: favourite colour: blue"]),
        ("I was born on 12 May 1990.", ["user: born on: 12 May 1990"]),
        ("I'm allergic to peanuts, so please avoid them", ["user: allergic to: peanuts"]),
        ("The capital of France is Paris.", ["France: capital: Paris"]),
        ("Germany's capital isn't Bonn.", ["Germany: not capital: Bonn"]),
        ("The price of the ticket is 12.50 euros.", ["the ticket: price: 12.50 euros"]),
        ("Acme Corp was founded in 1998.", ["Acme Corp: founded in: 1998"]),
    ],
)  # fmt: skip
def test_claims_of_a_user(text: str, expected: list[str]) -> None:
    assert said(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Do I live in Rome?",
        "If I lived in Oslo I would ski.",
        "I'm tired. I am happy today.",
        "My brother said I live in Rome.",
        "my boss is going to Paris",
        "> I live in Rome",
        "`my name is x`",
        "```\nmy name is Bob\n```",
        "My name is " + "x" * 1000,
        "",
    ],
)
def test_what_claims_nothing(text: str) -> None:
    assert said(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Since you live in Paris, take the metro.", ["user: lives in: Paris"]),
        ("Your name is Ada and you're a nurse.", ["user: name: Ada", "user: occupation: nurse"]),
        ("I live in the cloud. My name is Bot.", []),
        ("You don't like coffee.", ["user: not likes: coffee"]),
    ],
)
def test_claims_of_an_answer_are_of_the_user(text: str, expected: list[str]) -> None:
    assert said(text, "assistant") == expected


def test_a_claim_that_is_made_twice_is_one() -> None:
    assert said("I live in Paris. Yes, I live in paris.") == ["user: lives in: paris"]


@pytest.mark.parametrize(
    ("spelling", "name"), [("employed by", "works at"), ("is_allergic_to", "allergic to"), ("Capital", "capital")]
)
def test_spellings_of_a_relation(spelling: str, name: str) -> None:
    assert relation(spelling) == name
    assert relation(name) == name


def test_which_relations_are_functional() -> None:
    assert all(map(is_functional, ("lives in", "residence", "favourite food", "dog's name", "date of birth")))
    assert not any(map(is_functional, ("likes", "speaks", "allergic to", "has")))


def test_sentences_end_where_they_end() -> None:
    text = "Dr. No paid $3.50 to J. Bond. Then he left!  Why?\n- a point\n1. another"
    assert sentences(text) == ["Dr. No paid $3.50 to J. Bond.", "Then he left!", "Why?", "a point", "another"]
