"""No test waits for ever: programs are started with a limit."""

from __future__ import annotations

import ast
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import Terminal, start

STARTERS = ("Popen", "run", "call", "check_call", "check_output")
FILES = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "processes.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_are_started_with_a_limit(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)]
    assert not {f"subprocess.{name}" for name in STARTERS} & set(names), "use tests.processes"


def test_a_program_over_its_limit_is_killed() -> None:
    began = time.monotonic()
    process = start([sys.executable, "-c", "import time; time.sleep(60)"], limit=0.5)
    assert process.wait(30) != 0 and time.monotonic() - began < 30


def test_waits_on_a_terminal_have_a_limit() -> None:
    terminal = Terminal("-c", "import time; print('ready', flush=True); time.sleep(60)")
    terminal.until("ready")
    with pytest.raises(AssertionError, match="no 'more'"):
        terminal.until("more", seconds=0.2)
    with pytest.raises(AssertionError, match="still running"):
        terminal.exit_code(seconds=0.2)
    terminal.close()
