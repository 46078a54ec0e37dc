"""Text of others, such as names in files, messages of servers and writings of models, made safe for a terminal."""

from __future__ import annotations

import json
from typing import Any

LINE = 4000  # characters of a line; more are cut
ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: object, limit: int = LINE) -> str:
    """A text as one token: line ends, control and direction characters and lone surrogates are escaped, and what is
    longer than `limit` is cut. Nothing in it begins a line, moves the cursor or reorders what stands beside it."""
    text = str(text)
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text) - limit:,} more characters)"
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def printable(text: str) -> str:
    """A text of several lines with control characters replaced, but for tabs and line ends."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def json_text(value: Any, **options: Any) -> str:
    """JSON that a terminal shows as it is: letters of every language, and escapes for what is not printable."""
    return printable_json(json.dumps(value, ensure_ascii=False, **options))


def printable_json(text: str) -> str:
    """A JSON text, or a part of one, with escapes for what is not printable."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def _escape(c: str) -> str:
    number = ord(c)
    if c in ESCAPES:
        return ESCAPES[c]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(c: str) -> str:
    return json.dumps(c)[1:-1]
