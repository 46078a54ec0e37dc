"""The report as one HTML page: tables and charts, without scripts or external resources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from synthe_core.benchmarks.synthetic.report_svg import accuracy_by_axis, accuracy_by_state, style_numbers
from synthe_core.benchmarks.synthetic.summary import (
    COST_COLUMNS,
    Bench,
    Point,
    Record,
    Summary,
    chance_text,
    cost_cells,
    overview,
    percent,
    plain,
    score_cells,
    score_columns,
    stop_note,
)
from synthe_core.charts.style import STYLE

MAX_SHADE = 0.5  # opacity of a cell's shade at an accuracy of 1


def page(records: Sequence[Record], tables: Sequence[Bench]) -> str:
    """All tasks of the records, and in the footer versions, hardware and every trial."""
    styles = style_numbers(tables)
    trials = f"{len(records)} {'trial' if len(records) == 1 else 'trials'}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>synthe bench: {escape(', '.join(bench.title for bench in tables))}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Learners on synthetic tasks</h1><p>{trials}. Accuracy on held-out sequences; where there are several",
        f"seeds, mean ± standard deviation. Shades run from chance to 100%. {escape(stop_note(records))}</p>",
    ]
    if len(tables) > 1:
        parts += [
            "<h2>Overview</h2><p>Each model at its best setting, chosen by this accuracy.</p>",
            _overview(list(tables)),
        ]
    parts += [_section(bench, styles) for bench in tables]
    parts += [_foot(records), "</body></html>"]
    return "\n".join(parts) + "\n"


def _overview(tables: list[Bench]) -> str:
    table = overview(tables)
    body = [
        (name, [_shaded(cell, cell.chance) if cell else "<td>–</td>" for cell in cells]) for name, cells in table.lines
    ]
    return _table(["", *table.columns], body)


def _section(bench: Bench, styles: dict[str, int]) -> str:
    parts = [f"<h2>{escape(bench.title)}</h2>", f'<div class="charts">{_charts(bench, styles)}</div>']
    note = " Each model at its best setting, chosen by this accuracy." if bench.swept else ""
    parts.append(f"<p>Chance is {chance_text(bench.chance)}.{note}</p>")
    parts.append(_scores(bench, bench.best))
    if bench.swept:
        parts.append(f"<details><summary>Every setting</summary>{_scores(bench, bench.rows)}</details>")
    names = dict.fromkeys(name for row in bench.best for name in row.slices)
    return "\n".join([*parts, *(_slices(bench, name) for name in names)])


def _scores(bench: Bench, chosen: list[Summary]) -> str:
    columns = score_columns(bench) + COST_COLUMNS
    first = columns.index("accuracy")
    body = []
    for row in chosen:
        texts = score_cells(bench, row) + cost_cells(row)
        shaded = [_shaded(row, bench.chance), *_along(row.by_axis, bench.values, bench.chance)]
        left, right = texts[1:first], texts[first + len(shaded) :]
        body.append((row.name, [*map(_cell, left), *shaded, *map(_cell, right)]))
    return _table(columns, body)


def _charts(bench: Bench, styles: dict[str, int]) -> str:
    drawn = []
    if len(bench.values) > 1:
        drawn.append(
            (
                accuracy_by_axis(bench, styles),
                f"Accuracy by {bench.axis}, at the best setting and width. Dashed: chance.",
            )
        )
    if state := accuracy_by_state(bench, styles):
        drawn.append((state, "Accuracy against the state that one sequence of the longest test takes. Dashed: chance."))
    return "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for svg, caption in drawn)


def _slices(bench: Bench, name: str) -> str:
    """The accuracies by one of the examples' slices, collapsed."""
    values = list(dict.fromkeys(point.value for row in bench.best for point in row.slices.get(name, [])))
    body = [(row.name, _along(row.slices.get(name, []), values, bench.chance)) for row in bench.best]
    columns = ["model", *(f"{name} {plain(value)}" for value in values)]
    return f"<details><summary>Accuracy by {escape(name)}</summary>{_table(columns, body)}</details>"


def _foot(records: Sequence[Record]) -> str:
    def counted_text(texts: list[str]) -> str:
        counts = Counter(texts)
        if len(counts) == 1:
            return texts[0]
        return "; ".join(f"{text} ({count} of {len(texts)} trials)" for text, count in counts.items())

    kernels: dict[str, set[str]] = {}
    for record in records:
        for op, names in record["kernels"].items():
            kernels.setdefault(op, set()).update(names)
    facts = {
        "synthe": counted_text([record["version"] for record in records]),
        "torch": counted_text([record["torch"] for record in records]),
        "hardware": counted_text([f"{record['hardware']} ({record['device']})" for record in records]),
        "kernels": ", ".join(f"{op}: {'/'.join(sorted(names))}" for op, names in sorted(kernels.items())),
        "time": f"{sum(record['seconds'] for record in records):,.0f} seconds of all trials together",
    }
    if dates := sorted(record["finished"] for record in records if "finished" in record):
        facts["finished"] = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    columns = ["digest", "task", "model", "lr", "seed", "accuracy", "steps", "tokens", "seconds", "ended"]
    body = []
    for record in records:
        trial = record["trial"]
        texts = [
            *(trial["task"], trial["label"], plain(trial["lr"]), str(trial["seed"]), percent(record["accuracy"])),
            *(f"{record['steps']:,}", f"{record['tokens']:,}", f"{record['seconds']:,.1f}", record["ended"]),
        ]
        body.append((record["digest"], [*map(_cell, texts)]))
    trials = f"<details><summary>Every trial</summary>{_table(columns, body)}</details>"
    return f"<footer><dl>{listed}</dl>{trials}</footer>"


def _table(columns: list[str], body: list[tuple[str, list[str]]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(line)}</tr>' for name, line in body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _along(points: list[Point], values: list[Any], chance: float) -> list[str]:
    """A cell for each value, in this order."""
    by_value = {point.value: point for point in points}
    return [_shaded(by_value[value], chance) if value in by_value else "<td>–</td>" for value in values]


def _shaded(point: Point | Summary, chance: float) -> str:
    above = (point.mean - chance) / (1 - chance) if chance < 1 else 1.0
    shade = MAX_SHADE * min(1.0, max(0.0, above))
    spread = f" <small>± {100 * point.std:.1f}</small>" if point.std is not None else ""
    return f'<td class="a" style="--s:{shade:.3f}">{percent(point.mean)}{spread}</td>'
