"""Every learner gives over a sequence that is cut over ranks what it gives over the whole one, gradients included."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from synthe_core import state as states
from synthe_core.layers.learner import Pass
from synthe_core.layers.over_ranks import run_learner
from tests.laws.entries import CAUSAL, case_name, inputs, make, run
from tests.sequence_ranks import on_ranks

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
TIME = 24


def objective(y, ctx):
    """Some number that depends on every output and signal."""
    parts = [y, *(ctx.signals[name] for name in sorted(ctx.signals))]
    return sum(
        (part * torch.linspace(-1, 1, part[0, 0].numel(), dtype=part.dtype).view(part[0, 0].shape)).square().sum()
        for part in parts
    )


def gradients(total, learner, x):
    learner.zero_grad()
    total.backward()
    return x.grad, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learner.named_parameters()}


@pytest.mark.parametrize("case", CAUSAL, ids=case_name)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_give_what_one_process_gives(case, size):
    learner, x = make(case), inputs(2, TIME + 7)
    state, x = run(learner, x[:, :7])[1], x[:, 7:]
    state = states.map_leaves(torch.Tensor.detach, state)
    whole = x.clone().requires_grad_()
    y, final, ctx = run(learner, whole, state, 7)
    x_grad, grads = gradients(objective(y, ctx), learner, whole)

    def work(ranks):
        part = TIME // size
        mine = x[:, ranks.rank * part : (ranks.rank + 1) * part].clone().requires_grad_()
        own = Pass.over(mine, start=torch.full((2,), 7 + ranks.rank * part))
        copy = deepcopy(learner)
        out, after = run_learner(copy, mine, state, own)
        return out, after, *gradients(objective(out, own), copy, mine)

    results = on_ranks(size, work)
    torch.testing.assert_close(torch.cat([each[0] for each in results], 1), y, **CLOSE)
    for (name, a), (_, b) in zip(states.named_leaves(results[-1][1]), states.named_leaves(final), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)
    torch.testing.assert_close(torch.cat([each[2] for each in results], 1), x_grad, **CLOSE)
    for name, grad in grads.items():
        torch.testing.assert_close(
            sum(each[3][name] for each in results), grad, msg=lambda text, name=name: f"{name}: {text}", **CLOSE
        )
