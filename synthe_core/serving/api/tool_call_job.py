"""A completion job whose output may have calls of tools."""

from __future__ import annotations

import secrets
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from synthe_core.data.tool_calls.parser import CallPiece, TextPiece
from synthe_core.data.tool_calls.style_parsers import parser_for
from synthe_core.inference.request import ToolUse
from synthe_core.serving.api.completion_job import CompletionJob, OutputDelta

LETTERS = string.ascii_letters + string.digits


@dataclass
class CallDelta:
    """New output of a call. id, name: with the first. complete: with the last."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    complete: bool = False

    @property
    def has_news(self) -> bool:
        """Whether a stream sends it."""
        return self.name is not None or bool(self.arguments)

    def json(self) -> dict[str, Any]:
        """As a delta of a stream."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


@dataclass
class ToolCall:
    """A complete call. arguments: JSON."""

    id: str
    name: str
    arguments: str

    def json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass
class ToolDelta(OutputDelta):
    """Its text is in no call. The finish reason is `tool_calls` if a complete call ends the answer."""

    calls: list[CallDelta] = field(default_factory=list)


@dataclass
class ToolCallJob(CompletionJob):
    """Its deltas are `ToolDelta`s."""

    tool_use: ToolUse = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._parsers = [parser_for(self.tool_use.form, self.tool_use.schema) for _ in self.requests]
        self._marks = [self._special_mark() for _ in self.requests]

    def _special_mark(self) -> int | None:
        """The token before the calls that has no text."""
        tokens = self.tokenizer.encode_marked(self.tool_use.form.opening.strip())
        is_special = len(tokens) == 1 and not self.tokenizer.pieces[tokens[0]]
        return tokens[0] if is_special else None

    async def deltas(self) -> AsyncIterator[OutputDelta]:
        """New output of any choice, until all choices have ended."""
        async for delta in super().deltas():
            if delta.failure is None:
                delta = self._parsed(delta)
            yield delta

    def _parsed(self, delta: OutputDelta) -> ToolDelta:
        parser = self._parsers[delta.index]
        pieces = []
        if self._marks[delta.index] is not None and any(e.token == self._marks[delta.index] for e in delta.entries):
            self._marks[delta.index] = None
            pieces += parser.open()
        pieces += parser.push(delta.text)
        if delta.reason is not None:
            pieces += parser.flush()
        reason = "tool_calls" if delta.reason == "stop" and parser.num_complete else delta.reason
        text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
        calls = [self._call(piece) for piece in pieces if isinstance(piece, CallPiece)]
        return ToolDelta(delta.index, text, delta.entries, reason, delta.failure, merged(calls))

    def _call(self, piece: CallPiece) -> CallDelta:
        name = None if piece.name is None else new_id(self.tool_use.form.id_size)
        return CallDelta(piece.index, piece.arguments, name, piece.name, piece.complete)


def merged(calls: list[CallDelta]) -> list[CallDelta]:
    """Neighbours of the same call as one."""
    result: list[CallDelta] = []
    for call in calls:
        if result and result[-1].index == call.index:
            result[-1].arguments += call.arguments
            result[-1].complete |= call.complete
        else:
            result.append(call)
    return result


def complete_calls(deltas: list[OutputDelta]) -> list[ToolCall]:
    """The complete calls of a choice. One that the end of the answer has cut is none."""
    calls: dict[int, ToolCall] = {}
    complete = set()
    for delta in deltas:
        for each in delta.calls if isinstance(delta, ToolDelta) else ():
            if each.name is not None:
                calls[each.index] = ToolCall(each.id or "", each.name, "")
            calls[each.index].arguments += each.arguments
            complete |= {each.index} if each.complete else set()
    return [call for index, call in calls.items() if index in complete]


def new_id(size: int) -> str:
    """An id of a call, as long as the model's format demands."""
    return "".join(secrets.choice(LETTERS) for _ in range(size)) if size else f"call_{secrets.token_hex(12)}"
