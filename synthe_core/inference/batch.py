"""The rows of one model that write: one state for all of them, in slots that rows take and leave at any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synthe_core import state as states
from synthe_core.inference.live import Live
from synthe_core.inference.served import Passed, Served

SPARE = 4
"""One slot in so many may be free: closing the gap at every leaving would copy everybody's state each time."""


class Batch:
    """`slots` hold a row or None; the state has a row for each. A free slot is computed and means nothing."""

    def __init__(self, served: Served, device: torch.device) -> None:
        self.served, self.device = served, device
        self.slots: list[Live | None] = []
        self.state: Any = None
        template = served.model.init_state(1)
        self._grows = [leaf.dim() > 1 and leaf.shape[1] == 0 for _, leaf in states.named_leaves(template)]

    @property
    def rows(self) -> list[Live]:
        return [row for row in self.slots if row is not None]

    def join(self, rows: Sequence[Live]) -> None:
        """Gives each of `rows` a slot, and the state that it has read so far."""
        free = [slot for slot, row in enumerate(self.slots) if row is None]
        more = len(rows) - len(free)
        if more > 0:
            free += range(len(self.slots), len(self.slots) + more)
            fresh = self.served.model.init_state(more)
            self.state = fresh if self.state is None else states.join([self.state, fresh])
            self.slots += [None] * more
        taken = free[: len(rows)]
        joined = states.join([row.state for row in rows]) if len(rows) > 1 else rows[0].state
        self._trim()
        self.state = _placed(self.state, torch.tensor(taken, device=self.device), joined)
        for slot, row in zip(taken, rows, strict=True):
            self.slots[slot], row.state = row, None

    def taken(self, row: Live) -> Any:
        """The state of a row, copied, with the windows that it has alone."""
        place = torch.tensor([self.slots.index(row)], device=self.device)
        return self.trimmed(states.take(self.state, place), row.length)

    def leave(self, rows: Sequence[Live]) -> None:
        """Frees the slots of `rows`; where too many are free, the state shrinks to those that are not."""
        for row in rows:
            self.slots[self.slots.index(row)] = None
        live = [slot for slot, row in enumerate(self.slots) if row is not None]
        if not live:
            self.slots, self.state = [], None
        elif SPARE * (len(self.slots) - len(live)) > len(self.slots):
            self.state = states.take(self.state, torch.tensor(live, device=self.device))
            self.slots = [self.slots[slot] for slot in live]
            self._trim()

    def step(self) -> tuple[Passed, Tensor]:
        """Reads every row's pending token: the pass, and the slots of the live rows in it, int64 [N]."""
        pending = [0 if row is None else row.pending for row in self.slots]
        passed = self.served.read(torch.tensor(pending, device=self.device)[:, None], self.state)
        self.state = passed.state
        live = [slot for slot, row in enumerate(self.slots) if row is not None]
        return passed, torch.tensor(live, device=self.device)

    def trimmed(self, state: Any, length: int) -> Any:
        """A state whose windows hold no more than `length` tokens: longer rows beside it may have widened them."""
        if not any(self._grows):
            return state
        grows = iter(self._grows)

        def cut(leaf: Tensor) -> Tensor:
            spare = leaf.shape[1] - length if next(grows) else 0
            return leaf if spare <= 0 else leaf[:, spare:].clone()  # the rest is not to be held

        return states.map_leaves(cut, state)

    def _trim(self) -> None:
        """A long row may have left."""
        self.state = self.trimmed(self.state, max((row.length for row in self.rows), default=0))


def _placed(tree: Any, index: Tensor, part: Any) -> Any:
    """`tree` with rows `index` replaced by those of `part`, in place where a leaf is nobody else's. Windows that are
    shorter grow at the front."""
    owned: set[int] = set()

    def replace(leaf: Tensor, rows: Tensor) -> Tensor:
        if leaf.dim() > 1 and leaf.shape[1] != rows.shape[1]:
            longest = max(leaf.shape[1], rows.shape[1])
            leaf, rows = _grown(leaf, longest), _grown(rows, longest)
        rows = rows.to(leaf.dtype)
        if leaf.is_contiguous() and leaf.is_inference() and leaf.data_ptr() not in owned:
            owned.add(leaf.data_ptr())
            return leaf.index_copy_(0, index, rows)
        return leaf.index_copy(0, index, rows)

    return states.map_leaves(replace, tree, part)


def _grown(leaf: Tensor, length: int) -> Tensor:
    missing = length - leaf.shape[1]
    return leaf if missing == 0 else torch.cat([leaf.new_zeros(leaf.shape[0], missing, *leaf.shape[2:]), leaf], dim=1)
