"""The completion scripts in completions/ are those that `synthe --show-completion` prints.

python -m tests.cli.test_completions        writes them anew
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.completion import get_completion_script

from tests.paths import ROOT
from tests.processes import run_program

MADE_WITH = "0.29"
FILES = {"bash": "synthe.bash", "zsh": "_synthe", "fish": "synthe.fish"}


def script(shell: str) -> str:
    return get_completion_script(prog_name="synthe", complete_var="_SYNTHE_COMPLETE", shell=shell) + "\n"


@pytest.mark.skipif(not version("typer").startswith(MADE_WITH), reason=f"scripts are made with typer {MADE_WITH}")
@pytest.mark.parametrize("shell", FILES)
def test_scripts_are_current(shell: str) -> None:
    assert (ROOT / "completions" / FILES[shell]).read_text() == script(shell)


@pytest.mark.parametrize("shell", FILES)
def test_scripts_are_sound(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    run_program([shell, "-n", str(ROOT / "completions" / FILES[shell])], check=True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("synthe ge", ["generate"]),
        ("synthe recipe ", ["show", "validate", "schema"]),
        ("synthe generate --temp", ["--temperature"]),
        ("synthe train --data x --res", ["--resume"]),
        ("synthe train lit", ["little"]),
        ("synthe generate runs/m", ["runs/mine"]),
        ("synthe hardware --device c", ["cpu", "cuda"]),
    ],
)
def test_the_shell_is_offered(tmp_path: Path, line: str, offered: list[str]) -> None:
    """What the bash script asks for when TAB is pressed at the end of `line`."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "little.yaml").touch()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_SYNTHE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "from synthe_cli.app import main; main()"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **words}
    done = run_program(command, capture_output=True, text=True, env=surroundings, cwd=tmp_path)
    assert done.stdout.split() == offered, done.stderr


if __name__ == "__main__":
    for name, file in FILES.items():
        (ROOT / "completions" / file).write_text(script(name))
