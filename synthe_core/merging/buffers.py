"""Memory for the tensors of a merge that is used again.

A page that the system gives to a process for the first time is cleared before, which takes about as long as copying
into it. A merge reads gigabytes into tensors that live for a moment; with `in_use`, each takes the memory of one that
is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 20  # bytes; smaller tensors come from the C library's heap, which uses memory again
LIMIT = 256 << 20  # bytes that wait for a use
SLACK = 1.5  # a tensor takes memory of at most this many times its size


class _Memory(np.ndarray[Any, np.dtype[np.uint8]]):
    """What a tensor has: bytes that go back to the pool with it."""

    pool: Buffers | None = None

    def __del__(self) -> None:
        if self.pool is not None:
            self.pool.put_back(self.base)


class Buffers:
    """A pool of byte arrays. Several threads may use it: each operation on its table is a single step of Python's."""

    def __init__(self) -> None:
        self._free: dict[int, Any] = {}
        self._users = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block memory goes from one tensor to another; afterwards it is the system's again."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._free.clear()

    def empty(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], not initialised."""
        if nbytes < LEAST or not self._users:
            return torch.empty(nbytes, dtype=torch.uint8)
        memory = self._take(nbytes)[:nbytes].view(_Memory)
        memory.pool = self
        return torch.frombuffer(memory, dtype=torch.uint8)

    def empty_like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of the same shape and type, not initialised."""
        return self.empty(tensor.nbytes).view(tensor.dtype).view(tensor.shape)

    def put_back(self, block: Any) -> None:
        """Called when a tensor is gone."""
        waiting = sum(self._size(key) for key in list(self._free))
        if self._users and waiting + block.nbytes <= LIMIT:
            self._free[id(block)] = block

    def _take(self, nbytes: int) -> Any:
        for key in sorted(list(self._free), key=self._size):
            if nbytes <= self._size(key) <= SLACK * nbytes and (block := self._free.pop(key, None)) is not None:
                return block
        return np.empty(nbytes, np.uint8)

    def _size(self, key: int) -> int:
        """Of a block; 0 if another thread has taken it."""
        return getattr(self._free.get(key), "nbytes", 0)


BUFFERS = Buffers()
"""Of this process: tensors are read by several files, and made by methods."""
