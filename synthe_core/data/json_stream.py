"""The values of a JSON file, one at a time: an array's, or those that follow one another, on lines or not."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthe_core.data.content import LONGEST, content
from synthe_core.errors import InputError

_SPACE = re.compile(r"[ \t\r\n]*")
_MARGIN = 12  # letters: what a cut literal or escape may be short of the end


def parse_row(text: str, place: str) -> Any:
    """The JSON value in `text`; InputError if it is malformed or nested too deeply."""
    try:
        return _decode(text, 0, place, whole=True)[0]
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} (column {error.colno})") from None


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each value of a file of any size; held in memory is one value at a time."""
    text = _Window(path)
    array = text.peek() == "["
    text.at += array
    first = True
    while mark := text.peek():
        if array and mark == "]":
            text.at += 1
            if text.peek():
                raise InputError(f"{text.place}: there is more after the end of the array", "it is not JSON")
            return
        if array and not first:
            if mark != ",":
                raise InputError(f"{text.place}: not JSON: a comma is missing between two rows")
            text.at += 1
            text.peek()
        first = False
        yield text.place, text.value()
    if array:
        raise InputError(f"{path} ends inside its array", "make or download the file again")


class _Window:
    """A stretch of a file's text that begins at `at`; it grows as far as a value needs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks = content(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._line, self._counted = 1, 0
        self._ended = False
        self.at = 0

    @property
    def place(self) -> str:
        self._line += self._text.count("\n", self._counted, self.at)
        self._counted = self.at
        return f"{self._path}, line {self._line}"

    def peek(self) -> str:
        """The next letter that is no white space; "" at the end."""
        while True:
            end = _SPACE.match(self._text, self.at)
            self.at = end.end() if end else self.at
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def value(self) -> Any:
        while True:
            try:
                value, self.at = _decode(self._text, self.at, self.place)
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _MARGIN
                if not cut or not self._more():
                    hint = "the file may be cut short: make or download it again" if cut else None
                    raise InputError(f"{self.place}: not JSON: {error.msg}", hint) from None

    def _more(self) -> bool:
        """Reads on, at least as much again as there is: parsing a long value from its start again costs little so."""
        if self._ended:
            return False
        place = self.place
        parts = [self._text[self.at :]]
        size = goal = len(parts[0])
        if size > LONGEST:
            raise InputError(f"{place}: the row is longer than {LONGEST >> 20} MiB", "a row is one document")
        while not self._ended and size <= 2 * goal:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            try:
                parts.append(self._decoder.decode(chunk or b"", final=self._ended))
            except UnicodeDecodeError:
                raise InputError(f"{self._path}: invalid UTF-8 after line {self._line}", "save it as UTF-8") from None
            size += len(parts[-1])
        self._text, self.at, self._counted = "".join(parts), 0, 0
        return size > goal


def _decode(text: str, at: int, place: str, whole: bool = False) -> tuple[Any, int]:
    decoder = _PLAIN
    while True:
        try:
            return (decoder.decode(text), len(text)) if whole else decoder.raw_decode(text, at)
        except RecursionError:
            raise InputError(f"{place}: nested too deeply to be read", "take the row out, or flatten it") from None
        except json.JSONDecodeError:
            raise
        except ValueError:  # a number of more digits than Python converts
            decoder = _LONG_NUMBERS


def _number(digits: str) -> float | int:
    return int(digits) if len(digits) < 4000 else -math.inf if digits[0] == "-" else math.inf


_PLAIN = json.JSONDecoder()
_LONG_NUMBERS = json.JSONDecoder(parse_int=_number)
