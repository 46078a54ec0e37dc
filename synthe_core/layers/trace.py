"""A listener for what learners emit while they run. It records detached copies and never feeds compute.

Every emission is declared by the module that makes it, in its `emits`: name -> `Emission`, the documented schema. A
name that ends in * stands for all that begin so. Where nobody listens nothing is computed, and listening changes no bit
of the outputs.
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
    """The schema of a class: name -> what it means. Nobody may add to it later."""
    return MappingProxyType(emits)


class Record(NamedTuple):
    """One emission: which learner (dotted path in the model), the name it gave, the value it had.

    at: int64 [B, T], at which tokens of the whole pass the entries of the value's time axis were made; None where that
        axis is the tokens themselves. Slow tiers speak once a span, a routed block sees some tokens only.
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
    """The schema of an emission, None where its maker declares no such name."""
    if name in emits:
        return emits[name]
    return next((emission for pattern, emission in emits.items() if fnmatchcase(name, pattern)), None)
