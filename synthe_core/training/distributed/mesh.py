"""How many processes hold a whole model, and over how many its parameters are sharded."""

from __future__ import annotations

from typing import NamedTuple

from synthe_core.errors import InputError
from synthe_core.recipe.schema import MeshSpec, Recipe


class Mesh(NamedTuple):
    """`replicate` x `shard` processes: each of `replicate` groups holds a whole model, sharded over its `shard`
    processes."""

    replicate: int
    shard: int

    @property
    def size(self) -> int:
        return self.replicate * self.shard

    def describe(self) -> str:
        """The mesh, for the end of a sentence; nothing of one process."""
        if self.size == 1:
            return ""
        shards = "" if self.shard == 1 else f", {self.replicate} x {self.shard} shards"
        return f", {self.size} processes{shards}"

    @classmethod
    def of(cls, spec: MeshSpec, size: int) -> Mesh:
        """The mesh of `size` processes. InputError if the specification does not divide them."""
        replicate, shard = spec.replicate, spec.shard
        if shard == "auto":
            shard = size // (1 if replicate == "auto" else replicate)
        if replicate == "auto":
            replicate = size // shard
        if replicate * shard != size:
            stated = f"replicate {spec.replicate} x shard {spec.shard}"
            raise InputError(
                f"runtime.mesh is {stated}, and there are {size} processes",
                "leave one of the two at auto, or start as many processes as their product",
            )
        return cls(replicate, shard)


def check_batch(recipe: Recipe, size: int) -> None:
    """InputError unless every process gets as many rows of a batch."""
    if recipe.train.batch % size:
        near = max(size, recipe.train.batch // size * size)
        raise InputError(
            f"train.batch {recipe.train.batch} does not divide over {size} processes",
            f"--set train.batch={near}, or start another number of processes",
        )
