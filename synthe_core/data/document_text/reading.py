"""A document of any kind as plain text: paragraphs with an empty line between them, headings as `# Heading`."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from synthe_core.data.content import BOM, content, damage, kind
from synthe_core.data.document_text import docx, html, pdf
from synthe_core.errors import InputError

MAX_BYTES = 64 << 20
"""Of a document's text, which is held in memory."""
READERS: dict[str, Callable[[bytes, Path], str]] = {
    ".html": html.text_of,
    ".htm": html.text_of,
    ".xhtml": html.text_of,
    ".pdf": pdf.text_of,
    ".docx": docx.text_of,
}
"""By suffix. Every other file is read as text of UTF-8."""
BINARY = (".pdf", ".docx")


class DocumentText(NamedTuple):
    """title: the first heading, or the file's name. digest: SHA-256 of the text. pages: where each page of a PDF
    begins, in characters of the text; none for other files."""

    path: Path
    title: str
    text: str
    digest: str
    pages: tuple[int, ...] = ()


def read_document(path: Path) -> DocumentText:
    """The text of a .txt, .md, .html, .pdf or .docx file, or of any other in UTF-8.

    InputError for a file that cannot be read or has no text in it: an empty one, a PDF of pictures, a binary file.
    """
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"no such document: {path}"
        raise InputError(what, "name a file: .txt, .md, .html, .pdf or .docx")
    suffix = kind(path)
    with damage(path):
        raw = path.read_bytes() if suffix in BINARY else _limited(path)
    text = READERS[suffix](raw, path) if suffix in READERS else _decoded(raw, path)
    text, pages = _without_marks(_normalised(text)) if suffix == ".pdf" else (_normalised(text), ())
    if len(text.encode()) > MAX_BYTES:
        raise _too_long(path)
    if not any(letter.isalnum() for letter in text):
        why = "its pages may be pictures: recognise their text first (OCR)" if suffix == ".pdf" else "name another file"
        raise InputError(f"{path} has no text in it", why)
    first = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), "")
    title = first or path.stem.replace("_", " ").replace("-", " ")
    return DocumentText(path, title, text, hashlib.sha256(text.encode()).hexdigest(), pages)


def _limited(path: Path) -> bytes:
    """The content of a text file as UTF-8, decompressed."""
    pieces, size = [], 0
    for piece in content(path):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise _too_long(path)
    return b"".join(pieces).removeprefix(BOM)


def _too_long(path: Path) -> InputError:
    return InputError(f"{path} has more than {MAX_BYTES >> 20} MiB of text", "name a part of it")


def _decoded(raw: bytes, path: Path) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    if any(unicodedata.category(letter) == "Cc" and letter not in "\n\r\t\f\v\x85" for letter in set(text)):
        raise InputError(f"{path} is not text: it has control characters", "name a text, Markdown, HTML or PDF file")
    return text


def _without_marks(text: str) -> tuple[str, tuple[int, ...]]:
    """The text without marks of pages, and where they were."""
    before, *pages = text.split(pdf.PAGE)
    lengths = itertools.accumulate((len(page) for page in pages), initial=len(before))
    return before + "".join(pages), tuple(lengths)[:-1]


def _normalised(text: str) -> str:
    """Lines end in a line break and nothing before it; one empty line between paragraphs."""
    lines = [line.rstrip() for line in unicodedata.normalize("NFC", text).replace("\f", "\n\n").splitlines()]
    result: list[str] = []
    for line in lines:
        if line or (result and result[-1]):
            result.append(line)
    return "\n".join(result).strip("\n") + "\n"
