"""The tool that runs Python programs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from synthe_core.agents.sandbox.limits import Execution
from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.agents.tool import ToolError

LAST_LINES = 12
"""Lines of an error that the model reads."""
ENDINGS = {
    "time": "it took too long",
    "memory": "it took too much memory",
    "processes": "it started too many processes",
    "files": "it made too many files",
    "cancelled": "it was cancelled",
}


class PythonTool:
    """Runs a program in the sandbox. Each starts in an empty folder, and nothing stays for the next."""

    name = "python"
    description = "Runs a Python program with the standard library and returns what it prints."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the program; print what you want to know"}},
        "required": ["code"],
        "additionalProperties": False,
    }

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def run(self, arguments: Mapping[str, Any], cancelled: threading.Event) -> str:
        """What the program prints. ToolError with the last lines of its errors if it fails."""
        code = arguments.get("code")
        if not isinstance(code, str):
            raise ToolError("the argument 'code' is the text of a program")
        execution = self.sandbox.run(code, cancelled=cancelled)
        if execution.succeeded:
            return execution.stdout or "(it printed nothing; use print)"
        raise ToolError(failure_of(execution))


def failure_of(execution: Execution) -> str:
    """Why a program failed: its output, and the last lines of its errors."""
    words = ENDINGS.get(execution.ending)
    if words is None:
        what = f"status {execution.code}" if execution.ending == "exit" else f"signal {execution.code}"
        words = "\n".join(execution.stderr.rstrip().splitlines()[-LAST_LINES:]) or f"it ended with {what}"
    return f"{execution.stdout.rstrip()}\n{words}".strip()
