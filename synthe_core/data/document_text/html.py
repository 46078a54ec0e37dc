"""The text of an HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from synthe_core.errors import InputError

IGNORED = frozenset({"script", "style", "head", "template", "noscript", "svg", "nav", "iframe", "object", "select"})
BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset"}
    | {"figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary"}
    | {"table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"}
)
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
CELLS = frozenset({"td", "th"})
CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([A-Za-z0-9._-]{1,40})", re.IGNORECASE)
SPACE = re.compile(r"[ \t\r\n]+")


def text_of(raw: bytes, path: Path) -> str:
    """The page's paragraphs and headings; scripts, styles, menus and forms' options are left out. The cells of a row of
    a table stand in one paragraph."""
    parser = _Text()
    parser.feed(_decoded(raw, path))
    parser.close()
    return parser.text()


def _decoded(raw: bytes, path: Path) -> str:
    named = CHARSET.search(raw[:4096])
    encoding = named[1].decode() if named else "utf-8"
    if re.match("utf-?16", encoding, re.IGNORECASE):  # no page whose first bytes are ASCII is: browsers read UTF-8
        encoding = "utf-8"
    try:
        return raw.decode(encoding)
    except LookupError:
        raise InputError(f"{path} names an encoding that is not known: {encoding}", "save it as UTF-8") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} text (byte {error.start})", "save it as UTF-8") from None
    except UnicodeError:
        raise InputError(f"{path} is not {encoding} text", "save it as UTF-8") from None


class _Text(HTMLParser):
    """Collects paragraphs."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._paragraphs: list[str] = []
        self._current: list[str] = []
        self._ignored: list[str] = []
        self._heading = ""
        self._in_row = False

    def text(self) -> str:
        self._end_paragraph()
        return "\n\n".join(self._paragraphs)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![...>` is a comment, as browsers read it, whatever its name is."""
        return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in IGNORED:
            self._ignored.append(tag)
        if tag == "body":  # a head without its end tag
            self._ignored.clear()
        if tag == "br":
            self._current.append(" ")
        elif tag in CELLS and self._in_row:
            self._current.append("; " if "".join(self._current).strip() else "")
        elif tag in BLOCKS or tag in HEADINGS:
            self._end_paragraph()
            self._heading = HEADINGS.get(tag, "")
            self._in_row = tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._ignored:
            del self._ignored[self._ignored.index(tag) :]
        elif (tag in BLOCKS and not (tag in CELLS and self._in_row)) or tag in HEADINGS:
            self._end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._ignored:
            self._current.append(data)

    def _end_paragraph(self) -> None:
        text = SPACE.sub(" ", "".join(self._current)).strip()
        if text:
            self._paragraphs.append(f"{self._heading} {text}" if self._heading else text)
        self._current, self._heading, self._in_row = [], "", False
