"""Grids: sizes, budgets in whole steps, and rates that follow the width."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from synthe_core.scaling.grid import Grid, cost, learner_of, plan_grid
from synthe_core.scaling.rates import RateRule, Trial, fit_rules, transfer_rule
from synthe_core.sweep.grid import Axis

RECIPE = """\
name: base
model: {width: 64, blocks: 2, block: [{type: delta, heads: 4}, {type: mlp, hidden: 160}]}
data: {sequence: 16}
train: {batch: 4, optimizer: OPTIMIZER, lr: 8.0e-3}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(RECIPE.replace("OPTIMIZER", "muon"))
    return path


def rule(learner: str) -> RateRule:
    return RateRule(8e-3, 64, 0.5, "test")


def test_every_size_is_trained_on_every_budget(path: Path) -> None:
    runs = plan_grid(
        path, Grid([32, 64], [1, 2], tokens=[1000, 4000], learners=["delta", "attention"], head_size=16), rule
    )
    assert len(runs) == 16
    assert [cost(run) for run in runs] == sorted(cost(run) for run in runs)
    by_name = {run.name: run.recipe for run in runs}
    recipe = by_name["attention-w32-b2-4k"]
    assert (recipe.model.width, recipe.model.blocks, learner_of(recipe)) == (32, 2, "attention")
    assert recipe.model.learners[0].heads == 2  # type: ignore[attr-defined]
    assert str(recipe.train.budget) == "3968tokens"  # whole steps of 64
    assert recipe.train.lr == pytest.approx(8e-3 * 2**0.5, rel=1e-3)


def test_equal_flops_are_equal(path: Path) -> None:
    runs = plan_grid(path, Grid([32, 48, 64], [1], flops=[1e9, 4e9], learners=["delta", "mamba2"], head_size=16), rule)
    for run in runs:
        budget = 4e9 if run.name.endswith("4GFLOPs") else 1e9
        step = 3 * account(run.recipe).flops * 64
        assert abs(cost(run) - budget) <= step / 2 + 1


def test_a_block_of_its_own_is_scaled(path: Path) -> None:
    runs = plan_grid(path, Grid([32, 128], [2], tokens=[1000]), rule)
    blocks = [run.recipe.model.learners for run in runs]
    assert [(block[0].heads, block[1].hidden) for block in blocks] == [(2, 80), (8, 320)]  # type: ignore[attr-defined]
    assert [run.name for run in runs] == ["base-w32-b2-1k", "base-w128-b2-1k"]
    with pytest.raises(InputError, match=r"delta\.heads 4 of width 64 is no whole number at width 40"):
        plan_grid(path, Grid([40], [2], tokens=[1000]), rule)


def test_axes_are_swept_at_every_size(path: Path) -> None:
    runs = plan_grid(
        path, Grid([32, 64], [1], tokens=[1000], learners=["delta"]), rule, axes=[Axis("train.lr", ("1e-3", "2e-3"))]
    )
    assert [run.name for run in runs] == [f"delta-w{w}-b1-1k,lr={lr}" for w in (32, 64) for lr in ("1e-3", "2e-3")]
    assert {run.recipe.train.lr for run in runs} == {1e-3, 2e-3}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid([64], [1]), "give either tokens or FLOPs"),
        (Grid([64], [1], tokens=[1e3], flops=[1e9]), "give either tokens or FLOPs"),
        (Grid([64], [1], tokens=[1000, 1001]), "two budgets are the same number of steps of 64 tokens"),
        (Grid([64], [1], tokens=[1e3], learners=["dleta"]), "unknown learner 'dleta'"),
        (Grid([40], [1], tokens=[1e3], learners=["delta"]), "width 40 does not split into heads of 32"),
    ],
)
def test_a_grid_that_cannot_be(path: Path, grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_grid(path, grid, rule)


@pytest.mark.parametrize(
    ("optimizer", "name", "at_256"), [("muon", "mup", 4e-3), ("adamw", "mup", 2e-3), ("adamw", "constant", 8e-3)]
)
def test_rates_follow_the_width(tmp_path: Path, optimizer: str, name: str, at_256: float) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(RECIPE.replace("OPTIMIZER", optimizer))
    made = transfer_rule(Recipe.load(path), name)
    assert made.at(64) == 8e-3
    assert made.at(256) == at_256


def trials(exponent: float, rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)) -> list[Trial]:
    """Losses with their minimum at 4e-3 (32 / width)^exponent."""
    return [
        Trial("delta", width, lr, 2 + math.log(lr / (4e-3 * (32 / width) ** exponent)) ** 2)
        for width in (32, 64, 128)
        for lr in rates
    ]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.8])
def test_a_rule_is_fitted_to_the_best_rates(exponent: float) -> None:
    fitted = fit_rules(trials(exponent))["delta"]
    assert (fitted.lr, fitted.width) == (pytest.approx(4e-3, rel=1e-6), 32)
    assert fitted.exponent == pytest.approx(exponent, abs=1e-9)


def test_a_rule_that_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="delta, width 32: 2 learning rates"):
        fit_rules(trials(0.5, (1e-3, 4e-3)))
    with pytest.raises(InputError, match=r"the lowest loss is at the edge, lr 0\.004") as caught:
        fit_rules(trials(0.0, (1e-3, 2e-3, 4e-3)))
    assert caught.value.hint == "sweep larger rates too"
    with pytest.raises(InputError, match="the sweep has one width"):
        fit_rules(trials(0.5)[:6])
