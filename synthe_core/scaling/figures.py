"""The charts of fitted scaling laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from synthe_core.charts.chart import Axis, Chart, Series
from synthe_core.charts.style import COLOURS
from synthe_core.scaling.fit import Fit
from synthe_core.scaling.isoflop import Curve, isoflop_curves
from synthe_core.scaling.points import Point
from synthe_core.units import format_count

T = TypeVar("T")
CURVE_POINTS = 60
MOST_LINES = 12  # sizes or budgets that have a line
BEYOND = 10.0  # factor by which the frontier goes beyond the runs


def charts(fits: Sequence[Fit], resamples: int = 1000) -> list[Chart]:
    """Of all learners the loss at best for a budget; of each its loss by tokens, and its IsoFLOP curves."""
    drawn = [frontier(fits)] if any(each.law for each in fits) else []
    for each in fits:
        drawn.append(by_tokens(each))
        if curves := isoflop_curves(each, resamples):
            drawn.append(isoflops(each, curves))
    return drawn


def frontier(fits: Sequence[Fit]) -> Chart:
    """The least loss of any trained size by FLOPs, with the interval as an area, dashed beyond the dearest run."""
    chart = Chart(
        "least loss for a budget, any trained size, 95 % interval", Axis("FLOPs", True), Axis("loss, nats a token")
    )
    for style, each in enumerate(fits):
        if each.law is None:
            continue
        runs = [point.flops for point in each.points]
        inside = _between(min(runs), max(runs))
        beyond = _between(max(runs), BEYOND * max(runs))
        for kind, budgets in (("line", inside), ("dashed", beyond)):
            values = [each.best_loss(budget)[0] for budget in budgets]
            known = [(c, v) for c, v in zip(budgets, values, strict=True) if v.known]
            area = [(c, v.low) for c, v in known] + [(c, v.high) for c, v in reversed(known)]
            chart.series.append(Series("", area, "band", style))
            name = each.learner if kind == "line" else ""
            chart.series.append(Series(name, [(c, v.value) for c, v in known], kind, style))
        chart.series.append(Series(f"{each.learner}, runs", [(p.flops, p.loss) for p in each.points], "marks", style))
    return chart


def by_tokens(fitted: Fit) -> Chart:
    """Points by tokens, with a line of the law for each size."""
    chart = Chart(f"{fitted.learner}: loss by tokens", Axis("tokens", True), Axis("loss, nats a token"))
    for style, (size, points) in enumerate(_by_size(fitted.points)):
        name = f"{format_count(size)} parameters"
        chart.series.append(Series(name, [(p.tokens, p.loss) for p in points], "marks", style))
        if fitted.law is not None:
            tokens = _between(*_range([p.tokens for p in fitted.points]))
            chart.series.append(Series("", [(d, fitted.law.loss(size, d)) for d in tokens], "line", style))
    return chart


def isoflops(fitted: Fit, curves: Sequence[Curve]) -> Chart:
    """Points by size, with the parabola of each budget; a larger mark is the best size."""
    chart = Chart(f"{fitted.learner}: IsoFLOP curves", Axis("parameters", True), Axis("loss, nats a token"))
    for style, curve in enumerate(_thinned(curves)):
        name = f"{curve.flops:.1e} FLOPs"
        chart.series.append(Series(name, [(p.parameters, p.loss) for p in curve.points], "marks", style))
        sizes = _between(*_range([p.parameters for p in curve.points]))
        c0, c1, c2 = curve.coefficients
        if c2 <= 0:
            continue
        line = [(n, c0 + c1 * math.log(n) + c2 * math.log(n) ** 2) for n in sizes]
        chart.series.append(Series("", line, "line", style))
        if curve.known:
            x = math.log(curve.best.value)
            best = (curve.best.value, c0 + c1 * x + c2 * x * x)
            chart.series.append(Series("", [best], "marks", style % COLOURS + COLOURS))
    return chart


def _by_size(points: Sequence[Point]) -> list[tuple[float, list[Point]]]:
    """Points of each size, within 1 %; of many sizes some."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda each: each.parameters):
        if groups and point.parameters <= 1.01 * groups[-1][0].parameters:
            groups[-1].append(point)
        else:
            groups.append([point])
    sized = [(group[0].parameters, group) for group in groups]
    return _thinned(sized)


def _thinned(items: Sequence[T]) -> list[T]:
    return list(items)[:: -(-len(items) // MOST_LINES)] if items else []


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _between(low: float, high: float) -> list[float]:
    return [float(value) for value in np.geomspace(low, high, CURVE_POINTS)]
