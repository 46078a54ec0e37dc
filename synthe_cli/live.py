"""The live display: a few lines at the foot of a terminal, rewritten in place, and what happened once above them."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from synthe_cli import figures
from synthe_cli.console import Renderer, amount, describe, labelled, of_step, printable
from synthe_core.events import Event, Measurement, Metric, Notice, Progress, Result, Sample, Saved

HISTORY = 4096  # losses that the sparkline is drawn from; older ones are thinned by half
SPARKLINE = 24


class LiveRenderer(Renderer):
    """A progress bar, the figures of the last step and the course of the loss, on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, emoji=False)
        self._progress: Progress | None = None
        self._metric: Metric | None = None
        self._losses: list[float] = []
        self._live: Live | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress = event
        elif isinstance(event, Metric) and event.phase == "train":
            self._metric = event
            self._remember(event.values.get("loss"))
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
                return [f"[yellow]warning[/] {escape(event.message)}"]
            case Sample():
                text = Text(printable(event.text), style="cyan")
                return [f"[dim]step {event.step} writes[/]", Padding(text, (0, 2))]
            case Metric():
                return [f"[bold]{event.phase}[/]  [dim]step {event.step}[/]  {_figures(event)}"]
            case Saved():
                return [f"[dim]saved step {event.step} to {escape(str(event.path))}[/]"]
            case Result():
                return [f"[green]done[/]  {escape(line)}" for line in describe(event)]
        return [escape(line) for line in describe(event)]

    def _view(self) -> RenderableType:
        rows: list[RenderableType] = []
        if self._progress:
            rows.append(_bar(self._progress))
        if self._metric:
            rows.append(f"[dim]step {figures.count(self._metric.step)}[/]  {_figures(self._metric)}")
            if line := figures.sparkline(self._losses, SPARKLINE):
                first, last = self._losses[0], self._losses[-1]
                rows.append(f"[dim]loss {first:.3f}[/] [cyan]{line}[/] [bold]{last:.3f}[/]")
        return Group(*rows)


def _bar(event: Progress) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    share = f"{event.done / event.total:.0%}" if event.total else ""
    left = f"{figures.duration(event.eta)} left" if event.eta is not None else ""
    bar = ProgressBar(total=event.total or None, completed=event.done, width=30, pulse=not event.total)
    grid.add_row(f"[bold]{escape(event.what)}[/]", bar, share, f"[dim]{escape(amount(event))}[/]", left)
    return grid


def _figures(event: Metric) -> str:
    return "  ".join(f"[dim]{escape(label)}[/] {escape(text)}" for label, text in labelled(of_step(event)))
