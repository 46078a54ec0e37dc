"""The KDA learner: its equations written out token by token, and what its keys do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError
from synthe_core.layers import build, parse
from synthe_core.layers.kda import KDAState
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import use_kernels
from synthe_core.state import nbytes


def make(width=32, **config):
    torch.manual_seed(0)
    return build(parse({"type": "kda", "heads": 2} | config), width)


def run(learner, x, state=None, trace=None):
    return learner(x, state, Pass.over(x, trace=trace))


def test_is_the_equations_of_its_docstring_from_any_state():
    learner = make(key_size=6, value_size=10, rank=7).double()
    torch.manual_seed(1)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    state = KDAState(*(torch.randn_like(leaf) for leaf in learner.init_state(2)))
    with torch.no_grad():
        learner.gate_bias.normal_()
        y, after = run(learner, x, state)
        mixed, low_decay, low_gate, beta = learner.project(x).split([2 * 12 + 20, 7, 7, 2], -1)
        past, memory = torch.cat([state.conv, mixed], 1), state.memory
        for t in range(9):
            taps = learner.conv1d.weight[:, 0].T
            q, k, v = F.silu((taps * past[:, t : t + 4]).sum(1)).split([12, 12, 20], -1)
            q, k = (part.view(2, 2, 6) for part in (q, k))
            q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-5).sqrt() for part in (q, k))
            f = learner.decay(low_decay[:, t]) + learner.dt_bias
            alpha = torch.exp(-learner.A_log.exp()[:, None] * F.softplus(f).view(2, 2, 6))
            strength = torch.sigmoid(beta[:, t])[..., None]
            memory = alpha[..., None] * memory
            wrong = v.view(2, 2, 10) - torch.einsum("bhkv,bhk->bhv", memory, k)
            memory = memory + torch.einsum("bhk,bhv->bhkv", strength * k, wrong)
            o = torch.einsum("bhkv,bhk->bhv", memory, q)
            o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * learner.norm
            gate = torch.sigmoid(learner.gate(low_gate[:, t]) + learner.gate_bias)
            torch.testing.assert_close(y[:, t], learner.out(o.flatten(1) * gate), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after.memory, memory, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after.conv, past[:, -3:])


def test_a_width_that_heads_do_not_divide_names_the_nearest_that_do():
    with pytest.raises(InputError, match="kda: width 512 is not divisible by heads 7") as error:
        make(512, heads=7)
    assert error.value.hint == "the nearest that works is heads: 8"
    assert make(512, heads=7, key_size=64, value_size=70).out.in_features == 490


def test_an_unknown_key_is_an_error():
    with pytest.raises(PydanticCustomError):
        make(head=2)


@pytest.mark.parametrize("width", [192, 512])
def test_the_defaults_serve_the_usual_widths(width):
    learner = build(parse("kda"), width)
    y, state = run(learner, torch.randn(1, 40, width))
    assert 0.05 < y.square().mean().sqrt() < 0.5  # of inputs of scale 1
    assert learner.state_bytes(40) == nbytes(state) == 4 * (width * width // 8 + 3 * 3 * width)
    with torch.device("meta"):
        assert build(parse("kda"), width).out.weight.is_meta


def test_initial_decays_follow_mamba_2_in_every_channel():
    learner = make(64, heads=64)
    step = F.softplus(make(512, heads=8).dt_bias)
    assert 1e-3 <= step.min() < 2e-3 and 7e-2 < step.max() <= 1e-1
    assert 1 <= learner.A_log.exp().min() < 2 and 14 < learner.A_log.exp().max() <= 16


def test_the_gates_that_are_traced_keep_to_their_range():
    trace = Trace()
    run(make(), 5 * torch.randn(2, 30, 32), trace=trace)
    shown = {record.name: record.value for record in trace.records}
    assert 0 < shown["beta"].min() < 0.1 and 0.9 < shown["beta"].max() < 1
    assert shown["decay"].shape == (2, 30, 2, 16) and shown["decay"].min() >= 0 and shown["decay"].max() <= 1


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
def test_autocast_keeps_the_memory_in_float32_and_reaches_into_no_kernel(kernel):
    learner, x = make(64), torch.randn(2, 40, 64)
    exact, exact_state = run(learner, x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(learner, x)
        with use_kernels(kda=kernel):
            other, _ = run(learner, x)
    assert state.memory.dtype == state.conv.dtype == torch.float32
    assert (y - exact).norm() < 0.03 * exact.norm()
    assert (state.memory - exact_state.memory).norm() < 0.03 * exact_state.memory.norm()
    assert (y - other).float().norm() < 2e-3 * y.float().norm()


def test_flops_count_matrices_and_memory():
    learner = make(32, rank=5)
    matrices = 32 * (3 * 32 + 2 * 5 + 2) + 4 * 3 * 32 + 2 * 5 * 32 + 32 * 32
    assert learner.flops(100) == 2 * matrices + 7 * 2 * 16 * 16


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_finite_over_8192_tokens_in_bfloat16(scale):
    learner, x = make(64), (scale * torch.randn(1, 8192, 64)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = run(learner, x)
    y.float().square().mean().backward()
    assert y.isfinite().all() and state.memory.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


def test_it_learns_to_recall():
    """Pairs of (key, value) tokens, then one key again: the answer is the value that came with it."""
    torch.manual_seed(0)
    keys, width, pairs = 8, 32, 4
    embed, learner, head = torch.nn.Embedding(2 * keys, width), make(width, conv=2), torch.nn.Linear(width, keys)
    modules = torch.nn.ModuleList([embed, learner, head])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-2)
    for _ in range(200):
        order = torch.rand(32, keys).argsort(-1)[:, :pairs]
        values = torch.randint(keys, (32, pairs))
        queried = torch.randint(pairs, (32, 1))
        tokens = torch.cat([torch.stack([order, keys + values], -1).flatten(1), order.gather(1, queried)], 1)
        scores = head(run(learner, F.rms_norm(embed(tokens), (width,)))[0][:, -1])
        loss = F.cross_entropy(scores, values.gather(1, queried)[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(-1) == values.gather(1, queried)[:, 0]).float().mean() > 0.9
