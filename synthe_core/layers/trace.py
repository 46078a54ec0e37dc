"""A recorder of what learners emit while they run. It stores detached copies, which no computation reads.

Every module declares its emissions in `emits`: name -> `Emission`, the documented schema. A name that ends in * stands
for all names with that prefix. Without a trace nothing is computed, and a trace changes no bit of the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

Group = Literal["stream", "gates", "routing", "memory", "confidence", "depth"]
GROUPS: tuple[Group, ...] = ("stream", "gates", "routing", "memory", "confidence", "depth")


class Emission(NamedTuple):
    """What a name means.

    axes:    the letters of the value's shape, in order: B batch rows, T time, H heads (or heads of several steps), E
             channels, K choices, N what is chosen among (experts), J slots, L lags. "" is a single number.
    group:   what it is about, by which a reader picks.
    meaning: one line, with the unit where there is one.
    summary: how channels become one number: their mean, or the root of their mean square for what has a sign; of
             choices, "first" keeps the best.
    """

    axes: str
    group: Group
    meaning: str
    summary: Literal["mean", "rms", "first"] = "mean"


def schema(emits: dict[str, Emission]) -> Mapping[str, Emission]:
    """The schema of a class: name -> what it means. It is read-only."""
    return MappingProxyType(emits)


class Record(NamedTuple):
    """One emission: which learner (dotted path in the model), the name it gave, the value it had.

    at: int64 [B, T], the tokens of the whole pass that the entries of the value's time axis belong to; None where that
        axis is the tokens themselves. Slow tiers have one entry a span, a routed block one a selected token.
    """

    path: str
    name: str
    value: Tensor
    at: Tensor | None = None


class Trace:
    """Collects records; `only` restricts it to some names so that the rest costs nothing."""

    def __init__(self, only: frozenset[str] | None = None) -> None:
        self.only = only
        self.records: list[Record] = []

    def record(self, path: str, name: str, value: Tensor, at: Tensor | None = None) -> None:
        if self.only is None or name in self.only:
            at = None if at is None else at.detach().clone()
            self.records.append(Record(path, name, value.detach().clone(), at))


def declared(name: str, emits: Mapping[str, Emission]) -> Emission | None:
    """The schema of an emission, None for a name that `emits` does not declare."""
    if name in emits:
        return emits[name]
    return next((emission for pattern, emission in emits.items() if fnmatchcase(name, pattern)), None)
