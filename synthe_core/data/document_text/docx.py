"""The text of a Word document: its paragraphs, headings by their style."""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

from synthe_core.errors import InputError

MEMBER = "word/document.xml"
MAX_XML = 256 << 20
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
LEVEL = re.compile(r"(?:heading|berschrift|titre|t.tulo|titolo|kop)\s*(\d)", re.IGNORECASE)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""The first bytes of a compound file, and the name (UTF-16) of what one has that holds an encrypted document."""
ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
PROTECTED = 1
"""The flag of a member of an archive that a password protects."""
TEXT = {f"{W}t": None, f"{W}tab": "\t", f"{W}br": " ", f"{W}cr": " ", f"{W}noBreakHyphen": "-"}
"""Elements of a run that stand for text; None for their own."""


def text_of(raw: bytes, path: Path) -> str:
    """Paragraphs in the order of the file, those of tables too.

    InputError for what is no Word document, for a damaged one and for one that a password protects.
    """
    tree = _parsed(_document(raw, path), path)
    return "\n\n".join(text for each in tree.iter(f"{W}p") if (text := _paragraph(each)))


def _document(raw: bytes, path: Path) -> bytes:
    """The XML of the text."""
    if raw.startswith(OLE):
        raise (
            _protected(path)
            if ENCRYPTED in raw
            else InputError(
                f"{path} is a document of Word 97 to 2003, or another of Office", "save it as .docx, or as text"
            )
        )
    if not raw.startswith(b"PK"):
        raise _no_document(path)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if MEMBER not in archive.namelist():
                raise _no_document(path)
            member = archive.getinfo(MEMBER)
            if member.flag_bits & PROTECTED:
                raise _protected(path)
            if member.file_size > MAX_XML:
                raise InputError(f"{path} is larger than {MAX_XML >> 20} MiB unpacked", "save a part of it")
            return archive.read(member)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        ValueError,
        OSError,
        EOFError,
    ) as error:
        raise _damaged(path, error) from None


def _parsed(xml: bytes, path: Path) -> ElementTree.Element:
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:  # no word processor writes them; entities can grow without bound
        raise _no_document(path)
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # of an encoding that is not known: LookupError
        raise _damaged(path, error) from None


def _no_document(path: Path) -> InputError:
    return InputError(f"{path} is not a Word document", "save it as .docx, or as text")


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged: {str(error) or 'it ends too early'}", "make or download the file again")


def _protected(path: Path) -> InputError:
    return InputError(f"{path} is protected by a password", "save a copy without one")


def _paragraph(element: ElementTree.Element) -> str:
    parts = [(TEXT[each.tag] if TEXT[each.tag] is not None else each.text) for each in _runs(element)]
    text = "".join(part or "" for part in parts).strip()
    style = element.find(f"{W}pPr/{W}pStyle")
    name = "" if style is None else style.get(f"{W}val", "")
    level = LEVEL.search(name)
    if text and (level or name.lower() == "title"):
        return f"{'#' * (int(level[1]) if level else 1)} {text}"
    return text


def _runs(element: ElementTree.Element) -> list[ElementTree.Element]:
    """The text elements of a paragraph, without those of deleted text and of paragraphs inside it (text boxes)."""
    inner = {each for child in element.iter(f"{W}p") if child is not element for each in child.iter()}
    return [each for each in element.iter() if each.tag in TEXT and each not in inner]
