"""Bytes that a process hands to torch's collective operations, counted as they are called."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CountedTraffic(TorchDispatchMode):
    """Within the block: `bytes[name]` of what each kind of operation has transported, of a ring of `size` processes.

    Sent by one process: a reduction of S bytes 2 (n - 1) / n S, a gathering into S bytes or a scattering of S bytes
    (n - 1) / n S, with n processes in its group.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "_c10d_functional" and "all_gather" in func.__name__:
            self.sent["updates"] += (args[1] - 1) * args[0].nbytes
        if func.namespace == "c10d":
            name = func.__name__.partition(".")[0]
            self.sent[name] += self._bytes(name, args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _bytes(name: str, args: Any) -> float:
        def size(tensors: Any) -> int:
            flat = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            return sum(size(each) if not isinstance(each, Tensor) else each.nbytes for each in flat)

        def members(group: Any) -> int:
            return torch.distributed.distributed_c10d.ProcessGroup.unbox(group).size()

        groups = [each for each in args if isinstance(each, torch.ScriptObject)]
        n = members(groups[0]) if groups else 1
        if name == "allreduce_":
            return 2 * (n - 1) / n * size(args[0])
        if name in ("_allgather_base_", "allgather_"):
            return (n - 1) / n * size(args[0])
        if name in ("_reduce_scatter_base_", "reduce_scatter_"):
            return (n - 1) / n * size(args[1])
        return float(size(args[0])) if name == "send" else 0.0
