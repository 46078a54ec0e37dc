"""Windows of keys and values that grow by a token a pass without being copied each time.

A window is a view into a buffer with room behind it. The buffer's storage records where what is written in it ends, so
that of two states that have the same window only the first to go on writes there; the other gets a copy. A window that
somebody holds is never changed.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ROOM = 64
"""Tokens of room in a new buffer, at least."""
SHARE = 4
"""And one for so many that the window has."""


class Place(NamedTuple):
    """Buffers [B, capacity, G, K] of keys and values, whose entries `start` to `start + past` are the window's past;
    there is room for those that follow."""

    keys: Tensor
    values: Tensor
    start: int
    past: int

    def windows(self, count: int = 1, window: int | None = None) -> tuple[Tensor, Tensor]:
        """The windows with `count` entries that were written behind the past, at most the last `window` of all. What
        is written behind those is given up: the window of whoever still holds it may change."""
        end = self.start + self.past + count
        self.keys.untyped_storage().end = end  # type: ignore[attr-defined]
        length = self.past + count if window is None else min(window, self.past + count)
        return self.keys.narrow(1, end - length, length), self.values.narrow(1, end - length, length)


def extended(keys: Tensor, values: Tensor, window: int, more: int = 1) -> Place:
    """Where the next `more` entries of windows [B, n, G, K] belong. One with `window` entries loses the oldest."""
    batch, count, groups, size = keys.shape
    dropped = 1 if count == window else 0
    row, past = groups * size, count - dropped
    storage, end = keys.untyped_storage(), getattr(keys.untyped_storage(), "end", None)
    if end is not None and values.untyped_storage()._cdata == storage._cdata:
        capacity, start = keys.stride(0) // row, keys.storage_offset() // row
        whole = storage.nbytes() == 2 * batch * capacity * row * keys.element_size()  # all rows of the buffer
        if whole and end == start + count <= capacity - more:
            shape, strides = (batch, capacity, groups, size), (capacity * row, row, size, 1)
            first, second = (keys.as_strided(shape, strides, offset) for offset in (0, batch * capacity * row))
            return Place(first, second, start + dropped, past)
    capacity = past + max(ROOM, past // SHARE, more)
    both = keys.new_empty(2, batch, capacity, groups, size)
    both[0, :, :past], both[1, :, :past] = keys[:, dropped:], values[:, dropped:]
    return Place(both[0], both[1], 0, past)
