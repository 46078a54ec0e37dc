"""One of the processes of a measured step: `python -m synthe_core.profiling.sharded_step RANK < JOB`."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from synthe_core.hardware.probe import probe
from synthe_core.model.classifier import build_model
from synthe_core.profiling.allocations import measure_allocations
from synthe_core.profiling.sharded import Held, held_bytes, mesh_of
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.training.distributed.engine_for import engine_for
from synthe_core.training.distributed.ranks import ProcessRanks
from synthe_core.training.gradients import accumulate_gradients
from synthe_core.training.objectives import objective_for
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import settings_for
from synthe_core.training.tuning import PassTimer


def run(job: dict[str, Any], rank: int) -> Held:
    """The work of one process."""
    import torch.distributed as dist

    recipe = Recipe.model_validate(job["recipe"])
    settings = settings_for(recipe, probe())
    settings.precision, settings.micro_batch = job["precision"], job["rows"]
    torch.set_num_threads(recipe.runtime.threads or 1)
    dist.init_process_group("gloo", store=dist.FileStore(job["store"], job["size"]), rank=rank, world_size=job["size"])
    mesh, length = mesh_of(recipe), job["length"]
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, vocabulary_of(recipe), recipe.runtime.recompute)
    engine = engine_for(model, ProcessRanks(), mesh, recipe.runtime.mesh, settings.device)
    data = PassTimer(model, settings, length).batch(max(settings.micro_batch, recipe.train.batch // mesh.rows))
    optimizer, objective = Optimizer(model, recipe.train), objective_for(model)

    def step() -> None:
        optimizer.zero_grad()
        accumulate_gradients(objective, model, data, settings, sequence=length, engine=engine)
        engine.finish()
        engine.norm([p.grad for p in optimizer.parameters if p.grad is not None])
        optimizer.step(1e-3)

    step()  # allocates the optimizer's state
    optimizer.zero_grad()
    tensors = [*model.parameters(), *model.buffers()], optimizer.tensors().values()
    held = [held_bytes(each) for each in tensors]
    allocated = measure_allocations(step)
    gradients = held_bytes(p.grad for p in optimizer.parameters if p.grad is not None)
    dist.barrier()
    dist.destroy_process_group()
    return Held(held[0], gradients, held[1], sum(held) + allocated.peak)


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(run(json.loads(sys.stdin.read()), int(sys.argv[1]))._asdict()) + "\n")
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
