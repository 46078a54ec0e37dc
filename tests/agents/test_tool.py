"""Calls of tools, and what the model reads of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from synthe_core.agents.catalog import tools_named
from synthe_core.agents.python_tool import PythonTool, failure_of
from synthe_core.agents.sandbox.limits import Execution
from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.agents.tool import ToolError, run_tool, shortened
from synthe_core.errors import InputError

NEVER = threading.Event()


class Add:
    name, description = "add", "Adds two numbers."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}}

    def run(self, arguments: Mapping[str, Any], cancelled: threading.Event) -> str:
        if "b" not in arguments:
            raise ToolError("b is missing")
        return str(arguments["a"] + arguments["b"])


@pytest.mark.parametrize(
    "name,arguments,result",
    [
        ("add", '{"a": 1, "b": 2}', "3"),
        ("add", '{"a": 1}', "error: b is missing"),
        ("ad", "{}", "error: there is no tool 'ad'; did you mean 'add'?"),
        ("add", "[1]", "error: the arguments are no JSON object"),
        ("add", "{", "error: the arguments are no JSON: "),
        ("add", "[" * 100_000, "error: the arguments are no JSON: "),
    ],
)
def test_results_and_errors_are_text(name: str, arguments: str, result: str) -> None:
    assert run_tool([Add()], name, arguments, NEVER).startswith(result)


def test_long_results_lose_their_middle() -> None:
    assert shortened("x" * 8000) == "x" * 8000
    text = shortened("a" * 5000 + "b" * 5000, 100)
    assert text == "a" * 50 + "\n[9,900 characters left out]\n" + "b" * 50


def test_python_prints() -> None:
    tool = PythonTool(Sandbox(isolated=False))
    assert tool.run({"code": "print(6 * 7)"}, NEVER) == "42\n"
    assert tool.run({"code": "6 * 7"}, NEVER) == "(it printed nothing; use print)"
    with pytest.raises(ToolError, match=r"line 2[\s\S]*ZeroDivisionError: division by zero$"):
        tool.run({"code": "print('so far')\n1 / 0"}, NEVER)
    with pytest.raises(ToolError, match="the argument 'code'"):
        tool.run({}, NEVER)


@pytest.mark.parametrize(
    "execution,words",
    [
        (Execution("", "a\nb\n", "exit", 1), "a\nb"),
        (Execution("out\n", "", "exit", 3), "out\nit ended with status 3"),
        (Execution("", "", "signal", 11), "it ended with signal 11"),
        (Execution("out", "err", "time"), "out\nit took too long"),
        (Execution("", "", "memory"), "it took too much memory"),
        (Execution("", "\n".join(map(str, range(40))), "exit", 1), "\n".join(map(str, range(28, 40)))),
    ],
)
def test_failures_are_short(execution: Execution, words: str) -> None:
    assert failure_of(execution) == words


def test_tools_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "open", classmethod(lambda cls, unsafe: cls(not unsafe)))
    assert tools_named(None) == [] and tools_named("") == []
    (tool,) = tools_named(" python ", unsafe=True)
    assert isinstance(tool, PythonTool) and not tool.sandbox.isolated
    for names, message in (("pyhton", "pyhton"), ("python,python", "named twice"), ("python=3", "takes no value")):
        with pytest.raises(InputError, match=message):
            tools_named(names)
