"""Server-sent events, read from the bytes of a response as they come."""

from __future__ import annotations

import re

LINE_END = re.compile(rb"\r\n|\n|\r")


class EventStreamDecoder:
    """The data of server-sent events. Lines end at CR, LF or both, and nowhere else: a library's `iter_lines` also
    splits at U+2028 and U+0085, which JSON may hold as they are."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, piece: bytes) -> list[str]:
        """The data of the lines that `piece` completes."""
        content = self._rest + piece
        held = b"\r" if content.endswith(b"\r") else b""  # perhaps the first half of CR LF
        *lines, rest = LINE_END.split(content.removesuffix(held))
        self._rest = rest + held
        return _data(lines)

    def flush(self) -> list[str]:
        """The data of a last line without an end."""
        lines, self._rest = LINE_END.split(self._rest), b""
        return _data(lines)


def _data(lines: list[bytes]) -> list[str]:
    return [line[5:].decode("utf-8", "replace").strip(" \t") for line in lines if line.startswith(b"data:")]
