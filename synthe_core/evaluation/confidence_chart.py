"""The reliability diagram and the risk-coverage curves as SVG, by itself or on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from synthe_core.charts.style import COLOURS, MARKS, STYLE
from synthe_core.evaluation.calibration import Judged

SIDE, LEFT, TOP, GAP, NAMES = 300, 46, 34, 70, 170
WIDTH, HEIGHT = LEFT + 2 * SIDE + GAP + NAMES, TOP + SIDE + 54


def page(title: str, values: Mapping[str, float], judged: Sequence[Judged]) -> str:
    """A page with the picture and its figures; nothing to load and nothing to run."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("score", "ECE", "AUROC", "AURC", "wrong in surer half"))
    rows = "".join(
        f'<tr><th scope="row">{escape(each.score)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in ("–" if each.ece is None else f"{each.ece:.4f}", f"{each.auroc:.4f}"))
        + f"<td>{each.aurc:.4f}</td><td>{each.half:.1%}</td></tr>"
        for each in judged
    )
    told = (
        f"{values['tokens']:,} tokens, {values['accuracy']:.1%} right. AURC of a score that knows nothing: "
        f"{1 - values['accuracy']:.4f}; of one that knows all: {values['ideal_aurc']:.4f}."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1><p>{told}</p>\n{_drawn(title, values, judged)}\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n</body></html>\n'
    )


def picture(title: str, values: Mapping[str, float], judged: Sequence[Judged]) -> str:
    """The picture as a file of its own."""
    return _drawn(title, values, judged, f"<style>{escape(STYLE)} svg {{ background: var(--paper) }}</style>") + "\n"


def _drawn(title: str, values: Mapping[str, float], judged: Sequence[Judged], style: str = "") -> str:
    second = LEFT + SIDE + GAP
    tallest = max([1 - values["accuracy"], *(risk for each in judged for _, risk in each.risk)], default=1.0) or 1.0
    parts = [
        *_frame(LEFT, "share right against what is said", "said", 1.0),
        *_frame(second, "share wrong of the surest tokens", "coverage", tallest),
        f'<path class="chance" d="M{LEFT} {TOP + SIDE}L{LEFT + SIDE} {TOP}"><title>calibrated</title></path>',
    ]
    chance = TOP + SIDE * (1 - (1 - values["accuracy"]) / tallest)
    parts.append(f'<path class="chance" d="M{second} {chance:.1f}h{SIDE}"><title>knows nothing</title></path>')
    for number, each in enumerate(judged):
        mark, y = MARKS[number % len(MARKS)], TOP + 12 + 20 * number
        parts.append(f'<g class="c{number % COLOURS}">')
        if each.ece is not None:
            at = [(LEFT + SIDE * b.score, TOP + SIDE * (1 - b.right), b) for b in each.bins]
            parts.append(_line([(x, y) for x, y, _ in at]))
            parts += [
                _mark(mark, x, y, f"{each.score}: says {b.score:.1%}, {b.right:.1%} of {b.answers:,} right")
                for x, y, b in at
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


def _mark(shape: str, x: float, y: float, told: str) -> str:
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{shape}"><title>{escape(told)}</title></path>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
