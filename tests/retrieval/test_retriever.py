"""Which passages a message is read with, and where the index of a file is distinguished from a document."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.events import drain
from synthe_core.retrieval.document_index import DocumentIndex, is_index
from synthe_core.retrieval.indexing import index_documents
from synthe_core.retrieval.prompt import block, place_of, with_passages
from synthe_core.retrieval.retriever import MAX_TOKENS, Retriever, token_budget
from synthe_core.retrieval.search import Searcher


@pytest.fixture
def searcher(tmp_path: Path, handbook: Path) -> Searcher:
    index = DocumentIndex(tmp_path / "docs.db", create=True)
    drain(index_documents(index, [handbook]))
    return Searcher(index)


def headings(retriever: Retriever, message: str, previous: str = "") -> list[str]:
    return [each.passage.heading for each in retriever.retrieve(message, previous)]


def test_a_short_message_is_about_the_one_before_it(searcher: Searcher) -> None:
    retriever = Retriever(searcher, 10_000, len)
    assert headings(retriever, "How many days of holiday has everybody?") == ["Leave", "Money", "Leave > Illness"]
    assert headings(retriever, "and a receipt?", "Which holiday?") == ["Leave", "travel"]
    assert headings(retriever, "Are refunds paid after fourteen days?", "Which taxis?")[0] == "Money"
    assert "travel" not in headings(retriever, "Are refunds due within fourteen days?", "Which taxis?")
    assert headings(retriever, "zebra zebra", "") == []


def test_passages_are_at_most_as_long_as_there_is_room(searcher: Searcher) -> None:
    (first, *others) = Retriever(searcher, 10_000, len).retrieve("holiday, a note, taxis, refunds")
    room = len(block([first]))
    assert others and Retriever(searcher, room, len).retrieve("holiday, a note, taxis, refunds") == [first]
    assert Retriever(searcher, 5, len).retrieve("holiday") == []
    assert token_budget(None) == token_budget(100_000) == MAX_TOKENS and token_budget(512) == 128


def test_the_message_stands_after_its_passages(searcher: Searcher) -> None:
    (only,) = Retriever(searcher, 10_000, len).retrieve("Are taxis paid?")[:1]
    text = with_passages("Are taxis paid?", [only])
    assert text == f"{block([only])}\n\nAre taxis paid?" and with_passages("Hello", []) == "Hello"
    assert place_of(only.passage) == "travel  (handbook/travel.txt)"


def test_an_index_is_no_document(searcher: Searcher, handbook: Path, tmp_path: Path) -> None:
    assert is_index(searcher.index.path)
    for path in (handbook, handbook / "leave.md", tmp_path / "none"):
        assert not is_index(path)
