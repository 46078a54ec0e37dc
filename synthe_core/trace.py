"""A listener for what learners emit while they run. It records detached copies and never feeds compute."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Record(NamedTuple):
    """One emission: which learner (dotted path in the model), the name it gave, the value it had."""

    path: str
    name: str
    value: Tensor


class Trace:
    """Collects records; `only` restricts it to some names so that the rest costs nothing."""

    def __init__(self, only: frozenset[str] | None = None) -> None:
        self.only = only
        self.records: list[Record] = []

    def record(self, path: str, name: str, value: Tensor) -> None:
        if self.only is None or name in self.only:
            self.records.append(Record(path, name, value.detach().clone()))
