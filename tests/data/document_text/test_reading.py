"""What is read of documents of every kind, and what is refused, in one line."""

from __future__ import annotations

import builtins
import gzip
import io
from pathlib import Path
from typing import Any

import pypdf
import pytest

from synthe_core.data.document_text import read_document
from synthe_core.data.document_text.docx import ENCRYPTED, MEMBER, OLE
from synthe_core.errors import InputError
from tests.data.document_text.files import docx, pdf, zipped

PAGE = """<!doctype html><html><head><title>Not this</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><h1>The <em>Mill</em></h1><p>It grinds &amp; sieves.<br>Twice a day.</p>
<script>var secret = 1;</script><h2>Hours</h2><table><tr><td>Monday</td><td>eight</td></tr></table>
<ul><li>First</li><li>Second</li></ul></body></html>"""
PAGE_TEXT = "# The Mill\n\nIt grinds & sieves. Twice a day.\n\n## Hours\n\nMonday; eight\n\nFirst\n\nSecond\n"


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "no-suffix"])
def test_text_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    document = read_document(written(tmp_path / name, "\ufeff# The Mill\r\n\r\n\r\n\r\nIt grinds.  \r\nTwice.\r\n"))
    assert document.text == "# The Mill\n\nIt grinds.\nTwice.\n"
    assert document.title == "The Mill"


def test_text_may_be_compressed_or_of_utf16(tmp_path: Path) -> None:
    first = read_document(written(tmp_path / "a.txt.gz", gzip.compress(b"It grinds.\n")))
    other = read_document(written(tmp_path / "b.txt", "It grinds.\n".encode("utf-16")))
    assert first.text == other.text == "It grinds.\n"
    assert first.digest == other.digest


def test_a_document_without_a_heading_has_its_file_as_title(tmp_path: Path) -> None:
    assert read_document(written(tmp_path / "mill_rules-2.txt", "It grinds.")).title == "mill rules 2"


def test_an_html_page_gives_headings_and_paragraphs(tmp_path: Path) -> None:
    assert read_document(written(tmp_path / "a.html", PAGE)).text == PAGE_TEXT
    latin = PAGE.replace("<head>", '<head><meta charset="iso-8859-1">').replace("Mill", "Mühle").encode("latin-1")
    assert read_document(written(tmp_path / "b.htm", latin)).title == "The Mühle"


def test_a_comment_of_any_name_is_left_out_of_a_page(tmp_path: Path) -> None:
    page = PAGE.replace("<h1>", "<![if !mso]><![odd[x]]><h1>").replace("<head>", "<head><meta charset=utf-16>")
    assert read_document(written(tmp_path / "a.html", page)).text == PAGE_TEXT


def test_a_pdf_loses_page_numbers_and_running_titles(tmp_path: Path) -> None:
    long = "The mill grinds wheat and rye for every village of the valley and takes a tenth of it as its"
    pages = [
        [
            "Mill rules",
            long,
            f"fee number {n}.",
            "The grind-",
            "stone is turned by water from the river above it and",
            "rests.",
            str(n),
        ]
        for n in range(1, 4)
    ]
    text = read_document(written(tmp_path / "a.pdf", pdf(pages))).text
    assert text.split("\n\n")[:2] == [
        f"{long} fee number 1.",
        "The grindstone is turned by water from the river above it and rests.",
    ]
    assert "Mill rules" not in text and "\n2\n" not in text
    assert "fee number 3." in text


def test_a_word_document_gives_headings_by_style(tmp_path: Path) -> None:
    file = docx([("Title", "The Mill"), ("", "It grinds."), ("Heading2", "Hours"), ("", ""), ("", "From eight.")])
    assert (
        read_document(written(tmp_path / "a.docx", file)).text
        == "# The Mill\n\nIt grinds.\n\n## Hours\n\nFrom eight.\n"
    )


def protected_pdf(password: str) -> bytes:
    """A PDF that opens with a password only."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf([["Text."]])))
    writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


WORD = docx([("", "It grinds. " * 50)])
DAMAGED = WORD[:60] + bytes([WORD[60] ^ 255]) + WORD[61:]
"""Its compressed data are none."""
PROTECTED = WORD.replace(b"PK\x03\x04\x14\0\0", b"PK\x03\x04\x14\0\1").replace(
    b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"
)
"""The flag of its member says that a password protects it."""
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no text in it"),
        ("a.md", b" \n\n---\n\n", "has no text in it"),
        ("a.txt", b"\x00\x01\x02binary\x00", "is not text: it has control characters"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text (byte 3)"),
        ("a.txt", b"%PDF-1.4 renamed", "is a PDF, not text"),
        ("a.html", b"<html><body><script>1</script></body></html>", "has no text in it"),
        ("a.html", b"<meta charset='klingon'>text", "names an encoding that is not known: klingon"),
        ("a.pdf", b"no pdf at all", "is not a PDF"),
        ("a.pdf", pdf([["Text."]])[:300], "is damaged: "),
        (
            "a.pdf",
            pdf([["Text."]]).replace(b"/Length", b"/Filter/Odd/Length"),
            "cannot be read: Unsupported filter /Odd",
        ),
        ("a.pdf", protected_pdf("secret"), "is protected by a password"),
        ("a.pdf", pdf([[], []]), "has no text in it"),
        ("a.html", b"<meta charset=undefined>text", "is not undefined text"),
        ("a.docx", b"PK\x03\x04 broken", "is damaged: "),
        ("a.docx", b"Plain text.", "is not a Word document"),
        ("a.docx", zipped("mimetype", b"application/epub+zip"), "is not a Word document"),
        ("a.docx", zipped(MEMBER, b"<w:document"), "is damaged: "),
        ("a.docx", zipped(MEMBER, b'<?xml version="1.0" encoding="klingon"?><a/>'), "is damaged: "),
        ("a.docx", DAMAGED, "is damaged: "),
        ("a.docx", docx([("", "It grinds.")])[:-40], "is damaged: "),
        ("a.docx", PROTECTED, "is protected by a password"),
        ("a.docx", OLE + bytes(600) + ENCRYPTED, "is protected by a password"),
        ("a.docx", OLE + bytes(600), "is a document of Word 97 to 2003"),
        ("a.docx", docx([("", "&b;")], BOMB), "is not a Word document"),
    ],
)
def test_what_has_no_text_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_document(written(tmp_path / name, content))
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_scanned_pdf_says_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_document(written(tmp_path / "scan.pdf", pdf([[]])))
    assert "OCR" in str(caught.value.hint)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such document"):
        read_document(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_document(tmp_path)


def test_without_pypdf_the_hint_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **keys: Any) -> Any:
        if name.partition(".")[0] == "pypdf":
            raise ModuleNotFoundError(name)
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="which pypdf reads") as caught:
        read_document(written(tmp_path / "a.pdf", pdf([["Text."]])))
    assert "synthe[documents]" in str(caught.value.hint)
