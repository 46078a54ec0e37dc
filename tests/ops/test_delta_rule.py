"""The delta rule: every kernel equals the recurrence, in outputs, memory and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.ops.delta_rule import chunked, delta_rule, native
from synthe_core.ops.dispatch import Call
from synthe_core.ops.linear_attention import linear_attention
from tests.ops.memory_rules import NAMES, arguments, assert_same, outcome

KERNELS = ["native", "chunked"]
HERE = probe()


def call(inputs):
    return Call.of(dict(zip(NAMES, inputs, strict=True)))


@pytest.fixture(params=KERNELS)
def kernel(request):
    kernel = delta_rule.named(request.param)
    reason = kernel.refusal(HERE, call(arguments(32)))
    if reason is not None:
        pytest.skip(reason)
    return kernel


def test_the_reference_is_the_equation():
    q, k, v, beta, log_decay, state = arguments(7)
    o, final = delta_rule.reference(q, k, v, beta, log_decay, state)
    memory = state[1, 0].T
    for t in range(7):
        key = k[1, t, 0]
        erase = torch.eye(6, dtype=torch.float64) - beta[1, t, 0] * torch.outer(key, key)
        memory = log_decay[1, t, 0].exp() * memory @ erase + beta[1, t, 0] * torch.outer(v[1, t, 0], key)
        torch.testing.assert_close(o[1, t, 0], memory @ q[1, t, 0])
    torch.testing.assert_close(final[1, 0], memory.T)


@pytest.mark.parametrize("time", [1, 2, 15, 17, 63, 65, 130])
@pytest.mark.parametrize("decay", [1.0, None])
def test_equals_the_reference(kernel, time, decay):
    inputs = arguments(time, decay=decay)
    assert_same(outcome(kernel, inputs), outcome(delta_rule.reference, inputs), 1e-11)


@pytest.mark.parametrize(("key", "value"), [(1, 1), (16, 16), (17, 3), (8, 70), (64, 32)])
def test_any_size_of_head_and_no_state(kernel, key, value):
    inputs = arguments(37, key, value, state=False)
    assert_same(outcome(kernel, inputs), outcome(delta_rule.reference, inputs), 1e-11)


@pytest.mark.parametrize("time", [1, 17, 70])
@pytest.mark.parametrize(("key_heads", "heads"), [(1, 3), (2, 4), (3, 6)])
def test_several_value_heads_read_one_head_of_keys(kernel, time, key_heads, heads):
    inputs = arguments(time, heads=heads, key_heads=key_heads)
    actual = outcome(kernel, inputs)
    assert actual["dk"].shape == inputs[1].shape
    assert_same(actual, outcome(delta_rule.reference, inputs), 1e-11)
    q, k, *rest = inputs
    group = heads // key_heads
    copied = [torch.stack([x] * group, 3).flatten(2, 3) for x in (q, k)]
    with torch.no_grad():
        for one, other in zip(kernel(*inputs), kernel(*copied, *rest), strict=True):
            assert torch.equal(one, other)


def test_reads_views_that_are_not_contiguous(kernel):
    inputs = arguments(37)
    expected = outcome(delta_rule.reference, inputs)
    strided = [None if x is None else torch.stack([x, x], -1)[..., 0] for x in inputs]
    assert_same(
        outcome(lambda *a: kernel(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in a)), inputs),
        expected,
        1e-11,
    )
    with torch.no_grad():
        o, state = kernel(*strided)
    assert_same({"o": o, "S": state}, {name: expected[name] for name in ("o", "S")}, 1e-11)


@pytest.mark.parametrize("at", [1, 16, 40, 64, 99])
def test_time_may_be_split_anywhere(kernel, at):
    inputs = arguments(100)

    def split(q, k, v, beta, log_decay, state):
        first = [x[:, :at] for x in (q, k, v, beta, log_decay)]
        rest = [x[:, at:] for x in (q, k, v, beta, log_decay)]
        o1, state = kernel(*first, state)
        o2, state = kernel(*rest, state)
        return torch.cat([o1, o2], 1), state

    assert_same(outcome(split, inputs), outcome(kernel, inputs), 1e-11)


def test_float32_over_a_long_time(kernel):
    inputs = arguments(1024, 64, 64, heads=1, decay=0.1, dtype=torch.float32)
    exact = outcome(native.compiled if kernel.name == "chunked" else chunked.chunked, [x.double() for x in inputs])
    assert_same(outcome(kernel, inputs), exact, kernel.tolerance)


@pytest.mark.parametrize("strength", [20.0, 200.0])
def test_strong_decay_stays_finite_and_right(kernel, strength):
    inputs = arguments(70, dtype=torch.float32)
    inputs[4] = torch.full_like(inputs[4], -strength)
    exact = outcome(delta_rule.reference, [x.double() for x in inputs])
    actual = outcome(kernel, inputs)
    decay, exact_decay = actual.pop("dlog_decay"), exact.pop("dlog_decay")
    assert (decay - exact_decay).abs().max() < 1e-6  # truly about 1e-9
    state, exact_state = actual.pop("dstate"), exact.pop("dstate")
    assert (state - exact_state).abs().max() < 1e-8
    assert_same(actual, exact, kernel.tolerance)


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_gradient_of_a_weak_decay_is_no_difference_of_large_numbers(kernel, overwrite):
    """Of tokens whose keys hardly agree, little passes from one to another, and much from each to its own output."""
    inputs = arguments(70, 64, 8, state=False, dtype=torch.float32)
    inputs[0], inputs[1] = inputs[1] * 8, inputs[1]
    rule = delta_rule if overwrite else linear_attention
    actual = outcome(rule.named(kernel.name), inputs)
    exact = outcome(rule.reference, [None if x is None else x.double() for x in inputs])
    names = ("dlog_decay",)
    assert_same(*({name: one[name] for name in names} for one in (actual, exact)), 2e-6)


def test_a_token_with_zero_gates_is_padding(kernel):
    q, k, v, beta, log_decay, state = arguments(40)
    beta[:, 23:], log_decay[:, 23:] = 0, 0
    _, padded = kernel(q, k, v, beta, log_decay, state)
    _, cut = kernel(*(x[:, :23] for x in (q, k, v, beta, log_decay)), state)
    torch.testing.assert_close(padded, cut, rtol=1e-12, atol=1e-12)


def test_threads_do_not_change_the_result():
    inputs = arguments(40, 16, 64, heads=1)
    if reason := native.refusal(HERE, call(inputs)):
        pytest.skip(reason)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = outcome(native.compiled, inputs)
        again = outcome(native.compiled, inputs)
        torch.set_num_threads(8)  # more threads than heads: the columns of the memory are shared out
        assert native.blocks(2, 1, 64) == 4
        many = outcome(native.compiled, inputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert_same(many, one, 1e-13)


def test_gradients_are_those_of_finite_differences():
    kernel = native.compiled if native.refusal(HERE, call(arguments(3))) is None else chunked.chunked
    inputs = [x.requires_grad_() for x in arguments(3, 2, 2, heads=1)]
    assert torch.autograd.gradcheck(lambda *a: kernel(*a), inputs)


def test_only_wide_floats():
    inputs = [x.bfloat16() for x in arguments(3)]
    with pytest.raises(InputError, match="q must be float32 or float64"):
        delta_rule(*inputs)


def test_every_refusal_is_a_reason_in_words():
    inputs = arguments(9)
    accelerated = replace(call([x.float() for x in inputs]), device="cuda")
    bare = replace(HERE, libraries={}, compiler=None)
    full = replace(HERE, libraries={"fla-core": "0.5", "triton": "3.5"})
    reasons = {c.kernel: c.reason for c in delta_rule.explain(call(inputs), bare)}
    assert reasons["fla"] == "written for CUDA, and the tensors are on cpu"
    assert reasons["native"] == "no C compiler on this machine (install gcc or clang)"
    assert reasons["chunked"] is None
    reasons = {c.kernel: c.reason for c in delta_rule.explain(accelerated, bare)}
    assert "not installed" in reasons["fla"]
    assert "compiled for the CPU" in reasons["native"]
    with ExecutionContext(precision="bfloat16").activate():
        assert next(c for c in delta_rule.explain(accelerated, full) if c.chosen).kernel == "fla"
    long = replace(accelerated, time=17)
    assert "rounds queries, keys and values" in delta_rule.named("fla").refusal(full, long)
    assert delta_rule.named("fla").refusal(full, replace(long, time=16, grad=False)) is None
    wide = replace(accelerated, arguments=accelerated.arguments | {"k": torch.zeros(1, 1, 1, 512)})
    assert "keys of up to 256" in delta_rule.named("fla").refusal(full, wide)
    assert "not torch.float64" in delta_rule.named("fla").refusal(full, replace(accelerated, dtype=torch.float64))
    mixed = call([inputs[0].float(), *inputs[1:]])
    assert native.refusal(HERE, mixed) == "its tensors are of different types"
    assert chunked.refusal(HERE, replace(accelerated, time=1)) == "a few tokens are cheaper one by one"
