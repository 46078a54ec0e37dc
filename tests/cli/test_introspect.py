"""`synthe introspect`: every view of one small model, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
TEXT = "def fib(n): return 1"


def test_the_text_output_is_a_table(synthe: Run, checkpoint: Path) -> None:
    shown = synthe("introspect", checkpoint, "--text", TEXT, "--token", "7")
    assert (shown.exit_code, shown.stderr) == (0, "")
    for word in ("small", "parameters", "surprise", "attention", "added", "distance", "token 7", "reads by"):
        assert word in shown.stdout
    assert "\x1b" not in shown.stdout


def test_json_is_lines(synthe: Run, checkpoint: Path) -> None:
    shown = synthe("introspect", checkpoint, "-t", TEXT, "--json", "--what", "stream", "--layers", "0")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert lines[0]["event"] == "model"
    series = [line for line in lines if line["event"] == "series"]
    assert {line["name"] for line in series} == {"added"}
    assert all(len(line["rows"][0]) == len(TEXT) for line in series)


def test_a_page_is_written_and_named(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    shown = synthe("introspect", checkpoint, "-t", TEXT, "--html", page)
    assert shown.stdout.strip() == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_file_and_stdin_are_texts(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.py"
    file.write_text(TEXT)
    by_file = synthe("introspect", checkpoint, "--file", file).stdout
    assert by_file == synthe("introspect", checkpoint, stdin=TEXT).stdout
    assert by_file == synthe("introspect", checkpoint, "--text", TEXT).stdout


def test_two_models_are_compared(synthe: Run, checkpoint: Path) -> None:
    shown = synthe("introspect", checkpoint, "-t", TEXT, "--diff", checkpoint)
    assert shown.exit_code == 0
    assert "bits saved" in shown.stdout
    assert "difference per token" in shown.stdout


def test_watching_off_a_terminal_is_lines(synthe: Run, checkpoint: Path) -> None:
    shown = synthe("introspect", checkpoint, "--watch", stdin=TEXT)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1].startswith(f"{len(TEXT)}/{len(TEXT)}  ")


def test_every_name_is_documented(synthe: Run) -> None:
    shown = synthe("introspect", "--schema").stdout
    for name in ("beta", "log_input", "chosen", "read_slots", "gate_open", "depth", "innovation", "persistence_*"):
        assert f" {name} " in shown
    rows = [json.loads(line) for line in synthe("introspect", "--schema", "--json").stdout.splitlines()]
    assert {"learner", "name", "axes", "group", "meaning", "summary"} == set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", ""], "there is no text to analyse"),
        (["--text", "x", "--layers", "0-9"], "the model has blocks 0 to 0"),
        (["--text", "x", "--what", "gate"], "unknown group of figures 'gate'"),
        (["--text", "x", "--token", "5"], "there is no token 5"),
        (["--text", "x", "--file", "y"], "--text and --file exclude each other"),
        (["--file", "no/such/file"], "no such file"),
        (["--text", "x", "--html", "no/such/folder/x.html"], "no such folder"),
        (["--text", "x", "--watch", "--json"], "--watch cannot be combined with other views"),
        (["--text", "x", "--diff", "no/such/run"], "no such checkpoint"),
    ],
)
def test_invalid_arguments_are_one_line(synthe: Run, checkpoint: Path, arguments: list[str], says: str) -> None:
    shown = synthe("introspect", checkpoint, *arguments)
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"error: {says}") or says in shown.stderr.splitlines()[0]
    assert shown.stdout == ""


def test_a_missing_checkpoint_argument_is_an_error(synthe: Run) -> None:
    shown = synthe("introspect")
    assert (shown.exit_code, shown.stderr.splitlines()[0]) == (2, "error: CHECKPOINT is missing")


def test_a_binary_file_is_an_error(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    shown = synthe("introspect", checkpoint, "--file", tmp_path / "x")
    assert (shown.exit_code, "is not UTF-8 text" in shown.stderr) == (2, True)
