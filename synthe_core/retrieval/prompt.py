"""Passages in a prompt: as many as fit, each with a number by which an answer cites it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from synthe_core.retrieval.document_index import StoredPassage
from synthe_core.retrieval.search import SearchResult

HEADER = "Passages of documents. Use them where they help, and cite the number of what you use, such as [1]."
_CITED = re.compile(r"\[(\d{1,6})\]")


def block(passages: Sequence[SearchResult]) -> str:
    """The part of a prompt that has the passages, numbered from 1; empty without any."""
    return f"{HEADER}\n\n{numbered(passages)}" if passages else ""


def place_of(passage: StoredPassage) -> str:
    """Where a passage stands, for a reader: its headings, and its document."""
    return f"{passage.heading}  ({passage.document}{_page(passage)})"


def with_passages(message: str, passages: Sequence[SearchResult]) -> str:
    """The message after its passages: a question that stands last is answered best."""
    return f"{block(passages)}\n\n{message}" if passages else message


def numbered(passages: Sequence[SearchResult]) -> str:
    """The passages with their headings, numbered from 1."""
    parts = [
        f"[{number}] {each.passage.heading}{_page(each.passage)}\n{each.passage.text}"
        for number, each in enumerate(passages, 1)
    ]
    return "\n\n".join(parts)


def _page(passage: StoredPassage) -> str:
    return "" if passage.page is None else f", page {passage.page}"


def fitting(passages: Iterable[SearchResult], budget: int, count_tokens: Callable[[str], int]) -> list[SearchResult]:
    """The first passages whose block has at most `budget` tokens. One that does not fit is passed over."""
    chosen: list[SearchResult] = []
    for each in passages:
        if count_tokens(block([*chosen, each])) <= budget:
            chosen.append(each)
    return chosen


def cited(answer: str, passages: Sequence[SearchResult]) -> list[tuple[int, SearchResult]]:
    """(number, passage) of what an answer cites, in the order of its text. Numbers without a passage are left out."""
    numbers = dict.fromkeys(int(number) for number in _CITED.findall(answer))
    return [(number, passages[number - 1]) for number in numbers if 1 <= number <= len(passages)]
