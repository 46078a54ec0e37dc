"""Which engine a mesh needs."""

from __future__ import annotations

import torch

from synthe_core.model.classifier import Model
from synthe_core.recipe.schema import MeshSpec
from synthe_core.training.distributed.engine import Engine, Replicas
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.distributed.ranks import Ranks
from synthe_core.training.distributed.sequence import sequence_ranks


def engine_for(model: Model, ranks: Ranks, mesh: Mesh, spec: MeshSpec, device: torch.device) -> Engine:
    """The engine that runs `model` on `device`, to which it is moved: in shards block by block."""
    sequence = sequence_ranks(ranks, mesh)
    if mesh.shard > 1:
        from synthe_core.training.distributed.shards import Shards  # FSDP takes half a second to import

        return Shards(model, ranks, mesh, spec, device, sequence)
    return (Engine if mesh.size == 1 else Replicas)(model.to(device), ranks, sequence)
