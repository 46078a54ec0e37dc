"""The gradient of one batch, accumulated over micro-batches and over pieces of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.evaluation.accumulators import WeightedMeans, add_means
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import Loss, Mean, ModelState
from synthe_core.ops.mixed_linear import cast_once
from synthe_core.state import detach, join, map_leaves
from synthe_core.training.distributed.engine import Engine
from synthe_core.training.distributed.sequence import own_tokens
from synthe_core.training.objectives.objective import Objective, ObjectiveContext
from synthe_core.training.settings import Settings

PASS_COST = 128
"""What a pass over padded rows costs beside its tokens, in tokens."""


class BatchLoss(NamedTuple):
    """What the forward passes over a process's rows of a batch report; tensors are on the device and have no gradient.

    total:          the sum of the loss over its targets, in nats.
    num_targets:    targets of the whole batch, of all processes.
    num_tokens:     tokens read, padding not counted.
    batch_tokens:   the same, of all processes.
    auxiliary:      auxiliary losses by name, weighted.
    state:          the recurrent state after the batch; None unless it is carried.
    measures:       what learners measured, means over tokens.
    skipped_flops:  operations of the forward passes that learners skipped.
    buffer_updates: buffers and their values after the step.
    means:          the objective's own figures.
    """

    total: Tensor
    num_targets: int
    num_tokens: int
    batch_tokens: int
    auxiliary: dict[str, Tensor]
    state: ModelState | None
    measures: dict[str, Tensor]
    skipped_flops: Tensor | float
    buffer_updates: list[tuple[Tensor, Tensor]]
    means: dict[str, Mean]


def accumulate_gradients(
    objective: Objective,
    model: Model,
    batch: Batch,
    settings: Settings,
    *,
    sequence: int,
    carry: bool = False,
    state: ModelState | None = None,
    engine: Engine | None = None,
) -> BatchLoss:
    """Adds to every `.grad` the gradient of the mean loss of the batch, [B, T] tokens.

    `engine`: how the passes run; several processes have their rows of the batch each, and `.grad` gets the gradient of
    the mean over the rows of all. By default this is one process alone.

    The batch runs `settings.micro_batch` rows at a time; each pass is weighted by its share of the targets, so that
    the gradient is that of the whole. `sequence` t < T cuts the rows: into B T/t sequences, or, with `carry`, into T/t
    pieces one after another, where the state goes from piece to piece and the gradient does not.
    """
    engine = engine or Engine(model)
    parts = list(micro_batches(batch, settings.micro_batch, sequence, engine.same_passes)) if not carry else []
    count, tokens = engine.totals(objective.count(batch), batch.tokens)
    passes = _Passes(objective, engine, settings, count)
    states: list[ModelState] = []
    casts = [] if engine.sharded or settings.context.precision != "bfloat16" else list(model.parameters())
    with cast_once(casts, torch.bfloat16):
        for number, part in enumerate(parts, start=1):
            passes.add(part, None, last=number == len(parts))
        starts = list(range(0, batch.inputs.shape[0], settings.micro_batch)) if carry else []
        for first in starts:
            rows = slice(first, first + settings.micro_batch)
            current = None if state is None else map_leaves(lambda leaf, rows=rows: leaf[rows], state)
            cut = list(pieces(batch.select(rows), sequence))
            for number, piece in enumerate(cut, start=1):
                current = passes.add(piece, current, last=first == starts[-1] and number == len(cut))
            if current is not None:
                states.append(current)
    after = None if not states else states[0] if len(states) == 1 else join(states)
    return passes.loss(tokens, after)


class _Passes:
    """The passes over a batch with `count` targets, and the sums of what they report."""

    def __init__(self, objective: Objective, engine: Engine, settings: Settings, count: int) -> None:
        self._objective, self._engine, self._settings, self._count = objective, engine, settings, count
        self._total = torch.zeros((), device=settings.device)
        self._auxiliary: dict[str, Tensor] = {}
        self._measures = WeightedMeans()
        self._skipped: Tensor | float = 0.0
        self._updates: list[tuple[Tensor, Tensor]] = []
        self._means: dict[str, Mean] = {}
        self._tokens = 0

    def add(self, part: Batch, state: ModelState | None, *, last: bool) -> ModelState | None:
        """One pass, forward and backward, from a state; returns the state after it, if the objective carries it.
        `last`: of the batch."""
        count, ranks = max(self._count, 1), self._engine.sequence
        context = self._settings.context
        if ranks is not None:
            part, context = own_tokens(ranks, part), replace(context, sequence=ranks)
        self._tokens += part.tokens

        def forward(model: Model) -> tuple[Tensor, Loss]:
            with context.activate():
                loss = self._objective(model, part.to(self._settings.device), ObjectiveContext(state))
                minimized = loss.total / count
                for name, value in loss.auxiliary.items():
                    share = value * loss.scored / count
                    minimized = minimized + share
                    self._auxiliary[name] = self._auxiliary.get(name, 0.0) + share.detach()
            return minimized, loss

        loss = self._engine.backward(forward, last=last, layers_alone=self._objective.runs_layers_alone)
        self._total = self._total + loss.total.detach()
        self._measures.add(loss.measures, part.tokens)
        self._skipped = self._skipped + loss.skipped
        self._updates += loss.buffer_updates
        add_means(self._means, loss.means)
        return None if loss.state is None else detach(loss.state)

    def loss(self, batch_tokens: int, state: ModelState | None) -> BatchLoss:
        return BatchLoss(
            self._total,
            self._count,
            self._tokens,
            batch_tokens,
            self._auxiliary,
            state,
            self._measures.values(),
            self._skipped,
            self._updates,
            self._means,
        )


def micro_batches(
    batch: Batch, rows: int, sequence: int, passes: Callable[[int], int] | None = None
) -> Iterator[Batch]:
    """The batch in passes of at most `rows` rows of `sequence` tokens.

    passes: gets how many passes there would be, and returns how many there are to be, as many or more.

    Rows without padding are cut into sequences. Padded rows, those of an encoder or of conversations, are never cut:
    they are sorted by length, and cut into passes so that passes and padding together cost least.
    """
    if batch.lengths is None:
        for first in range(0, batch.inputs.shape[0], rows):
            part = batch.select(slice(first, first + rows))
            yield part._replace(inputs=part.inputs.reshape(-1, sequence), targets=part.targets.reshape(-1, sequence))
        return
    longest = batch.lengths.view(-1, batch.group).amax(1).clamp_min(1)
    order = longest.argsort(descending=True, stable=True)
    tokens = (longest[order] * batch.group).tolist()
    runs = cheapest_passes(tokens, rows * sequence)
    for first, end in runs if passes is None else _divided(runs, passes(len(runs))):
        groups = order[first:end]
        yield batch.select((groups[:, None] * batch.group + torch.arange(batch.group)).flatten())


def cheapest_passes(tokens: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Cuts items into runs (first, end), each a pass that pads its items to the first of them.

    tokens: of each item, falling. A pass of n items with t tokens in the first has n t <= `limit`, or n = 1, and costs
    n t + PASS_COST. The sum is the least possible, by dynamic programming over the ends of passes.
    """
    best, begins = [0], [0]
    for end in range(1, len(tokens) + 1):
        costs = [
            (best[first] + (end - first) * tokens[first] + PASS_COST, first)
            for first in range(end)
            if first == end - 1 or (end - first) * tokens[first] <= limit
        ]
        cost, first = min(costs)
        best.append(cost)
        begins.append(first)
    runs, end = [], len(tokens)
    while end:
        runs.append((begins[end], end))
        end = begins[end]
    return runs[::-1]


def _divided(runs: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Runs of items, `count` in all: the longest are halved until there are as many."""
    runs = list(runs)
    while len(runs) < count:
        index = max(range(len(runs)), key=lambda each: runs[each][1] - runs[each][0])
        first, end = runs[index]
        middle = (first + end) // 2
        runs[index : index + 1] = [(first, middle), (middle, end)]
    return runs


def pieces(batch: Batch, sequence: int) -> Iterator[Batch]:
    """Rows in pieces of `sequence` tokens, one after another, between which the state is carried."""
    yield from map(Batch, batch.inputs.split(sequence, dim=1), batch.targets.split(sequence, dim=1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("can't allocate memory", "not enough memory", "out of memory")
    )
