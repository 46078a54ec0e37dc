"""The generalised delta rule and KDA, which share kernels: all equal the recurrences, in every gradient too."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.generalized_delta_rule import generalized_delta_rule
from synthe_core.ops.kda import kda
from tests.ops.memory_rules import assert_same
from tests.peers import fla_naive, fla_parameters

HERE = probe()
RULES = {
    generalized_delta_rule: ("q", "k", "v", "a", "b", "log_decay", "state"),
    kda: ("q", "k", "v", "beta", "log_decay", "state"),
}
Inputs = dict[str, Tensor | None]


def inputs(
    rule: Any, time: int, key: int = 6, value: int = 10, *, heads: int = 2, decay: float = 1.0, state: bool = True
) -> Inputs:
    """Two rows; keys of length 1; log decays in [-decay, 0], some of them exactly 0; a memory from before."""
    generator = torch.Generator().manual_seed(time)
    draw = lambda *size: torch.randn(2, *size, generator=generator, dtype=torch.float64)  # noqa: E731
    part = lambda *size: torch.rand(2, *size, generator=generator, dtype=torch.float64)  # noqa: E731
    shape = time, heads, key
    removed, rate, log_decay = F.normalize(draw(*shape), dim=-1), part(*shape), -decay * part(*shape)
    log_decay[:, ::5, 0] = 0
    given: Inputs = {"q": draw(*shape), "k": F.normalize(draw(*shape), dim=-1), "v": draw(time, heads, value)}
    given |= {"a": -removed, "b": rate * removed, "beta": 2 * part(time, heads), "log_decay": log_decay}
    given["state"] = draw(heads, key, value) if state else None
    return {name: given[name] for name in RULES[rule]}


def outcome(rule: Any, given: Inputs) -> dict[str, Tensor]:
    """Outputs, final state, and the gradients of a fixed random projection of both, by name."""
    leaves = {name: None if x is None else x.clone().requires_grad_() for name, x in given.items()}
    o, state = rule(**leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in (o, state))
    loss.backward()
    slopes = {f"d{name}": x.grad for name, x in leaves.items() if x is not None}
    return {"o": o.detach(), "S": state.detach()} | slopes


def cast(given: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: None if x is None else x.to(dtype) for name, x in given.items()}


def call(given: Inputs) -> Call:
    return Call.of(dict(given))


@pytest.fixture(params=list(RULES), ids=lambda rule: rule.name)
def rule(request):
    return request.param


@pytest.fixture(params=["native", "chunked"])
def kernel(request, rule):
    kernel = rule.named(request.param)
    reason = kernel.refusal(HERE, call(inputs(rule, 32)))
    if reason is not None:
        pytest.skip(reason)
    return kernel


def test_the_references_are_their_equations():
    q, k, v, a, b, w, state = inputs(generalized_delta_rule, 7).values()
    o, final = generalized_delta_rule.reference(q, k, v, a, b, w, state)
    memory = state[1, 0]
    for t in range(7):
        passed = torch.diag(w[1, t, 0].exp()) + torch.outer(b[1, t, 0], a[1, t, 0])
        memory = passed @ memory + torch.outer(k[1, t, 0], v[1, t, 0])
        torch.testing.assert_close(o[1, t, 0], memory.T @ q[1, t, 0])
    torch.testing.assert_close(final[1, 0], memory)

    q, k, v, beta, w, state = inputs(kda, 7).values()
    o, final = kda.reference(q, k, v, beta, w, state)
    memory = state[1, 0]
    for t in range(7):
        erased = torch.eye(6, dtype=torch.float64) - beta[1, t, 0] * torch.outer(k[1, t, 0], k[1, t, 0])
        memory = erased @ torch.diag(w[1, t, 0].exp()) @ memory + beta[1, t, 0] * torch.outer(k[1, t, 0], v[1, t, 0])
        torch.testing.assert_close(o[1, t, 0], memory.T @ q[1, t, 0])
    torch.testing.assert_close(final[1, 0], memory)


def fla_dplr(q, k, v, a, b, log_decay, state):
    """fla's, which has heads before time and scales queries."""
    heads_first = (x.transpose(1, 2) for x in (q * q.shape[-1] ** 0.5, k, v, a, b, log_decay))
    naive = fla_naive("ops/generalized_delta_rule/dplr/naive.py")
    o, final = naive.dplr_recurrence(*heads_first, initial_state=state)
    return o.transpose(1, 2), final


def fla_kda(q, k, v, beta, log_decay, state):
    naive = fla_naive("ops/kda/naive.py")
    return naive.naive_recurrent_kda(q, k, v, log_decay, beta, 1.0, initial_state=state, output_final_state=True)


@pytest.mark.parametrize("chosen", ["reference", "native", "chunked"])
@pytest.mark.parametrize("time", [1, 77])
def test_equals_fla_in_outputs_memory_and_every_gradient(rule, chosen, time):
    """fla computes in float32 whatever it is given."""
    given = cast(inputs(rule, time, 16, 12), torch.float32)
    theirs = outcome(fla_kda if rule is kda else fla_dplr, given)
    ours = rule.named(chosen)
    if chosen == "native" and (reason := ours.refusal(HERE, call(given))):
        pytest.skip(reason)
    assert_same(outcome(ours, given), theirs, 2e-6)


@pytest.mark.parametrize("time", [1, 2, 15, 17, 33, 65, 130])
def test_equals_the_reference(rule, kernel, time):
    given = inputs(rule, time)
    assert_same(outcome(kernel, given), outcome(rule.reference, given), 1e-12)


@pytest.mark.parametrize(("key", "value"), [(1, 1), (16, 16), (17, 3), (8, 70), (64, 48), (40, 130)])
def test_any_size_of_head_and_no_state(rule, kernel, key, value):
    given = inputs(rule, 37, key, value, state=False)
    assert_same(outcome(kernel, given), outcome(rule.reference, given), 1e-12)


def test_reads_views_that_are_not_contiguous(rule, kernel):
    given = inputs(rule, 37)
    expected = outcome(rule.reference, given)
    swapped = lambda **given: kernel(  # noqa: E731
        **{name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in given.items()}
    )
    assert_same(outcome(swapped, given), expected, 1e-12)
    with torch.no_grad():
        o, state = kernel(**{name: torch.stack([x, x], -1)[..., 0] for name, x in given.items()})
    assert_same({"o": o, "S": state}, {name: expected[name] for name in ("o", "S")}, 1e-12)


@pytest.mark.parametrize("at", [1, 16, 32, 40, 99])
def test_time_may_be_split_anywhere(rule, kernel, at):
    given = inputs(rule, 100)

    def split(state, **given):
        o1, state = kernel(**{name: x[:, :at] for name, x in given.items()}, state=state)
        o2, state = kernel(**{name: x[:, at:] for name, x in given.items()}, state=state)
        return torch.cat([o1, o2], 1), state

    assert_same(outcome(split, given), outcome(kernel, given), 1e-12)


def test_float32_over_a_long_time(rule, kernel):
    given = inputs(rule, 1024, 64, 64, heads=1, decay=0.1)
    other = rule.named("native" if kernel.name == "chunked" else "chunked")
    if reason := other.refusal(HERE, call(given)):
        pytest.skip(reason)
    assert_same(outcome(kernel, cast(given, torch.float32)), outcome(other, given), kernel.tolerance)


@pytest.mark.parametrize("strength", [20.0, 50.0, 200.0])
def test_channels_that_fade_at_once_beside_channels_that_never_do(rule, kernel, strength):
    """No exponential may overflow, and a channel without decay must not lose digits beside sums of strong ones."""
    given = inputs(rule, 150)
    decay = given["log_decay"]
    decay[..., :2], decay[..., 2:4] = -strength, 0
    decay[:, 40:44] = -strength
    exact = outcome(rule.reference, given)
    assert_same(outcome(kernel, given), exact, 1e-12)
    assert_same(outcome(kernel, cast(given, torch.float32)), exact, kernel.tolerance)


@pytest.mark.parametrize("strength", [5.0, 20.0, 60.0])
def test_the_gradient_of_a_strong_decay_is_no_difference_of_large_numbers(rule, kernel, strength):
    """Of tokens that read what they write themselves, next to nothing passes through a decay: every number of its
    gradient is right for its own size, which is exp(-strength) of the others'."""
    given = inputs(rule, 70)
    given["log_decay"] = torch.full_like(given["log_decay"], -strength)
    exact, actual = outcome(rule.reference, given), outcome(kernel, cast(given, torch.float32))
    size = exact["dlog_decay"].abs().max()
    assert size < 100 * math.exp(-strength)
    assert (actual["dlog_decay"] - exact["dlog_decay"]).abs().max() < 1e-5 * size
    assert_same(actual, exact, kernel.tolerance)


@pytest.mark.parametrize("strong", [0, 7, 15])
def test_one_strong_decay_among_weak_ones(rule, kernel, strong):
    """One token of a chunk forgets: next to nothing passes through its decay, much through those beside it."""
    given = inputs(rule, 32, decay=0.05)
    given["log_decay"][:, 16 + strong] = -18
    exact, actual = outcome(rule.reference, given), outcome(kernel, cast(given, torch.float32))
    there, expected = actual["dlog_decay"][:, 16 + strong], exact["dlog_decay"][:, 16 + strong]
    assert 0 < expected.abs().max() < 1e-5 < 1e-2 < exact["dlog_decay"].abs().max()
    assert (there - expected).abs().max() < 1e-4 * expected.abs().max()


def test_without_any_decay(rule, kernel):
    given = inputs(rule, 70, decay=0.0)
    assert_same(outcome(kernel, given), outcome(rule.reference, given), 1e-12)


def test_a_token_with_zero_gates_is_padding(rule, kernel):
    given = inputs(rule, 50)
    for name in ("k", "b", "beta", "log_decay"):
        if name in given and not (rule is kda and name == "k"):
            given[name][:, 23:] = 0
    _, padded = kernel(**given)
    _, cut = kernel(**{name: x if name == "state" else x[:, :23] for name, x in given.items()})
    torch.testing.assert_close(padded, cut, rtol=1e-12, atol=1e-12)


def test_threads_do_not_change_the_result(rule, two_threads):
    given = inputs(rule, 70, heads=3)
    kernel = rule.named("native")
    if reason := kernel.refusal(HERE, call(given)):
        pytest.skip(reason)
    many = outcome(kernel, given)
    torch.set_num_threads(1)
    one = outcome(kernel, given)
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_gradients_are_those_of_finite_differences(rule, kernel):
    given = {name: x.requires_grad_() for name, x in inputs(rule, 3, 2, 2, heads=1).items()}
    assert torch.autograd.gradcheck(lambda *values: kernel(*values), tuple(given.values()))


def test_kda_is_a_case_of_the_generalised_rule():
    q, k, v, beta, w, state = inputs(kda, 20).values()
    strong = beta[..., None] * k
    theirs = generalized_delta_rule.reference(q, strong, v, w.exp() * k, -strong, w, state)
    for one, other in zip(kda.reference(q, k, v, beta, w, state), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_only_wide_floats(rule):
    with pytest.raises(InputError, match="q must be float32 or float64"):
        rule(**cast(inputs(rule, 3), torch.bfloat16))


def test_every_refusal_is_a_reason_in_words(rule):
    given = inputs(rule, 9)
    bare = replace(HERE, libraries={}, compiler=None)
    full = replace(HERE, libraries={"fla-core": "0.6", "triton": "3.5"})
    reasons = {c.kernel: c.reason for c in rule.explain(call(given), bare)}
    assert reasons["fla"] == "written for CUDA, and the tensors are on cpu"
    assert reasons["native"] == "no C compiler on this machine (install gcc or clang)"
    assert reasons["chunked"] is None
    accelerated = replace(call(cast(given, torch.float32)), device="cuda")
    assert "not installed" in rule.named("fla").refusal(bare, accelerated)
    assert "compiled for the CPU" in rule.named("native").refusal(full, accelerated)
    with ExecutionContext(precision="bfloat16").activate():
        assert next(c for c in rule.explain(accelerated, full) if c.chosen).kernel == "fla"
    assert rule.named("native").refusal(HERE, call(given | {"q": given["q"].float()})) == (
        "its tensors are of different types"
    )
    assert rule.named("chunked").refusal(HERE, call(inputs(rule, 1))) == "a few tokens are cheaper one by one"


def test_fla_takes_the_arguments_we_give():
    ours = {"q", "k", "v", "scale", "initial_state", "output_final_state"}
    for file, function in (("chunk", "chunk_kda"), ("fused_recurrent", "fused_recurrent_kda")):
        assert {*ours, "g", "beta"} <= set(fla_parameters(f"ops/kda/{file}.py", function))
    for file, kind in (("chunk", "chunk"), ("fused_recurrent", "fused_recurrent")):
        parameters = fla_parameters(f"ops/generalized_delta_rule/dplr/{file}.py", f"{kind}_dplr_delta_rule")
        assert {*ours, "a", "b", "gk"} <= set(parameters)


@pytest.mark.parametrize("time", [5, 40])
def test_the_call_of_fla_is_our_rule(rule, time, monkeypatch):
    """Triton's functions stood in for by fla's naive ones, with the names, layout and scale that those document."""
    kernels_called = []

    def stand_in(name):
        def function(q, k, v, *, scale, initial_state, output_final_state, g=None, gk=None, **rest):
            kernels_called.append(name)
            assert output_final_state and all(x.is_contiguous() for x in (q, k, v))
            decay = gk if g is None else g
            return (fla_kda if rule is kda else fla_dplr)(
                scale * q, k, v, *rest.values(), log_decay=decay, state=initial_state
            )

        return function

    names = ("kda", "kda") if rule is kda else ("generalized_delta_rule", "dplr_delta_rule")
    module = ModuleType(f"fla.ops.{names[0]}")
    for kind in ("chunk", "fused_recurrent"):
        setattr(module, f"{kind}_{names[1]}", stand_in(kind))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    given = cast(inputs(rule, time), torch.float32)
    with torch.no_grad():
        o, state = rule.named("fla")(**given)
    exact, final = rule.reference(**given)
    chunked = time > 16
    assert kernels_called == ["chunk" if chunked else "fused_recurrent"] and o.dtype == torch.float32
    assert_same({"o": o, "S": state}, {"o": exact, "S": final}, 2e-2 if chunked else 1e-5)
