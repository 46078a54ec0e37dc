"""Credible intervals of Beta posteriors against their closed forms, and against the density summed up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synthe_core.swarm.confidence import Beta
from synthe_core.swarm.credible_interval import credible_interval


@pytest.mark.parametrize("a", [0.05, 0.7, 1.0, 3.0, 400.0])
def test_where_one_count_is_one_the_quantile_is_a_power(a: float) -> None:
    low, high = credible_interval(a, 1.0)
    assert low == pytest.approx(0.05 ** (1 / a), abs=1e-12) and high == pytest.approx(0.95 ** (1 / a), abs=1e-12)
    assert credible_interval(1.0, a) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(2.0, 5.0), (4.5, 1.5), (60.0, 3.0), (900.0, 1100.0)])
def test_the_mass_between_is_what_was_wanted(a: float, b: float) -> None:
    low, high = credible_interval(a, b, 0.8)
    x = np.linspace(0, 1, 400_001)[1:-1]
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    density = np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - log_beta)
    for inside, mass in (((x > low) & (x < high), 0.8), (x < low, 0.1), (x > high, 0.1)):
        assert density[inside].sum() / 400_000 == pytest.approx(mass, abs=1e-4)


def test_more_answers_make_it_narrower() -> None:
    widths = [high - low for low, high in (Beta(1 + n, 1 + n).interval for n in (0, 3, 30, 3000))]
    assert widths == sorted(widths, reverse=True) and widths[0] == pytest.approx(0.9) and widths[-1] < 0.03
