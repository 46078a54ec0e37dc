"""Which adapter each row of a forward pass uses. It is a value of the pass: no module keeps it.

    with use_adapters(AdapterBatch((0, 1, -1))):
        model.hidden(tokens, state)        # row 0 with adapter 0, row 1 with adapter 1, row 2 with none

Maps read it when they are called (see `synthe_core.adapters.lora_linear`). A learner that calls a map with another
first axis than the batch says so with `select_rows`; one that reads a matrix instead of calling the map computes the
rows of each adapter separately, with `per_adapter`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthe_core import state as states

NONE = -1
"""The index of a row without an adapter."""


class Span(NamedTuple):
    """Rows `start` to `end` of the ordered batch, all with the adapter of `slot` (`NONE`: without one)."""

    slot: int
    start: int
    end: int


class Groups:
    """The rows of a batch by adapter: `order` brings the rows of each together."""

    def __init__(self, slots: Sequence[int]) -> None:
        self.order = sorted(range(len(slots)), key=slots.__getitem__)
        self.ordered = self.order == list(range(len(slots)))
        self.spans: list[Span] = []
        start = 0
        for end in range(1, len(slots) + 1):
            if end == len(slots) or slots[self.order[end]] != slots[self.order[start]]:
                self.spans.append(Span(slots[self.order[start]], start, end))
                start = end
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def only(self) -> int | None:
        """The slot that all rows use; None where they differ."""
        return self.spans[0].slot if len(self.spans) == 1 else None

    def gather(self, x: Tensor) -> Tensor:
        """x [B, ...] with the rows of each adapter together."""
        if len(x) != len(self.order):
            raise ValueError(f"the pass has {len(self.order)} rows with adapters, and a map reads {len(x)}")
        return x if self.ordered else x.index_select(0, self._index(x.device)[0])

    def scatter(self, x: Tensor) -> Tensor:
        """The inverse of `gather`."""
        return x if self.ordered else x.index_select(0, self._index(x.device)[1])

    def _index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The order and its inverse, int64 [B]."""
        if device not in self._indices:
            order = torch.tensor(self.order)
            self._indices[device] = order.to(device), order.argsort().to(device)
        return self._indices[device]


@dataclass(frozen=True)
class AdapterBatch:
    """`indices`: the slot of each row's adapter, `NONE` for a row without. A single index is that of all rows."""

    indices: tuple[int, ...]
    _groups: dict[frozenset[int], Groups] = field(default_factory=dict, compare=False, repr=False)

    def groups(self, slots: frozenset[int]) -> Groups:
        """The rows by adapter, for a map with these `slots`: a row whose adapter is not among them has none there."""
        if slots not in self._groups:
            self._groups[slots] = Groups([index if index in slots else NONE for index in self.indices])
        return self._groups[slots]

    def select(self, rows: Iterable[int]) -> AdapterBatch:
        """The batch of these rows."""
        return self if len(self.indices) == 1 else AdapterBatch(tuple(self.indices[row] for row in rows))


class _Current(threading.local):
    batch: AdapterBatch | None = None


_current = _Current()  # of a thread, which torch.compile can read


def current_adapters() -> AdapterBatch | None:
    """The batch of the pass that is going on; None outside of `use_adapters`."""
    return _current.batch


@contextmanager
def use_adapters(batch: AdapterBatch | None) -> Iterator[None]:
    """Within the block, on this thread, passes run with these adapters. None: with what is attached (slot 0)."""
    outer, _current.batch = _current.batch, batch
    try:
        yield
    finally:
        _current.batch = outer


@contextmanager
def select_rows(rows: Sequence[int] | Tensor) -> Iterator[None]:
    """Within the block the first axis of what maps read is `rows` [N] of the pass's own rows."""
    batch = _current.batch
    if batch is None or len(batch.indices) == 1:
        yield
        return
    with use_adapters(batch.select(rows.tolist() if isinstance(rows, Tensor) else rows)):
        yield


def slots_of(module: nn.Module) -> frozenset[int]:
    """The slots of the adapters that a map holds; none of a plain one."""
    return getattr(module, "slots", frozenset())


def per_adapter(maps: Iterable[nn.Module], compute: Callable[..., Any], *inputs: Any) -> Any:
    """compute(*inputs), where that reads the matrices of `maps`: once, or once for the rows of each adapter on them.

    inputs, and what `compute` returns: trees of tensors (see `synthe_core.state`) with the batch row first.
    """
    if (batch := _current.batch) is None:
        return compute(*inputs)
    slots = frozenset[int]().union(*(slots_of(each) for each in maps))
    groups = batch.groups(slots) if slots else None
    if groups is None or groups.only is not None:
        return compute(*inputs)
    ordered = states.map_leaves(groups.gather, inputs)
    results = []
    for span in groups.spans:
        rows = states.map_leaves(lambda x, s=span: x[s.start : s.end], ordered)
        with use_adapters(AdapterBatch((span.slot,))):
            results.append(compute(*rows))
    return states.map_leaves(groups.scatter, states.join(results))
