"""The confusion matrix and the reliability diagram of a classifier as SVG, by itself or on a page."""

from __future__ import annotations

from html import escape

from synthe_core.charts.style import MARKS, STYLE
from synthe_core.evaluation.class_scores import ClassScores

SIDE, TOP, GAP, NAMES = 360, 64, 70, 110
LONGEST = 16  # characters of a class's name
NUMBERED = 24  # classes whose cells have numbers
WIDTH, HEIGHT = NAMES + 2 * SIDE + GAP + 16, TOP + SIDE + 60


def page(title: str, scores: ClassScores) -> str:
    """An HTML page with the chart and a table, without scripts or external files."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "texts", "given", "precision", "recall", "F1"))
    rows = "".join(
        f'<tr><th scope="row">{escape(each.name)}</th><td>{each.texts:,}</td><td>{each.predicted:,}</td>'
        f"<td>{each.precision:.1%}</td><td>{each.recall:.1%}</td><td>{each.f1:.3f}</td></tr>"
        for each in scores.classes
    )
    summary = (
        f"{scores.texts:,} texts, {scores.accuracy:.1%} right (95% interval {scores.low:.1%} to {scores.high:.1%}); "
        f"always the most frequent class: {scores.chance:.1%}."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1><p>{summary}</p>\n{_chart(title, scores)}\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n</body></html>\n'
    )


def picture(title: str, scores: ClassScores) -> str:
    """The chart as an SVG file."""
    return _chart(title, scores, f"<style>{escape(STYLE)} svg {{ background: var(--paper) }}</style>") + "\n"


def _chart(title: str, scores: ClassScores, style: str = "") -> str:
    parts = [*_matrix(scores), *_reliability(NAMES + SIDE + GAP, scores)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{style}{"".join(parts)}</svg>'
    )


def _matrix(scores: ClassScores) -> list[str]:
    """A cell for each pair of classes, as dark as its share of the row."""
    count = len(scores.classes)
    cell = SIDE / count
    parts = [_text(NAMES, 16, "texts of a class (row) by the class given (column)")]
    for row, (each, counts) in enumerate(zip(scores.classes, scores.confusion, strict=True)):
        y = TOP + row * cell
        name = escape(each.name if len(each.name) <= LONGEST else each.name[: LONGEST - 1] + "…")
        if cell >= 10:
            x = NAMES + (row + 0.5) * cell
            parts.append(f'<text x="{NAMES - 6}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">{name}</text>')
            parts.append(f'<text transform="translate({x + 4:.1f} {TOP - 6}) rotate(-35)">{name}</text>')
        for column, number in enumerate(counts):
            x, share = NAMES + column * cell, number / max(each.texts, 1)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" class="grid" '
                f'style="fill:rgb(var(--shade) / {share:.3f})"><title>{escape(each.name)} given '
                f"{escape(scores.classes[column].name)}: {number:,} of {each.texts:,}</title></rect>"
            )
            if number and count <= NUMBERED:
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, str(number), "middle"))
    return parts


def _reliability(left: float, scores: ClassScores) -> list[str]:
    parts = [
        _text(left, 16, f"accuracy against confidence (ECE {scores.ece:.3f})"),
        _text(left + SIDE / 2, TOP + SIDE + 44, "confidence", "middle"),
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + SIDE * (1 - share)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{SIDE}"/>')
        parts.append(_text(left - 8, y + 4, f"{share:.0%}", "end"))
        parts.append(_text(left + SIDE * share, TOP + SIDE + 20, f"{share:.0%}", "middle"))
    parts.append(f'<path class="chance" d="M{left} {TOP + SIDE}L{left + SIDE} {TOP}"><title>calibrated</title></path>')
    points = [(left + SIDE * b.score, TOP + SIDE * (1 - b.right), b) for b in scores.bins]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
    parts.append(f'<g class="c0"><path class="line" d="M{line}"/>')
    for x, y, each in points:
        tip = f"confidence {each.score:.1%}, {each.right:.1%} of {each.answers:,} right"
        parts.append(
            f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{MARKS[0]}"><title>{tip}</title></path>'
        )
    return [*parts, "</g>"]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
