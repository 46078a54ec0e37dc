"""Intervals, and what they leave open."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthe_core.errors import InputError
from synthe_core.scaling.fit import Fit, Interval, compare, fit, fit_all, open_questions, too_few
from synthe_core.scaling.isoflop import describe, isoflop_curves, size_exponent
from synthe_core.scaling.law import Law
from synthe_core.scaling.plan import choose, plan
from synthe_core.scaling.points import Point
from synthe_core.scaling.store import read_fits, write_fits
from tests.scaling.synthetic import points_of

TINY = Law(E=0.9, A=60.0, B=300.0, alpha=0.4, beta=0.45)
SIZES, TOKENS = [3e4, 1e5, 3e5], [2e5, 1e6, 5e6]


@pytest.fixture(scope="module")
def exact() -> Fit:
    return fit("delta", points_of(TINY, SIZES, TOKENS, noise=1e-4), resamples=200)


@pytest.fixture(scope="module")
def noisy() -> Fit:
    return fit("mamba2", points_of(TINY, SIZES, TOKENS, noise=0.05, learner="mamba2"), resamples=200)


def test_a_grid_without_noise_is_certain(exact: Fit) -> None:
    assert exact.method == "residuals drawn with replacement"
    assert exact.constants()["alpha"].value == pytest.approx(0.4, abs=0.01)
    assert exact.constants()["E"].low > 0.85
    assert open_questions(exact) == []


def test_noise_leaves_questions(noisy: Fit) -> None:
    questions = open_questions(noisy)
    assert any("cannot tell the irreducible loss E" in each for each in questions)
    assert any("cannot tell how a budget divides" in each for each in questions)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """The exponent of tokens, over 20 grids of one law: 95 % of intervals would cover it."""
    covered = 0
    for seed in range(20):
        fitted = fit("delta", points_of(TINY, SIZES, TOKENS, noise=0.005, seed=seed), resamples=100)
        covered += TINY.beta in fitted.constants()["beta"]
    assert covered >= 15


@pytest.mark.parametrize(("sizes", "tokens"), [(SIZES[:2], TOKENS), (SIZES, TOKENS[:2]), (SIZES[:1], TOKENS[:1])])
def test_too_few_points_have_no_law(sizes: list[float], tokens: list[float]) -> None:
    fitted = fit("delta", points_of(TINY, sizes, tokens))
    assert fitted.law is None
    [question] = open_questions(fitted)
    assert question.startswith("cannot tell: ") and "at least 6 points of 3 sizes and 3 token counts" in question
    with pytest.raises(InputError, match="cannot tell"):
        choose([fitted], "delta")
    assert compare([fitted, fitted]) == []


def test_sizes_that_almost_agree_count_once() -> None:
    assert too_few(points_of(TINY, [1e5, 1.01e5, 1.02e5], TOKENS)).startswith("9 points of 1 sizes")
    assert too_few([]).startswith("0 points of 0 sizes")


def test_learners_are_compared_by_intervals(exact: Fit, noisy: Fit) -> None:
    same = replace(noisy, learner="other", samples=noisy.samples[::-1])
    [sentence] = compare([noisy, same])
    assert "mamba2 and other at" in sentence and "cannot tell which is lower" in sentence
    worse = points_of(replace(TINY, E=1.1), SIZES, TOKENS, noise=1e-4, seed=1)
    [sentence] = compare([exact, fit("worse", worse, resamples=200)])
    assert "delta is lower" in sentence


def test_a_plan_has_intervals_and_warns(exact: Fit, noisy: Fit) -> None:
    near = plan(exact, exact.largest)
    assert near.warnings == [] and near.beyond == 1
    size, tokens, loss = TINY.optimum(exact.largest)
    assert near.parameters.value == pytest.approx(size, rel=0.05)
    assert near.tokens.value == pytest.approx(tokens, rel=0.05)
    assert near.loss.value == pytest.approx(loss, rel=0.01)
    assert exact.per_parameter == pytest.approx(6.0)
    far = plan(noisy, 1e21)
    assert far.warnings[0].startswith("an extrapolation: ")
    assert any("cannot tell the size" in each for each in far.warnings[1:])


def test_a_learner_is_chosen_by_name(exact: Fit, noisy: Fit) -> None:
    assert choose([exact, noisy], "mamba2") == [noisy]
    assert choose([exact, noisy], None) == [exact, noisy]
    with pytest.raises(InputError, match="unknown learner of the fit 'mamba'") as caught:
        choose([exact, noisy], "mamba")
    assert caught.value.hint == "did you mean 'mamba2'?"


def test_an_interval_without_enough_values_is_none() -> None:
    assert Interval.of(1.0, [1.0] * 50 + [math.nan] * 50).known is False
    assert Interval.of(1.0, [*np.linspace(0, 2, 99), math.nan]).known is True


def test_points_of_several_learners_are_fitted_apart() -> None:
    both = points_of(TINY, SIZES, TOKENS) + points_of(TINY, SIZES[:1], TOKENS, learner="gla")
    assert [(each.learner, each.law is None) for each in fit_all(both, resamples=100)] == [
        ("delta", False),
        ("gla", True),
    ]
    with pytest.raises(InputError, match="no points to fit"):
        fit_all([])


def isoflop_points(noise: float = 0.0) -> list[Point]:
    """Five sizes at each of four budgets, which have their minimum at 1e5 (C / 1e12)^0.5."""
    random = np.random.default_rng(0)
    points = []
    for flops in (1e12, 3e12, 9e12, 27e12):
        best = 1e5 * (flops / 1e12) ** 0.5
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
            loss = (
                2.0 - 0.1 * math.log10(flops / 1e12) + 0.05 * math.log(factor) ** 2 + noise * random.standard_normal()
            )
            points.append(Point(best * factor, flops / (6 * best * factor), loss, flops, "delta"))
    return points


def test_curves_have_their_minimum_where_it_is() -> None:
    curves = isoflop_curves(fit("delta", isoflop_points(), resamples=100), resamples=100)
    assert [curve.coefficients[2] for curve in curves] == pytest.approx([0.05] * 4)
    assert [curve.best.value for curve in curves] == pytest.approx([1e5 * 3 ** (k / 2) for k in range(4)])
    exponent = size_exponent(curves)
    assert exponent == pytest.approx(0.5)


def test_curves_say_what_they_do_not_show() -> None:
    falling = [Point(n, 1e12 / (6 * n), 3 - n / 1e5, 1e12, "delta") for n in (1e4, 2e4, 4e4)]
    curves = isoflop_curves(fit("delta", falling))
    assert describe(curves) == [
        "at 1.0e+12 FLOPs: cannot tell, the largest size is the best",
        "cannot tell the exponent: 0 of 1 budgets have a minimum, 3 are needed",
    ]
    assert describe([]) == ["cannot tell by IsoFLOP curves: no budget has 3 sizes"]


def test_fits_are_stored(tmp_path: Path, exact: Fit) -> None:
    path = tmp_path / "new" / "fit.json"
    few = fit("gla", points_of(TINY, SIZES[:1], TOKENS, learner="gla"))
    write_fits(path, [exact, few])
    assert read_fits(path) == [exact, few]
    content = json.loads(path.read_text())
    content["format"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="not a fit of this version"):
        read_fits(path)
    path.write_text('{"format": 1, "fits": [{}]}')
    with pytest.raises(InputError, match="is damaged"):
        read_fits(path)
    with pytest.raises(InputError, match="no fit: "):
        read_fits(tmp_path / "none.json")
