"""How many processes hold a whole model, over how many its parameters are sharded, and its sequences cut."""

from __future__ import annotations

from typing import NamedTuple

from synthe_core.errors import InputError
from synthe_core.recipe.schema import MeshSpec, Recipe


class Mesh(NamedTuple):
    """`replicate` x `shard` x `sequence` processes. `sequence` processes in a row have the tokens of the same rows.

    Each of `replicate` groups holds a whole model, sharded over its processes where `shard` > 1; else every process
    holds one.
    """

    replicate: int
    shard: int
    sequence: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.sequence

    @property
    def rows(self) -> int:
        """Over how many groups of processes the rows of a batch are divided."""
        return self.replicate * self.shard

    @property
    def grid(self) -> tuple[int, int]:
        """How many whole models there are, and over how many processes each is sharded."""
        return (self.replicate, self.shard * self.sequence) if self.shard > 1 else (self.rows * self.sequence, 1)

    def describe(self) -> str:
        """The mesh, for the end of a sentence; nothing of one process."""
        if self.size == 1:
            return ""
        shards = "" if self.shard == 1 else ", {} x {} shards".format(*self.grid)
        cut = "" if self.sequence == 1 else f", sequences cut over {self.sequence}"
        return f", {self.size} processes{shards}{cut}"

    @classmethod
    def of(cls, spec: MeshSpec, size: int) -> Mesh:
        """The mesh of `size` processes. InputError if the specification does not divide them."""
        replicate, shard, sequence = spec.replicate, spec.shard, spec.sequence
        if shard == "auto":
            shard = size // sequence // (1 if replicate == "auto" else replicate)
        if replicate == "auto":
            replicate = size // sequence // max(shard, 1)
        if replicate * shard * sequence != size:
            stated = f"replicate {spec.replicate} x shard {spec.shard}"
            stated += f" x sequence {sequence}" if sequence > 1 else ""
            raise InputError(
                f"runtime.mesh is {stated}, and there are {size} processes",
                "leave replicate or shard at auto, or start as many processes as their product",
            )
        return cls(replicate, shard, sequence)


def check_batch(recipe: Recipe, size: int) -> None:
    """InputError unless every process gets as many rows of a batch."""
    if recipe.train.batch % size:
        near = max(size, recipe.train.batch // size * size)
        raise InputError(
            f"train.batch {recipe.train.batch} does not divide over {size} processes",
            f"--set train.batch={near}, or start another number of processes",
        )
