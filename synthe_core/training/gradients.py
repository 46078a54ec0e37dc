"""The gradient of one batch, in as many passes as memory wants and in pieces as short as the curriculum wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.model.classifier import Model
from synthe_core.model.language_model import ModelState
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.state import detach, join, map_leaves
from synthe_core.training.settings import Settings


class Outcome(NamedTuple):
    """`nats` over `scored` targets, on the device; the tokens read; auxiliary losses, already weighted; the state to
    carry on; what learners measured, the mean over tokens; the operations of the forward pass that they skipped; and
    buffer_updates for `apply_buffer_updates`."""

    nats: Tensor
    scored: int
    tokens: int
    auxiliary: dict[str, Tensor]
    carried: ModelState | None
    measures: dict[str, Tensor]
    skipped: Tensor | float
    buffer_updates: list[tuple[Tensor, Tensor]]


def accumulate(
    model: Model,
    batch: Batch,
    settings: Settings,
    *,
    sequence: int,
    carry: bool = False,
    carried: ModelState | None = None,
) -> Outcome:
    """Adds to every `.grad` the gradient of the mean loss of the batch, [B, T] tokens.

    The batch runs `settings.micro_batch` rows at a time; each pass is weighted by its share of the scored tokens, so
    that the gradient is that of the whole. `sequence` t < T cuts the rows: into B T/t sequences, or, where state is
    carried, into T/t pieces one after another between which the gradient is cut.
    """
    total = int((batch.targets != IGNORED).sum())
    nats = torch.zeros((), device=settings.device)
    auxiliary: dict[str, Tensor] = {}
    measures = Means()
    skipped: Tensor | float = 0.0
    buffer_updates: list[tuple[Tensor, Tensor]] = []
    after: list[ModelState] = []
    for first in range(0, batch.inputs.shape[0], settings.micro_batch):
        rows = slice(first, first + settings.micro_batch)
        state = None if carried is None else map_leaves(lambda leaf, rows=rows: leaf[rows], carried)
        for piece in pieces(batch, rows, sequence, carry):
            inputs, targets, lengths = moved(piece, settings.device)
            with settings.context.activate():
                loss, state = model.loss(inputs, targets, state if carry else None, lengths)
                objective = loss.total / max(total, 1)
                for name, value in loss.auxiliary.items():
                    share = value * loss.scored / max(total, 1)
                    objective = objective + share
                    auxiliary[name] = auxiliary.get(name, 0.0) + share.detach()
            objective.backward()
            nats += loss.total.detach()
            measures.add(loss.measures, piece.tokens)
            skipped = skipped + loss.skipped
            buffer_updates += loss.buffer_updates
            state = detach(state)
        if carry and state is not None:
            after.append(state)
    carried = None if not carry else after[0] if len(after) == 1 else join(after)
    return Outcome(nats, total, batch.tokens, auxiliary, carried, measures.values(), skipped, buffer_updates)


class Means:
    """Means of named values that are told with weights. Values stay on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def values(self) -> dict[str, Tensor]:
        return {name: total / max(self._weights[name], 1e-9) for name, total in self._sums.items()}


def pieces(batch: Batch, rows: slice, sequence: int, carry: bool) -> Iterator[Batch]:
    """Some rows of a batch as the passes that they run in. Padded rows (those of an encoder) are never cut."""
    inputs, targets = batch.inputs[rows], batch.targets[rows]
    if carry:
        yield from map(Batch, inputs.split(sequence, dim=1), targets.split(sequence, dim=1))
    else:
        lengths = None if batch.lengths is None else batch.lengths[rows]
        yield Batch(inputs.reshape(-1, sequence), targets.reshape(-1, sequence), lengths)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))  # type: ignore[arg-type]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("can't allocate memory", "not enough memory", "out of memory")
    )
