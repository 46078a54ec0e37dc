"""`synthe data`: a recipe's data or a source by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"the text of file {i}\n" * 20)
    return folder


def test_stats_count_a_source(synthe: Run, text: Path) -> None:
    shown = synthe("data", "stats", text, "--set", "data.sequence=16", "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    values = events[-1]["values"]
    assert events[-1]["event"] == "result"
    assert values["documents"] == 40
    assert values["bytes"] == sum(path.stat().st_size for path in text.iterdir())
    assert values["tokens"] == values["bytes"] + 40  # and the end of each document
    table = synthe("data", "stats", text, "--set", "data.sequence=16").stdout
    assert table.splitlines()[0].split() == ["source", "split", "documents", "bytes", "tokens", "bytes/token"]
    assert f"{values['bytes']:,}" in table
    assert "\x1b" not in table
    assert table.splitlines()[-1].startswith("unigram bits per byte")


def test_prepare_prints_the_path_last(synthe: Run, text: Path, cache: Path, recipe: Path) -> None:
    shown = synthe("data", "prepare", recipe, "--set", f"data.sources={text}")
    assert shown.exit_code == 0
    place = Path(shown.stdout.splitlines()[-1])
    assert place.is_dir() and cache in place.parents
    assert "100%" in shown.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [("stdlibb", "no such file or source: 'stdlibb'"), ("none/*.txt", "no file matches: 'none/*.txt'")],
)
def test_a_missing_source(synthe: Run, source: str, message: str) -> None:
    result = synthe("data", "prepare", source)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {message}"


def test_a_corpus_shorter_than_a_sequence(synthe: Run, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words\n")
    result = synthe("data", "prepare", short)
    assert result.exit_code == 2
    assert "is shorter than one sequence" in result.stderr.splitlines()[-2]


def test_an_empty_file(synthe: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = synthe("data", "prepare", tmp_path / "empty.txt")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-2].startswith("error: ")


def test_an_unknown_key_of_data(synthe: Run) -> None:
    result = synthe("data", "stats", "stdlib", "--set", "data.limt=1MB")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --set data.limt: unknown key 'data.limt'\nhint: did you mean 'limit'?\n",
    )
