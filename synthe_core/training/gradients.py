"""The gradient of one batch, accumulated over micro-batches and over pieces of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.evaluation.accumulators import WeightedMeans
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import ModelState
from synthe_core.state import detach, join, map_leaves
from synthe_core.training.objectives.objective import Objective, ObjectiveContext
from synthe_core.training.settings import Settings


class BatchLoss(NamedTuple):
    """What the forward passes over a batch report; tensors are on the device and have no gradient.

    total:          the sum of the loss over `num_targets` targets, in nats.
    num_tokens:     tokens read, padding not counted.
    auxiliary:      auxiliary losses by name, weighted.
    state:          the recurrent state after the batch; None unless it is carried.
    measures:       what learners measured, means over tokens.
    skipped_flops:  operations of the forward passes that learners skipped.
    buffer_updates: buffers and their values after the step.
    """

    total: Tensor
    num_targets: int
    num_tokens: int
    auxiliary: dict[str, Tensor]
    state: ModelState | None
    measures: dict[str, Tensor]
    skipped_flops: Tensor | float
    buffer_updates: list[tuple[Tensor, Tensor]]


def accumulate_gradients(
    objective: Objective,
    model: Model,
    batch: Batch,
    settings: Settings,
    *,
    sequence: int,
    carry: bool = False,
    state: ModelState | None = None,
) -> BatchLoss:
    """Adds to every `.grad` the gradient of the mean loss of the batch, [B, T] tokens.

    The batch runs `settings.micro_batch` rows at a time; each pass is weighted by its share of the targets, so that
    the gradient is that of the whole. `sequence` t < T cuts the rows: into B T/t sequences, or, with `carry`, into T/t
    pieces one after another, where the state goes from piece to piece and the gradient does not.
    """
    count = objective.count(batch)
    total = torch.zeros((), device=settings.device)
    auxiliary: dict[str, Tensor] = {}
    measures = WeightedMeans()
    skipped: Tensor | float = 0.0
    updates: list[tuple[Tensor, Tensor]] = []
    states: list[ModelState] = []
    for first in range(0, batch.inputs.shape[0], settings.micro_batch):
        rows = slice(first, first + settings.micro_batch)
        current = None if state is None else map_leaves(lambda leaf, rows=rows: leaf[rows], state)
        for piece in split_rows(batch, rows, sequence, carry):
            with settings.context.activate():
                loss = objective(model, to_device(piece, settings.device), ObjectiveContext(current if carry else None))
                minimized = loss.total / max(count, 1)
                for name, value in loss.auxiliary.items():
                    share = value * loss.scored / max(count, 1)
                    minimized = minimized + share
                    auxiliary[name] = auxiliary.get(name, 0.0) + share.detach()
            minimized.backward()
            total += loss.total.detach()
            measures.add(loss.measures, piece.tokens)
            skipped = skipped + loss.skipped
            updates += loss.buffer_updates
            current = None if loss.state is None else detach(loss.state)
        if carry and current is not None:
            states.append(current)
    after = None if not carry else states[0] if len(states) == 1 else join(states)
    return BatchLoss(total, count, batch.tokens, auxiliary, after, measures.values(), skipped, updates)


def split_rows(batch: Batch, rows: slice, sequence: int, carry: bool) -> Iterator[Batch]:
    """Some rows of a batch as the passes that they run in. Padded rows (those of an encoder) are never cut."""
    inputs, targets = batch.inputs[rows], batch.targets[rows]
    if carry:
        yield from map(Batch, inputs.split(sequence, dim=1), targets.split(sequence, dim=1))
    else:
        lengths = None if batch.lengths is None else batch.lengths[rows]
        yield Batch(inputs.reshape(-1, sequence), targets.reshape(-1, sequence), lengths)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))  # type: ignore[arg-type]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("can't allocate memory", "not enough memory", "out of memory")
    )
