"""Charts as PNG, drawn by matplotlib, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from synthe_core.charts.chart import Chart, tick_text, ticks
from synthe_core.errors import InputError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c6370")
MARKS = "osD^v"
DPI = 150


def check_png() -> None:
    """InputError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InputError(
            "a PNG needs matplotlib, which is not installed", "pip install 'synthe[plot]', or write an .svg"
        )


def png(charts: Sequence[Chart]) -> bytes:
    """The charts, one below the other. InputError without matplotlib, ValueError if one has nothing to draw."""
    check_png()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8 * len(charts)), layout="constrained")
    for axes, chart in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts, strict=True):
        _draw(axes, chart)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def _draw(axes: Any, chart: Chart) -> None:
    for bounds, axis, name in zip(chart.ranges(), (chart.x, chart.y), "xy", strict=True):
        getattr(axes, f"set_{name}scale")("log" if axis.log else "linear")
        getattr(axes, f"set_{name}lim")(bounds)
        places = ticks(bounds, axis.log)
        getattr(axes, f"set_{name}ticks")(places, [tick_text(each) for each in places])
        getattr(axes, f"set_{name}ticks")([], minor=True)
        getattr(axes, f"set_{name}label")(axis.label)
    axes.set_title(chart.title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    for series, points in chart.visible():
        x, y = zip(*points, strict=True)
        colour = COLOURS[series.style % len(COLOURS)]
        label = series.name or None
        if series.kind == "marks":
            axes.plot(x, y, MARKS[series.style // len(COLOURS) % len(MARKS)], color=colour, label=label, markersize=5)
        elif series.kind == "band":
            axes.fill(x, y, color=colour, alpha=0.15, label=label)
        else:
            axes.plot(x, y, "--" if series.kind == "dashed" else "-", color=colour, label=label, linewidth=1.4)
    if any(series.name for series, _ in chart.visible()):
        axes.legend(fontsize=8)
