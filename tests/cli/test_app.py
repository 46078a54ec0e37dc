"""The frame: help, version, names that are not known, and what every kind of failure looks like."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import synthe_core
from synthe_cli import app as application
from synthe_cli.app import COMMANDS, app
from synthe_core.errors import InputError, Interrupted, WorkError
from tests.paths import ROOT
from tests.processes import run_program, start

Run = Callable[..., Any]


def every_command() -> list[list[str]]:
    """The path of every command and group, found by walking the table."""
    root = typer.main.get_command(app)
    paths: list[list[str]] = []

    def walk(command: Any, path: list[str]) -> None:
        paths.append(path)
        context = typer.Context(command)
        for name in command.list_commands(context) if hasattr(command, "list_commands") else []:
            walk(command.get_command(context, name), [*path, name])

    walk(root, [])
    return paths


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_has_help(synthe: Run, path: list[str]) -> None:
    for flag in ("--help", "-h"):
        shown = synthe(*path, flag)
        assert shown.exit_code == 0
        assert shown.stdout.startswith(f"Usage: synthe {' '.join(path)}".rstrip())
        assert "\x1b" not in shown.stdout
    is_group = "Commands:" in shown.stdout
    assert "..." not in shown.stdout.partition("Commands:")[2].partition("\n\n")[0]  # no description is cut off
    if not is_group or not path:
        examples = shown.stdout.partition("Examples:\n")[2].splitlines()
        assert len(examples) >= 2
        assert all(line.startswith(("  synthe ", "  torchrun ")) for line in examples)


@pytest.mark.parametrize("path", [p for p in every_command() if p], ids=" ".join)
def test_examples_name_real_options(path: list[str], synthe: Run) -> None:
    """Whatever an example passes is an option that the command has."""
    shown = synthe(*path, "--help").stdout
    options, _, examples = shown.partition("Examples:\n")
    for line in examples.splitlines():
        for part in line.split("   ")[0].split("|"):
            words = part.split()
            if words[: len(path) + 1] == ["synthe", *path]:
                if "Commands:" in options:  # the example may be of one of them
                    options += synthe(*words[1 : len(path) + 2], "--help").stdout.partition("Examples:\n")[0]
                used = [word for word in words if word.startswith("-") and word != "-"]
                assert all(any(f" {word}{end}" in options for end in (" ", ",", "\n")) for word in used), line


def test_help_lists_the_command_table(synthe: Run) -> None:
    shown = synthe().stdout
    assert shown == synthe("--help").stdout
    for name, (_, line) in COMMANDS.items():
        assert any(row.split() == [name, *line.split()] for row in shown.splitlines())


def test_version(synthe: Run) -> None:
    assert synthe("--version").stdout == f"synthe {synthe_core.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["trian"], "unknown command 'trian'", "did you mean 'train'?"),
        (["zzzzzz"], "unknown command 'zzzzzz'", "known: "),
        (["recipe", "shwo"], "unknown command 'shwo'", "did you mean 'show'?"),
        (["--verison"], "unknown option '--verison'", "did you mean '--version'?"),
        (["generate", "x", "--temprature", "1"], "unknown option '--temprature'", "did you mean '--temperature'?"),
        (["generate"], "missing argument 'CHECKPOINT'", "see `synthe generate --help`"),
        (["generate", "x", "--tokens", "many"], "invalid value for '--tokens'", "see `synthe generate --help`"),
        (["recipe", "show", "a", "b"], "unexpected extra argument", "see `synthe recipe show --help`"),
    ],
)
def test_a_misspelled_command_gets_a_suggestion(synthe: Run, arguments: list[str], message: str, hint: str) -> None:
    result = synthe(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert message in first
    assert second.startswith(f"hint: {hint}")


def failing(error: BaseException) -> typer.Typer:
    """An application like ours, one command of which fails."""
    inner = typer.Typer(cls=application.Root, **application.SETTINGS)

    @inner.command()
    def fail() -> None:
        raise error

    @inner.callback()
    def root() -> None: ...

    return inner


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such file: a", "did you mean b?"), 2, "error: no such file: a\nhint: did you mean b?\n"),
        (WorkError("the disk is full"), 1, "error: the disk is full\n"),
        (Interrupted("stopped", "go on with --resume"), 130, "stopped\nhint: go on with --resume\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(28, "No space left on device", "runs/a"), 1, "error: runs/a: No space left on device\n"),
        (MemoryError(), 1, "error: out of memory\nhint: use a smaller train.batch or data.sequence\n"),
        (
            ValueError("a\nb"),
            1,
            "error: internal: ValueError: a b\n"
            "hint: this is a bug in synthe; set SYNTHE_TRACEBACK=1 for the traceback\n",
        ),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(application.Root, "list_commands", lambda self, ctx: ["fail"])
    monkeypatch.setattr(application.Root, "get_command", lambda self, ctx, name: self.commands.get(name))
    shown = CliRunner().invoke(failing(error), ["fail"])
    assert (shown.exit_code, shown.stdout) == (code, "")
    assert shown.stderr == message
    monkeypatch.setenv("SYNTHE_TRACEBACK", "1")
    assert "Traceback" in CliRunner().invoke(failing(error), ["fail"]).stderr


def test_a_closed_pipe_is_no_error() -> None:
    """As `head` does: quiet, and the code of a process that SIGPIPE ended."""
    command = [sys.executable, "-m", "synthe_cli.app", "--help"]
    surroundings = {**os.environ, "PYTHONPATH": str(Path(synthe_core.__file__).parent.parent)}
    running = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait() == 141


def test_an_error_of_a_command_is_one_line(monkeypatch: pytest.MonkeyPatch, synthe: Run) -> None:
    """A plugin's command, found through the table like ours."""
    monkeypatch.setitem(application.TABLE._entries, "extra", "synthe_cli.commands.recipe:app")
    assert re.search(r"extra +A plugin\.", synthe("--help").stdout)
    assert synthe("extra", "--help").exit_code == 0


def test_only_the_command_line_prints() -> None:
    """The core yields events; a stray print would spoil stdout for the program that reads it."""
    core = Path(synthe_core.__file__).parent
    for path in core.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        assert "print" not in names, path


def _closed(command: str) -> subprocess.CompletedProcess[str]:
    text = f"{sys.executable} -m synthe_cli.app {command}"
    return run_program(["bash", "-c", text], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("stream", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_internal_error(stream: str) -> None:
    done = _closed(f"recipe schema mlp {stream}")
    assert done.returncode == 0 and "internal" not in done.stderr


def test_sigterm_ends_as_ctrl_c_does() -> None:
    code = "import os, signal, synthe_cli.app as a; a.app = lambda: os.kill(os.getpid(), signal.SIGTERM); a.main()"
    done = run_program([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "KeyboardInterrupt" in done.stderr


WAIT_POLICY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "passive"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "0"}])
def test_threads_wait_as_the_user_says(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAIT_POLICY:
        monkeypatch.setenv(name, "")  # restored afterwards
        del os.environ[name]
    os.environ.update(own)
    application._set_wait_policy()
    expected = own or dict(zip(WAIT_POLICY, ("active", "1000", "1"), strict=True))
    assert {name: os.environ[name] for name in WAIT_POLICY if name in os.environ} == expected
