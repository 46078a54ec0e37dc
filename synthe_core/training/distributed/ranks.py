"""The processes that train one model together, and what they send each other besides gradients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
POLL = 0.1  # seconds


class Ranks:
    """Process number `rank` of `size`, `local_rank` of its machine, each with its share of a batch's rows.

    This class is one process alone, which sends nothing.

    Every method but `rows` is called by all processes together.
    """

    rank = 0
    size = 1
    local_rank = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and reports: rank 0."""
        return self.rank == 0

    def rows(self, count: int, sequence: int = 1) -> slice:
        """Which of `count` rows of the whole batch are this process's; `size` divides `count`. `sequence` processes in
        a row have the same."""
        share = count * sequence // self.size
        return slice(self.rank // sequence * share, (self.rank // sequence + 1) * share)

    def numbers(self, *values: float) -> list[list[float]]:
        """The `values` of every rank, float64, by rank."""
        return [list(map(float, values))]

    def gather(self, value: T) -> list[T]:
        """The `value` of every rank, by rank; it is pickled."""
        return [value]

    def share(self, value: T) -> T:
        """Rank 0's `value`."""
        return value

    def meet(self) -> None:
        """Waits for all ranks, however long their work takes."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return tensor

    def join_rows(self, tensor: Tensor) -> Tensor:
        """The rows [B / size, ...] of all ranks, [B, ...]."""
        return tensor


SINGLE = Ranks()
"""One process alone."""


class ProcessRanks(Ranks):
    """The processes of torch's default process group."""

    def __init__(self, local_rank: int | None = None) -> None:
        import torch.distributed as dist  # a tenth of a second, which one process alone does not need

        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = self.rank if local_rank is None else local_rank
        self._meetings = 0

    def numbers(self, *values: float) -> list[list[float]]:
        mine = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        self._dist.all_gather(parts, mine)
        return [part.tolist() for part in parts]

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        self._dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        values: list[Any] = [value]
        self._dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def meet(self) -> None:
        # A collective operation has a limit of time, and so counts here are polled.
        store: Any = self._dist.distributed_c10d._get_default_store()
        self._meetings += 1
        key = f"synthe/meeting-{self._meetings}"
        store.add(key, 1)
        while store.add(key, 0) < self.size:
            time.sleep(POLL)

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        self._dist.all_reduce(total)
        return total

    def join_rows(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)


def column_sums(rows: Sequence[Sequence[float]]) -> list[float]:
    """The sum over ranks of each of their numbers."""
    return [sum(column) for column in zip(*rows, strict=True)]
