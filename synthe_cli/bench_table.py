"""Finished trials in the terminal: a table for each task, and bars of accuracy along its axis."""

from __future__ import annotations

import os
import sys

from synthe_cli import figures
from synthe_cli.escape import escaped, printable
from synthe_core.benchmarks.synthetic.summary import (
    Bench,
    Summary,
    benches,
    chance_text,
    overview_text,
    percent,
    plain,
    score_cells,
    score_columns,
)
from synthe_core.units import format_count, format_size

COST_COLUMNS = ["state", "parameters", "steps", "time", "ended"]
LEFT_OUT = ["parameters", "steps", "seeds", "time", "ended", "state"]  # in this order, if the terminal is narrow
BAR = 40  # characters of an accuracy of 1
NOTHING = 0.05  # share of the range from chance to 1 below which nothing was learned

Cell = tuple[str, str]
"""Text and style."""


def show(summaries: list[Summary], plot: bool = False) -> None:
    """Prints the tables to stdout, best rows first; without colour if stdout is not a terminal."""
    tasks = benches(summaries)
    for number, bench in enumerate(tasks):
        title = f"{bench.title}: chance {chance_text(bench.chance)}"
        _print(("\n" if number else "") + title, score_columns(bench) + COST_COLUMNS, _lines(bench))
        if plot:
            _say("\n" + bars(bench))
    if len(tasks) > 1:
        print()
        _show_overview(tasks)
    sys.stdout.flush()


def show_overview(summaries: list[Summary]) -> None:
    """Prints only the best accuracy of each model on each task."""
    _show_overview(benches(summaries))
    sys.stdout.flush()


def _show_overview(tasks: list[Bench]) -> None:
    columns, lines = overview_text(tasks)
    _print("best accuracy of each model", columns, [[(text, "") for text in line] for line in lines])


def _lines(bench: Bench) -> list[list[Cell]]:
    """The cells of the table. The highest accuracy of a column is bold; values at chance are dim."""
    ahead = 1 + len(bench.swept)
    shown = [[row.mean, *_along(bench, row)] for row in bench.rows]
    highest = [
        max((value for value in column if value is not None), default=1.0) for column in zip(*shown, strict=True)
    ]
    lines = []
    for row, values in zip(bench.rows, shown, strict=True):
        styles = [""] * ahead
        for value, high in zip(values, highest, strict=True):
            learned = value is not None and value - bench.chance > NOTHING * (1 - bench.chance)
            styles.append("dim" if not learned else "bold" if value == high else "")
        texts = score_cells(bench, row)
        cost_cells = [
            format_size(row.state_bytes),
            format_count(row.parameters),
            format_count(row.steps),
            figures.duration(row.seconds),
            row.ended,
        ]
        styles += [""] * (len(texts) + len(cost_cells) - len(styles))
        lines.append(list(zip([*texts, *cost_cells], styles, strict=True)))
    return lines


def _along(bench: Bench, row: Summary) -> list[float | None]:
    by_value = {point.value: point.mean for point in row.by_axis}
    return [by_value.get(value) for value in bench.values]


def _print(title: str, columns: list[str], lines: list[list[Cell]]) -> None:
    if sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown", None):
        _print_rich(title, columns, lines)
    else:
        text = figures.table(columns, [[text for text, _ in line] for line in lines])
        _say(f"{title}\n{text}")


def _print_rich(title: str, columns: list[str], lines: list[list[Cell]]) -> None:
    from rich.console import Console  # imported only when needed
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    columns_shown, needed = _fitting(columns, lines, console.width)
    console.width = max(console.width, needed)  # a wrapped line is better than truncated numbers
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i in columns_shown:
        table.add_column(Text(columns[i]), justify="right" if i else "left", no_wrap=bool(i))
    for line in lines:
        table.add_row(*(Text(escaped(line[i][0]), line[i][1]) for i in columns_shown))
    console.print(Text(escaped(title), "bold"))
    console.print(table)
    if absent := [name for i, name in enumerate(columns) if i not in columns_shown]:
        console.print(Text(f"not shown in this width: {', '.join(absent)}", "dim"))


def _fitting(columns: list[str], lines: list[list[Cell]], width: int) -> tuple[list[int], int]:
    """The columns that fit into `width` and their total width. Accuracies are never dropped."""
    widths = [max(len(head), *(len(line[i][0]) for line in lines)) + 2 for i, head in enumerate(columns)]
    columns_shown = list(range(len(columns)))
    for name in LEFT_OUT:
        if sum(widths[i] for i in columns_shown) > width and name in columns:
            columns_shown.remove(columns.index(name))
    return columns_shown, sum(widths[i] for i in columns_shown)


def bars(bench: Bench) -> str:
    """Accuracy along the axis, for each model at its best setting. A mark shows chance."""
    block, ground, mark = ("█", "·", "│") if _encodes("█·│") else ("#", ".", "|")
    name_width = max(len(row.name) for row in bench.rows)
    value_width = max(len(plain(value)) for value in [*bench.values, bench.axis])
    chance = min(BAR - 1, round(BAR * bench.chance))
    lines = [f"{'':{name_width}}  {bench.axis:>{value_width}}  accuracy; {mark} is chance"]
    for row in bench.best:
        for number, point in enumerate(row.by_axis):
            filled = round(BAR * point.mean)
            bar = [block] * filled + [ground] * (BAR - filled)
            if filled <= chance:
                bar[chance] = mark
            name = row.name if number == 0 else ""
            text = f"{plain(point.value):>{value_width}}  {''.join(bar)} {percent(point.mean, point.std)}"
            lines.append(f"{name:<{name_width}}  {text}")
    return "\n".join(lines)


def _say(text: str) -> None:
    text = printable(text)
    if not _encodes(text):
        text = text.replace("±", "+-").encode("ascii", "replace").decode()
    print(text)


def _encodes(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
