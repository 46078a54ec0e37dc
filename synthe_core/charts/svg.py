"""Charts as one standalone SVG, light or dark as its reader is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from synthe_core.charts.chart import Chart, Series, place, tick_text, ticks
from synthe_core.charts.style import COLOURS, MARKS

WIDTH, LEFT, RIGHT, TOP, HEIGHT, LINE = 640, 62, 150, 34, 250, 16
AROUND = TOP + 56  # of a panel, above and below its plot
PLOT = WIDTH - LEFT - RIGHT
STYLE = """
svg { --ink: #1c1f23; --rule: #d9dde3; --paper: #fff; font: 12px system-ui, sans-serif;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #5c6370 }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8eb; --rule: #343a42; --paper: #15181c;
  --c0: #3d94d6; --c1: #ef7d2e; --c2: #1fbd90; --c5: #9fd6f7; --c6: #9aa2ad } }
rect.paper { fill: var(--paper) } text { fill: var(--ink) } .title { font-weight: 600; font-size: 13px }
.grid { stroke: var(--rule); fill: none } .line { stroke: currentColor; stroke-width: 1.8; fill: none }
.dashed { stroke: currentColor; stroke-width: 1.4; stroke-dasharray: 5 4; fill: none }
.band { fill: currentColor; opacity: .15 } .mark { fill: currentColor; stroke: var(--paper) }
""" + "".join(f".c{i} {{ color: var(--c{i}) }} " for i in range(COLOURS))


def svg(charts: Sequence[Chart]) -> str:
    """The charts, one below the other. ValueError if one has nothing to draw."""
    panels, height = [], 0
    for chart in charts:
        plot = max(HEIGHT, LINE * (len(_named(chart)) + 1))  # a long legend makes it higher
        panels.append(f'<g transform="translate(0 {height})">{_panel(chart, plot)}</g>')
        height += AROUND + plot
    title = "; ".join(chart.title for chart in charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>{"".join(panels)}</svg>\n'
    )


def _panel(chart: Chart, height: int) -> str:
    x_bounds, y_bounds = chart.ranges()

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = LEFT + PLOT * place(point[0], x_bounds, chart.x.log)
        return across, TOP + height * (1 - place(point[1], y_bounds, chart.y.log))

    parts = [_text(LEFT, 18, chart.title, kind=' class="title"')]
    for value in ticks(x_bounds, chart.x.log):
        x = LEFT + PLOT * place(value, x_bounds, chart.x.log)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}v{height}"/>')
        parts.append(_text(x, TOP + height + 17, tick_text(value), "middle"))
    for value in ticks(y_bounds, chart.y.log):
        y = TOP + height * (1 - place(value, y_bounds, chart.y.log))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{PLOT}"/>')
        parts.append(_text(LEFT - 7, y + 4, tick_text(value), "end"))
    parts.append(_text(LEFT + PLOT / 2, TOP + height + 37, chart.x.label, "middle"))
    parts.append(
        f'<g transform="translate(14 {TOP + height / 2}) rotate(-90)">{_text(0, 0, chart.y.label, "middle")}</g>'
    )
    for series, points in chart.visible():
        parts.append(f'<g class="c{series.style % COLOURS}">{_shape(series, [at(point) for point in points])}</g>')
    return "".join([*parts, *_legend(chart)])


def _shape(series: Series, places: Sequence[tuple[float, float]]) -> str:
    if series.kind == "marks":
        shape = MARKS[series.style // COLOURS % len(MARKS)]
        return "".join(f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{shape}"/>' for x, y in places)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="{series.kind}" d="{path}{"z" if series.kind == "band" else ""}"/>'


def _legend(chart: Chart) -> list[str]:
    parts, x = [], LEFT + PLOT + 14
    for row, series in enumerate(_named(chart)):
        y = TOP + 8 + row * LINE
        ends = [(float(x + 6), float(y))] if series.kind == "marks" else [(float(x), float(y)), (x + 13.0, float(y))]
        parts.append(f'<g class="c{series.style % COLOURS}">{_shape(series, ends)}</g>')
        parts.append(_text(x + 18, y + 4, series.name if len(series.name) <= 20 else f"{series.name[:19]}…"))
    return parts


def _named(chart: Chart) -> list[Series]:
    """The series of the legend."""
    return [series for series, _ in chart.visible() if series.name]


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'
