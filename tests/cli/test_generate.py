"""`synthe generate`, on a model that was never trained: what matters is what comes out where."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.processes import start

Run = Callable[..., Any]


def test_it_prints_the_prompt_and_its_continuation(synthe: Run, checkpoint: Path) -> None:
    first = synthe("generate", checkpoint, "-p", "def ", "-n", 20, "--seed", 1)
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout.startswith("def ") and len(first.stdout) > 6
    assert synthe("generate", checkpoint, "-p", "def ", "-n", 20, "--seed", 1).stdout == first.stdout
    assert synthe("generate", checkpoint, "-p", "def ", "-n", 20, "--seed", 2).stdout != first.stdout


def test_several_prompts_are_a_batch(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("from a file", encoding="utf-8")
    arguments = ["generate", checkpoint, "-p", "one", "-p", "two", "-f", file, "-n", 8, "--temperature", 0]
    rows = [json.loads(line) for line in synthe(*arguments, "--json").stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two", "from a file"]
    assert all(isinstance(row["text"], str) for row in rows)
    text = synthe(*arguments).stdout
    assert all(f"--- {i}\n{row['prompt']}{row['text']}" in text for i, row in enumerate(rows, 1))
    alone = json.loads(synthe("generate", checkpoint, "-p", "two", "-n", 8, "--temperature", 0, "--json").stdout)
    assert alone == rows[1]


def test_a_session_continues_exactly(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    greedy = ["generate", checkpoint, "--temperature", 0, "--json"]
    whole = json.loads(synthe(*greedy, "-p", "abc", "-n", 12).stdout)["text"]
    first = json.loads(synthe(*greedy, "-p", "abc", "-n", 5, "--state-out", tmp_path / "s").stdout)["text"]
    rest = json.loads(synthe(*greedy, "-n", 7, "--state-in", tmp_path / "s").stdout)["text"]
    # A character may be cut between the two halves; what is whole must be equal.
    assert whole.replace("\ufffd", "") == (first + rest).replace("\ufffd", "")


def test_a_checkpoint_path_is_read_from_stdin(synthe: Run, checkpoint: Path) -> None:
    expected = synthe("generate", checkpoint, "-p", "a", "-n", 4).stdout
    for upstream in (f"{checkpoint}\n", f"something else\n{checkpoint}\n\n", json.dumps({"path": str(checkpoint)})):
        assert synthe("generate", "-", "-p", "a", "-n", 4, stdin=upstream).stdout == expected


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("", "no checkpoint path on stdin"),
        ("\n\n", "no checkpoint path on stdin"),
        ('{"event": "notice"}\n', "the JSON on stdin has no path"),
        ("no/such/run\n", "no such checkpoint: no/such/run"),
    ],
)
def test_a_failed_command_before_the_pipe(synthe: Run, stdin: str, message: str) -> None:
    result = synthe("generate", "-", stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {message}"
    assert result.stderr.splitlines()[1].startswith("hint: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature: input should be greater than or equal to 0, not -1.0"),
        (["--top-p", "0"], "--top-p: input should be greater than 0, not 0.0"),
        (["--repetition-penalty", "0"], "--repetition-penalty: input should be greater than or equal to 0.01, not 0.0"),
        (["--prompt-file", "no-such.txt"], "no such prompt file: no-such.txt"),
        (["--state-in", "no-such.state"], "no such session: no-such.state"),
        (["--pathways", "no-such.state"], "no such session: no-such.state"),
        (["--pathways", "a", "--state-in", "b"], "--pathways is for new texts, and --state-in continues one"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_invalid_arguments(synthe: Run, checkpoint: Path, arguments: list[str], message: str) -> None:
    result = synthe("generate", checkpoint, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {message}"


def test_a_binary_prompt_file(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"ok\xff")
    result = synthe("generate", checkpoint, "-f", tmp_path / "prompt")
    assert result.exit_code == 2
    assert "is not UTF-8 text (byte 2)" in result.stderr


def test_a_damaged_checkpoint(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = synthe("generate", broken)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {weights} is damaged: ")
    assert result.stderr.splitlines()[1].startswith("hint: ")


def test_a_checkpoint_of_a_newer_format(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(checkpoint, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    result = synthe("generate", newer)
    assert result.exit_code == 2
    assert "has checkpoint format 99" in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("hint: a newer synthe wrote it")


def test_text_is_streamed(checkpoint: Path) -> None:
    """The prompt is there before the text that follows it: a reader need not wait for the end."""
    command = [sys.executable, "-m", "synthe_cli.app", "generate", str(checkpoint), "-p", "begin", "-n", "100000"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings)
    assert running.stdout is not None and running.stderr is not None
    assert running.stdout.read(6).startswith(b"begin")
    assert running.poll() is None
    running.stdout.close()  # and a reader that leaves ends the writing, quietly
    assert running.stderr.read() == b""
    running.stderr.close()
    assert running.wait() == 141


def test_matrices_may_be_quantised_in_memory(synthe: Run, checkpoint: Path) -> None:
    arguments = ["generate", checkpoint, "-p", "abc", "-n", 8, "--temperature", 0]
    exact = synthe(*arguments)
    assert synthe(*arguments, "--weights", "float32").stdout == exact.stdout and exact.stderr == ""
    quantised = synthe(*arguments, "--weights", "int8")
    assert quantised.exit_code == 0 and quantised.stdout.startswith("abc")
    assert quantised.stderr.startswith("weights: int8 weights (") and "as --weights says" in quantised.stderr


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("int9", "unknown format of weights 'int9'"),
        ("as_stored", "has its weights in float32: as they are stored, nothing is quantised"),
    ],
)
def test_weights_that_cannot_be_had(synthe: Run, checkpoint: Path, weights: str, message: str) -> None:
    result = synthe("generate", checkpoint, "--weights", weights)
    assert result.exit_code == 2 and message in result.stderr and "hint: " in result.stderr


def test_drafts_leave_the_text_as_it_is(synthe: Run, checkpoint: Path) -> None:
    arguments = ["generate", checkpoint, "-p", "abc abc abc", "-n", 40, "--temperature", 0]
    expected = synthe(*arguments)
    for how in ("ngram", f"draft={checkpoint}"):
        drafted = synthe(*arguments, "--speculate", how)
        assert (drafted.exit_code, drafted.stdout) == (0, expected.stdout), drafted.stderr
        assert re.search(r"^speculation: .*: \d+ of \d+ drafted tokens accepted$", drafted.stderr, re.M)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("often", "unknown way to speculate 'often'"),
        ("draft", "no model named"),
        ("draft=nowhere", "no such"),
        ("early-exit", "the model has a single block"),
    ],
)
def test_drafts_that_cannot_be_had(synthe: Run, checkpoint: Path, how: str, message: str) -> None:
    result = synthe("generate", checkpoint, "--speculate", how)
    assert (result.exit_code, result.stdout) == (2, "") and message in result.stderr and "hint: " in result.stderr
