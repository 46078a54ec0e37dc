"""Micro-batches, curriculum pieces and carried state leave the objective what it is."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from pydantic import TypeAdapter

from synthe_core.data.stream import Batch
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.state import named_leaves
from synthe_core.training.gradients import PASS_COST, accumulate_gradients, cheapest_passes
from synthe_core.training.objectives import objective_for
from synthe_core.training.settings import Settings

VOCAB, LENGTH, ROWS = 23, 12, 5


def model(block=("attention", "mlp")) -> LanguageModel:
    entries = [{"type": name} | ({"heads": 2} if name == "attention" else {}) for name in block]
    spec = TypeAdapter(ModelSpec).validate_python({"width": 8, "blocks": 2, "block": entries})
    torch.manual_seed(0)
    return LanguageModel(spec, VOCAB).double()


def batch(unscored: bool = True) -> Batch:
    tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    if unscored:  # rows count for different numbers of tokens, one for none
        for row in range(ROWS):
            targets[row, LENGTH - 3 * row :] = -100
    return Batch(tokens[:, :-1].contiguous(), targets)


def settings(micro: int) -> Settings:
    return Settings(ExecutionContext(), micro)


def gradient(net, data, micro, **rest):
    net.zero_grad()
    outcome = accumulate_gradients(objective_for(net), net, data, settings(micro), **{"sequence": LENGTH} | rest)
    return outcome, {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_micro_batches_do_not_change_the_gradient(micro):
    net, data = model(), batch()
    whole, expected = gradient(net, data, ROWS)
    parts, got = gradient(net, data, micro)
    assert parts.num_targets == whole.num_targets == int((data.targets != -100).sum())
    assert parts.num_tokens == whole.num_tokens == data.inputs.numel()
    assert float(parts.total) == pytest.approx(float(whole.total), rel=1e-6)  # a float32 sum, for display
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-14)


def test_the_gradient_is_that_of_the_mean_loss():
    net, data = model(), batch()
    _, got = gradient(net, data, 2)
    net.zero_grad()
    loss, _ = net.loss(data.inputs, data.targets)
    loss.objective.backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-10, atol=1e-14)


def test_the_curriculum_cuts_rows_into_independent_sequences():
    net, data = model(), batch()
    _, got = gradient(net, data, 2, sequence=4)
    short = Batch(data.inputs.reshape(-1, 4), data.targets.reshape(-1, 4))
    _, expected = gradient(net, short, ROWS * 3, sequence=4)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("micro", [2, ROWS])
def test_carried_state_continues_without_its_gradient(micro):
    net, data = model(("momentum", "attention", "mlp")), batch(unscored=False)
    first, _ = gradient(net, data, micro, carry=True, sequence=4)
    whole, _ = gradient(net, data, micro, carry=True)
    for (name, a), (_, b) in zip(named_leaves(first.state), named_leaves(whole.state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
        assert not a.requires_grad
    # Pieces lose no value, only the gradient through the cut: the loss is the same, the gradient is not.
    assert float(first.total) == pytest.approx(float(whole.total), rel=1e-6)
    second, got = gradient(net, data, micro, carry=True, state=whole.state)
    net.zero_grad()
    loss, after = net.loss(data.inputs, data.targets, whole.state)
    loss.objective.backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-9, atol=1e-13)
    for (_, a), (_, b) in zip(named_leaves(second.state), named_leaves(after), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-12)


def test_auxiliary_losses_are_weighted_by_their_share(monkeypatch):
    net, data = model(), batch()
    real = type(net.blocks[0]).forward

    def with_auxiliary(self, x, states, ctx):
        ctx.losses.append(("balance", x.square().mean()))
        return real(self, x, states, ctx)

    monkeypatch.setattr(type(net.blocks[0]), "forward", with_auxiliary)
    outcome, got = gradient(net, data, 2)
    total = int((data.targets != -100).sum())
    net.zero_grad()
    objective, balance = 0.0, 0.0
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        loss, _ = net.loss(data.inputs[rows], data.targets[rows])
        share = loss.auxiliary["balance"] * loss.scored / total
        objective, balance = objective + loss.total / total + share, balance + float(share.detach())
    objective.backward()
    assert float(outcome.auxiliary["balance"]) == pytest.approx(balance)
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-10, atol=1e-14)


def test_measures_are_means_over_tokens_and_what_was_skipped_adds_up(monkeypatch):
    net, data = model(), batch()
    real, calls = type(net.blocks[0]).forward, []

    def telling(self, x, states, ctx):
        calls.append(x.shape[0])
        ctx.measures.append(("gate_rate", torch.tensor(float(len(calls)))))
        ctx.skipped.append(torch.tensor(10.0 * x.shape[0] * x.shape[1]))
        ctx.skipped.append(1.0)
        return real(self, x, states, ctx)

    monkeypatch.setattr(type(net.blocks[0]), "forward", telling)
    outcome, _ = gradient(net, data, 2)
    assert calls == [2, 2, 2, 2, 1, 1]  # two blocks in each of three passes
    assert float(outcome.measures["gate_rate"]) == pytest.approx((2 * 1.5 + 2 * 3.5 + 1 * 5.5) / 5)
    assert float(outcome.skipped_flops) == 2 * 10 * ROWS * LENGTH + 6


@pytest.mark.parametrize("seed", range(8))
def test_passes_over_padded_rows_cost_least(seed: int) -> None:
    """Compared with every way to cut a sorted list into runs."""
    draw = random.Random(seed)
    tokens = sorted((draw.randint(1, 900) for _ in range(9)), reverse=True)
    limit = draw.choice([500, 1000, 4000])

    def cost(runs: list[tuple[int, int]]) -> float:
        fits = all((end - first) * tokens[first] <= limit or end == first + 1 for first, end in runs)
        return sum((end - first) * tokens[first] + PASS_COST for first, end in runs) if fits else math.inf

    chosen = cheapest_passes(tokens, limit)
    assert [place for first, end in chosen for place in range(first, end)] == list(range(9))
    cuts = itertools.product([False, True], repeat=8)
    others = [[0, *(place for place, cut in enumerate(each, start=1) if cut), 9] for each in cuts]
    assert cost(chosen) == min(cost(list(itertools.pairwise(each))) for each in others)
    assert cheapest_passes([], 10) == []
