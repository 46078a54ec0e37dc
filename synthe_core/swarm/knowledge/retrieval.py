"""Facts in a prompt: as many as fit, each with its number, by which an answer cites it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from synthe_core.swarm.knowledge.fact import USER, Fact, key

HEADER = "What is known. Use it where it helps, and cite the number of what you use, such as [f7]:"
_CITED = re.compile(r"\[f(\d{1,18})\]")

TokenCounter = Callable[[str], int]


def estimated_tokens(text: str) -> int:
    """More tokens than a usual text has, for where there is no tokenizer: one for three bytes."""
    return -(-len(text.encode()) // 3)


def line(fact: Fact) -> str:
    """A fact as one line of a prompt. It has no line breaks, so it cannot pass for another part of the prompt."""
    subject = "the user" if key(fact.subject) == USER else fact.subject
    verb = fact.predicate.replace("_", " ")
    words = f"[f{fact.id}] {subject} / {verb} / {'not ' if fact.negated else ''}{fact.object}"
    return " ".join(words.split())


def block(facts: Sequence[Fact]) -> str:
    """The part of a prompt that has the facts; empty without any."""
    return "\n".join([HEADER, *(line(fact) for fact in facts)]) if facts else ""


def fitting(facts: Iterable[Fact], budget_tokens: int, count_tokens: TokenCounter) -> list[Fact]:
    """The first facts whose block has at most `budget_tokens` tokens. What is said twice comes once."""
    chosen: list[Fact] = []
    seen: set[tuple[str, str, str, bool]] = set()
    for fact in facts:
        said = (key(fact.subject), key(fact.predicate), key(fact.object), fact.negated)
        if said in seen:
            continue
        if count_tokens(block([*chosen, fact])) > budget_tokens:
            break
        seen.add(said)
        chosen.append(fact)
    return chosen


def cited(answer: str, facts: Iterable[Fact]) -> list[Fact]:
    """The facts that an answer cites, in the order of its text. Numbers that it was not given are left out."""
    given = {fact.id: fact for fact in facts}
    numbers = dict.fromkeys(int(number) for number in _CITED.findall(answer))
    return [given[number] for number in numbers if number in given]
