"""The terminal output of `synthe introspect`: tables with a sparkline for every signal."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from synthe_cli import figures
from synthe_cli.escape import escaped, printable
from synthe_core.introspection.compare import differences
from synthe_core.introspection.watch import watch as read_along
from synthe_core.layers import LAYERS
from synthe_core.layers.trace import Emission
from synthe_core.model.block import Block
from synthe_core.model.depth import Router
from synthe_core.units import format_count, format_size

if TYPE_CHECKING:
    from synthe_core.introspection.report import Report
    from synthe_core.introspection.series import Series

BARS = 32
WIDTH = 130
TEXT = 240  # tokens printed; the page has all
SURPRISE_STYLES = ("", "grey62", "yellow", "dark_orange", "red")  # by surprise, 4 bits each
ROLLING = 64  # tokens of the live view


def show(reports: Sequence[Report], tokens: Sequence[int]) -> None:
    """Prints one report, or two and their differences."""
    console = _console()
    for report in reports:
        console.print(_heading(report))
    console.print(_text(reports[-1].pieces, reports[-1].predictions.bits))
    if len(reports) == 1:
        console.print(_strips(reports[0]))
    else:
        _show_comparison(console, *reports)
    for report in reports:
        for token in tokens:
            _show_trace(console, report, token)


def _console() -> Console:
    """A console as wide as the terminal, or of fixed width for a file."""
    console = Console(highlight=False, emoji=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, markup=False, width=WIDTH)


def _heading(report: Report) -> Text:
    facts = report.facts
    parts = [
        f"{facts['blocks']} blocks of {', '.join(facts['learners'])}",
        f"{format_count(facts['parameters'])} parameters",
    ]
    if facts["sparsity"]:
        parts.append(f"{format_count(facts['active_parameters'])} active per token ({facts['sparsity']:.0%} sparse)")
    parts += [f"state {format_size(facts['state_bytes'])}", f"{facts['tokens']:,} tokens"]
    if math.isfinite(report.bits):
        parts.append(f"{report.bits:.3f} bits per token")
    if "classes" in facts:
        parts.append("class " + ", ".join(f"{escaped(name)} {share:.0%}" for name, share in facts["classes"]))
    if report.reads:
        parts.append(f"memory reads reconstructed with error {max(each.error for each in report.reads):.0e}")
    return Text.assemble((report.name, "bold"), "  ", "; ".join(parts))


def _text(pieces: Sequence[str], bits: np.ndarray) -> Text:
    """The text, coloured by the surprise of each token."""
    text = Text()
    for piece, surprise in zip(pieces[:TEXT], bits[:TEXT], strict=True):
        level = 0 if not math.isfinite(surprise) else min(len(SURPRISE_STYLES) - 1, int(surprise // 4))
        text.append(printable(piece), SURPRISE_STYLES[level])
    if len(pieces) > TEXT:
        text.append(f" ... {len(pieces) - TEXT:,} more tokens", "dim")
    text.append("\n")
    return text


def _strips(report: Report) -> Table:
    """A row for each signal: a sparkline over the text, and its lowest, mean and highest value."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for head, justify in (("", "left"), ("", "left"), ("over the text", "left"), ("low", "right"), ("mean", "right")):
        table.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("high", justify="right", no_wrap=True)
    table.add_column("at", no_wrap=True)
    table.add_row("text", "surprise", *_sparkline_row(report.predictions.bits, report, None))
    before = ""
    for each in report.series:
        where = f"{_place(each.path)} {each.learner}".strip()
        label = "" if where == before else where
        before = where
        if each.whole and each.name in ("chosen", "read_slots", "max_head"):
            table.add_row(label, each.name, _top_choices(each), "", "", "", "")
        else:
            table.add_row(label, each.name, *_sparkline_row(each.rows.mean(0), report, each.at))
    for figure in report.figures:
        values = figure.values if isinstance(figure.values, list) else [figure.values]
        if values and not isinstance(values[0], list):
            where = f"{_place(figure.path)} {figure.learner}".strip()
            strip = figures.sparkline(values, BARS) if len(values) > 1 else ""
            ends = (min(values), math.fsum(values) / len(values), max(values))
            table.add_row(where, figure.name, strip, *(_short(value) for value in ends), f"of {len(values)}")
    return table


def _sparkline_row(values: np.ndarray, report: Report, at: np.ndarray | None) -> list[str]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ["", "-", "-", "-", ""]
    best = int(np.nanargmax(values))
    token = best if at is None else int(at[best])
    ends = [_short(float(number)) for number in (finite.min(), finite.mean(), finite.max())]
    return [figures.sparkline(values.tolist(), BARS), *ends, f"{token} {_quoted(report.pieces[token])}"]


def _top_choices(series: Series) -> str:
    """The most frequent choices."""
    numbers, counts = np.unique(series.rows.astype(int), return_counts=True)
    order = np.argsort(-counts)[:5]
    return "  ".join(f"{numbers[i]}: {counts[i] / series.rows.size:.0%}" for i in order)


def _show_trace(console: Console, report: Report, token: int) -> None:
    """Prints which tokens a token reads from, and how much remains of what it wrote."""
    console.print(Text.assemble((f"\ntoken {token} ", "bold"), _quoted(report.pieces[token]), f" in {report.name}"))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for head in ("reads by", "from"):
        table.add_column(head, no_wrap=head != "from")
    for reads in report.reads:
        places = range(len(report.ids)) if reads.at is None else reads.at.tolist()
        if token not in places:
            continue
        n = list(places).index(token)
        pairs = zip(reads.sources[n], reads.shares[n], strict=True)
        sources = [f"{i} {_quoted(report.pieces[i])} {share:.0%}" for i, share in pairs if i >= 0 and share >= 0.01]
        table.add_row(f"{_place(reads.path)} {reads.learner}", ", ".join(sources[:6]) or "none")
    console.print(table)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for head in ("wrote to", "head", "left", "half-life ends at", "most erased by", "similarity", "now stored"):
        table.add_column(head, no_wrap=head != "now stored")
    for one in report.fates:
        if one.token != token:
            continue
        now = ", ".join(
            f"{i} {_quoted(report.pieces[i])} {share:.0%}" for i, share in zip(one.now[:4], one.shares, strict=False)
        )
        for place in range(len(one.left)):
            gone, by = int(one.gone[place]), int(one.by[place])
            table.add_row(
                f"{_place(one.path)} {one.learner}" if not place else "",
                str(place),
                f"{one.left[place]:.0%}",
                f"{gone} {_quoted(report.pieces[gone])}" if gone >= 0 else "not yet",
                f"{by} {_quoted(report.pieces[by])} ({one.took[place]:.0%})" if by >= 0 else "none",
                f"{one.answers[place]:+.2f}",
                now if not place else "",
            )
    if table.row_count:
        console.print(table)


def _show_comparison(console: Console, first: Report, second: Report) -> None:
    """Prints the tokens where two models differ most, and the signals of learners that both have."""
    gain = first.predictions.bits - second.predictions.bits
    order = np.argsort(np.nan_to_num(gain))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for head in ("token", "", first.name, second.name, "bits saved"):
        table.add_column(head, justify="left" if head in ("token", "") else "right", no_wrap=True)
    for i in dict.fromkeys([*order[::-1][:6].tolist(), *order[:6].tolist()]):
        if math.isfinite(gain[i]):
            bits = (first.predictions.bits[i], second.predictions.bits[i], gain[i])
            table.add_row(
                str(i),
                _quoted(first.pieces[i]),
                *(f"{number:+.2f}" if n == 2 else f"{number:.2f}" for n, number in enumerate(bits)),
            )
    console.print(table)
    changes = differences(first, second)
    if not changes:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for head in ("", "", first.name, second.name, "difference per token"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for each in changes:
        numbers = (_short(number) for number in (each.first, each.second, each.rms))
        table.add_row(f"{_place(each.path)} {each.learner}", each.name, *numbers)
    console.print(table)


def watch(model: Any, tokenizer: Any, text: str, **options: Any) -> None:
    """Shows the text as it is read, with the latest signals of every learner; plain lines if this is not a terminal."""
    console = Console(highlight=False, emoji=False, markup=False)
    pieces: deque[str] = deque(maxlen=4 * ROLLING)
    bits: deque[float] = deque(maxlen=4 * ROLLING)
    courses: dict[tuple[str, str, str], deque[float]] = {}
    total: list[float] = []
    moments = read_along(model, tokenizer, text, **options)
    if not console.is_terminal:
        for moment in moments:
            known = moment.bits[np.isfinite(moment.bits)]
            surprise = f"{known.mean():.2f} bits" if known.size else "-"
            print(
                f"{moment.first + len(moment.pieces)}/{moment.total}  {surprise}  {_quoted(''.join(moment.pieces))}",
                flush=True,
            )
        return
    with Live(console=console, refresh_per_second=12) as live:
        for moment in moments:
            pieces.extend(moment.pieces)
            bits.extend(moment.bits.tolist())
            total += [bit for bit in moment.bits.tolist() if math.isfinite(bit)]
            for key, values in moment.figures.items():
                courses.setdefault(key, deque(maxlen=ROLLING)).extend(values.tolist())
            done = moment.first + len(moment.pieces)
            live.update(_live(console, pieces, bits, courses, f"{done:,} of {moment.total:,} tokens", total))


def _live(
    console: Console,
    pieces: Sequence[str],
    bits: Sequence[float],
    courses: dict[tuple[str, str, str], deque[float]],
    done: str,
    total: list[float],
) -> RenderableType:
    mean = f", {math.fsum(total) / len(total):.3f} bits per token" if total else ""
    tail = _text(list(pieces)[-120:], np.array(list(bits)[-120:]))
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    room = max(4, console.height - 12)
    for (path, learner, name), course in list(courses.items())[:room]:
        known = [value for value in course if math.isfinite(value)]
        strip = figures.sparkline(list(course), BARS)
        table.add_row(f"{_place(path)} {learner}", name, Text(strip, "cyan"), _short(known[-1]) if known else "-")
    hidden = len(courses) - room
    more = [Text(f"{hidden} more signals: choose with --layers and --what", "dim")] if hidden > 0 else []
    return Group(Text(done + mean, "bold"), tail, table, *more)


def show_schema(as_json: bool) -> None:
    """Prints the signals of every learner, with their shape and meaning."""
    signals: dict[str, dict[str, Emission]] = {"every learner": dict(Block.emits), "depth router": dict(Router.emits)}
    signals |= {name: dict(LAYERS[name].emits) for name in LAYERS if LAYERS[name].emits}
    if as_json:
        for learner, emits in signals.items():
            for name, emission in emits.items():
                print(json.dumps({"learner": learner, "name": name, **emission._asdict()}))
        return
    rows = [
        [learner if not n else "", name, emission.group, emission.axes or "-", emission.meaning]
        for learner, emits in signals.items()
        for n, (name, emission) in enumerate(emits.items())
    ]
    print(figures.table(["learner", "name", "group", "axes", "meaning"], rows, left=5))


def _place(path: str) -> str:
    """`blocks.2.1.slow.0` as `2.1 slow.0`: the block, the learner's index in it, and the part of the learner."""
    first, *rest = path.split(".")
    if first != "blocks":
        return path
    return ".".join(rest[:2]) + (" " + ".".join(rest[2:]) if rest[2:] else "")


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _quoted(piece: str) -> str:
    return f"'{escaped(piece)}'"
