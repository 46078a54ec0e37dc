"""Scores of recipes from the records of their runs, and the picture of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.benchmarks.language import Model, loss_by_state, plan, scores
from synthe_core.charts.svg import svg

RECIPE = """\
name: {name}
model: {{width: {width}, blocks: 1, block: [momentum, mlp]}}
data: {{sequence: 32}}
"""


@pytest.fixture
def recipes(tmp_path: Path) -> list[tuple[str, Path]]:
    named = []
    for name, width in (("narrow", 16), ("wide", 32)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(RECIPE.format(name=name, width=width))
        named.append((name, path))
    return named


def record(name: str, status: str, bits: float) -> dict[str, object]:
    return {"name": name, "status": status, "values": {"bits_per_byte": bits, "tokens": 2048}}


def test_every_recipe_has_a_run_a_seed_of_as_many_tokens(recipes: list[tuple[str, Path]]) -> None:
    runs = plan(recipes, seeds=3, tokens="2k", overrides=["train.batch=4"])
    assert list(runs) == ["narrow", "wide"]
    for name, own in runs.items():
        assert [run.recipe.seed for run in own] == [0, 1, 2]
        assert all(run.name.startswith(name) and run.recipe.train.budget.amount == 2000 for run in own)
        assert all(run.recipe.train.validations == 1 and run.recipe.train.batch == 4 for run in own)


def test_scores_are_of_finished_runs_the_best_first(recipes: list[tuple[str, Path]]) -> None:
    runs = plan(recipes, seeds=3, tokens="2k")
    models = {"narrow": Model(100, 64, 32), "wide": Model(102, 128, 32)}
    narrow, wide = ([run.name for run in runs[name]] for name in ("narrow", "wide"))
    records = [
        *(record(name, "finished", bits) for name, bits in zip(narrow, (2.0, 2.2, 2.4), strict=True)),
        record(wide[0], "finished", 1.5),
        record(wide[1], "failed", 0.1),
        record("of another bench", "finished", 0.1),
    ]
    best, other = scores(runs, records, models)
    assert (best.recipe, best.seeds, best.bits_per_byte, best.std, best.state_bytes) == ("wide", 1, 1.5, None, 128)
    assert (other.recipe, other.seeds, other.tokens) == ("narrow", 3, 2048)
    assert other.bits_per_byte == pytest.approx(2.2) and other.std == pytest.approx(0.2)
    chart = loss_by_state([best, other], models)
    assert [(each.name, each.kind) for each in chart.series] == [("wide", "marks"), ("narrow", "marks"), ("", "line")]
    assert "after 32 tokens" in chart.x.label and "narrow" in svg([chart])
    assert scores(runs, [], models) == []
