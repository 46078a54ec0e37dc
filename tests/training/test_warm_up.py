"""The pass before a budget's time starts leaves no mark."""

from __future__ import annotations

import torch

from synthe_core.budget import Budget
from synthe_core.training.step import train_step
from synthe_core.training.warm_up import needs_warm_up, warm_up
from tests.training.test_step import batch, make, tensors


def test_only_a_budget_of_time_on_cuda_needs_one():
    assert needs_warm_up(torch.device("cuda"), Budget.parse("90s"))
    assert not needs_warm_up(torch.device("cuda"), Budget.parse("20Mtokens"))
    assert not needs_warm_up(torch.device("cpu"), Budget.parse("90s"))


def test_it_leaves_no_mark():
    state, other = make(), make()
    before, drawn = tensors(state), torch.get_rng_state()
    warm_up(state, batch(), 8)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(state).items())
    assert (state.step, state.tokens) == (0, 0)
    train_step(state, batch())
    train_step(other, batch())
    assert all(torch.equal(a, b) for a, b in zip(tensors(state).values(), tensors(other).values(), strict=True))


def test_a_pass_that_does_not_fit_is_left_to_the_first_step(monkeypatch):
    state = make()

    def full(*args: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(type(state.objective), "__call__", full)
    warm_up(state, batch(), 8)
    assert all(parameter.grad is None for parameter in state.model.parameters())
