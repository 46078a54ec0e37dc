"""The events that a long verb yields. The core never prints; the command line renders events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Base of all events; `kind` is its name in JSON lines."""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` (None where unknown) in `unit`s of the task named `what`; `eta` in seconds."""

    what: str
    done: float
    total: float | None = None
    unit: str = ""
    eta: float | None = None


@dataclass(frozen=True)
class Metric(Event):
    """Numbers at a step. `phase` is "train" or "validation"; `what` names the Progress it belongs to."""

    step: int
    phase: str
    values: dict[str, float]
    what: str = ""


@dataclass(frozen=True)
class Sample(Event):
    """A text that the model generated at a step."""

    step: int
    text: str


@dataclass(frozen=True)
class Notice(Event):
    """A message: `level` is "info" or "warning"."""

    message: str
    level: str = "info"


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was saved."""

    path: Path
    step: int


@dataclass(frozen=True)
class Result(Event):
    """The result of a verb: its values, and the path that it wrote, if any."""

    values: dict[str, object] = field(default_factory=dict)
    path: Path | None = None


@dataclass(frozen=True)
class Measurement(Event):
    """The measured values of one benchmark case."""

    case: str
    values: dict[str, float | str | None]


def results(events: Iterable[Event], report: Callable[[Event], object]) -> Iterator[Result]:
    """Runs a verb: yields its Results and passes every other event to `report`."""
    for event in events:
        if isinstance(event, Result):
            yield event
        else:
            report(event)


def without_results(events: Iterable[Event], results: list[Result]) -> Iterator[Event]:
    """Yields the events of a verb that another verb runs, without its Results, which are appended to `results`."""
    for event in events:
        if isinstance(event, Result):
            results.append(event)
        else:
            yield event


def drain(events: Iterable[Event], report: Callable[[Event], object] = lambda event: None) -> Result:
    """Runs a verb to its end and returns its last Result. ValueError if it yields none."""
    *_, result = [None, *results(events, report)]
    if result is None:
        raise ValueError("the verb ended without a Result")
    return result
