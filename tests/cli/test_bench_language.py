"""`synthe bench language`: recipes of equal size on one text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthe_cli.commands.bench_language import recipes_of, table
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from tests.paths import RECIPES

Run = Callable[..., Any]


def test_recipes_are_trained_and_compared(synthe: Run, recipe: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text that repeats itself. " * 400)
    out, csv = tmp_path / "bench", tmp_path / "t.csv"
    arguments = ["bench", "language", "--recipe", recipe, "--tokens", 256, "--data", text, "--out", out, "--csv", csv]
    result = synthe(*arguments)
    assert result.exit_code == 0, result.stderr
    heads, row, path = (line.split() for line in result.stdout.splitlines()[-3:])
    assert heads == ["recipe", "bits/byte", "±", "seeds", "parameters", "state", "tokens"] and row[0] == "small"
    assert path == [str(out / "loss-by-state.svg")] and "small" in (out / "loss-by-state.svg").read_text()
    assert csv.read_text().splitlines()[1].startswith("small,")
    again = synthe(*arguments, "--json")
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert "1 of 1 runs are done already" in events[0]["message"] and events[-1]["event"] == "result"
    assert [each["seeds"] for each in events[-1]["values"]["scores"]] == [1]


def test_the_shipped_recipes_of_a_size_are_equal(synthe: Run) -> None:
    for size in ("tiny", "60m"):
        recipes = [Recipe.load(RECIPES / f"{name}.yaml") for name in recipes_of(size)]
        counts = [account(each).parameters for each in recipes]
        median = sorted(counts)[len(counts) // 2]
        assert max(abs(count / median - 1) for count in counts) <= 0.02 and len(recipes) >= 15
        assert len({(str(each.data.tokenizer), each.data.sequence) for each in recipes}) == 1


def test_what_is_refused(synthe: Run, recipe: Path) -> None:
    for options, message in (
        (["--size", "huge"], "--size huge: expected tiny or 60m"),
        (["--recipe", "no-such"], "no-such"),
        (["--recipe", recipe, "--tokens", "many"], "many"),
    ):
        result = synthe("bench", "language", *options)
        assert result.exit_code == 2 and message in result.stderr.splitlines()[0]


def test_a_deviation_of_one_run_is_left_open() -> None:
    row = {"recipe": "a", "bits_per_byte": 1.23456, "std": None, "seeds": 1, "parameters": 10, "state_bytes": 4}
    assert table([{**row, "tokens": 100}]).splitlines()[1].split() == ["a", "1.2346", "1", "10", "4", "B", "100"]
