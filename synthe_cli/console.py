"""The renderers: each shows a stream of events as a live display, plain lines or JSON lines."""

from __future__ import annotations

import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from synthe_cli import figures
from synthe_cli.escape import escaped, json_text, printable
from synthe_core.events import Event, Measurement, Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.units import format_count, format_part, format_size

LINE_INTERVAL = 5.0  # seconds between plain progress lines
JSON_INTERVAL = 0.25  # seconds between JSON progress lines of one task; every other event is written

SHOWN = {
    "loss": ("loss", "{:.3f}".format),
    "bits_per_byte": ("bits/byte", "{:.3f}".format),
    "perplexity": ("perplexity", "{:.4g}".format),
    "accuracy": ("accuracy", "{:.1%}".format),
    "chance": ("chance", "{:.1%}".format),
    "lr": ("lr", "{:.1e}".format),
    "grad_norm": ("grad", "{:.2g}".format),
    "tokens_per_second": ("tok/s", format_count),
    "peak_fraction": ("of peak FLOP/s", "{:.0%}".format),
    "confidence": ("confidence loss", "{:.3f}".format),
    "flops_saved": ("skipped", "{:.0%}".format),
    "depth": ("depth", "{:.2f}".format),
    "gate_rate": ("gated", "{:.1%}".format),
    "memory": ("memory", format_size),
    "steps": ("steps", format_count),
    "tokens": ("tokens", format_count),
    "seconds": ("time", figures.duration),
}
"""The metrics that text output shows, in this order, with label and format. JSON lines and metrics.jsonl have all."""
HIDDEN = ("flops", "flops_dense")  # per token; text output shows the share that was skipped
IN_PROGRESS = ("fraction", "seconds")


class Renderer(ABC):
    """Shows events within its context. `result` prints to stdout, which contains only results."""

    def __enter__(self) -> Self:
        self._showwarning = warnings.showwarning
        warnings.showwarning = self._warn  # type: ignore[assignment]  # a library's warning is shown as a notice
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        warnings.showwarning = self._showwarning
        self.close()

    def _warn(self, message: Warning | str, category: type[Warning], *_: Any) -> None:
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
            self.show(Notice(" ".join(str(message).split()), "warning"))

    @abstractmethod
    def show(self, event: Event) -> None:
        """Shows one event, now or later."""

    def result(self, event: Result) -> None:
        """Shows the result of a command: its values, and its path as the last line of stdout."""
        self.show(event)
        self.close()
        if event.path is not None:
            print(event.path, flush=True)

    def finding(self, event: Measurement) -> None:
        """Prints one measurement to stdout while the command continues."""
        self.close()
        print("\n".join(describe(event)), flush=True)

    def close(self) -> None:  # noqa: B027 (not every renderer needs it)
        """Restores the terminal. It may be called twice, and `show` may follow."""


class JsonRenderer(Renderer):
    """Every event as a JSON line on stdout: `{"event": kind, ...}`. NaN and infinity become null."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._last: dict[str, float] = {}

    def show(self, event: Event) -> None:
        if isinstance(event, Progress) and event.done != event.total:
            if time.monotonic() - self._last.get(event.what, -math.inf) < JSON_INTERVAL:
                return
            self._last[event.what] = time.monotonic()
        print(json_line(event), file=self._stream, flush=True)

    def result(self, event: Result) -> None:
        self.show(event)


class SilentRenderer(Renderer):
    """Shows nothing: of several processes one reports."""

    def show(self, event: Event) -> None:
        """Nothing."""

    def result(self, event: Result) -> None:
        """Nothing."""

    def _warn(self, message: Warning | str, category: type[Warning], *_: Any) -> None:
        """Nothing: rank 0 has the same warnings."""


class PlainRenderer(Renderer):
    """Lines without control characters on stderr: progress every few seconds, and every one-time event."""

    def __init__(self, stream: TextIO | None = None, interval: float = LINE_INTERVAL) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval
        self._last = -math.inf
        self._progress: Progress | None = None
        self._metric: Metric | None = None  # the latest, if it was not printed yet

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress = event
            self._tick(begins_or_ends=event.done == event.total)
        elif isinstance(event, Metric) and event.phase == "train":
            self._metric = event
            self._tick()
        elif isinstance(event, Measurement):
            self.finding(event)
        else:
            self._flush()
            for line in describe(event):
                self._print(line)

    def _tick(self, begins_or_ends: bool = False) -> None:
        if begins_or_ends or time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        progress = progress_text(self._progress) if self._progress else ""
        if self._metric:
            figures = f"step {self._metric.step}  {figures_text(of_step(self._metric))}"
            task = self._metric.what or self._metric.phase
            if self._progress and not self._progress.what.startswith(task):  # of another task: a line of their own
                self._print(f"{escaped(task)}  {figures}")
            else:
                progress = "  ".join(filter(None, (progress, figures)))
        self._metric = None
        if progress:
            self._print(progress)

    def _flush(self) -> None:
        if self._metric is not None:
            self._line()

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        self._flush()
        self._progress = None


def describe(event: Event) -> list[str]:
    """The lines of a one-time event."""
    match event:
        case Metric():
            named = f"{event.what}  " if event.what else ""
            return [f"{escaped(named)}{event.phase}  step {event.step}  {figures_text(of_step(event))}"]
        case Measurement():
            return [f"{escaped(event.case)}  {figures_text(event.values)}"]
        case Sample():
            return [f"sample  step {event.step}", *(f"  | {line}" for line in printable(event.text).splitlines())]
        case Notice():
            return [escaped(f"{event.level}: {event.message}" if event.level != "info" else event.message)]
        case Saved():
            return [f"saved  step {event.step}  {escaped(event.path)}"]
        case Result():
            return [figures_text(event.values)] if event.values else []
    return []


def of_step(event: Metric) -> dict[str, float]:
    """The values of a metric without those that progress shows already."""
    return {key: value for key, value in event.values.items() if key not in IN_PROGRESS}


def labelled(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, text) of each value: those of SHOWN in their order, then the others."""
    flops, dense = (values.get(key, 0.0) for key in HIDDEN)
    values = {key: value for key, value in values.items() if key not in HIDDEN}
    if flops < dense:
        values["flops_saved"] = 1 - flops / dense
    known = [(SHOWN[key][0], _form(key, values[key])) for key in SHOWN if key in values]
    others = [key for key in values if key not in SHOWN]
    return known + [(escaped(key.replace("_", " ")), _form(key, values[key])) for key in others]


def figures_text(values: dict[str, Any]) -> str:
    """`loss 1.832  bits/byte 2.643 ...`"""
    return "  ".join(f"{label} {text}" for label, text in labelled(values))


def _form(key: str, value: Any) -> str:
    if key in SHOWN and isinstance(value, (int, float)):
        return SHOWN[key][1](value)
    return f"{value:.4g}" if isinstance(value, float) else escaped(value)


def progress_text(event: Progress) -> str:
    """`prepare  34%  1.2M/3.5M bytes  12s left`"""
    share = f"{event.done / event.total:.0%}" if event.total else ""
    left = f"{figures.duration(event.eta)} left" if event.eta is not None and event.done != event.total else ""
    return "  ".join(part for part in (escaped(event.what), share, amount(event), left) if part)


def amount(event: Progress) -> str:
    """Done and total: `1.2M/3.5M bytes`, `1m20s/3m00s`."""
    if event.unit == "seconds":
        return figures.duration(event.done) + (f"/{figures.duration(event.total)}" if event.total else "")
    text = format_part(event.done, event.total) if event.total else format_count(event.done)
    return f"{text} {event.unit}" if event.unit else text


def json_line(event: Event) -> str:
    """An event as one JSON line."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return json_text({"event": event.kind, **_plain(values)}, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
