"""Sequences that are cut over processes: who has which tokens, and how their messages travel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.recipe.schema import Recipe
from synthe_core.training.distributed.mesh import Mesh, check_batch
from synthe_core.training.distributed.ranks import Ranks


class ProcessSequence(SequenceRanks):
    """`size` processes in a row of torch's default group, of which this is number `rank`."""

    def __init__(self, ranks: Ranks, size: int) -> None:
        import torch.distributed as dist

        super().__init__(ranks.rank % size, size)
        self._dist, self._first = dist, ranks.rank - self.rank
        self._pending: list[tuple[Any, Tensor]] = []

    def put(self, message: Tensor, to: int, tag: int) -> None:
        work = self._dist.isend(message, dst=self._first + to, tag=tag)
        self._pending = [each for each in self._pending if not each[0].is_completed()]
        self._pending.append((work, message))

    def get(self, message: Tensor, source: int, tag: int) -> None:
        self._dist.recv(message, src=self._first + source, tag=tag)

    def flush(self) -> None:
        for work, _ in self._pending:
            work.wait()
        self._pending.clear()


def sequence_ranks(ranks: Ranks, mesh: Mesh) -> SequenceRanks | None:
    """The processes that share this one's sequences; None where they are whole."""
    return ProcessSequence(ranks, mesh.sequence) if mesh.sequence > 1 else None


def own_tokens(ranks: SequenceRanks, part: Batch) -> Batch:
    """The tokens of a pass that are this process's, [B, T / size] of [B, T]."""
    time = part.inputs.shape[1] // ranks.size
    own = slice(ranks.rank * time, (ranks.rank + 1) * time)
    return part._replace(inputs=part.inputs[:, own].contiguous(), targets=part.targets[:, own].contiguous())


def mesh_for(recipe: Recipe, size: int) -> Mesh:
    """How `size` processes train a recipe. InputError where they do not divide its mesh, batch or sequences."""
    mesh = Mesh.of(recipe.runtime.mesh, size)
    check_batch(recipe, mesh.rows)
    check_sequence(recipe, mesh)
    return mesh


def check_sequence(recipe: Recipe, mesh: Mesh) -> None:
    """InputError for a recipe whose sequences cannot be cut as the mesh says."""
    count, where = mesh.sequence, f"runtime.mesh.sequence {mesh.sequence}"
    if count == 1:
        return
    lengths = [recipe.data.sequence, *(each.sequence for each in recipe.train.stages if each.sequence is not None)]
    for length in lengths:
        if length % count:
            near = max(count, length // count * count)
            raise InputError(f"{where} does not divide sequences of {length} tokens", f"such as {near} tokens")
    objective = "language_modeling" if recipe.objective is None else recipe.objective.type
    model: Any = recipe.model
    whole = "leave out runtime.mesh.sequence"
    for refused, reason, hint in (
        (objective != "language_modeling", f"{objective} reads whole rows", whole),
        (
            recipe.reads != "text" or model.head is not None,
            "rows have their own length",
            whole,
        ),
        (isinstance(model, PublishedSpec), "transformers runs this model", whole),
        (getattr(model, "depth", None) is not None, "a depth router chooses among whole rows", "leave out model.depth"),
        (recipe.train.carry, "the state after a row is on another process", "leave out train.carry"),
        (recipe.runtime.compile, "a compiled block sends no states", "leave out runtime.compile"),
    ):
        if refused:
            raise InputError(f"{where}: {reason}", hint)
