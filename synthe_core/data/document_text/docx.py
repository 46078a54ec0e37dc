"""The text of a Word document: its paragraphs, headings by their style."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from synthe_core.errors import InputError

MEMBER = "word/document.xml"
MAX_XML = 256 << 20
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
LEVEL = re.compile(r"(?:heading|berschrift|titre|t.tulo|titolo|kop)\s*(\d)", re.IGNORECASE)
TEXT = {f"{W}t": None, f"{W}tab": "\t", f"{W}br": " ", f"{W}cr": " ", f"{W}noBreakHyphen": "-"}
"""Elements of a run that stand for text; None for their own."""


def text_of(raw: bytes, path: Path) -> str:
    """Paragraphs in the order of the file, those of tables too. InputError for what is no Word document."""
    refusal = InputError(f"{path} is not a Word document", "save it as .docx, or as text")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if archive.getinfo(MEMBER).file_size > MAX_XML:
                raise InputError(f"{path} is larger than {MAX_XML >> 20} MiB unpacked", "save a part of it")
            xml = archive.read(MEMBER)
        if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:  # no word processor writes them; entities can grow without bound
            raise refusal
        tree = ElementTree.fromstring(xml)
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, NotImplementedError, RuntimeError, EOFError):
        raise refusal from None
    return "\n\n".join(text for each in tree.iter(f"{W}p") if (text := _paragraph(each)))


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
