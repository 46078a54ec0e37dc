"""What an agent may call."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from synthe_core.errors import SyntheError, closest

MAX_RESULT = 8_000
"""Characters of a result that the model reads; of a longer one its beginning and its end."""


class Tool(Protocol):
    """parameters: the JSON Schema of the arguments, an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def run(self, arguments: Mapping[str, Any], cancelled: threading.Event) -> str:
        """The result as text for the model. Raises ToolError for what the model can correct. It ends soon after
        `cancelled` is set."""
        ...


class ToolError(Exception):
    """A call failed; the model reads why, and may try again."""


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools in OpenAI's form."""
    return [
        {
            "type": "function",
            "function": {"name": each.name, "description": each.description, "parameters": dict(each.parameters)},
        }
        for each in tools
    ]


def run_tool(tools: Sequence[Tool], name: str, arguments: str, cancelled: threading.Event) -> str:
    """The result of a call, or what is wrong with it, for the model."""
    tool = next((each for each in tools if each.name == name), None)
    if tool is None:
        near = closest(name, [each.name for each in tools])
        return f"error: there is no tool {name!r}" + (f"; did you mean {near!r}?" if near else "")
    try:
        values = json.loads(arguments) if arguments.strip() else {}
        if not isinstance(values, dict):
            raise ToolError("the arguments are no JSON object")
        return shortened(tool.run(values, cancelled))
    except (ToolError, SyntheError) as error:
        return shortened(f"error: {error}")
    except (ValueError, RecursionError) as error:
        return shortened(f"error: the arguments are no JSON: {error}")


def shortened(text: str, limit: int = MAX_RESULT) -> str:
    """The text, without its middle if it is longer than `limit` characters: an error stands at the end."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"
