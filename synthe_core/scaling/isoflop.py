"""IsoFLOP curves: models of several sizes that cost the same, and the size that is best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthe_core.scaling.fit import Fit, Interval
from synthe_core.scaling.points import Point
from synthe_core.units import format_count

TOLERANCE = 1.15  # factor between the FLOPs of one curve at most
LEAST_SIZES, LEAST_BUDGETS = 3, 3
SHOWN = 6  # budgets without a minimum that are described one by one


@dataclass(frozen=True)
class Curve:
    """The parabola L = c_0 + c_1 x + c_2 x² with x = ln N through the points of one budget.

    best: the size at its minimum; NaN where it has none, or none between the smallest and the largest size.
    """

    flops: float
    points: list[Point]
    coefficients: tuple[float, float, float]
    best: Interval

    @property
    def known(self) -> bool:
        return self.best.known


def isoflop_curves(fitted: Fit, resamples: int = 1000, seed: int = 0) -> list[Curve]:
    """The curve of every budget at which at least three sizes were trained.

    Intervals come from losses that are varied by the residuals of the law, since a parabola through three points has
    none of its own.
    """
    random = np.random.default_rng(seed)
    residuals = _residuals(fitted)
    curves = []
    for group in _budgets(fitted.points):
        x = np.log([point.parameters for point in group])
        if len({round(value, 2) for value in x}) < LEAST_SIZES:
            continue
        losses = np.array([point.loss for point in group])
        flops = math.exp(float(np.mean(np.log([point.flops for point in group]))))
        varied = losses * np.exp(random.choice(residuals, size=(resamples, len(group)))) if len(residuals) else None
        best = [_minimum(x, each) for each in varied] if varied is not None else []
        c2, c1, c0 = np.polyfit(x, losses, 2)
        interval = Interval.of(_minimum(x, losses), best)
        curves.append(Curve(flops, group, (float(c0), float(c1), float(c2)), interval))
    return curves


def size_exponent(curves: Sequence[Curve]) -> float | None:
    """a of N_opt ∝ C^a by least squares through the curves' minima; None with fewer than three of them."""
    known = [curve for curve in curves if curve.known]
    if len(known) < LEAST_BUDGETS:
        return None
    slope, _ = np.polyfit(np.log([c.flops for c in known]), np.log([c.best.value for c in known]), 1)
    return float(slope)


def _budgets(points: Sequence[Point]) -> list[list[Point]]:
    """Points in groups of about equal FLOPs."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda each: each.flops):
        if groups and point.flops <= TOLERANCE * groups[-1][0].flops:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _minimum(x: np.ndarray, losses: np.ndarray) -> float:
    """The size at the minimum of the parabola, within the sizes; else NaN."""
    c2, c1, _ = np.polyfit(x, losses, 2)
    place = -c1 / (2 * c2) if c2 > 0 else math.nan
    return math.exp(place) if x.min() <= place <= x.max() else math.nan


def _residuals(fitted: Fit) -> np.ndarray:
    """Residuals of ln L, enlarged for the degrees of freedom that the law takes; none without a law."""
    if fitted.law is None:
        return np.zeros(0)
    count = len(fitted.points)
    raw = np.array([math.log(p.loss / fitted.law.loss(p.parameters, p.tokens)) for p in fitted.points])
    return np.asarray((raw - raw.mean()) * math.sqrt(count / (count - 5)))


def describe(curves: Sequence[Curve]) -> list[str]:
    """What the curves say and leave open, a sentence each."""
    if not curves:
        return [f"cannot tell by IsoFLOP curves: no budget has {LEAST_SIZES} sizes"]
    known = [curve for curve in curves if curve.known]
    lines = [f"at {c.flops:.1e} FLOPs the best size is {format_interval(c.best)}" for c in known]
    unknown = [curve for curve in curves if not curve.known]
    if len(unknown) <= SHOWN:
        lines += [f"at {curve.flops:.1e} FLOPs: cannot tell, {_why(curve)}" for curve in unknown]
    else:
        lines.append(f"at {len(unknown)} budgets: cannot tell, the minimum is not certain to be among the sizes")
    exponent, enough = size_exponent(curves), f"{LEAST_BUDGETS} are needed"
    if exponent is None:
        lines.append(f"cannot tell the exponent: {len(known)} of {len(curves)} budgets have a minimum, {enough}")
    else:
        lines.append(f"N ∝ C^{exponent:.2f} through {len(known)} minima")
    return lines


def format_interval(interval: Interval) -> str:
    """`74.3k [60k, 90k]`."""
    value, low, high = (format_count(each) for each in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]" if interval.known else f"{value}, without an interval"


def _why(curve: Curve) -> str:
    losses = [point.loss for point in sorted(curve.points, key=lambda each: each.parameters)]
    if all(a > b for a, b in itertools.pairwise(losses)):
        return "the largest size is the best"
    if all(a < b for a, b in itertools.pairwise(losses)):
        return "the smallest size is the best"
    return "the minimum is not certain to be among these sizes"
