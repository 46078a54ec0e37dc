"""What processes that train one model send each other in a step, by formula."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from synthe_core.recipe.schema import MeshSpec
from synthe_core.training.distributed.mesh import Mesh


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in a step, each kind by the ring's arithmetic.

    reduced:  gradients. With n copies 2 (n - 1) / n G once a step; over n shards (n - 1) / n G a pass.
    gathered: sharded parameters of each pass, (n - 1) / n P of what is outside of blocks, and twice that of blocks.
    updates:  Muon's, (n - 1) / n of its matrices a step.
    """

    reduced: float
    gathered: float = 0.0
    updates: float = 0.0

    @property
    def total(self) -> float:
        return self.reduced + self.gathered + self.updates


def traffic(model: Any, optimizer: Any, mesh: Mesh, spec: MeshSpec, passes: int) -> Traffic:
    """What a step of `passes` passes sends, all parameters trained. State over cut sequences is not counted here."""
    copies, shards = mesh.grid
    trained = [p for p in model.parameters() if p.requires_grad]
    if shards == 1:
        return Traffic(reduced=_ring(copies) * 2 * nbytes(trained))
    blocks = list(model.blocks.parameters())
    inside = {id(p) for p in blocks}
    outside = [p for p in model.parameters() if id(p) not in inside]
    narrow = 0.5 if spec.param_dtype == "bfloat16" else 1.0
    own = sum(shard_bytes(p, shards) for p in trained)
    reduced = passes * ((shards - 1) * own + 2 * _ring(copies) * own)
    gathered = passes * narrow * (shards - 1) * (2 * _shards(blocks, shards) + _shards(outside, shards))
    matrices = [p for group in _muon(optimizer) for p in group["params"]]
    return Traffic(reduced, gathered, (shards - 1) * _shards(matrices, shards))


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shard_bytes(tensor: Tensor, count: int) -> int:
    """Of one of `count` shards of a parameter along its first dimension, the last ones padded."""
    rows = -(-tensor.shape[0] // count)
    return rows * (tensor.numel() // max(tensor.shape[0], 1)) * tensor.element_size()


def _shards(tensors: Iterable[Tensor], count: int) -> int:
    return sum(shard_bytes(each, count) for each in tensors)


def _ring(count: int) -> float:
    """What a process sends of a reduction or a gathering over `count`, each way, as a share of its bytes."""
    return (count - 1) / count


def _muon(optimizer: Any) -> list[dict[str, Any]]:
    return optimizer.parts["muon"].param_groups if "muon" in optimizer.parts else []
