"""The tools that commands take by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synthe_core.agents.python_tool import PythonTool
from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.agents.tool import Tool
from synthe_core.errors import InputError, unknown
from synthe_core.registry import Table

OWN = {"python": "synthe_core.agents.catalog:python_tool", "search": "synthe_core.agents.catalog:search_tool"}
TOOLS = Table("tool", "synthe.tools", OWN)
"""What makes a tool of the text after its name and `=`, if any, and whether it may run without isolation."""


def python_tool(value: str | None, unsafe: bool) -> Tool:
    """The tool `python`. InputError where programs cannot be isolated, unless `unsafe`."""
    if value is not None:
        raise InputError("the tool python takes no value", "write --tools python")
    return PythonTool(Sandbox.open(unsafe=unsafe))


def search_tool(value: str | None, unsafe: bool) -> Tool:
    """The tool `search` over the index at the path `value`. InputError for what is no index."""
    if not value:
        raise InputError("the tool search needs an index", "write --tools search=docs.db")

    from synthe_core.agents.search_tool import SearchTool
    from synthe_core.retrieval.opening import open_searcher

    return SearchTool(open_searcher(Path(value).expanduser()))


def tools_named(names: str | None, *, unsafe: bool = False) -> Sequence[Tool]:
    """The tools of a list such as `python,search=docs.db`."""
    tools: list[Tool] = []
    for each in filter(None, (part.strip() for part in (names or "").split(","))):
        name, separator, value = each.partition("=")
        if any(tool.name == name for tool in tools):
            raise InputError(f"the tool {name} is named twice")
        if name not in TOOLS:
            raise unknown("tool", name, list(TOOLS))
        tools.append(TOOLS[name](value if separator else None, unsafe))
    return tools
