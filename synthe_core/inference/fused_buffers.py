"""Memory for the states that a pass writes, used again once nobody holds the states in it.

A state is a value: each pass writes a new one. Large blocks that are freed go back to the operating system, and every
page of a new one costs a fault, which is more than the pass itself where states are large.
"""

from __future__ import annotations

import sys
from threading import Lock

import numpy as np
import torch
from torch import Tensor

MIN_BYTES = 1 << 17
"""Smaller blocks stay with the process anyway."""
MOST = 4
"""Blocks of a size: what goes in, what comes out, and states that others hold for a moment."""


class StateBuffers:
    """Tensors for a `FusedDecoder`, whose passes may be on several threads."""

    def __init__(self) -> None:
        self._blocks: dict[torch.Size, list[np.ndarray]] = {}
        self._rows = 0
        self._lock = Lock()

    def empty_like(self, leaf: Tensor) -> Tensor:
        """A contiguous tensor like `leaf` [B, ...]. Blocks for another number of rows are given up."""
        if leaf.dtype != torch.float32 or leaf.nbytes < MIN_BYTES:
            return torch.empty_like(leaf)
        with self._lock:
            if len(leaf) != self._rows:
                self._blocks, self._rows = {}, len(leaf)
            blocks = self._blocks.setdefault(leaf.shape, [])
            for number in range(len(blocks)):
                if sys.getrefcount(blocks[number]) == _unused():  # a tensor's storage would hold it
                    return torch.from_numpy(blocks[number])
            if len(blocks) == MOST:
                return torch.empty_like(leaf)
            blocks.append(np.empty(leaf.shape, np.float32))
            return torch.from_numpy(blocks[-1])


def _unused() -> int:
    """What `sys.getrefcount` says of an element that only its list holds."""
    alone, number = [object()], 0
    return sys.getrefcount(alone[number])
