"""Reads calls from the text of an answer while it is generated."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from synthe_core.data.tool_calls.format import ToolFormat

HEAD = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "(?:arguments|parameters)": ')


@dataclass(frozen=True)
class TextPiece:
    """Text of the answer that is in no call."""

    text: str


@dataclass(frozen=True)
class CallPiece:
    """A part of call number `index`. name: with its first piece. arguments: the next characters of their JSON.
    complete: with its last piece."""

    index: int
    name: str | None = None
    arguments: str = ""
    complete: bool = False


Piece = TextPiece | CallPiece
State = Literal["text", "head", "arguments", "tail"]


class ToolCallParser:
    """Splits the text of an answer into text and calls.

    What may be the beginning of a call is held back until it is known to be one. The JSON of a call is in the layout of
    `constraints.JSON_FORMAT`, which a constrained model cannot leave. Subclasses read calls of other styles.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._state: State = "text"
        self._held = ""
        self._is_beginning = True
        self._scanner = ObjectScanner()
        self.num_calls = 0
        self.num_complete = 0

    def open(self) -> list[Piece]:
        """The mark before the calls has come as a special token, which has no text."""
        pieces = self._release() if self._state == "text" else []
        self._state = "head"
        return pieces

    def push(self, text: str) -> list[Piece]:
        """What is known after the next text of the answer."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, when the answer has ended. A call that it has cut gives nothing more."""
        return self._release() if self._state == "text" else []

    def _release(self) -> list[Piece]:
        text, self._held = self._held, ""
        return [TextPiece(text)] if text else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Reads one part of what is held back; False if more text is needed."""
        match self._state:
            case "text":
                return self._read_text(pieces)
            case "head":
                return self._read_head(pieces)
            case "arguments":
                return self._read_arguments(pieces)
            case "tail":
                return self._read_tail(pieces)

    def _read_text(self, pieces: list[Piece]) -> bool:
        if self._form.anchored:
            return self._read_beginning(pieces)
        mark = self._form.opening.strip()
        before, opened, after = self._held.partition(mark)
        if opened:
            pieces += [TextPiece(before)] if before.strip() else []
            self._held, self._state = after, "head"
            return True
        size = len(self._held) - _overlap(self._held, mark)
        if text := self._held[:size]:
            if self._is_beginning and not text.strip():
                return False  # white space before a call is no text
            self._is_beginning = False
            pieces.append(TextPiece(text))
            self._held = self._held[size:]
        return False

    def _read_beginning(self, pieces: list[Piece]) -> bool:
        """A call without a mark is one from the first character of the answer on."""
        head = self._form.head
        if self._is_beginning and self._held.startswith(head):
            self._state = "head"
            return True
        if self._is_beginning and head.startswith(self._held):
            return False
        self._is_beginning = False
        pieces += self._release()
        return False

    def _read_head(self, pieces: list[Piece]) -> bool:
        begin = HEAD.search(self._held)  # after the end of the call before it
        if begin is None:
            return False
        self._held = self._held[begin.end() :]
        self._begin_call(pieces, json.loads(begin[1]))
        return True

    def _begin_call(self, pieces: list[Piece], name: str) -> None:
        self._state, self._scanner = "arguments", ObjectScanner()
        pieces.append(CallPiece(self.num_calls, name))
        self.num_calls += 1

    def _end_call(self, pieces: list[Piece]) -> None:
        pieces.append(CallPiece(self.num_calls - 1, complete=True))
        self.num_complete += 1
        self._state = "head"

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        size = self._scanner.push(self._held)
        text, self._held = self._held[:size], self._held[size:]
        if text:
            pieces.append(CallPiece(self.num_calls - 1, None, text))
        if self._scanner.complete:
            self._state = "tail"
        return self._scanner.complete

    def _read_tail(self, pieces: list[Piece]) -> bool:
        """The brace that ends the call; then the next one may begin."""
        if "}" not in self._held:
            return False
        self._held = self._held.partition("}")[2]
        self._end_call(pieces)
        return True


class ObjectScanner:
    """Where a JSON object ends. complete: whether it has."""

    def __init__(self) -> None:
        self.complete = False
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int:
        """The number of characters of `text` that belong to the object."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = character == "\\", character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return place + 1
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that begins `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
