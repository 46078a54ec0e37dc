"""The memory of one of several processes that train a model in shards: predicted by part, and held and at its peak in a
step of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from synthe_core.errors import InputError, WorkError
from synthe_core.model.sharded_tensors import local
from synthe_core.profiling.footprint import Estimate, Footprint
from synthe_core.profiling.traffic import Traffic, nbytes, shard_bytes, traffic
from synthe_core.recipe.schema import Recipe
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.distributed.sequence import mesh_for
from synthe_core.training.muon import stacks
from synthe_core.training.optimizer import Optimizer

ADAMW, MUON = 2, 1
"""States of the size of a parameter."""
WHOLE = 2.4
"""Blocks that are whole beside the activations of a backward pass: the one that runs, the next one, gradients before
they are scattered. Measured."""
STACKED = 4.5
"""What a stack of matrices takes that Muon orthogonalises, as a multiple of its float32: gathered, stacked, in bfloat16
in each term of the iteration. Measured."""


class Held(NamedTuple):
    """Bytes of tensors of rank 0, as torch's allocator counts them: after a step, and at its peak."""

    parameters: int
    gradients: int
    optimizer: int
    peak: int


def mesh_of(recipe: Recipe) -> Mesh:
    """The mesh that a recipe states in full. InputError where some of it is `auto`, or does not divide the recipe."""
    spec = recipe.runtime.mesh
    replicate = 1 if spec.replicate == "auto" else spec.replicate
    if spec.shard == "auto":
        raise InputError("--mesh needs the number of shards", "--mesh replicate=1,shard=4")
    return mesh_for(recipe, replicate * spec.shard * spec.sequence)


def training_in_shards(estimate: Estimate, rows: int, length: int | None = None) -> Footprint:
    """A step of one process of the recipe's mesh whose passes take `rows` sequences of `length` tokens.

    Of every parameter, gradient and optimizer state it has a shard. Whole beside them are what is outside of blocks and
    some blocks (`WHOLE`) in their turn; at the end of a pass the gradients of what is outside of blocks, twice; in the
    step the matrices that Muon orthogonalises together. These are counted with the activations, the largest of them.
    """
    recipe, model = estimate.recipe, estimate.trained
    mesh = mesh_of(recipe)
    one = estimate.training(rows, length, recipe.train.batch // mesh.rows)
    shards = mesh.grid[1]
    if shards == 1:
        return one
    inside = {id(p) for p in model.blocks.parameters()}
    outside = [p for p in model.parameters() if id(p) not in inside]
    blocks = [nbytes(block.parameters()) for block in model.blocks]
    trained = [p for p in model.parameters() if p.requires_grad]
    buffers = nbytes(model.buffers())
    passes = estimate.passes(one.length, True)
    before = passes.training(recipe.model.blocks, rows)
    backward = passes.backward.at(recipe.model.blocks, rows)
    held = float(sum(shard_bytes(p, shards) for p in trained))
    whole, widest = float(nbytes(outside)), float(max(blocks))
    earlier = held if recipe.train.batch // mesh.rows > rows else 0.0  # of the passes before the last
    moments = [
        (earlier, whole + before),  # the loss
        (earlier, whole + backward + WHOLE * widest),  # as the backward pass begins
        (held, 3 * whole),  # as it ends
        (held, _updates(recipe, model, shards)),
    ]
    gradients, rest = max(moments, key=sum)
    parts = {
        "parameters": float(sum(shard_bytes(p, shards) for p in model.parameters()) + buffers),
        "optimizer": float(_optimizer(recipe, model, shards)),
        "gradients": gradients,
        "activations": rest,
        "data": one.parts["data"],
    }
    if recipe.train.ema is not None:
        parts["average"] = parts["parameters"]
    return replace(one, parts=parts)


def step_traffic(estimate: Estimate, rows: int) -> Traffic:
    """What one process sends in a step whose passes take `rows` sequences."""
    recipe, model = estimate.recipe, estimate.trained
    mesh = mesh_of(recipe)
    passes = -(-recipe.train.batch // mesh.rows // rows)
    return traffic(model, Optimizer(model, recipe.train), mesh, recipe.runtime.mesh, max(passes, 1))


def _optimizer(recipe: Recipe, model: Any, shards: int) -> int:
    optimizer = Optimizer(model, recipe.train)
    states = {"adamw": ADAMW, "muon": MUON}
    return sum(
        states[part] * shard_bytes(p, shards)
        for part, each in optimizer.parts.items()
        for group in each.param_groups
        for p in group["params"]
    )


def _updates(recipe: Recipe, model: Any, shards: int) -> float:
    """What a step of Muon takes beside its state: the update of every shard, and the largest stack of whole ones."""
    optimizer = Optimizer(model, recipe.train)
    if "muon" not in optimizer.parts:
        return 0.0
    matrices = [p for group in optimizer.parts["muon"].param_groups for p in group["params"]]
    largest = max(nbytes(matrices[i] for i in stack) for stack in stacks(matrices))
    return sum(shard_bytes(p, shards) for p in matrices) + STACKED * largest


def measure_in_shards(recipe: Recipe, *, rows: int, length: int, precision: str) -> Held:
    """A real step of the processes of the recipe's mesh, on CPUs of this machine. WorkError if one of them fails."""
    mesh = mesh_of(recipe)
    root = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as folder:
        job = {"recipe": recipe.model_dump(mode="json"), "rows": rows, "length": length, "precision": precision}
        text = json.dumps(job | {"size": mesh.size, "store": str(Path(folder) / "store")})
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "synthe_core.profiling.sharded_step", str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(mesh.size)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.close()
            process.stdin = None
        outputs = [process.communicate() for process in processes]
    for rank, (process, (_, errors)) in enumerate(zip(processes, outputs, strict=True)):
        if process.returncode:
            last = (errors.strip().splitlines() or ["it ended"])[-1]
            raise WorkError(f"the measured step failed on rank {rank}: {last}")
    return Held(**json.loads(outputs[0][0].strip().splitlines()[-1]))


def held_bytes(tensors: Any) -> int:
    """Bytes of the parts of tensors that this process has."""
    parts: list[Tensor] = [local(each) for each in tensors]
    return nbytes(parts)
