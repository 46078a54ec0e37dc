"""Cutting a document into passages that a model reads one at a time."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
UNDERLINE = re.compile(r"(=|-)\1{2,}$")
SENTENCE = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))\s+|(?<=[。！？])")
BEGINNING = 60
"""Characters by which a passage is looked up in its document."""
SECTION = 2
"""Headings up to this level begin a new passage."""

Count = Callable[[str], int]


class Passage(NamedTuple):
    """text: what a model reads, under its heading. heading: the headings above it, the document's own first.

    begins: how much of `text` the passage before has too, in characters. page: on which it begins, from 1; None in a
    document without pages.
    """

    text: str
    heading: tuple[str, ...]
    number: int
    begins: int = 0
    page: int | None = None

    @property
    def new_text(self) -> str:
        """The text without what the passage before it has."""
        return self.text[self.begins :].lstrip()


class _Block(NamedTuple):
    """A paragraph, or (level > 0) a heading."""

    text: str
    level: int = 0


def passages(text: str, count: Count, max_tokens: int, overlap: int = 0) -> list[Passage]:
    """The passages of `text`, at most `max_tokens` long by `count`, in the document's order.

    A passage has whole paragraphs of one section; a longer paragraph is cut between sentences, and a longer sentence
    between words. Where a section is cut, the next passage begins with the last sentences of the one before, up to
    `overlap` tokens. Headings are not part of a passage's text.
    """
    result: list[Passage] = []
    headings: list[_Block] = []
    paragraphs: list[str] = []

    def end_section() -> None:
        heading = tuple(each.text for each in headings)
        for piece, begins in _pack(paragraphs, count, max_tokens, overlap):
            result.append(Passage(piece, heading, len(result), begins))
        paragraphs.clear()

    for block in _blocks(text):
        if 0 < block.level <= SECTION:
            end_section()
            while headings and headings[-1].level >= block.level:
                headings.pop()
            headings.append(block)
        else:
            paragraphs.append(block.text)
    end_section()
    return result


def with_pages(pieces: Iterable[Passage], text: str, pages: Sequence[int]) -> list[Passage]:
    """The passages of `text` with their pages, which begin at `pages`, in characters of it."""
    result, place = [], 0
    for each in pieces:
        begin = (each.new_text or each.text).split("\n", 1)[0][:BEGINNING]
        place = max(place, text.find(begin, place))
        result.append(each._replace(page=bisect_right(pages, place) or None) if pages else each)
    return result


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph or several, without the white space between them."""
    pieces = (piece.strip() for line in text.split("\n\n") for piece in SENTENCE.split(line))
    return [piece for piece in pieces if piece]


def _blocks(text: str) -> Iterator[_Block]:
    """Paragraphs and headings, also those that are underlined."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines: list[str] = []
        for line in paragraph.splitlines():
            heading = HEADING.match(line)
            if heading:
                yield from _paragraph(lines)
                lines = []
                yield _Block(heading[2], len(heading[1]))
            elif (underline := UNDERLINE.match(line)) and len(lines) == 1:
                yield _Block(lines.pop().strip(), 1 if underline[1] == "=" else 2)
            else:
                lines.append(line)
        yield from _paragraph(lines)


def _paragraph(lines: list[str]) -> Iterator[_Block]:
    if text := "\n".join(lines).strip():
        yield _Block(text)


def _pack(paragraphs: list[str], count: Count, max_tokens: int, overlap: int) -> Iterator[tuple[str, int]]:
    """The texts of a section's passages, each with how many characters of it the one before has."""
    current, begins = "", 0
    for piece, joint in _pieces(paragraphs, count, max_tokens):
        if current and count(current + joint + piece) > max_tokens:
            yield current, begins
            tail = _tail(current[begins:], count, overlap)
            if tail and count(f"{tail} {piece}") <= max_tokens:
                current, begins = f"{tail} {piece}", len(tail)
            else:
                current, begins = piece, 0
        else:
            current = current + joint + piece if current else piece
    if current:
        yield current, begins


def _pieces(paragraphs: list[str], count: Count, max_tokens: int) -> Iterator[tuple[str, str]]:
    """Paragraphs, or parts of those that are too long, with what stands before each."""
    for paragraph in paragraphs:
        if count(paragraph) <= max_tokens:
            yield paragraph, "\n\n"
            continue
        joint = "\n\n"
        for sentence in sentences(paragraph):
            for part in [sentence] if count(sentence) <= max_tokens else _words(sentence, count, max_tokens):
                yield part, joint
                joint = " "


def _words(sentence: str, count: Count, max_tokens: int) -> Iterator[str]:
    """A sentence in parts that fit; a word that does not fit is cut in halves."""
    if count(sentence) <= max_tokens or len(sentence) < 2:
        yield sentence
        return
    middle = sentence.rfind(" ", 1, len(sentence) // 2 + 1)
    middle = middle if middle > 0 else len(sentence) // 2
    for part in (sentence[:middle].strip(), sentence[middle:].strip()):
        if part:
            yield from _words(part, count, max_tokens)


def _tail(text: str, count: Count, overlap: int) -> str:
    """The last sentences of `text` that fit into `overlap` tokens."""
    tail = ""
    for sentence in reversed(sentences(text)):
        longer = f"{sentence} {tail}".strip()
        if count(longer) > overlap:
            break
        tail = longer
    return tail
