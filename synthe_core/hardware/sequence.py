"""The processes over which the tokens of a sequence are cut, and what they send each other in a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 8
"""Bytes: a tensor in a message begins at a multiple."""
TAGS = 1 << 30


@dataclass
class Exchanges:
    """What a block has received, in order: where it runs again for the backward pass, it receives nothing anew."""

    entries: list[tuple[int, Any]] = field(default_factory=list)
    done: bool = False


class SequenceRanks(ABC):
    """Rank `rank` of `size`, which has as many tokens of every row as each other, those after the lower ranks' tokens.

    sent: bytes that this rank has sent.

    An exchange has a number, the same on all ranks as they run the same program, so that messages of a backward pass
    find their way in whichever order ranks come to them.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.sent = rank, size, 0
        self.layouts: dict[Any, Any] = {}
        self._count = 0
        self._exchanges: Exchanges | None = None
        self._replayed = 0

    @abstractmethod
    def put(self, message: Tensor, to: int, tag: int) -> None:
        """Sends bytes, uint8 [N], and does not wait until they have arrived."""

    @abstractmethod
    def get(self, message: Tensor, source: int, tag: int) -> None:
        """Fills `message` with the bytes that `source` sends under this tag."""

    @abstractmethod
    def flush(self) -> None:
        """Waits until all that this rank has sent has arrived."""

    def send(self, tensors: Sequence[Tensor], to: int, tag: int) -> None:
        """Sends tensors of any types as one message."""
        if message := [_as_bytes(each) for each in tensors if each.numel()]:
            joined = torch.cat(message)
            self.sent += joined.numel()
            self.put(joined, to, tag)

    def receive(self, like: Sequence[Tensor], source: int, tag: int) -> list[Tensor]:
        """The tensors that `source` sends, of the shapes and types of `like`."""
        sizes = [_padded(each) for each in like]
        if not sum(sizes):
            return [torch.empty_like(each) for each in like]
        message = torch.empty(sum(sizes), dtype=torch.uint8, device=like[0].device)
        self.get(message, source, tag)
        parts = zip(message.split(sizes), like, strict=True)
        return [part[: each.numel() * each.element_size()].view(each.dtype).view(each.shape) for part, each in parts]

    def exchange(self, run: Callable[[int], Any]) -> tuple[int, Any]:
        """The tag of an exchange, and what `run(tag)` returns. The backward pass has the next tag."""
        log = self._exchanges
        if log is not None and log.done:
            entry = log.entries[self._replayed]
            self._replayed += 1
            return entry
        tag = 2 * (self._count % TAGS)
        self._count += 1
        entry = (tag, run(tag))
        if log is not None:
            log.entries.append(entry)
        return entry

    @contextmanager
    def recorded(self, log: Exchanges) -> Iterator[None]:
        """Within the block exchanges are those of `log`, if it is from an earlier run of it; else they are noted."""
        outer, replayed = self._exchanges, self._replayed
        self._exchanges, self._replayed = log, 0
        try:
            yield
        finally:
            log.done = True
            self._exchanges, self._replayed = outer, replayed


def _padded(tensor: Tensor) -> int:
    """The bytes of a tensor in a message."""
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _as_bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    missing = _padded(tensor) - flat.numel()
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat
