"""`synthe swarm knowledge` and `synthe swarm pairs` from the outside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from synthe_cli.commands import swarm_knowledge, swarm_pairs
from synthe_core.errors import InputError, WorkError
from synthe_core.swarm.feedback.pairs import Pairs, PairSource
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.store import Store
from tests.merging.models import checkpoint

Run = Callable[..., str]


@pytest.fixture
def team(tmp_path: Path) -> Path:
    checkpoint(tmp_path / "base", None)
    SwarmFolder.create(tmp_path / "team", str(tmp_path / "base"))
    return tmp_path / "team"


def invoke(app: Any, *arguments: object) -> str:
    """What the command prints; its error is raised."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def knowledge(*arguments: object) -> str:
    return invoke(swarm_knowledge.app, *arguments)


def pairs(*arguments: object) -> str:
    return invoke(swarm_pairs.app, *arguments)


def test_facts_are_added_searched_corrected_and_ended(team: Path) -> None:
    assert knowledge("add", team, "office", "opens at", "9:00") == "1  new\n"
    assert knowledge("add", team, "user", "lives in", "Paris", "--user", "ada") == "2  new\n"
    assert knowledge("add", team, "user", "lives in", "Lyon", "--user", "ada") == "3  superseding\n"
    assert knowledge("correct", team, 3, "Nice", "-u", "ada") == "4\n"
    lines = knowledge("search", team, "-u", "ada").splitlines()
    assert [line.split()[0] for line in lines] == ["fact", "1", "4"]
    assert "Nice" in lines[2] and "trusted" in lines[2]
    history = [json.loads(line) for line in knowledge("search", team, "-u", "ada", "--history", "--json").splitlines()]
    assert [fact["object"] for fact in history] == ["9:00", "Paris", "Lyon", "Nice"]
    assert [fact["superseded_by"] for fact in history] == [None, 3, 4, None]
    assert "Nice" in knowledge("search", team, "where does the user live", "-u", "ada")
    assert "Nice" not in knowledge("search", team, "where does the user live")
    knowledge("forget", team, 4, "-u", "ada")
    assert "Nice" not in knowledge("search", team, "-u", "ada")


def test_a_swarm_in_a_commands_place_lists_what_there_is(team: Path) -> None:
    knowledge("add", team, "office", "opens at", "9:00")
    assert knowledge(team) == knowledge("search", team) != ""
    assert knowledge(team, "office", "--json") == knowledge("search", team, "office", "--json")
    Pairs(Store(team / "swarm.db")).add("ada", "2+2?", "4", "5", source=PairSource.IMPORTED, specialist="maths")
    assert pairs(team) == pairs("list", team) and "2+2?" in pairs(team)
    for name in (team.parent, "serch"):
        with pytest.raises(InputError, match="unknown command"):
            knowledge(name)


def test_untrusted_facts_are_shown_and_trusted(team: Path) -> None:
    Knowledge(Store(team / "swarm.db")).record_turn("ada", "c", "user", "The capital of France is Paris.")
    assert "to review" in knowledge("search", team, "France", "-u", "ada")
    assert knowledge("search", team, "France", "-u", "ada", "--trusted") == ""
    assert knowledge("trust", team, 1, "-u", "ada") == ""
    assert "trusted" in knowledge("search", team, "France", "-u", "ada", "--trusted")


def test_a_users_data_is_exported_and_deleted(team: Path) -> None:
    Knowledge(Store(team / "swarm.db")).record_turn("ada", "c", "user", "I live in Paris.")
    exported = json.loads(knowledge("export", team, "-u", "ada"))
    assert [fact["object"] for fact in exported["facts"]] == ["Paris"]
    out = team.parent / "ada.json"
    assert knowledge("export", team, "-u", "ada", "-o", out) == f"{out}\n"
    assert json.loads(out.read_text())["conversations"]["c"][0]["text"] == "I live in Paris."
    assert "facts" in knowledge("forget", team, "-u", "ada", "--all")
    assert knowledge("search", team, "-u", "ada") == ""
    for arguments in ((), (1, "--all")):
        with pytest.raises(InputError, match="name a fact, or --all"):
            knowledge("forget", team, *arguments)


def test_pairs_are_listed_reviewed_and_exported(team: Path) -> None:
    stored = Pairs(Store(team / "swarm.db"))
    for number in range(3):
        stored.add(
            "ada", f"question {number}", "good\x1b[31m", "bad", source=PairSource.CORRECTION, specialist="python"
        )
    assert len(pairs("list", team).splitlines()) == 4
    assert "\x1b" not in pairs("list", team)
    assert pairs("review", team, "--approve", 1, "--reject", 2) == "1  approved\n2  rejected\n"
    assert [json.loads(line)["id"] for line in pairs("list", team, "--state", "new", "--json").splitlines()] == [3]
    assert pairs("list", team, "--specialist", "law") == ""
    out = team.parent / "pairs.jsonl"
    pairs("export", team, "-o", out)
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["question 0"]
    with pytest.raises(InputError, match="stdin is no terminal"):
        pairs("review", team)
    with pytest.raises(InputError, match="unknown state"):
        pairs("list", team, "--state", "nwe")


def test_swarm_yaml_limits_the_database(team: Path) -> None:
    path = team / "swarm.yaml"
    path.write_text(re.sub(r"max_megabytes: \d+", "max_megabytes: 1", path.read_text()))
    with pytest.raises(WorkError, match="is full"):
        for number in range(2000):
            knowledge("add", team, f"{number} {'x' * 900}", "y" * 900, "z" * 900)
    assert (team / "swarm.db").stat().st_size <= 1 << 20
    assert "facts" in knowledge("forget", team, "--all")
    assert knowledge("add", team, "office", "opens at", "9:00").endswith("new\n")


def test_the_verifier_is_trained_with_the_base(team: Path) -> None:
    data = team.parent / "data"
    data.mkdir()
    rows = [
        {"premise": f"The shop {n} sells books.", "hypothesis": text, "label": label}
        for n in range(12)
        for text, label in (
            (f"The shop {n} sells books.", "entailment"),
            (f"The shop {n} does not sell books.", "contradiction"),
            ("It rains.", "neutral"),
        )
    ]
    for half in ("train", "test"):
        (data / f"shops.{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = knowledge("verifier", team, "--data", data).splitlines()
    assert lines[-1] == str(team / "verifier.safetensors")
    assert any(line.startswith("shops, features and states") for line in lines)


def test_a_folder_that_is_no_swarm_is_named(tmp_path: Path) -> None:
    for command in (lambda: knowledge("search", tmp_path), lambda: pairs("list", tmp_path)):
        with pytest.raises(InputError, match="is no swarm"):
            command()
    assert list(tmp_path.iterdir()) == []
