"""A chart as data: points and lines over two axes, which SVG, PNG and the terminal draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

TICKS = 6
STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Series:
    """A name, and its (x, y) in order. kind: "marks", "line", "dashed", or "band", whose points go round its area.

    style: number of colour and mark. Series without a name are not in the legend.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "marks"
    style: int = 0


@dataclass(frozen=True)
class Axis:
    """One axis: its label, and whether it is logarithmic."""

    label: str
    log: bool = False


@dataclass(frozen=True)
class Chart:
    """A titled chart. Points that are not finite, or not above 0 on a logarithmic axis, are left out."""

    title: str
    x: Axis
    y: Axis
    series: list[Series] = field(default_factory=list)

    def visible(self) -> list[tuple[Series, list[tuple[float, float]]]]:
        """Each series with the points that can be drawn."""
        drawn = [
            (each, [p for p in each.points if _fits(p[0], self.x) and _fits(p[1], self.y)]) for each in self.series
        ]
        return [(each, points) for each, points in drawn if points]

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The range of x and of y that all points fit into, a little wider. ValueError if no point can be drawn."""
        points = [point for _, drawn in self.visible() for point in drawn]
        if not points:
            raise ValueError(f"{self.title}: nothing to draw")
        xs, ys = zip(*points, strict=True)
        return _widened(min(xs), max(xs), self.x.log), _widened(min(ys), max(ys), self.y.log)


def place(value: float, bounds: tuple[float, float], log: bool) -> float:
    """Where a value is between bounds: 0 at the lower, 1 at the upper."""
    low, high = bounds
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def ticks(bounds: tuple[float, float], log: bool, most: int = TICKS) -> list[float]:
    """Round values within bounds: powers of ten where there are several, else 1, 2 and 5 times powers of ten."""
    low, high = bounds
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        tens = [10.0**n for n in powers if low <= 10.0**n <= high]
        if len(tens) >= 3:
            return tens[:: -(-len(tens) // most)]
        fine = [step * 10.0**n for n in powers for step in STEPS if low <= step * 10.0**n <= high]
        if len(fine) >= 3:
            return fine
    raw = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (*STEPS, 10.0) if s * scale >= raw)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def tick_text(value: float) -> str:
    """`2.5`, `300k`, `1e12`."""
    if value == 0 or 0.001 <= abs(value) < 1e4:
        return f"{value:.4g}"
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if 10**power <= abs(value) < 10 ** (power + 3):
            return f"{value / 10**power:g}{letter}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _fits(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _widened(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        margin = 0.05 * math.log(high / low) if high > low else 0.5
        return low / math.exp(margin), high * math.exp(margin)
    margin = 0.05 * (high - low) if high > low else 0.5 * (abs(high) or 1.0)
    return low - margin, high + margin
