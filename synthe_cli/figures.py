"""Durations, sparklines and tables as text."""

from __future__ import annotations

import itertools
import math

from synthe_cli.escape import escaped

CELL = 300  # characters of a cell; more are cut


def duration(seconds: float | None) -> str:
    """93 -> 1m33s; unknown is a dash."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def sparkline(values: list[float], width: int = 24) -> str:
    """`values` as `width` bars, each the mean of its part, scaled from the lowest to the highest."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    bars = min(width, len(finite))
    edges = [round(i * len(finite) / bars) for i in range(bars + 1)]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (mean - low) / (high - low))] if high > low else "▁" for mean in means)


def table(heads: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table as text. The first `left` columns are left-aligned, the others right-aligned."""
    heads, *rows = ([escaped(cell, CELL) for cell in row] for row in [heads, *rows])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in [heads, *rows]:
        cells = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
