"""The live table of a sweep: one row per trial, redrawn in place."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from synthe_cli.live import LiveRenderer
from synthe_core.events import Event, Measurement, Metric, Notice, Progress

ENDED = {"accuracy": 0.992, "chance": 0.125, "steps": 780, "ended": "solved", "seconds": 31.0}
SWEEP: list[Event] = [
    Progress("sweep", 0, 4, "trials"),
    Progress("delta lr=0.001", 0, 1560, "steps"),
    Progress("mamba lr=0.001", 0, 1560, "steps"),
    Progress("delta lr=0.001", 780, 1560, "steps", 30.0),
    Metric(780, "validation", {"loss": 0.1, "accuracy": 0.992}, "delta lr=0.001"),
    Progress("mamba lr=0.001", 660, 1560, "steps", 40.0),
    Metric(660, "validation", {"loss": 2.1, "accuracy": 0.231}, "mamba lr=0.001"),
    Measurement("delta lr=0.001", ENDED),  # type: ignore[arg-type]
    Progress("delta lr=1e+30", 0, 1560, "steps"),
    Notice("delta lr=1e+30: the loss is not finite at step 195; the trial is left out", "warning"),
    Measurement("delta lr=1e+30", {"ended": "failed"}),
    Progress("sweep", 2, 4, "trials", 200.0),
]


def frame(events: list[Event], width: int, height: int = 24) -> list[str]:
    """The lines at the foot of a terminal once these were shown."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    with LiveRenderer(console) as shown:
        for event in events:
            shown.show(event)
    with console.capture() as capture:
        console.print(shown._view())
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_for_each_trial(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    solved, failed, running, whole = frame(SWEEP, width)
    assert solved.split() == ["delta", "lr=0.001", "solved", "780", "steps", "99.2%", "31s"]
    assert failed.split() == ["delta", "lr=1e+30", "failed"]
    assert running.startswith("mamba lr=0.001  ━━━") and running.split("━ ")[1].split() == [
        *("42%", "660/1560", "steps", "23.1%", "40s", "left")
    ]
    assert whole.startswith("sweep           ━━━") and whole.split()[-5:] == ["50%", "2/4", "trials", "3m20s", "left"]
    assert max(map(len, (solved, failed, running, whole))) <= width
    assert capsys.readouterr().out == ""  # the table at the end says it all


def test_names_are_shortened_and_figures_are_not() -> None:
    long = [Progress("a-model-of-a-very-long-name " * 4, 10, 20, "steps", 5.0)]
    row, _ = frame(SWEEP[:1] + long, 80)
    assert "…" in row and row.endswith("50%  10/20 steps    5s left") and len(row) <= 80


def test_the_latest_trials_that_fit_are_shown() -> None:
    many: list[Event] = [Measurement(f"trial {i}", ENDED) for i in range(200)]  # type: ignore[arg-type]
    lines = frame([*SWEEP[:1], SWEEP[1], *many], 100, height=12)
    assert len(lines) < 12
    assert lines[0] == "192 more"
    assert [line.split()[1] for line in lines[1:9]] == [str(i) for i in range(192, 200)]
    assert lines[9].startswith("delta lr=0.001") and lines[10].startswith("sweep")


def test_one_trial_has_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(frame([event for event in SWEEP if getattr(event, "what", "") == "delta lr=0.001"], 80)) == 1
    events = [SWEEP[1], Progress("something else", 1, 2), SWEEP[7]]
    assert len(frame(events, 80)) == 1  # without a sweep only the last task is shown
    assert capsys.readouterr().out.startswith("delta lr=0.001  accuracy 99.2%")  # and a figure of no task is a result
