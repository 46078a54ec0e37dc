"""Charts as text, for a terminal."""

from __future__ import annotations

from synthe_core.charts.chart import Chart, place, tick_text, ticks

WIDTH, HEIGHT = 64, 18
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LINE_LETTER = "·"


def text(chart: Chart, width: int = WIDTH, height: int = HEIGHT) -> str:
    """A chart of letters, one for each named series; lines are dots, and areas are left out.

    ValueError if it has nothing to draw.
    """
    x_bounds, y_bounds = chart.ranges()
    cells = [[" "] * width for _ in range(height)]
    names: dict[str, str] = {}
    drawn = chart.visible()
    for series, points in sorted(drawn, key=lambda each: each[0].kind == "marks"):
        if series.kind == "band":
            continue
        letter = LINE_LETTER
        if series.kind == "marks":
            letter = names.setdefault(series.name, LETTERS[len(names) % len(LETTERS)])
        for x, y in points:
            column = round((width - 1) * place(x, x_bounds, chart.x.log))
            row = round((height - 1) * (1 - place(y, y_bounds, chart.y.log)))
            cells[row][column] = letter
    labels = {
        round((height - 1) * (1 - place(v, y_bounds, chart.y.log))): tick_text(v) for v in ticks(y_bounds, chart.y.log)
    }
    margin = max((len(label) for label in labels.values()), default=0)
    lines = [chart.title, f"{chart.y.label}"]
    lines += [f"{labels.get(row, ''):>{margin}} |{''.join(line).rstrip()}" for row, line in enumerate(cells)]
    lines.append(f"{'':{margin}} +{'-' * width}")
    lines.append(f"{'':{margin}}  {_across(chart, x_bounds, width)}")
    lines.append(f"{'':{margin}}  {chart.x.label:^{width}}".rstrip())
    lines += [f"{'':{margin}}  {letter} {name}" for name, letter in names.items() if name]
    return "\n".join(lines)


def _across(chart: Chart, bounds: tuple[float, float], width: int) -> str:
    """The labels below the chart, those that have room."""
    line = [" "] * (width + 8)
    free = 0
    for value in ticks(bounds, chart.x.log):
        label = tick_text(value)
        start = max(0, round((width - 1) * place(value, bounds, chart.x.log)) - len(label) // 2)
        if start >= free:
            line[start : start + len(label)] = label
            free = start + len(label) + 1
    return "".join(line).rstrip()
