"""Runs the `console` blocks of a page: what follows `$ `, in order, shortened, in a folder of its own.

A command starts in three seconds, most of them for torch. So the guide's run in the process of the tests, but for those
that need a shell; README's are programs, as a reader's are.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner

from synthe_cli.app import app
from tests.docs.command_lines import lines
from tests.docs.markdown import blocks
from tests.paths import RECIPES
from tests.processes import run_program

SYNTHE = Path(sys.executable).parent / "synthe"
SHELL = re.compile(r"[|&;<>$*`\\]")
SHORTER = " --set " + " --set ".join(
    [
        "train.budget=3steps",
        "train.batch=4",
        "train.micro_batch=4",
        "train.validations=1",
        "train.validation_tokens=2048",
        "runtime.precision=float32",
        "data.limit=300KB",
        "data.tokenizer.vocab=300",
    ]
)


def shortened(command: str) -> str:
    """The command with a small budget, a small tokenizer and few steps, where it trains."""
    command = re.sub(r"synthe train (recipes/\S+\.yaml)", lambda match: match[0] + SHORTER, command)
    return re.sub(r"synthe bench (mqar|parity|zoology)", lambda match: match[0] + " --steps 2", command)


def run(command: str, folder: Path, cache: Path, in_process: bool = False) -> None:
    """Runs a command line with bash, or in this process if it is one command of synthe. AssertionError where it fails,
    prints nothing or shows a traceback."""
    if in_process and command.startswith("synthe ") and not SHELL.search(command):
        _run_in_process(command, folder, cache)
        return
    environment = os.environ | {
        "PATH": f"{SYNTHE.parent}{os.pathsep}{os.environ['PATH']}",
        "SYNTHE_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = run_program(shell, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert done.stdout.strip(), command
    assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


def _run_in_process(command: str, folder: Path, cache: Path) -> None:
    with chdir(folder), mock.patch.dict(os.environ, SYNTHE_CACHE=str(cache)):
        done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, f"{command}\n{done.stderr}"
    assert done.stdout.strip(), command
    assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


def run_page(page: Path, folder: Path, cache: Path, in_process: bool = False) -> int:
    """Runs all commands of a page's `console` blocks in `folder`; returns how many."""
    shutil.copytree(RECIPES, folder / "recipes", dirs_exist_ok=True)
    commands = [line for block in blocks(page, "console") for line in lines(block)]
    for command in commands:
        run(shortened(command), folder, cache, in_process)
    return len(commands)
