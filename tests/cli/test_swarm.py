"""`synthe swarm` on the command line: from an empty folder to a rated answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def team(synthe: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A swarm of two specialists in the working folder."""
    monkeypatch.chdir(tmp_path)
    made = synthe("swarm", "init", "team", "--base", str(checkpoint))
    assert (made.exit_code, made.stdout) == (0, "team\n"), made.stderr
    for name, words in (("python", "python,debugging"), ("stories", "fiction, poems")):
        added = synthe("swarm", "add", "team", name, "--capabilities", words, "--prompt", f"You know {name}.")
        assert (added.exit_code, added.stdout) == (0, "team\n"), added.stderr
    return "team"


def test_an_answer_is_given_traced_and_rated(synthe: Run, team: str) -> None:
    done = synthe("swarm", "ask", team, "debugging", "--trace", "-n", 12, "--seed", 1)
    assert done.exit_code == 0 and done.stdout.strip(), done.stderr
    *_, last = done.stderr.splitlines()
    answer, by = last.split()[0], last.split()[2].rstrip(",")
    assert answer.startswith("ans_") and "routed to" in done.stderr and "by its capabilities" in done.stderr
    assert synthe("swarm", "rate", team, answer, "--good").exit_code == 0
    corrected = synthe("swarm", "rate", team, answer, "--bad", "--right", "python", "--correction", "Yes.")
    assert corrected.exit_code == 0
    assert "Yes." in synthe("swarm", "pairs", "list", team).stdout
    status = json.loads(synthe("swarm", "status", team, "--json").stdout)["values"]
    assert (status["answers"], status["rated"]) == (1, 1)
    assert by in synthe("swarm", "status", team).stdout and by in synthe("swarm", "pathways", team).stdout


def test_a_specialist_moves_in_a_file(synthe: Run, team: str, checkpoint: Path) -> None:
    done = synthe("swarm", "export", team, "stories", "-o", "stories.synapse")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "stories.synapse"
    assert synthe("swarm", "init", "other", "--base", str(checkpoint)).exit_code == 0
    moved = synthe("swarm", "install", "other", "stories.synapse", "--name", "tales", "--json")
    assert json.loads(moved.stdout.splitlines()[-1])["values"]["specialist"] == "tales"
    texts = [
        synthe("swarm", "ask", folder, "poems", "--specialist", name, "-n", 8, "--seed", 1, "-t", 0).stdout
        for folder, name in ((team, "stories"), ("other", "tales"))
    ]
    assert texts[0] == texts[1]


def test_events_are_json_lines(synthe: Run, team: str) -> None:
    done = synthe("swarm", "ask", team, "poems", "--specialist", "stories", "-n", 8, "--seed", 1, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "routed" and events[0]["specialists"] == ["stories"]
    assert events[-1]["event"] == "answered" and events[-1]["by"] == "stories"
    assert "".join(each["text"] for each in events if each["event"] == "token") == events[-1]["text"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ask", "gone", "x"), "is no swarm"),
        (("export", "team", "gone"), "unknown specialist 'gone'"),
        (("export", "team", "stories", "--facts", "some"), "unknown choice of facts 'some'"),
        (("install", "team", "gone.synapse"), "no such file: gone.synapse"),
        (("ask", "team", "x", "--specialist", "pyton"), "did you mean 'python'?"),
        (("ask", "team", "x", "--synthesis", "mix"), "mix"),
        (("add", "team", "law"), "nothing makes 'law' differ"),
        (("add", "team", "python", "-p", "x"), "already"),
        (("rate", "team", "ans_0", "--good"), "no answer has the id"),
        (("rate", "team", "ans_0"), "--good or --bad"),
        (("remove", "team", "pyton"), "did you mean 'python'?"),
        (("init", "team", "--base", "gone.gguf"), "no such model"),
    ],
)
def test_faults_are_a_line_and_a_hint(synthe: Run, team: str, arguments: tuple[str, ...], word: str) -> None:
    folder = Path(team) / "swarm.yaml"
    folder.write_text(
        folder.read_text().replace("  margin: 0.1", "  margin: 1").replace("threshold: 0.15", "threshold: 0")
    )
    done = synthe("swarm", *arguments)
    assert done.exit_code == 2 and word in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_swarm_is_served_alone(synthe: Run, team: str) -> None:
    done = synthe("serve", team, "--swarm", team)
    assert done.exit_code == 2 and "leave out the others" in done.stderr
