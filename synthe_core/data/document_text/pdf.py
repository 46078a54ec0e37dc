"""The text of a PDF file, by pypdf."""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections import Counter
from pathlib import Path

from synthe_core.errors import InputError

PAGE_NUMBER = re.compile(r"(?:page\s+)?\d{1,4}(?:\s*(?:/|of)\s*\d{1,4})?", re.IGNORECASE)
PAGE = "\0"
"""Stands before the text of each page."""
REPEATED = 0.5
"""The share of pages at whose edge a line stands that is no text of theirs: a running title."""


def text_of(raw: bytes, path: Path) -> str:
    """The paragraphs of all pages, without page numbers and running titles; `PAGE` where a page begins.

    InputError without pypdf, for what is no PDF, for a damaged file and for one that a password protects.
    """
    if b"%PDF-" not in raw[:1024]:
        raise InputError(f"{path} is not a PDF", "give it the suffix of its kind, or save it as PDF")
    try:
        import pypdf
        from pypdf.errors import DependencyError, PyPdfError
    except ModuleNotFoundError:
        hint = "install it: pip install 'synthe[documents]', or convert the file to text"
        raise InputError(f"{path} is a PDF, which pypdf reads", hint) from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports each fault that it works around
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{path} is protected by a password", "save a copy without one")
        pages = [_lines(page.extract_text()) for page in reader.pages]
    except InputError:
        raise
    except (
        PyPdfError,
        zlib.error,
        struct.error,
        ArithmeticError,
        AssertionError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OSError,
    ) as error:
        raise InputError(f"{path} is damaged: {error}", "make or download the file again") from None
    except NotImplementedError as error:  # a filter or an encryption that pypdf does not know; often damage
        raise InputError(f"{path} cannot be read: {error}", "save it again as PDF, or as text") from None
    except DependencyError as error:
        raise InputError(f"{path} needs another package: {error}", "save a copy without a password") from None
    return "\n\n".join(_paragraphs(_without_edges(pages)))


def _lines(text: str) -> list[str]:
    return [line.replace(PAGE, "").strip() for line in text.splitlines()]


def _without_edges(pages: list[list[str]]) -> list[str]:
    """The lines of all pages, and `PAGE` before each page's. Page numbers, and lines first or last on most pages, are
    dropped."""
    filled = [page for page in pages if any(page)]
    edges = Counter(line for page in filled for line in {_first(page), _first(page[::-1])})
    repeated = {line for line, count in edges.items() if len(filled) > 2 and count > REPEATED * len(filled)}
    lines = []
    for page in pages:
        lines.append(PAGE)
        for turn in (1, -1):
            page = page[::turn]
            while page and (not page[0] or page[0] in repeated or PAGE_NUMBER.fullmatch(page[0])):
                page = page[1:]
            page = page[::turn]
        lines += page
    return lines


def _first(page: list[str]) -> str:
    return next((line for line in page if line), "")


def _paragraphs(lines: list[str]) -> list[str]:
    """Lines joined to paragraphs: one ends at an empty line, and where a sentence ends on a line that is shorter than
    the longest tenth. A word that is cut at the end of a line is joined."""
    lengths = sorted(len(line) for line in lines if line and line != PAGE)
    full = 0.8 * lengths[len(lengths) * 9 // 10] if lengths else 0
    result, current, mark = [], "", ""
    for line in lines:
        if line == PAGE:
            mark += PAGE
            continue
        if not line:
            result.append(current)
            current = ""
            continue
        if current.endswith("-") and current[-2:-1].isalpha() and line[:1].islower():
            current = current[:-1] + mark + line
        else:
            current = f"{current} {mark}{line}" if current else mark + line
        mark = ""
        if len(line) < full and line.endswith((".", "!", "?", ":", ".”", '."')):
            result.append(current)
            current = ""
    return [text for text in [*result, current] if text]
