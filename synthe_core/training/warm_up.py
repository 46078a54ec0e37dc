"""A pass before the clock of a budget of time starts, where kernels are compiled when they are first launched."""

from __future__ import annotations

import torch

from synthe_core.budget import Budget
from synthe_core.data.stream import Batch
from synthe_core.training.gradients import accumulate_gradients, is_out_of_memory
from synthe_core.training.state import TrainState

DEVICES = ("cuda",)
"""Types of device on which Triton's and torch's kernels are compiled or loaded in the first pass."""


def needs_warm_up(device: torch.device, budget: Budget) -> bool:
    """Whether the first pass would spend a budget of time on compilation."""
    return device.type in DEVICES and budget.unit == "seconds"


def warm_up(state: TrainState, batch: Batch, sequence: int) -> None:
    """Runs the passes over a micro-batch, forward and backward, and leaves no mark: no gradient, no changed buffer, no
    random number drawn. `sequence`: the length of the first step's."""
    rows = state.objective.prepare(state.model, batch.select(slice(0, state.settings.micro_batch * batch.group)))
    devices = [state.settings.device] if state.settings.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            accumulate_gradients(
                state.objective, state.model, rows, state.settings, sequence=sequence, engine=state.engine
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise  # for memory the first step takes smaller micro-batches
    state.engine.finish()
    for parameter in state.model.parameters():
        parameter.grad = None
    state.settings.context.synchronize()
