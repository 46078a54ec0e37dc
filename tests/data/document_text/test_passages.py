"""Passages: bounded, in order, complete, within sections."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from synthe_core.data.document_text import passages, read_document
from synthe_core.data.document_text.passages import sentences, with_pages
from tests.data.document_text.files import pdf
from tests.paths import ROOT

HANDBOOKS = sorted((ROOT / "tests" / "data" / "handbooks").glob("*.md"))


def words(text: str) -> int:
    return len(text.split())


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("path", HANDBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("limit", "overlap"), [(25, 0), (60, 12), (200, 30)])
def test_passages_are_bounded_and_have_the_whole_text(path: Path, limit: int, overlap: int) -> None:
    text = read_document(path).text
    cut = passages(text, words, limit, overlap)
    assert all(0 < words(each.text) <= limit for each in cut)
    assert [each.number for each in cut] == list(range(len(cut)))
    body = "\n\n".join(line for line in text.split("\n\n") if not line.startswith("#"))
    assert flat(" ".join(each.new_text for each in cut)) == flat(body)


def test_a_passage_stays_within_its_section_and_has_its_headings() -> None:
    text = (
        "Preface.\n\n# Mill\n\nIt grinds.\n\n## Hours\n\nFrom eight.\n\n### Sunday\n\nClosed.\n\n# Barn\n\nIt is dry.\n"
    )
    cut = passages(text, words, 100)
    assert [each.heading for each in cut] == [(), ("Mill",), ("Mill", "Hours"), ("Barn",)]
    assert [each.text for each in cut] == ["Preface.", "It grinds.", "From eight.\n\nSunday\n\nClosed.", "It is dry."]


def test_underlined_headings_are_headings() -> None:
    cut = passages("Mill\n====\n\nIt grinds.\n\nHours\n-----\n\nFrom eight.\n", words, 100)
    assert [each.heading for each in cut] == [("Mill",), ("Mill", "Hours")]


def test_a_cut_section_repeats_whole_sentences_only() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(12))
    cut = passages(text, words, 20, 6)
    assert len(cut) > 2
    for before, after in pairwise(cut):
        repeated = after.text[: after.begins]
        assert repeated and before.text.endswith(repeated)
        assert words(repeated) <= 6


def test_a_word_longer_than_a_passage_is_cut() -> None:
    cut = passages("x" * 1000 + " end", len, 64)
    assert "".join(each.text for each in cut).replace(" ", "") == "x" * 1000 + "end"
    assert max(len(each.text) for each in cut) <= 64


def test_sentences_end_at_their_marks() -> None:
    assert sentences('He said "Stop." Then 3.5 metres! Why?\n\nEnd') == [
        'He said "Stop."',
        "Then 3.5 metres!",
        "Why?",
        "End",
    ]


def test_passages_have_the_pages_on_which_they_begin(tmp_path: Path) -> None:
    pages = [
        ["One is here. " * 12, "It goes on"],
        [],
        ["and ends here. Two is there.", "Two again."],
        ["Three is last. " * 3],
    ]
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(pages))
    document = read_document(path)
    assert "It goes on and ends here." in document.text and len(document.pages) == 4
    pieces = with_pages(passages(document.text, lambda text: len(text.split()), 9), document.text, document.pages)
    where = {each.text: each.page for each in pieces}
    assert [page for text, page in where.items() if "ends here" in text] == [1]
    assert [page for text, page in where.items() if "Two again" in text] == [3]
    assert [page for text, page in where.items() if "Three is last" in text] == [4]
    assert sorted(each.page for each in pieces) == [each.page for each in pieces]  # type: ignore[type-var]


def test_documents_without_pages_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.\x0cTwo.")
    document = read_document(path)
    assert document.pages == () and "\0" not in document.text
    pieces = with_pages(passages(document.text, len, 9), document.text, document.pages)
    assert [each.page for each in pieces] == [None, None]
