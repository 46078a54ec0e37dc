"""The live display: a few lines at the bottom of a terminal, redrawn in place, with one-time events above them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from synthe_cli import figures
from synthe_cli.console import Renderer, amount, describe, labelled, of_step
from synthe_cli.escape import escaped, printable
from synthe_core.events import Event, Measurement, Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.units import format_count

HISTORY = 4096  # losses that the sparkline is drawn from; older ones are thinned by half
SPARKLINE = 24
WIDE, WIDE_BAR, NARROW_BAR = 100, 20, 10
SWEEPS = ("trials", "runs")


class LiveRenderer(Renderer):
    """A progress bar, the metrics of the last step and a sparkline of the loss, on stderr.

    While a sweep goes on, which is a Progress in trials or runs, each of them has a row: its bar until the Measurement
    of its name ends it, and then how it ended.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, emoji=False)
        self._sweep: Progress | None = None
        self._running: dict[str, Progress] = {}
        self._scores: dict[str, Metric] = {}
        self._ended: list[Measurement] = []
        self._metric: Metric | None = None
        self._losses: list[float] = []
        self._live: Live | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, Progress) and event.unit in SWEEPS:
            self._sweep = event
        elif isinstance(event, Progress):
            running = self._running if self._sweep else {}
            self._running = {**running, event.what: event}
        elif isinstance(event, Metric) and event.what in self._running:
            self._scores[event.what] = event
        elif isinstance(event, Metric) and event.phase == "train":
            self._metric = event
            self._remember(event.values.get("loss"))
        elif isinstance(event, Measurement) and (event.case in self._running or self._sweep):
            self._running.pop(event.case, None)
            self._ended.append(event)
        elif isinstance(event, Measurement):
            self.finding(event)
            return
        else:
            for part in self._once(event):
                self.console.print(part)
            return
        self._start().update(self._view())

    def _start(self) -> Live:
        if self._live is None:
            self._live = Live(console=self.console, refresh_per_second=8, transient=True)
            self._live.start()
        return self._live

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _remember(self, loss: float | None) -> None:
        if loss is not None:
            self._losses.append(loss)
        if len(self._losses) > HISTORY:
            self._losses = self._losses[::2]

    def _once(self, event: Event) -> list[RenderableType]:
        match event:
            case Notice(level="warning"):
                return [f"[yellow]warning[/] {escape(escaped(event.message))}"]
            case Sample():
                text = Text(printable(event.text), style="cyan")
                return [f"[dim]step {event.step} writes[/]", Padding(text, (0, 2))]
            case Metric():
                return [f"[bold]{escape(escaped(event.phase))}[/]  [dim]step {event.step}[/]  {_figures(event)}"]
            case Saved():
                return [f"[dim]saved step {event.step} to {escape(escaped(event.path))}[/]"]
            case Result():
                return [f"[green]done[/]  {escape(line)}" for line in describe(event)]
        return [escape(line) for line in describe(event)]

    def _view(self) -> RenderableType:
        rows: list[RenderableType] = [self._table()]
        if self._metric:
            rows.append(f"[dim]step {format_count(self._metric.step)}[/]  {_figures(self._metric)}")
            if line := figures.sparkline(self._losses, SPARKLINE):
                first, last = self._losses[0], self._losses[-1]
                rows.append(f"[dim]loss {first:.3f}[/] [cyan]{line}[/] [bold]{last:.3f}[/]")
        return Group(*rows)

    def _table(self) -> Table:
        """The latest finished trials that fit, the running ones, and the whole sweep."""
        grid = Table.grid(Column(), padding=(0, 2, 0, 0))  # the names give way where a terminal is narrow
        bar = WIDE_BAR if self.console.width >= WIDE else NARROW_BAR
        for place in range(5):
            grid.add_column(no_wrap=True, justify="right" if place else "left")
        room = max(0, self.console.height - len(self._running) - 3)
        shown = self._ended[-room:] if room else []
        if hidden := len(self._ended) - len(shown):
            grid.add_row(Text(f"{hidden} more", "dim"))
        for each in shown:
            grid.add_row(*_ended_row(each))
        for what, progress in self._running.items():
            grid.add_row(*_running_row(progress, self._scores.get(what), bar))
        if self._sweep:
            grid.add_row(*_running_row(self._sweep, None, bar))
        return grid


def _running_row(event: Progress, score: Metric | None, width: int) -> list[RenderableType]:
    bar = ProgressBar(total=event.total or None, completed=event.done, width=width, pulse=not event.total)
    share = f"{event.done / event.total:.0%}" if event.total else ""
    left = f"{figures.duration(event.eta)} left" if event.eta is not None else ""
    name, quantity = _name(event.what, "bold"), Text(amount(event), "dim")
    return [name, bar, share, quantity, _score(score.values if score else {}), left]


def _ended_row(event: Measurement) -> list[RenderableType]:
    """The row of a finished trial, with its status in place of the bar."""
    values = event.values
    ended, steps, seconds = (values.get(key) for key in ("ended", "steps", "seconds"))
    style = {"solved": "green", "finished": "green", "failed": "red"}.get(str(ended), "")
    taken = figures.duration(seconds) if isinstance(seconds, (int, float)) else ""
    many = f"{format_count(steps)} steps" if isinstance(steps, (int, float)) else ""
    return [
        Text(escaped(event.case)),
        Text(escaped(ended or ""), style),
        "",
        Text(many, "dim"),
        _score(values),
        taken,
    ]


def _name(text: str, style: str = "") -> Text:
    return Text(escaped(text), style, no_wrap=True, overflow="ellipsis")


def _score(values: Mapping[str, object]) -> str:
    """The accuracy, or else the loss."""
    for key, form in (("accuracy", "{:.1%}"), ("loss", "{:.3f}")):
        if isinstance(value := values.get(key), (int, float)):
            return form.format(value)
    return ""


def _figures(event: Metric) -> str:
    return "  ".join(f"[dim]{escape(label)}[/] {escape(text)}" for label, text in labelled(of_step(event)))
