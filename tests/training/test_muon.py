"""Muon over stacks of matrices takes the steps of torch's, which goes through them one by one."""

from __future__ import annotations

import pytest
import torch

from synthe_core.training import muon
from synthe_core.training.muon import BatchedMuon, stacks

SHAPES = [(16, 16), (24, 16), (16, 24), (16, 16), (7, 5), (24, 16), (16, 16)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(0.1 * torch.randn(shape)) for shape in SHAPES]


@pytest.mark.parametrize("options", [{"adjust_lr_fn": "match_rms_adamw"}, {}, {"nesterov": False}])
@pytest.mark.parametrize("stack_bytes", [muon.STACK_BYTES, 1024])
def test_steps_are_those_of_torch(options, stack_bytes, monkeypatch):
    monkeypatch.setattr(muon, "STACK_BYTES", stack_bytes)
    ours, theirs = parameters(), parameters()
    batched, single = BatchedMuon(ours, **SETTINGS, **options), torch.optim.Muon(theirs, **SETTINGS, **options)
    for step in range(3):
        torch.manual_seed(step)
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = None if index == step else torch.randn_like(a)  # parameters of a frozen stage have none
            b.grad = None if a.grad is None else a.grad.clone()
        before = [p.detach().clone() for p in theirs]
        batched.step()
        single.step()
        for a, b, old in zip(ours, theirs, before, strict=True):
            moved = (b - old).norm()
            assert (a - b).norm() <= 2**-8 * moved  # bfloat16 has eight bits
            assert torch.equal(a, old) == (a.grad is None)
            state = single.state[b]
            if state:
                assert torch.allclose(batched.state[a]["momentum_buffer"], state["momentum_buffer"], atol=1e-7)


def test_a_stack_has_one_shape_and_a_size(monkeypatch):
    matrices = list(parameters())
    assert list(stacks(matrices)) == [[0, 3, 6], [1, 5], [2], [4]]
    monkeypatch.setattr(muon, "STACK_BYTES", 2 * 2 * 16 * 16)
    assert list(stacks(matrices)) == [[0, 3], [6], [1], [5], [2], [4]]
