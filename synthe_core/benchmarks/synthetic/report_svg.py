"""Two charts as inline SVG: accuracy along a task's axis, and accuracy against the size of the state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

from synthe_core.benchmarks.synthetic.summary import Bench, Summary, chance_text, percent, plain
from synthe_core.charts.style import COLOURS, MARKS
from synthe_core.units import format_size

WIDTH, LEFT, TOP, PLOT, HEIGHT, LINE = 640, 46, 14, 390, 290, 17


def style_numbers(benches: Iterable[Bench]) -> dict[str, int]:
    """The number of each family's colour and mark, the same in all charts of a page."""
    names = sorted({row.family for bench in benches for row in bench.rows})
    return {name: number for number, name in enumerate(names)}


def accuracy_by_axis(bench: Bench, styles: Mapping[str, int]) -> str:
    """A line for each family, at its best width and setting; bars are one deviation over seeds."""
    best: dict[str, Summary] = {}
    for row in bench.rows:  # the best first
        best.setdefault(row.family, row)
    height = max(HEIGHT, LINE * len(best))
    step = PLOT / max(1, len(bench.values) - 1)
    across = {value: LEFT + i * step for i, value in enumerate(bench.values)}
    parts = [_frame(bench, height), _text(LEFT + PLOT / 2, TOP + height + 38, bench.axis, "middle")]
    parts += [_text(x, TOP + height + 18, plain(value), "middle") for value, x in across.items()]
    ends = []
    for family, row in best.items():
        points = [(across[p.value], _y(p.mean, height), p) for p in row.by_axis]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
        parts.append(f'<g class="c{styles[family] % COLOURS}"><path class="line" d="M{path}"/>')
        for x, y, point in points:
            if point.std:
                low, high = (_y(_clamp(point.mean + s), height) for s in (-point.std, point.std))
                parts.append(f'<path class="bar" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
            title = f"{row.name}, {bench.axis} {plain(point.value)}: {percent(point.mean, point.std)}"
            parts.append(_mark(x, y, styles[family], title))
        parts.append("</g>")
        ends.append((points[-1][1], points[-1][0], family))
    return _svg(height, f"{bench.title}: accuracy by {bench.axis}", [*parts, *_labels(ends, styles, height)])


def accuracy_by_state(bench: Bench, styles: Mapping[str, int]) -> str:
    """A mark for each model at its best setting; widths of one family are joined. Without a state, no mark."""
    families: dict[str, list[Summary]] = {}
    for row in sorted(bench.best, key=lambda row: row.state_bytes):
        if row.state_bytes > 0:
            families.setdefault(row.family, []).append(row)
    if not families:
        return ""
    sizes = [math.log2(row.state_bytes) for members in families.values() for row in members]
    first, last = math.floor(min(sizes) - 0.25), math.ceil(max(sizes) + 0.25)
    height = max(HEIGHT, LINE * len(families))
    parts = [_frame(bench, height), _text(LEFT + PLOT / 2, TOP + height + 38, "state of one sequence", "middle")]
    for power in range(first, last + 1, 1 + (last - first) // 7):
        x = LEFT + PLOT * (power - first) / (last - first)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}v{height}"/>')
        parts.append(_text(x, TOP + height + 18, format_size(2**power), "middle"))
    ends = []
    for family, members in families.items():
        across = [LEFT + PLOT * (math.log2(row.state_bytes) - first) / (last - first) for row in members]
        points = [(x, _y(row.mean, height), row) for x, row in zip(across, members, strict=True)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
        parts.append(f'<g class="c{styles[family] % COLOURS}"><path class="line" d="M{path}"/>')
        for x, y, row in points:
            title = f"{row.name}: {percent(row.mean, row.std)} with {row.state_bytes:,} bytes"
            parts.append(_mark(x, y, styles[family], title))
        parts.append("</g>")
        ends.append((points[-1][1], points[-1][0], family))
    return _svg(height, f"{bench.title}: accuracy against bytes of state", [*parts, *_labels(ends, styles, height)])


def _labels(ends: list[tuple[float, float, str]], styles: Mapping[str, int], height: float) -> list[str]:
    """Each family's name beside the chart, with a thin line to the end (y, x) of its curve."""
    ends = sorted(ends)
    parts = []
    for (y, x, family), label in zip(ends, _without_overlap([y for y, _, _ in ends], TOP, TOP + height), strict=True):
        lead = f'<path class="lead" d="M{x + 6:.1f} {y:.1f}H{LEFT + PLOT + 6}L{LEFT + PLOT + 22} {label:.1f}"/>'
        mark = _mark(LEFT + PLOT + 29, label, styles[family], family)
        parts.append(f'<g class="c{styles[family] % COLOURS}">{lead}{mark}</g>')
        parts.append(_text(LEFT + PLOT + 39, label + 4, family if len(family) <= 24 else family[:23] + "…"))
    return parts


def _frame(bench: Bench, height: float) -> str:
    """Lines of equal accuracy, and the dashed one of chance."""
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share, height)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{PLOT}"/>' + _text(LEFT - 8, y + 4, f"{share:.0%}", "end"))
    y = _y(_clamp(bench.chance), height)
    title = f"<title>chance, {chance_text(bench.chance)}</title>"
    return "".join(parts) + f'<path class="chance" d="M{LEFT} {y:.1f}h{PLOT}">{title}</path>'


def _mark(x: float, y: float, style: int, title: str) -> str:
    shape = MARKS[style % len(MARKS)]
    return (
        f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{shape}"><title>{escape(title)}</title></path>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, title: str, parts: list[str]) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height + 60:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _y(accuracy: float, height: float) -> float:
    return TOP + height * (1 - accuracy)


def _clamp(share: float) -> float:
    return min(1.0, max(0.0, share))


def _without_overlap(positions: list[float], top: float, bottom: float) -> list[float]:
    """Sorted positions, moved as little as necessary so that labels do not overlap."""
    placed: list[float] = []
    for y in positions:
        placed.append(max([y, *(p + LINE for p in placed[-1:])]))
    limit = bottom
    for i in reversed(range(len(placed))):
        placed[i] = max(top, min(placed[i], limit))
        limit = placed[i] - LINE
    return placed
