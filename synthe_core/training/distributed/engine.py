"""How the passes of training run: by one process, by copies of the model, or by shards of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.hardware.sequence import SequenceRanks
from synthe_core.layers.learner import apply_buffer_updates
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import Loss
from synthe_core.training.distributed.ranks import SINGLE, Ranks, column_sums
from synthe_core.training.distributed.stragglers import Work

ONLY_NORM = "the norm of the gradient, though no single gradient,"
"""What is not finite where no single tensor is found."""
Forward = Callable[[Model], tuple[Tensor, Loss]]
"""A forward pass: what is minimised, and the loss with all else that the pass reports."""


class Engine:
    """One process with the whole model.

    sequence: the processes that have the other tokens of this one's rows; None where rows are whole.
    work:     the seconds of its own work.
    """

    sharded = False

    def __init__(self, model: Model, ranks: Ranks = SINGLE, sequence: SequenceRanks | None = None) -> None:
        self.model, self.ranks, self.sequence = model, ranks, sequence
        self.work = Work(waits=self.sharded or sequence is not None)

    def rows(self, count: int) -> slice:
        """Which of `count` rows of the whole batch are this process's, or some of their tokens."""
        return self.ranks.rows(count, 1 if self.sequence is None else self.sequence.size)

    def backward(self, forward: Forward, *, last: bool, layers_alone: bool = False) -> Loss:
        """A pass, forward and backward. After the `last` of a batch every `.grad` is the sum over all processes.

        layers_alone: the pass calls layers outside of their blocks.
        """
        minimized, loss = forward(self.model)
        minimized.backward()
        return loss

    def compile(self, chosen: bool) -> None:
        """Compiles every block, if that is `chosen`."""
        for block in self.model.blocks if chosen else ():
            block.compile()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block passes that are no `backward` can read the parameters outside of the model's blocks."""
        yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within the block parameters may be given other values, also within `whole`."""
        yield

    def same_passes(self, count: int) -> int:
        """How many passes a batch is cut into of which this process needs `count`."""
        return count

    def totals(self, *counts: int) -> list[int]:
        """The sum over all processes of each of the `counts`."""
        return list(counts)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of the gradient, of whose parts this process has some; 0-dim, the same on all."""
        return torch.nn.utils.get_total_norm(gradients)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float, norm: Tensor) -> None:
        """Scales every gradient so that a gradient of that `norm` has the norm `limit`."""
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def finish(self) -> None:
        """After the last pass of a batch: `.grad` is None for what no process has used."""

    def name_non_finite(self, search: Callable[[], str]) -> str:
        """The first tensor that is not finite, in words. `search` finds it among the rows of this process."""
        return search()

    def apply_buffer_updates(self, updates: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Every buffer takes the mean of its new values from the passes of all processes."""
        apply_buffer_updates(updates)


class PassModule(nn.Module):
    """A model whose `forward` runs any function of it: torch's engines do their work around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[Any], Any]) -> Any:
        return call(self.model)


class SeveralProcesses(Engine):
    """What copies and shards have in common."""

    def __init__(self, model: Model, ranks: Ranks, sequence: SequenceRanks | None = None) -> None:
        super().__init__(model, ranks, sequence)
        self._loss: list[Loss] = []

    def _run(self, module: nn.Module, forward: Forward) -> Loss:
        """The pass through `module`, which returns what is minimised alone, and so sees one tensor with a gradient."""

        def call(model: Model) -> Tensor:
            with self.work.timed():
                minimized, loss = forward(model)
            self._loss.append(loss)
            return minimized

        module(call).backward()
        if self.sequence is not None:
            self.sequence.flush()
        return self._loss.pop()

    def compile(self, chosen: bool) -> None:
        for block in self.model.blocks if chosen else ():  # torch's hooks are around what is compiled
            setattr(block, "forward", torch.compile(block.forward))  # noqa: B010

    def totals(self, *counts: int) -> list[int]:
        same_rows = 1 if self.sequence is None else self.sequence.size  # processes that count the same rows
        return [round(each / same_rows) for each in column_sums(self.ranks.numbers(*counts))]

    def apply_buffer_updates(self, updates: Sequence[tuple[Tensor, Tensor]]) -> None:
        sums: dict[int, tuple[Tensor, int]] = {}
        for buffer, value in updates:
            total, count = sums.get(id(buffer), (torch.zeros_like(buffer), 0))
            sums[id(buffer)] = (total + value, count + 1)
        buffers = list(self.model.buffers())
        if not buffers:
            return
        counts = column_sums(self.ranks.numbers(*(sums.get(id(each), (each, 0))[1] for each in buffers)))
        for buffer, passes in zip(buffers, counts, strict=True):
            if passes:
                mine = sums[id(buffer)][0] if id(buffer) in sums else torch.zeros_like(buffer)
                buffer.copy_(self.ranks.sum(mine) / passes)


class Replicas(SeveralProcesses):
    """A whole model in every process: torch's DistributedDataParallel."""

    def __init__(self, model: Model, ranks: Ranks, sequence: SequenceRanks | None = None) -> None:
        super().__init__(model, ranks, sequence)
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():  # torch 2.13 renames the option
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            self._module = DistributedDataParallel(
                PassModule(model), broadcast_buffers=False, find_unused_parameters=True
            )
        self._module.register_comm_hook(None, _sum_gradients)

    def backward(self, forward: Forward, *, last: bool, layers_alone: bool = False) -> Loss:
        if last:
            return self._run(self._module, forward)
        with self._module.no_sync():
            return self._run(self._module, forward)

    def name_non_finite(self, search: Callable[[], str]) -> str:
        causes = self.ranks.gather(search())
        return next((cause for cause in causes if cause != ONLY_NORM), ONLY_NORM)


def _sum_gradients(_, bucket):  # without annotations: torch reads them, and wants its own
    """DistributedDataParallel's reduction of a bucket of gradients: their sum, where its own takes the mean."""
    import torch.distributed as dist

    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
