"""Parsers of calls that are not JSON as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from synthe_core.data.tool_calls.format import ARGS, ToolFormat
from synthe_core.data.tool_calls.grammar import END_PARAMETER, is_plain_text, properties_of
from synthe_core.data.tool_calls.parser import CallPiece, ObjectScanner, Piece, ToolCallParser
from synthe_core.data.tool_calls.schema import functions_of, root_of

FUNCTION = re.compile(r"<function=([^\n]*)>\n")
PARAMETER = re.compile(r"<parameter=([^\n]*)>\n")
END_FUNCTION = "</function>"
CALL = re.compile(r"[\[,]\s*([^\[,\s][^(]*)\(")
ARGUMENT = re.compile(r"(?:, )?([^=()]+)=")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
WORD = re.compile(r"[^,)]+(?=[,)])")
PYTHON = {"True": "true", "False": "false", "None": "null"}
"""Constants of Python as JSON."""


def parser_for(form: ToolFormat, schema: Mapping[str, Any]) -> ToolCallParser:
    """The parser of a model's calls. schema: of the calls, from `call_schema`."""
    match form.style:
        case "named":
            return NamedCallParser(form)
        case "xml":
            return XmlCallParser(form, schema)
        case "pythonic":
            return PythonicCallParser(form)
    return ToolCallParser(form)


class NamedCallParser(ToolCallParser):
    """The name, `[ARGS]`, which has no text where it is a special token, and a JSON object."""

    def _read_head(self, pieces: list[Piece]) -> bool:
        name, brace, _ = self._held.removeprefix(self._form.opening).partition("{")
        if not brace:
            return False
        self._held = self._held[self._held.index("{") :]
        self._begin_call(pieces, name.removesuffix(ARGS).strip())
        return True

    def _read_tail(self, pieces: list[Piece]) -> bool:
        self._end_call(pieces)
        return True


class _ArgumentParser(ToolCallParser):
    """Arguments that come one by one, each as a part of a JSON object."""

    def __init__(self, form: ToolFormat) -> None:
        super().__init__(form)
        self._num_arguments = 0

    def _begin_call(self, pieces: list[Piece], name: str) -> None:
        super()._begin_call(pieces, name)
        self._num_arguments = 0

    def _add_argument(self, pieces: list[Piece], name: str, value: str) -> None:
        before = ", " if self._num_arguments else "{"
        self._num_arguments += 1
        pieces.append(CallPiece(self.num_calls - 1, None, f"{before}{json.dumps(name)}: {value}"))

    def _end_arguments(self, pieces: list[Piece]) -> None:
        pieces.append(CallPiece(self.num_calls - 1, None, "}" if self._num_arguments else "{}"))
        self._end_call(pieces)


class XmlCallParser(_ArgumentParser):
    """`<function=name>` with `<parameter=name>` for each argument."""

    def __init__(self, form: ToolFormat, schema: Mapping[str, Any]) -> None:
        super().__init__(form)
        self._texts = {
            (each.name, name)
            for i, each in enumerate(functions_of(schema))
            for name, value in properties_of(each).items()
            if is_plain_text(value, root_of(i, each))
        }
        self._name = ""

    def _read_head(self, pieces: list[Piece]) -> bool:
        begin = FUNCTION.search(self._held)
        if begin is None:
            return False
        self._held, self._name = self._held[begin.end() :], begin[1]
        self._begin_call(pieces, self._name)
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        if self._held.startswith(END_FUNCTION):
            self._held = self._held.removeprefix(END_FUNCTION)
            self._end_arguments(pieces)
            return True
        begin = PARAMETER.match(self._held)
        end = -1 if begin is None else self._held.find(END_PARAMETER, begin.end())
        if begin is None or end < 0:
            return False
        text = self._held[begin.end() : end]
        self._held = self._held[end + len(END_PARAMETER) :]
        self._add_argument(pieces, begin[1], json.dumps(text) if (self._name, begin[1]) in self._texts else text)
        return True


class PythonicCallParser(_ArgumentParser):
    """`[name(a=1), other()]` as the whole answer."""

    def _read_head(self, pieces: list[Piece]) -> bool:
        begin = CALL.match(self._held)
        if begin is None:
            return False
        self._held = self._held[begin.end() :]
        self._begin_call(pieces, begin[1])
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        if self._held.startswith(")"):
            self._held = self._held[1:]
            self._end_arguments(pieces)
            return True
        begin = ARGUMENT.match(self._held)
        size = 0 if begin is None else _value_size(self._held[begin.end() :])
        if begin is None or not size:
            return False
        text = self._held[begin.end() : begin.end() + size]
        self._held = self._held[begin.end() + size :]
        self._add_argument(pieces, begin[1], PYTHON.get(text, text))
        return True


def _value_size(text: str) -> int:
    """The length of the value at the beginning of `text`; 0 if its end is not there yet."""
    if text[:1] in ("{", "["):
        scanner = ObjectScanner()
        size = scanner.push(text)
        return size if scanner.complete else 0
    end = (STRING if text[:1] == '"' else WORD).match(text)
    return end.end() if end else 0
