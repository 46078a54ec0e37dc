"""The delta learner: what its keys do, beyond the laws that every learner obeys."""

from __future__ import annotations

import pytest
import torch
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.learner import Pass
from synthe_core.ops.dispatch import use_kernels
from synthe_core.state import nbytes
from synthe_core.trace import Trace


def make(width=32, **config):
    torch.manual_seed(0)
    return build(parse({"type": "delta", "heads": 2} | config), width)


def run(learner, x, trace=None):
    ctx = Pass.over(x, trace=trace)
    return learner(x, None, ctx)


def test_a_width_that_heads_do_not_divide_names_the_nearest_that_do():
    with pytest.raises(InputError, match="width 512 is not divisible by heads 7") as error:
        make(512, heads=7)
    assert error.value.hint == "the nearest that works is heads: 8"
    assert make(512, heads=7, key_size=64, value_size=70).out.in_features == 490


@pytest.mark.parametrize("pair", [[0, 2.5], [1, 1], [-1, 1]])
def test_beta_range_lies_within_0_and_2(pair):
    with pytest.raises(InputError, match="beta_range"):
        make(beta_range=pair)


def test_an_unknown_key_is_an_error():
    with pytest.raises(PydanticCustomError):
        make(head=2)


def test_state_is_float32_and_its_size_does_not_depend_on_time():
    learner = make(key_size=8, value_size=12)
    for time in (1, 50):
        _, state = run(learner, torch.randn(3, time, 32))
        assert state.memory.shape == (3, 2, 8, 12)
        assert state.conv.shape == (3, 3, 2 * 2 * 8 + 2 * 12)
        assert nbytes(state) == 4 * 3 * (2 * 8 * 12 + 3 * 56)
    _, state = run(make(conv=0), torch.randn(3, 5, 32))
    assert state.conv.numel() == 0


def test_autocast_keeps_the_memory_in_float32_and_stays_near():
    learner, x = make(64), torch.randn(2, 40, 64)
    exact, exact_state = run(learner, x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(learner, x)
    assert state.memory.dtype == state.conv.dtype == torch.float32
    assert (y - exact).norm() < 0.03 * exact.norm()
    assert (state.memory - exact_state.memory).norm() < 0.03 * exact_state.memory.norm()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
def test_autocast_reaches_into_no_kernel(kernel):
    learner, x = make(64), torch.randn(2, 40, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = run(learner, x)
        with use_kernels(delta_rule=kernel):
            other, _ = run(learner, x)
    assert (y - other).float().norm() < 2e-3 * y.float().norm()


def test_initial_decays_follow_mamba_2():
    torch.manual_seed(0)
    learner = build(parse({"type": "delta", "heads": 64}), 64)
    step = torch.nn.functional.softplus(learner.step_bias)
    assert 1e-3 <= step.min() < 3e-3 and 3e-2 < step.max() <= 1e-1
    assert learner.log_rate.exp().min() >= 1 and learner.log_rate.exp().max() <= 16


def test_the_strengths_that_are_traced_keep_to_their_range():
    trace = Trace()
    run(make(beta_range=[0.5, 1.5]), 5 * torch.randn(2, 30, 32), trace)
    shown = {record.name: record.value for record in trace.records}
    assert 0.5 <= shown["beta"].min() < 0.7 and 1.3 < shown["beta"].max() <= 1.5
    assert shown["decay"].min() > 0 and shown["decay"].max() < 1


def test_clip_bounds_what_is_written():
    config = {"conv": 0, "decay": False, "gate": False, "clip": 0.01}
    _, clipped = run(make(**config), torch.randn(1, 1, 32))
    _, free = run(make(**config | {"clip": None}), torch.randn(1, 1, 32))
    assert clipped.memory.flatten(2).norm(dim=-1).max() <= 0.0101
    assert free.memory.flatten(2).norm(dim=-1).max() > 0.02


def test_overwriting_replaces_and_adding_accumulates():
    """One token again and again with β near 1: the delta rule's memory settles, linear attention's grows."""
    x = torch.randn(1, 1, 32).expand(1, 50, 32)
    config = {"conv": 0, "decay": False, "beta_range": [0.999, 1.0]}
    settled = run(make(**config), x)[1].memory.norm() / run(make(**config), x[:, :1])[1].memory.norm()
    grown = run(make(**config, overwrite=False), x)[1].memory.norm()
    grown = grown / run(make(**config, overwrite=False), x[:, :1])[1].memory.norm()
    assert settled.item() == pytest.approx(1, abs=1e-2)
    assert grown.item() == pytest.approx(50, rel=1e-2)


def test_flops_count_matrices_and_memory():
    learner = make(32, conv=0, decay=False)
    matrices = 2 * (32 * (4 * 32 + 2) + 32 * 32)
    assert learner.flops(100) == matrices + 6 * 2 * 16 * 16


def test_it_learns_to_recall():
    """Pairs of (key, value) tokens, then one key again: the answer is the value that came with it."""
    torch.manual_seed(0)
    keys, width, pairs = 8, 32, 4
    embed, learner, head = torch.nn.Embedding(2 * keys, width), make(width, conv=2), torch.nn.Linear(width, keys)
    modules = torch.nn.ModuleList([embed, learner, head])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-2)
    for _ in range(150):
        order = torch.rand(32, keys).argsort(-1)[:, :pairs]
        values = torch.randint(keys, (32, pairs))
        asked = torch.randint(pairs, (32, 1))
        tokens = torch.cat([torch.stack([order, keys + values], -1).flatten(1), order.gather(1, asked)], 1)
        x = embed(tokens)
        scores = head(run(learner, torch.nn.functional.rms_norm(x, (width,)))[0][:, -1])
        loss = torch.nn.functional.cross_entropy(scores, values.gather(1, asked)[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(-1) == values.gather(1, asked)[:, 0]).float().mean() > 0.9
