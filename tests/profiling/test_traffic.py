"""The bytes that a step sends are those of the formula, as they are counted at torch's collective operations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from synthe_core.profiling.traffic import Traffic, traffic
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import MeshSpec, Recipe
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.optimizer import Optimizer
from tests.training.distributed.conftest import MESHES
from tests.training.distributed.together import train_together
from tests.training.distributed.variants import Variants

STEPS = (2, 4)
SMALL = 200.0
"""Bytes a step of numbers that processes agree on: counts, norms, whose clock decides."""


def counted(folder: Path, mesh: str, recipe: dict[str, Any]) -> dict[str, float]:
    """What rank 0 sends in a step, by operation: the difference of runs of four and of two steps."""
    size, change = MESHES[mesh]
    jobs = []
    for steps in STEPS:
        train = recipe["train"] | {"budget": f"{steps}steps", "validations": 1, "log_every": 100}
        changed = change(recipe | {"train": train})
        jobs.append({"recipe": changed, "out": str(folder / f"run {steps}"), "traffic": True})
    fewer, more = (each["sent"] for each in train_together(folder / "workers", size, jobs))
    return {name: (more[name] - fewer.get(name, 0)) / (STEPS[1] - STEPS[0]) for name in more}


def predicted(mesh: str, recipe: dict[str, Any]) -> Traffic:
    size, change = MESHES[mesh]
    made = Recipe.model_validate(change(recipe))
    model = made.meta_model(vocabulary_of(made))
    cut = Mesh.of(made.runtime.mesh, size)
    passes = made.train.batch // cut.rows // int(made.train.micro_batch)
    return traffic(model, Optimizer(model, made.train), cut, made.runtime.mesh, passes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "optimizer"),
    [("two copies", "adamw"), ("two shards", "muon"), ("four copies", "adamw"), ("two of two shards", "muon")],
)
def test_a_step_sends_what_the_formula_says(mesh: str, optimizer: str, tmp_path: Path, cache: Path) -> None:
    recipe = Variants(tmp_path).recipe(optimizer=optimizer)
    sent, formula = counted(tmp_path, mesh, recipe), predicted(mesh, recipe)
    gathered = sent.get("_allgather_base_", 0.0)
    reduced = sent.get("_reduce_scatter_base_", 0.0) + sent["allreduce_"]
    assert reduced == pytest.approx(formula.reduced, abs=SMALL)
    assert gathered + sent.get("updates", 0.0) == pytest.approx(formula.gathered + formula.updates, abs=SMALL)
    assert sum(sent.values()) == pytest.approx(formula.total, abs=3 * SMALL)


def test_the_formula_of_a_model_that_can_be_counted_by_hand() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(6, 4, bias=False)])
    model.head = nn.Linear(4, 5, bias=False)
    optimizer = SimpleNamespace(parts={"adamw": None})
    block, head = 4 * 6 * 4, 4 * 5 * 4
    assert traffic(model, optimizer, Mesh(4, 1), MeshSpec(), 3) == Traffic(1.5 * (block + head))
    shard, padded = block // 2, 3 * 4 * 4
    halves = traffic(model, optimizer, Mesh(1, 2), MeshSpec(), 3)
    assert halves == Traffic(3.0 * (shard + padded), 3.0 * (2 * shard + padded))
    groups = traffic(model, optimizer, Mesh(2, 2), MeshSpec(), 3)
    assert groups == Traffic(6.0 * (shard + padded), 3.0 * (2 * shard + padded))
