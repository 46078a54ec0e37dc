"""The delta learner: what its keys do, beyond the laws that every learner obeys."""

from __future__ import annotations

import pytest
import torch
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError
from synthe_core.layers import build, delta, parse
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import use_kernels
from synthe_core.state import nbytes
from tests.peers import fla_naive


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


def test_value_heads_come_in_groups_and_a_bias_needs_a_convolution():
    with pytest.raises(InputError, match="value_heads 3 is not a multiple of heads 2"):
        make(value_heads=3)
    with pytest.raises(InputError, match="conv_bias without a convolution"):
        make(conv=1, conv_bias=True)
    learner = make(value_heads=6, key_size=8, value_size=5, conv=0)
    assert learner.project.out_features == 2 * 2 * 8 + 2 * 6 * 5 + 2 * 6
    assert run(learner, torch.randn(3, 4, 32))[1].memory.shape == (3, 6, 8, 5)
    assert learner.flops(9) == 2 * 32 * (learner.project.out_features + 30) + 7 * 6 * 8 * 5


def test_grouped_value_heads_read_one_key_head():
    """Equal to as many key heads with the same weights."""
    few, many = make(value_heads=4, key_size=8, value_size=5), make(heads=4, key_size=8, value_size=5)
    with torch.no_grad():
        for name, parameter in few.named_parameters():
            if name in ("project.weight", "conv"):
                queries, keys, *rest = parameter.split([16, 16, len(parameter) - 32])
                queries, keys = (x.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for x in (queries, keys))
                parameter = torch.cat([queries, keys, *rest])
            dict(many.named_parameters())[name].copy_(parameter)
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(run(few, x)[0], run(many, x)[0])


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
    step = torch.nn.functional.softplus(learner.dt_bias)
    assert 1e-3 <= step.min() < 3e-3 and 3e-2 < step.max() <= 1e-1
    assert learner.A_log.exp().min() >= 1 and learner.A_log.exp().max() <= 16


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
    learner = make(32, conv=0, householder=3)
    matrices = 2 * (32 * (4 * 32 + 3 * 32 + 32 + 3 * 2 + 2) + 32 * 32)
    assert learner.flops(100) == matrices + (1 + 3 * 6) * 2 * 16 * 16


# Several steps a token: DeltaProduct.


def record_call(learner, x, monkeypatch):
    """The arguments and results of the learner's call of the operator."""
    calls, name = [], "delta_rule" if learner.config.overwrite else "linear_attention"
    rule = getattr(delta, name)

    def listening(*args):
        calls.append((args, rule(*args)))
        return calls[-1][1]

    monkeypatch.setattr(delta, name, listening)
    run(learner, x)
    return calls[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("decay", [True, False])
def test_several_steps_equal_a_plain_loop_over_them(steps, decay, monkeypatch):
    """Everything from the projections on, written out token by token and step by step."""
    learner = make(12, householder=steps, decay=decay, beta_range=[0, 2], key_size=4, value_size=3).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    y, state = run(learner, x)
    heads, key, value = 2, 4, 3
    weight = learner.project.weight
    rows = iter(weight.split([heads * key] * (1 + steps) + [heads * value] * (steps + 1) + [heads] * (steps + decay)))
    taps = iter(learner.conv.split([heads * key] * (1 + steps) + [heads * value] * steps))

    def mixed(unit):
        line, past = x @ next(rows).T, next(taps)
        line = torch.nn.functional.pad(line, (0, 0, 3, 0))
        line = torch.nn.functional.silu(sum(past[:, j] * line[:, j : j + 9] for j in range(4))).unflatten(
            -1, (heads, -1)
        )
        return line / (line.square().sum(-1, keepdim=True) + delta.EPS).sqrt() if unit else line

    q, k, v = mixed(True), [mixed(True) for _ in range(steps)], [mixed(False) for _ in range(steps)]
    gate = x @ next(rows).T
    beta = [2 * torch.sigmoid(x @ next(rows).T) for _ in range(steps)]
    alpha = torch.ones(2, 9, heads, dtype=torch.float64)
    if decay:
        rate, slack = learner.A_log.exp(), torch.nn.functional.softplus(x @ next(rows).T + learner.dt_bias)
        alpha = torch.exp(-rate * slack)
    expected = torch.empty_like(y)
    for row in range(2):
        memories = [torch.zeros(value, key, dtype=torch.float64) for _ in range(heads)]
        for t in range(9):
            out = []
            for h in range(heads):
                S = alpha[row, t, h] * memories[h]
                for n in range(steps):
                    kn, vn, bn = k[n][row, t, h], v[n][row, t, h], beta[n][row, t, h]
                    S = S @ (torch.eye(key) - bn * torch.outer(kn, kn)) + bn * torch.outer(vn, kn)
                memories[h] = S
                o = S @ q[row, t, h]
                out.append(o / (o.square().mean() + delta.EPS).sqrt())
            expected[row, t] = learner.out.weight @ (torch.cat(out) * torch.nn.functional.silu(gate[row, t]))
        for h in range(heads):
            torch.testing.assert_close(state.memory[row, h].T, memories[h], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def reflecting(steps, key):
    """A head that writes nothing and whose β is 2 at every step: each step reflects the memory at its key."""
    learner = make(key, heads=1, householder=steps, conv=0, decay=False, gate=False, beta_range=[0, 2]).double()
    with torch.no_grad():
        _, v, _, beta, _ = learner.project.weight.split(learner.features)
        v.zero_()
        beta.fill_(100.0)
    return learner


def applied(learner, x):
    """The matrix that one token multiplies the memory with, from the left."""
    start = learner.init_state(1)._replace(memory=torch.eye(x.shape[-1], dtype=torch.float64)[None, None])
    return learner(x, start, Pass.over(x))[1].memory[0, 0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_steps_compose_reflections(steps, monkeypatch):
    learner, x = reflecting(steps, 6), torch.rand(1, 1, 6, dtype=torch.float64)
    matrix, keys = applied(learner, x), record_call(learner, x, monkeypatch)[0][1][0, :, 0]
    expected = torch.eye(6, dtype=torch.float64)
    for key in keys:
        key = key / key.norm()
        expected = (torch.eye(6) - 2 * torch.outer(key, key)) @ expected
    torch.testing.assert_close(matrix, expected, rtol=1e-3, atol=1e-3)  # EPS keeps keys a little shorter than 1
    assert torch.linalg.det(matrix).item() == pytest.approx((-1) ** steps, abs=1e-2)


def test_two_steps_rotate_and_one_cannot():
    """One step's matrix is symmetric, so its eigenvalues are real; two turn a plane."""
    x = torch.rand(1, 1, 6, dtype=torch.float64)
    one, two = applied(reflecting(1, 6), x), applied(reflecting(2, 6), x)
    assert torch.linalg.eigvals(one).imag.abs().max() < 1e-6
    assert torch.linalg.eigvals(two).imag.abs().max() > 0.1


@pytest.mark.parametrize("steps", [2, 3])
def test_several_steps_equal_the_gated_delta_product_of_fla(steps, monkeypatch):
    peer = fla_naive("ops/gated_delta_product/naive.py").naive_recurrent_gated_delta_product
    (q, k, v, beta, log_decay, state), (o, memory) = record_call(
        make(householder=steps, beta_range=[0, 2]), torch.randn(2, 21, 32), monkeypatch
    )
    theirs = peer(q[:, ::steps], k, v, log_decay[:, ::steps], beta, 1.0, initial_state=state, num_householder=steps)
    torch.testing.assert_close(o[:, steps - 1 :: steps], theirs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(memory, theirs[1], rtol=1e-5, atol=1e-6)


def test_several_steps_need_no_more_memory_and_carry_more_taps():
    state = run(make(householder=3, key_size=8, value_size=12), torch.randn(2, 7, 32))[1]
    assert state.memory.shape == (2, 2, 8, 12)
    assert state.conv.shape == (2, 3, 2 * 8 * 4 + 2 * 12 * 3)


@pytest.mark.parametrize("steps", [0, 5])
def test_between_one_and_four_steps(steps):
    with pytest.raises(PydanticCustomError):
        make(householder=steps)


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
        queried = torch.randint(pairs, (32, 1))
        tokens = torch.cat([torch.stack([order, keys + values], -1).flatten(1), order.gather(1, queried)], 1)
        x = embed(tokens)
        scores = head(run(learner, torch.nn.functional.rms_norm(x, (width,)))[0][:, -1])
        loss = torch.nn.functional.cross_entropy(scores, values.gather(1, queried)[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(-1) == values.gather(1, queried)[:, 0]).float().mean() > 0.9


def test_surprise_is_the_memorys_prediction_error():
    """New at first, known once it is written, and another token is a surprise again."""
    learner = make(conv=0, decay=False, beta_range=[0.9999, 1.0], signals=True)
    one, other = torch.randn(2, 32)
    ctx = Pass.over(torch.zeros(1, 5, 32))
    learner(torch.stack([one, one, other, other, other])[None], None, ctx)
    surprise, confidence = ctx.signals["surprise"][0], ctx.signals["confidence"][0]
    torch.testing.assert_close(surprise[[0, 1, 3, 4]], torch.tensor([1.0, 0.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    assert surprise[2] > 0.3
    torch.testing.assert_close(confidence, 1 / (1 + surprise))


def test_surprise_is_the_squared_error_beside_the_value():
    learner, x = make(48, householder=2, signals=True).double(), torch.randn(2, 11, 48).double()
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        real = delta.delta_rule_error
        patch.setattr(delta, "delta_rule_error", lambda *a: calls.append((a, real(*a))) or calls[-1][1])
        ctx = Pass.over(x)
        y, _ = learner(x, None, ctx)
    (_, k, v, beta, log_decay, _), _ = calls[0]
    for t in (
        0,
        4,
        10,
    ):  # two steps a token; what the first t tokens left behind, decayed, is read at the key of a step
        errors = []
        for step in (2 * t, 2 * t + 1):
            _, before = (
                delta.delta_rule.reference(
                    k[:, :step], k[:, :step], v[:, :step], *(g[:, :step] for g in (beta, log_decay)), None
                )
                if step
                else (None, torch.zeros(2, 2, 24, 24).double())
            )
            foreseen = torch.einsum("bhk,bhkv->bhv", k[:, step], before * log_decay[:, step, :, None, None].exp())
            errors.append((v[:, step] - foreseen).square().sum((1, 2)))
        energy = v[:, 2 * t : 2 * t + 2].square().sum((1, 2, 3))
        torch.testing.assert_close(ctx.signals["surprise"][:, t], sum(errors) / energy, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run(make(48, householder=2).double(), x)[0], y)


def test_an_additive_memory_publishes_no_signals():
    with pytest.raises(InputError, match="only a memory that overwrites"):
        make(overwrite=False, signals=True)
    assert delta.Delta.publishes(delta.Delta.Config(signals=True)) == ("surprise", "confidence")
    assert delta.Delta.publishes(delta.Delta.Config()) == ()


def test_padding_is_no_surprise():
    learner, x = make(signals=True), torch.randn(2, 9, 32)
    ctx = Pass.over(x, torch.tensor([9, 4]))
    learner(x, None, ctx)
    assert (ctx.signals["surprise"][1, 4:] == 0).all() and (ctx.signals["confidence"][1, 4:] == 1).all()
    assert (ctx.signals["surprise"][1, :4] > 0).all()
