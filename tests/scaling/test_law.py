"""Chinchilla's law: its optimum, its fit, and the minimiser of the fit."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from synthe_core.scaling.fit import fit
from synthe_core.scaling.law import DELTA, Law, Problems, fit_law, theta_of
from synthe_core.scaling.minimise import minimise
from tests.scaling.synthetic import INTERVALS, REANALYSIS, points_of

SIZES = [float(n) for n in np.geomspace(5e7, 1.6e10, 16)]
TOKENS = [float(d) for d in np.geomspace(1e9, 3e11, 15)]


def test_the_optimum_is_the_least_loss_of_a_budget() -> None:
    parameters, tokens, loss = REANALYSIS.optimum(5.76e23)
    assert 6 * parameters * tokens == pytest.approx(5.76e23, rel=1e-12)
    sizes = np.geomspace(parameters / 100, parameters * 100, 100_001)
    losses = [REANALYSIS.loss(n, 5.76e23 / (6 * n)) for n in sizes]
    assert sizes[int(np.argmin(losses))] == pytest.approx(parameters, rel=1e-3)
    assert min(losses) == pytest.approx(loss, rel=1e-9)
    assert REANALYSIS.optimum(4 * 5.76e23)[0] / parameters == pytest.approx(4**REANALYSIS.size_exponent, rel=1e-9)


def test_more_flops_a_parameter_buy_less() -> None:
    assert REANALYSIS.optimum(1e21, 12.0) == pytest.approx(REANALYSIS.optimum(5e20, 6.0))


@pytest.mark.parametrize("alpha", [0.0, -0.1])
def test_a_law_that_does_not_fall_has_no_optimum(alpha: float) -> None:
    assert all(map(math.isnan, Law(1.0, 1.0, 1.0, alpha, 0.3).optimum(1e21)))


def test_gradients_are_those_of_differences() -> None:
    problems = Problems(points_of(REANALYSIS, SIZES[:4], TOKENS[:4], noise=0.01))
    weights = np.arange(16.0)
    x = problems.centered(theta_of(REANALYSIS)[None]) + 0.01
    _, gradient = problems.objective(x, weights)
    for i in range(5):
        step = np.zeros((1, 5))
        step[0, i] = 1e-6
        up, down = (problems.objective(x + sign * step, weights)[0][0] for sign in (1, -1))
        assert gradient[0, i] == pytest.approx((up - down) / 2e-6, rel=1e-5)
    assert problems.plain(problems.centered(x)) == pytest.approx(x)


def test_far_points_count_linearly() -> None:
    problems = Problems(points_of(REANALYSIS, SIZES[:2], TOKENS[:2]))
    x, logs = problems.centered(theta_of(REANALYSIS)[None]), problems.log_loss.copy()
    for times, value in ((0.5, 0.125), (1.0, 0.5), (10.0, 9.5)):
        logs[0] = problems.log_loss[0] + times * DELTA
        assert problems.objective(x, np.ones(4), logs[None])[0][0] == pytest.approx(value, abs=1e-6)


def test_the_minimiser_solves_many_problems_at_once() -> None:
    """Rosenbrock's valley with its minimum at (c, c²), another c in each row."""
    goals = np.array([0.5, 1.0, 2.0])

    def valley(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, c = x[:, 0], x[:, 1], goals[rows]
        values = (a - c) ** 2 + 100 * (b - a * a) ** 2
        return values, np.stack([2 * (a - c) - 400 * a * (b - a * a), 200 * (b - a * a)], axis=1)

    x, values = minimise(valley, np.array([[-1.2, 1.0]] * 3))
    assert x == pytest.approx(np.stack([goals, goals**2], axis=1), abs=1e-4)
    assert values == pytest.approx(np.zeros(3), abs=1e-8)


def test_a_law_without_noise_is_recovered() -> None:
    law, left = fit_law(points_of(REANALYSIS, SIZES[::3], TOKENS[::3]))
    assert astuple(law) == pytest.approx(astuple(REANALYSIS), rel=1e-3)
    assert left < 1e-6


def test_points_like_chinchillas_give_the_constants_of_the_reanalysis() -> None:
    """240 generated points, with the residual (0.75 %) that the re-analysis' own data leave: see docs/results."""
    fitted = fit("chinchilla", points_of(REANALYSIS, SIZES, TOKENS, noise=0.0075, seed=1), resamples=100)
    for name, interval in fitted.constants().items():
        if name != "a":
            low, high = INTERVALS[name]
            assert low <= interval.value <= high, name
            assert getattr(REANALYSIS, name) in interval, name
    assert fitted.method == "points drawn with replacement"
    assert 0.006 < fitted.residual < 0.009
