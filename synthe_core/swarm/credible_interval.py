"""The central credible interval of a Beta posterior."""

from __future__ import annotations

import math
from functools import lru_cache

MAX_TERMS = 1000
"""Of the continued fraction, which needs about sqrt(max(a, b))."""
STEPS = 40
"""Of the bisection."""
TINY = 1e-300


@lru_cache(maxsize=4096)
def credible_interval(a: float, b: float, mass: float = 0.9) -> tuple[float, float]:
    """Between which two values a rate with the posterior Beta(a, b) lies with probability `mass`, as much outside on
    either side. a, b > 0. Errors below 1e-9."""
    tail = (1 - mass) / 2
    return _quantile(a, b, tail), _quantile(a, b, 1 - tail)


def _quantile(a: float, b: float, p: float) -> float:
    """x with I_x(a, b) = p, by bisection: I is monotonic."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _incomplete_beta(a, b, middle) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) where that
    converges quickly, else by I_x(a, b) = 1 - I_{1-x}(b, a)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    scale = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    scale += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(scale) / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)) of DLMF 8.17.22, by the modified Lentz method."""
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, MAX_TERMS):
        m = term // 2
        if term % 2:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + factor * d) or TINY)
        c = (1 + factor / c) or TINY
        value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
