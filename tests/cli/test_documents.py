"""`synthe documents` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def handbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "handbook"
    folder.mkdir()
    (folder / "leave.md").write_text("# Leave\n\nEverybody has 30 days of holiday.\n")
    (folder / "money.txt").write_text("Refunds are paid within fourteen days.\n")
    return folder


def test_documents_are_indexed_searched_listed_and_removed(synthe: Run, handbook: Path) -> None:
    made = synthe("documents", "index", "handbook", "--out", "docs.db")
    assert made.exit_code == 0, made.stderr
    assert made.stdout.splitlines() == [
        "2 added, 0 changed, 0 removed, 0 unchanged, 0 failed; documents: 2, passages: 2", "docs.db"
    ]  # fmt: skip
    hit = synthe("documents", "search", "docs.db", "when is a refund paid")
    assert hit.stdout == "1. money  (handbook/money.txt)\nRefunds are paid within fourteen days.\n\n"
    (row,) = [
        json.loads(line) for line in synthe("documents", "search", "docs.db", "refund", "--json").stdout.splitlines()
    ]
    assert (row["event"], row["document"], row["number"]) == ("passage", "handbook/money.txt", 0)
    assert "handbook/leave.md   Leave  43 B  1" in synthe("documents", "list", "docs.db").stdout
    assert synthe("documents", "remove", "docs.db", "handbook/money.txt").stdout == "1 removed\n"
    none = synthe("documents", "search", "docs.db", "refund")
    assert (none.exit_code, none.stdout) == (0, "") and "no passage" in none.stderr


def test_a_model_embeds_passages_and_is_remembered(synthe: Run, handbook: Path, checkpoint: Path) -> None:
    made = synthe("documents", "index", "handbook", "--out", "docs.db", "--model", str(checkpoint), "--json")
    result = json.loads(made.stdout.splitlines()[-1])
    assert result["values"]["passages"] == 2, made.stderr
    hits = synthe("documents", "search", "docs.db", "zzz", "--by", "meaning", "-k", 1)
    assert hits.exit_code == 0 and hits.stdout.startswith("1. "), hits.stderr
    (handbook / "new.md").write_text("New.\n")
    again = synthe("documents", "index", "handbook", "--out", "docs.db")
    assert "1 added" in again.stdout and "embedding" in again.stderr


def test_bad_input_is_one_line(synthe: Run, handbook: Path) -> None:
    for arguments, message in (
        (("search", "none.db", "x"), "no such index: none.db"),
        (("index", "none", "--out", "docs.db"), "no such file or folder"),
        (("index", "handbook", "--out", "none/docs.db"), "no such folder: none"),
        (("index", "handbook", "--out", "handbook/leave.md"), "no index of documents"),
        (("index", "handbook", "--out", "docs.db", "--model", "none"), "none"),
        (("search", "docs.db", "x", "--by", "meaning"), "no embeddings"),
        (("remove", "docs.db", "handbook/leve.md"), "no document handbook/leve.md"),
    ):
        if arguments[0] != "index":
            synthe("documents", "index", "handbook", "--out", "docs.db")
        done = synthe("documents", *arguments)
        assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr, arguments
    assert (handbook / "leave.md").read_text().startswith("# Leave")
