"""An HTML page of memory against context: a recipe beside a transformer with as many parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from synthe_core.charts.style import STYLE
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.units import format_length, format_size

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 70, 46, 16, 170
CONTEXTS = tuple(2**n for n in range(8, 18))


class Curve(NamedTuple):
    """Bytes at each context."""

    name: str
    points: list[tuple[int, float]]


def matched_transformer(recipe: Recipe) -> Recipe:
    """A transformer of the recipe's width with about as many parameters: full attention and SwiGLU in every block."""
    vocab = vocabulary_of(recipe)
    target = recipe.meta_model(vocab).parameter_count()
    width = recipe.model.width
    heads = max(1, width // 64)
    while width % heads or (width // heads) % 2:
        heads -= 1
        if heads == 0:
            heads = 1
            break
    plain = {"depth": None, "confidence": None}
    block = Recipe.model_validate(
        {"model": {"width": width, "blocks": 1, "block": [{"type": "attention", "heads": heads}, "mlp"]}}
    ).model.block

    def with_blocks(blocks: int) -> Recipe:
        spec = recipe.model.model_copy(update={"block": block, "blocks": blocks, **plain})
        return recipe.model_copy(update={"model": spec, "name": "transformer"})

    one, two = (with_blocks(blocks).meta_model(vocab).parameter_count() for blocks in (1, 2))
    return with_blocks(max(1, round((target - one) / (two - one)) + 1))


def serving_curve(recipe: Recipe, name: str, sequences: int) -> Curve:
    """Bytes of the weights and of the states of that many sequences, at every context."""
    model = recipe.meta_model(vocabulary_of(recipe))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Curve(name, [(n, float(weights + sequences * model.state_bytes(n))) for n in CONTEXTS])


def page(title: str, charts: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """A page with one chart after the other, without scripts or external resources."""
    drawn = "".join(f"<h2>{escape(head)}</h2>{_chart(curves)}{_table(curves)}" for head, curves in charts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>\n<style>{STYLE} svg {{ max-width: {WIDTH}px }}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{drawn}\n</body></html>\n"
    )


def _chart(curves: Sequence[Curve]) -> str:
    """Both axes in powers of two."""
    contexts = [n for curve in curves for n, _ in curve.points]
    sizes = [size for curve in curves for _, size in curve.points]
    left, right = math.log2(min(contexts)), math.log2(max(contexts))
    low, high = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)) + 0.01)
    across, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(n: float) -> float:
        return LEFT + across * (math.log2(n) - left) / max(right - left, 1)

    def y(size: float) -> float:
        return TOP + tall * (high - math.log2(size)) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="memory against context">']
    step = max(1, (high - low) // 8)
    for power in range(low, high + 1, step):
        parts.append(f'<path class="grid" d="M{LEFT} {y(2**power):.1f}h{across}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(2**power) + 4:.1f}" text-anchor="end">{format_size(2**power)}</text>')
    for n in sorted(set(contexts)):
        if round(math.log2(n) - left) % 2 == 0 or right - left < 6:
            parts.append(f'<text x="{x(n):.1f}" y="{TOP + tall + 20}" text-anchor="middle">{format_length(n)}</text>')
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 6}" text-anchor="middle">context, tokens</text>')
    ends: list[float] = []
    for number, curve in enumerate(curves):
        line = "L".join(f"{x(n):.1f} {y(size):.1f}" for n, size in curve.points)
        last = y(curve.points[-1][1])
        label = last + 4
        while any(abs(label - other) < 16 for other in ends):
            label += 16
        ends.append(label)
        dots = "".join(
            f'<circle class="mark" cx="{x(n):.1f}" cy="{y(size):.1f}" r="3.5">'
            f"<title>{escape(curve.name)}, {n:,} tokens: {format_size(size)}</title></circle>"
            for n, size in curve.points
        )
        parts.append(
            f'<g class="c{number}"><path class="line" d="M{line}"/>{dots}'
            f'<text x="{LEFT + across + 12}" y="{label:.1f}">{escape(curve.name)}</text></g>'
        )
    return "".join(parts) + "</svg>"


def _table(curves: Sequence[Curve]) -> str:
    head = "".join(f'<th scope="col">{format_length(n)}</th>' for n, _ in curves[0].points)
    rows = "".join(
        f'<tr><th scope="row">{escape(curve.name)}</th>'
        + "".join(f"<td>{format_size(size)}</td>" for _, size in curve.points)
        + "</tr>"
        for curve in curves
    )
    return f'<div class="wide"><table><thead><tr><th>tokens</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
