"""`synthe swarm learn`, `rollback`, `history` and `status` on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.adapters.conftest import base  # noqa: F401
from tests.swarm.learning.conftest import approve, opened, rows, team  # noqa: F401


@pytest.fixture(autouse=True)
def _beside_the_team(team: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(team.path.parent)
    monkeypatch.setattr("os.nice", lambda increment: 0)  # of the tests' own process


def test_pairs_are_learned_shown_and_rolled_back(synthe: Any, opened: Any) -> None:  # noqa: F811
    waiting = synthe("swarm", "learn", "team")
    assert (waiting.exit_code, waiting.stdout) == (0, ""), waiting.stderr
    approve(opened[0], rows(range(9)))
    assert "maths has 9 of 10 approved pairs" in synthe("swarm", "learn", "team").stderr
    assert "pairs of maths: 0 to review, 9 of 10 approved" in synthe("swarm", "status", "team").stdout
    approve(opened[0], rows(range(9, 40)))
    done = synthe("swarm", "learn", "team")
    assert done.exit_code == 0 and "maths  promoted  adapters/maths/1  held-out pairs 50% -> 100% of 8" in done.stdout
    values = json.loads(synthe("swarm", "status", "team", "--json").stdout)["values"]
    (maths,) = [each for each in values["specialists"] if each["name"] == "maths"]
    assert maths["adapter"] == "adapters/maths/1" and maths["pairs"]["learned"] == 40 and maths["digest"]
    approve(opened[0], rows(range(100, 140), flipped=True))
    lines = [json.loads(line) for line in synthe("swarm", "learn", "team", "--json").stdout.splitlines()]
    assert lines[-1]["event"] == "result" and lines[-1]["values"]["outcomes"][0]["event"] == "refused"
    assert {"progress", "metric", "notice"} <= {each["event"] for each in lines}
    back = synthe("swarm", "rollback", "team", "maths")
    assert (back.exit_code, back.stdout) == (0, "maths answers with no adapter\n")
    shown = synthe("swarm", "history", "team", "--specialist", "maths").stdout
    assert all(word in shown for word in ("promoted", "refused", "rolled back", "50% -> 100%", "held out earlier"))
    entries = [json.loads(line) for line in synthe("swarm", "history", "team", "--json").stdout.splitlines()]
    assert [each["change"] for each in entries] == ["added", "promoted", "refused", "rolled back"]
    assert entries[1]["digest"] == maths["digest"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("learn", "gone"), "is no swarm"),
        (("learn", "team", "--specialist", "mats"), "did you mean 'maths'?"),
        (("rollback", "team", "mats"), "did you mean 'maths'?"),
        (("rollback", "team", "maths"), "learned nothing that could be rolled back"),
        (("history", "team", "--specialist", "mats"), "did you mean 'maths'?"),
    ],
)
def test_faults_are_a_line_and_a_hint(synthe: Any, arguments: tuple[str, ...], word: str) -> None:
    done = synthe("swarm", *arguments)
    assert done.exit_code == 2 and word in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_specialist_is_proposed_and_approved(synthe: Any, team: Any) -> None:  # noqa: F811
    nothing = synthe("swarm", "spawn", "team")
    assert nothing.exit_code == 2 and "has answered nothing yet" in nothing.stderr
    text = team.spec_path.read_text()
    for key, value in {"min_requests": "4", "min_hours": "0", "similarity": "0.2", "max_confidence": "1"}.items():
        (old,) = [line for line in text.splitlines() if line.strip().startswith(f"{key}: ")]
        text = text.replace(old, f"  {key}: {value}")
    team.spec_path.write_text(text)
    for number in range(6):
        request = f"How much tax is on income {number} of the office?"
        assert synthe("swarm", "ask", "team", request, "-n", 4, "--seed", 1).exit_code == 0
    (line,) = synthe("swarm", "spawn", "team", "--json").stdout.splitlines()
    proposal = json.loads(line)
    assert proposal["event"] == "proposal" and proposal["requests"] == 6 and proposal["prompt"].startswith("You ")
    wrong = synthe("swarm", "spawn", "team", "--approve", f"{proposal['name']}s")
    assert wrong.exit_code == 2 and f"did you mean '{proposal['name']}'?" in wrong.stderr
    made = synthe("swarm", "spawn", "team", "--approve", proposal["name"])
    assert made.exit_code == 0 and proposal["name"] in made.stdout
    assert proposal["name"] in synthe("swarm", "status", "team").stdout
    assert synthe("swarm", "spawn", "team", "--json").stdout == ""
