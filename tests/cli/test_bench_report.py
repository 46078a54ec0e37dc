"""`synthe bench report` and `synthe bench list`, and the tables that `synthe bench TASK` ends with."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_cli import bench_table
from synthe_core.benchmarks.synthetic import report
from synthe_core.tasks import TASKS
from tests.benchmarks.synthetic.trials import keep, record

Run = Callable[..., Any]


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    records = [record([0.9, 0.6], lr=lr, seed=seed) for lr in (1e-3, 3e-3) for seed in range(2)]
    return keep([*records, record([0.95, 0.03], label="mamba")], tmp_path / "mqar")


def test_report_prints_the_table_and_last_the_page(synthe: Run, trials: Path) -> None:
    result = synthe("bench", "report", trials)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "mqar, quick preset: chance 3.1%"
    assert lines[1].split() == [
        *("model", "lr", "accuracy", "pairs", "4", "pairs", "8", "seeds"),
        *("state", "parameters", "steps", "time", "ended"),
    ]
    assert lines[2].split() == [
        *("delta", "0.001", "75.0%", "±", "0.0", "90.0%", "60.0%", "2"),
        *("10.2", "KiB", "13.3k", "100", "12s", "budget"),
    ]
    assert [line.split()[0] for line in lines[2:5]] == ["delta", "delta", "mamba"]
    assert len({len(line) for line in lines[1:5]}) == 1  # aligned
    assert lines[-1] == str(trials / "report.html")
    assert "\x1b" not in result.stdout
    assert {path.name for path in trials.glob("report.*")} == {"report.html", "report.csv", "report.md"}


def test_report_writes_to_another_path_and_prints_json(synthe: Run, trials: Path, tmp_path: Path) -> None:
    result = synthe("bench", "report", trials.parent, "--out", tmp_path / "out", "--json")
    (line,) = result.stdout.splitlines()
    event = json.loads(line)
    assert event["event"] == "result"
    assert event["path"] == str(tmp_path / "out" / "report.html")
    assert Path(event["path"]).is_file()
    first = event["values"]["summaries"][0]
    assert (first["label"], first["seeds"], first["swept"]) == ("delta", 2, {"lr": 0.001})
    assert not list(trials.glob("report.*"))


def test_report_of_nothing_and_of_a_bad_file(synthe: Run, trials: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = synthe("bench", "report", empty)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: no finished trials in '{empty}'\nhint: ")
    (trials / "trial-x.json").write_text("{")
    result = synthe("bench", "report", trials)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {trials / 'trial-x.json'} is not JSON (line 1)\n")


def test_several_tasks_have_an_overview(capsys: pytest.CaptureFixture[str]) -> None:
    bench_table.show(report.summaries([record([0.9, 0.6]), record([0.5, 0.5], task="parity", label="mamba")]))
    *_, title, heads, chance, delta, mamba = capsys.readouterr().out.splitlines()
    assert (title, heads.split()) == ("best accuracy of each model", ["mqar", "parity"])
    assert chance.split() == ["chance", "3.1%", "3.1%"]
    assert (delta.split(), mamba.split()) == (["delta", "75.0%", "-"], ["mamba", "-", "50.0%"])


def test_the_plot_has_a_bar_for_each_value_of_the_best_setting(capsys: pytest.CaptureFixture[str]) -> None:
    records = [record([1.0, 0.5], lr=1e-3), record([0.4, 0.2], lr=3e-3), record([0.75, 0.0], label="mamba")]
    bench_table.show(report.summaries(records), plot=True)
    out = capsys.readouterr().out
    bars = [line for line in out.splitlines() if "█" in line or "·" in line]
    assert [(line.count("█"), line.split()[-1]) for line in bars] == [
        (40, "100.0%"),
        (20, "50.0%"),
        (30, "75.0%"),
        (0, "0.0%"),
    ]
    assert bars[-1].split()[1].index("│") == 1  # chance, 1 in 32, of 40


def test_letters_that_the_output_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        bench_table.show(report.summaries([record([0.9], seed=seed) for seed in range(2)]), plot=True)
    assert "90.0% +- 0.0" in path.read_text()
    assert "#" * 36 + "." * 4 in path.read_text()


def test_control_characters_of_a_label_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    bench_table.show(report.summaries([record([0.9], label="a\x1b[31mb")]), plot=True)
    assert "\x1b" not in capsys.readouterr().out


def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    summaries = report.summaries([record([0.9, 0.6]), record([0.95, 0.03], label="mamba")])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def shown(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        bench_table.show(summaries)
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)

    narrow = shown(60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "not shown in this width: parameters, steps" in narrow
    assert "60.0%" in narrow
    assert "delta     75.0%    90.0%    60.0%" in shown(20)  # wrapped by the terminal, never cut
    assert "too wide" not in shown(160)


def test_list_names_every_task_in_a_line(synthe: Run) -> None:
    result = synthe("bench", "list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)
    assert all(len(line.split()) > 3 for line in lines)


def test_list_of_a_task_has_its_keys(synthe: Run) -> None:
    result = synthe("bench", "list", "mqar").stdout
    lines = [line.split() for line in result.splitlines()]
    assert ["key", "default"] in lines
    assert next(line for line in lines if line[:1] == ["pairs"])[1] == str(TASKS["mqar"].Config().pairs)
    assert next(line for line in lines if line[:1] == ["quick"])[1:4] == ["trains", "on", "pairs"]
    assert "Arora et al. 2023" in result


def test_list_as_json(synthe: Run) -> None:
    tasks = {each["task"]: each for each in map(json.loads, synthe("bench", "list", "--json").stdout.splitlines())}
    assert list(tasks) == list(TASKS)
    assert tasks["mqar"]["axis"] == "pairs"
    fields = TASKS["mqar"].Config.model_fields
    assert tasks["mqar"]["settings"].keys() == fields.keys() - {"type"}
    assert tasks["mqar"]["settings"]["length"]["default"] == fields["length"].default
    (one,) = synthe("bench", "list", "parity", "--json").stdout.splitlines()
    assert json.loads(one) == tasks["parity"]


def test_list_of_an_unknown_task(synthe: Run) -> None:
    result = synthe("bench", "list", "mqr")
    assert result.exit_code == 2
    assert result.stderr == "error: unknown task 'mqr'\nhint: did you mean 'mqar'?\n"
