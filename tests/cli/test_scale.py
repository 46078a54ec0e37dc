"""`synthe scale`: grids, fits of tables and runs, plans and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.scaling.synthetic import points_of
from tests.scaling.test_fit import SIZES, TINY, TOKENS
from tests.sweep.recipes import write_recipe, write_texts

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_texts(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


@pytest.fixture
def table(somewhere: Path) -> Path:
    rows = [
        f"{each.parameters:g},{each.tokens:g},{each.loss},{each.learner}"
        for learner, noise in (("delta", 1e-4), ("mamba2", 0.05))
        for each in points_of(TINY, SIZES, TOKENS, noise=noise, learner=learner)
    ]
    path = somewhere / "points.csv"
    path.write_text("\n".join(["parameters,tokens,loss,learner", *rows]) + "\n")
    return path


def test_a_table_is_fitted_planned_and_drawn(synthe: Run, table: Path) -> None:
    done = synthe("scale", "fit", table, "--resamples", 100)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("delta: 9 points\n")
    assert "mamba2: 9 points" in done.stdout and "cannot tell" in done.stdout.partition("mamba2: ")[2]
    assert done.stdout.splitlines()[-1] == "runs/scale-fit.json"

    planned = synthe("scale", "plan", "--flops", "1e21", "--learner", "delta")
    assert planned.exit_code == 0, planned.stderr
    assert planned.stdout.startswith("delta       at 1e+21 FLOPs, C = 6 N D\nparameters  ")
    assert "warning: an extrapolation: " in planned.stdout
    lines = [json.loads(line) for line in synthe("scale", "plan", "--flops", "20G", "--json").stdout.splitlines()]
    assert [line["learner"] for line in lines] == ["delta", "mamba2"]
    assert lines[0]["parameters"]["low"] <= lines[0]["parameters"]["value"] <= lines[0]["parameters"]["high"]

    drawn = synthe("scale", "plot", "--learner", "delta")
    assert drawn.exit_code == 0 and "delta: loss by tokens" in drawn.stdout
    assert synthe("scale", "plot", "--out", "a.svg").stdout == "a.svg\n"
    assert Path("a.svg").read_text().startswith("<svg")


def test_a_fit_is_json_too(synthe: Run, table: Path) -> None:
    *fits, result = map(json.loads, synthe("scale", "fit", table, "--resamples", 100, "--json").stdout.splitlines())
    assert [each["learner"] for each in fits] == ["delta", "mamba2"]
    assert fits[0]["constants"]["alpha"]["value"] == pytest.approx(0.4, abs=0.01)
    assert result["path"] == "runs/scale-fit.json" and len(result["comparisons"]) == 1


def test_a_grid_is_shown_before_it_runs(synthe: Run) -> None:
    grid = ("scale", "grid", "small.yaml", "--learner", "delta", "--head-size", 8)
    done = synthe(*grid, "--width", "16,32", "--tokens", "64,128", "--dry-run")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "lr = 0.003 (16 / width)^0.5 (µP, muon)"
    assert [line.split()[0] for line in lines[2:]] == [
        "delta-w16-b1-64", "delta-w16-b1-128", "delta-w32-b1-64", "delta-w32-b1-128", "4"
    ]  # fmt: skip
    assert not Path("runs").exists()


def test_a_grid_is_trained_and_fitted(synthe: Run) -> None:
    grid = ("scale", "grid", "small.yaml", "--learner", "delta", "--head-size", 8)
    done = synthe(*grid, "--width", "16", "--tokens", "64,128", "--jobs", 2)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("lr = 0.003 (16 / width)^0.5 (µP, muon)\n")
    fitted = synthe("scale", "fit", *sorted(Path("runs/scale").iterdir()), "--json")
    assert fitted.exit_code == 0, fitted.stderr
    values = json.loads(fitted.stdout.splitlines()[0])
    assert (values["learner"], values["points"]) == ("delta", 2)
    assert values["open"][0].startswith("cannot tell: 2 points of 1 sizes and 2 token counts")
    refused = synthe("scale", "plan", "--flops", "1e9")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "cannot tell: 2 points of 1 sizes" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "none"), "none is neither a run nor a sweep"),
        (("fit", "points.csv", "small.yaml"), "one CSV table is fitted alone"),
        (("fit", "points.csv", "--drop-highest", "18"), "--drop-highest 18 leaves none of 18 points"),
        (("plan", "--flops", "many"), "--flops: 'many' is not a count"),
        (("plan", "--flops", "-1"), "--flops -1: expected a number above 0"),
        (("plan", "--flops", "1e21"), "no fit: runs/scale-fit.json"),
        (("plot", "--out", "a.pdf"), "--out a.pdf: expected an .svg or a .png"),
        (("grid", "small.yaml", "--width", "16"), "give either tokens or FLOPs of the runs"),
        (("grid", "small.yaml", "--width", "1.5", "--tokens", "1k"), "--width 1.5: expected whole numbers"),
        (("grid", "small.yaml", "--width", "16,16", "--tokens", "1k"), "--width 16,16: a number is given twice"),
        (("grid", "small.yaml", "--width", "16", "--tokens", "1k", "--rates", "x"), "--rates x: no such sweep"),
    ],
)
def test_bad_input_is_one_line(synthe: Run, table: Path, arguments: tuple[str, ...], message: str) -> None:
    done = synthe("scale", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") <= 2
