"""One step of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.training import schedule
from synthe_core.training.gradients import BatchLoss, accumulate_gradients, is_out_of_memory
from synthe_core.training.non_finite import first_non_finite
from synthe_core.training.state import TrainState


class MicroBatchOutOfMemory(MemoryError):
    """Memory ran out in the passes over a batch. Nothing has changed: the step may be repeated with a smaller
    `micro_batch`."""


class StepResult(NamedTuple):
    """What a step did. Tensors are on the device.

    batch:         sums over the batch: loss, tokens, measures.
    grad_norm:     the norm of the gradient before clipping.
    learning_rate: as a fraction of its peak.
    non_finite:    the first tensor that is not finite, in words; None where all are. Then no weight has changed.
    """

    batch: BatchLoss
    grad_norm: float
    learning_rate: float
    non_finite: str | None = None

    @property
    def loss(self) -> Tensor:
        """The mean over targets, in nats."""
        return self.batch.total / max(self.batch.num_targets, 1)

    @property
    def skipped(self) -> bool:
        return self.non_finite is not None


def train_step(state: TrainState, batch: Batch, while_waiting: Callable[[], object] | None = None) -> StepResult:
    """Forward, backward, clipping, optimizer: one step, which changes `state`.

    A step with a loss or gradient that is not finite is skipped: weights and counters stay, and rows begin from a fresh
    recurrent state next. `while_waiting` is called between the launch of the backward pass and the wait for it.
    Raises MicroBatchOutOfMemory.
    """
    sequence = state.sequence or batch.inputs.shape[1]
    batch = state.objective.prepare(state.model, batch)
    losses, engine = _gradients(state, batch, sequence), state.engine
    engine.finish()
    for parameter in state.frozen.parameters:
        parameter.grad = None  # so that the optimizer changes neither its weights nor its moments
    gradients = [p.grad for p in state.optimizer.parameters if p.grad is not None]
    norm = engine.norm(gradients)
    if while_waiting is not None:
        while_waiting()
    rate = schedule.rate(state.config, state.fraction) * state.objective.learning_rate(state.fraction)
    grad_norm = float(norm + engine.ranks.sum(losses.total * 0))  # the only wait for the device in a step
    if not math.isfinite(grad_norm):
        cause = engine.name_non_finite(
            lambda: first_non_finite(
                state.objective, state.model, batch, state.settings, sequence, state.recurrent_state
            )
        )
        state.optimizer.zero_grad()
        state.recurrent_state = None
        return StepResult(losses, grad_norm, rate, cause)
    if state.config.clip is not None and grad_norm > state.config.clip:
        engine.clip(state.optimizer.parameters, state.config.clip, norm)
    state.optimizer.step(rate)
    state.step += 1
    state.tokens += losses.batch_tokens
    state.recurrent_state = losses.state
    if state.average is not None:
        state.average.update(state.step)
    if state.base is None:  # an adapter leaves its model's buffers as they are
        fixed = state.frozen.tensor_ids
        engine.apply_buffer_updates([each for each in losses.buffer_updates if id(each[0]) not in fixed])
    return StepResult(losses, grad_norm, rate)


def _gradients(state: TrainState, batch: Batch, sequence: int) -> BatchLoss:
    state.optimizer.zero_grad()
    try:
        return accumulate_gradients(
            state.objective,
            state.model,
            batch,
            state.settings,
            sequence=sequence,
            carry=state.config.carry,
            state=state.recurrent_state,
            engine=state.engine,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        state.optimizer.zero_grad()
        raise MicroBatchOutOfMemory(str(error)) from error
