"""The reliability diagram and the risk-coverage curves as SVG, by itself or on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from synthe_core.charts.style import COLOURS, MARKS, STYLE
from synthe_core.evaluation.calibration import ScoreQuality

SIDE, LEFT, TOP, GAP, NAMES = 300, 46, 34, 70, 170
WIDTH, HEIGHT = LEFT + 2 * SIDE + GAP + NAMES, TOP + SIDE + 54


def page(title: str, values: Mapping[str, float], qualities: Sequence[ScoreQuality]) -> str:
    """An HTML page with the chart and a table, without scripts or external files."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("score", "ECE", "AUROC", "AURC", "wrong in top half"))
    rows = "".join(
        f'<tr><th scope="row">{escape(each.score)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in ("–" if each.ece is None else f"{each.ece:.4f}", f"{each.auroc:.4f}"))
        + f"<td>{each.aurc:.4f}</td><td>{each.half:.1%}</td></tr>"
        for each in qualities
    )
    summary = (
        f"{values['tokens']:,} tokens, {values['accuracy']:.1%} right. AURC at chance: "
        f"{1 - values['accuracy']:.4f}; of a perfect score: {values['ideal_aurc']:.4f}."
    )
    chart = _chart(title, values, qualities)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1><p>{summary}</p>\n{chart}\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n</body></html>\n'
    )


def picture(title: str, values: Mapping[str, float], qualities: Sequence[ScoreQuality]) -> str:
    """The chart as an SVG file."""
    return _chart(title, values, qualities, f"<style>{escape(STYLE)} svg {{ background: var(--paper) }}</style>") + "\n"


def _chart(title: str, values: Mapping[str, float], qualities: Sequence[ScoreQuality], style: str = "") -> str:
    second = LEFT + SIDE + GAP
    tallest = max([1 - values["accuracy"], *(risk for each in qualities for _, risk in each.risk)], default=1.0) or 1.0
    parts = [
        *_frame(LEFT, "accuracy against confidence", "confidence", 1.0),
        *_frame(second, "error rate of the most confident tokens", "coverage", tallest),
        f'<path class="chance" d="M{LEFT} {TOP + SIDE}L{LEFT + SIDE} {TOP}"><title>calibrated</title></path>',
    ]
    chance = TOP + SIDE * (1 - (1 - values["accuracy"]) / tallest)
    parts.append(f'<path class="chance" d="M{second} {chance:.1f}h{SIDE}"><title>chance</title></path>')
    for number, each in enumerate(qualities):
        mark, y = MARKS[number % len(MARKS)], TOP + 12 + 20 * number
        parts.append(f'<g class="c{number % COLOURS}">')
        if each.ece is not None:
            points = [(LEFT + SIDE * b.score, TOP + SIDE * (1 - b.right), b) for b in each.bins]
            parts.append(_line([(x, y) for x, y, _ in points]))
            parts += [
                _mark(mark, x, y, f"{each.score}: confidence {b.score:.1%}, {b.right:.1%} of {b.answers:,} right")
                for x, y, b in points
            ]
        parts.append(_line([(second + SIDE * c, TOP + SIDE * (1 - risk / tallest)) for c, risk in each.risk]))
        parts.append(_mark(mark, second + SIDE + 20, y, each.score) + "</g>")
        parts.append(_text(second + SIDE + 32, y + 4, each.score))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{style}{"".join(parts)}</svg>'
    )


def _frame(left: float, title: str, across: str, tallest: float) -> list[str]:
    parts = [_text(left, TOP - 14, title), _text(left + SIDE / 2, TOP + SIDE + 40, across, "middle")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + SIDE * (1 - share)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{SIDE}"/>')
        parts.append(_text(left - 8, y + 4, f"{share * tallest:.0%}", "end"))
        parts.append(_text(left + SIDE * share, TOP + SIDE + 20, f"{share:.0%}", "middle"))
    return parts


def _line(points: list[tuple[float, float]]) -> str:
    return f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def _mark(shape: str, x: float, y: float, tooltip: str) -> str:
    return (
        f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{shape}"><title>{escape(tooltip)}</title></path>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
