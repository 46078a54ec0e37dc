"""The memory operators against the naive recurrences of flash-linear-attention, and our calls of it by its own names.

Its recurrences compute in float32, so that is what they are compared in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.dispatch import use_kernels
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.mlstm import EMPTY_SCALE, mlstm
from tests.ops.memory_rules import NAMES, arguments, assert_same
from tests.peers import fla_naive, fla_parameters

TIME = 67


def delta(q, k, v, beta, log_decay, state):
    """Theirs takes [B, H, T, ...], scales queries by K^-1/2 and has no decay."""
    rule = fla_naive("ops/delta_rule/naive.py").delta_rule_recurrence
    swapped = (x.transpose(1, 2) for x in (q * q.shape[-1] ** 0.5, k, v, beta))
    o, memory = rule(*swapped, initial_state=state)
    return o.transpose(1, 2), memory


def gated_delta(name: str) -> Callable:
    def peer(q, k, v, beta, log_decay, state):
        rule = getattr(fla_naive("ops/gated_delta_rule/naive.py"), name)
        return rule(q, k, v, beta=beta, g=log_decay, scale=1.0, initial_state=state, output_final_state=True)

    return peer


def simple_gla(name: str) -> Callable:
    """Theirs has no write strength: it goes into the values."""

    def peer(q, k, v, beta, log_decay, state):
        rule = getattr(fla_naive("ops/simple_gla/naive.py"), name)
        return rule(q, k, beta[..., None] * v, log_decay, scale=1.0, initial_state=state, output_final_state=True)

    return peer


PEERS = [
    ("delta_rule", delta_rule, delta, None),
    ("gated_delta_rule", delta_rule, gated_delta("naive_recurrent_gated_delta_rule"), 1.0),
    ("gated_delta_rule_chunked", delta_rule, gated_delta("naive_chunk_gated_delta_rule"), 1.0),
    ("simple_gla", linear_attention, simple_gla("naive_recurrent_simple_gla"), 1.0),
    ("simple_gla_chunked", linear_attention, simple_gla("naive_chunk_simple_gla"), 1.0),
]


def outcome(rule, inputs):
    """Outputs, final memory and the gradient of a fixed random projection of both, theirs being sometimes in place."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    o, memory = rule(*leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in (o, memory))
    expected = {f"d{name}": x for name, x in zip(NAMES, leaves, strict=True) if x is not None}
    slopes = torch.autograd.grad(loss, list(expected.values()))
    return {"o": o.detach(), "S": memory.detach()} | dict(zip(expected, slopes, strict=True))


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
@pytest.mark.parametrize(("rule", "peer", "decay"), [p[1:] for p in PEERS], ids=[p[0] for p in PEERS])
@pytest.mark.parametrize("state", [True, False], ids=["started", "fresh"])
def test_outputs_memory_and_gradients_equal_the_peers(rule, peer, decay, state, kernel):
    inputs = arguments(TIME, 8, 12, decay=decay, state=state, dtype=torch.float32)
    assert_same(outcome(rule.named(kernel), inputs), outcome(peer, inputs), 2e-5)


def stand_in(path: str, function: str, naive: Callable) -> Callable:
    """`function` of the installed fla, refusing names that it does not have, computed by a naive recurrence."""
    names = fla_parameters(path, function)

    def called(*args, **given):
        given |= dict(zip(names, args, strict=False))
        assert given.keys() <= set(names), f"{function} has no {given.keys() - set(names)}"
        return naive(**given)

    return called


@pytest.fixture
def installed(monkeypatch):
    """fla as our kernels import it, with the parameters of what is installed and without Triton."""
    gated, gla = fla_naive("ops/gated_delta_rule/naive.py"), fla_naive("ops/simple_gla/naive.py")
    hgrn = fla_naive("ops/hgrn/naive.py")
    functions = [
        ("gated_delta_rule", "chunk", "chunk_gated_delta_rule", gated.naive_chunk_gated_delta_rule),
        (
            "gated_delta_rule",
            "fused_recurrent",
            "fused_recurrent_gated_delta_rule",
            gated.naive_recurrent_gated_delta_rule,
        ),
        ("simple_gla", "chunk", "chunk_simple_gla", gla.naive_chunk_simple_gla),
        ("simple_gla", "fused_recurrent", "fused_recurrent_simple_gla", gla.naive_recurrent_simple_gla),
        ("hgrn", "chunk", "chunk_hgrn", hgrn.naive_recurrent_hgrn),
    ]
    called = []
    for package, file, function, naive in functions:
        module = sys.modules.get(f"fla.ops.{package}")
        if not isinstance(module, SimpleNamespace):
            module = SimpleNamespace()
            monkeypatch.setitem(sys.modules, f"fla.ops.{package}", module)
        known = stand_in(f"ops/{package}/{file}.py", function, naive)

        def noting(*args, function=function, known=known, **given):
            called.append(function)
            return known(*args, **given)

        setattr(module, function, noting)
    return called


@pytest.mark.parametrize(
    ("rule", "chunk", "walk"),
    [
        (delta_rule, "chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"),
        (linear_attention, "chunk_simple_gla", "fused_recurrent_simple_gla"),
    ],
    ids=["delta_rule", "linear_attention"],
)
@pytest.mark.parametrize("decay", [1.0, None])
def test_our_calls_of_fla_name_what_it_has_and_mean_the_same(rule, chunk, walk, decay, installed):
    kernel = rule.named("fla")
    inputs = arguments(TIME, 8, 12, decay=decay, dtype=torch.float32)
    assert_same(outcome(kernel, inputs), outcome(rule.reference, inputs), kernel.tolerance)
    few = arguments(5, 8, 12, decay=decay, dtype=torch.float32)
    with torch.no_grad():
        actual, expected = kernel(*few), rule.reference(*few)
    assert_same(dict(zip("oS", actual, strict=True)), dict(zip("oS", expected, strict=True)), 1e-5)
    assert installed == [chunk, walk]


def test_our_scan_of_fla_names_what_it_has_and_means_the_same(installed):
    generator = torch.Generator().manual_seed(0)
    decay = torch.rand(2, TIME, 6, generator=generator)
    value, state = torch.randn(2, TIME, 6, generator=generator), torch.randn(2, 6, generator=generator)
    actual, expected = linear_scan.named("fla")(decay, value, state), linear_scan.reference(decay, value, state)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])
    assert installed == ["chunk_hgrn"]


def test_mlstm_by_way_of_fla_begins_with_an_unstarted_memory(installed, monkeypatch):
    """Their chunks take differences of running sums of log decays, in which one of -1e30 would hide all others."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, TIME, 3, 8, generator=generator) for _ in range(3))
    log_input, log_forget = (torch.randn(2, TIME, 3, generator=generator) for _ in range(2))
    inputs = (q, k, v, 3 * log_input, -log_forget.exp(), torch.zeros(2, 3, 8, 9), torch.full((2, 3), EMPTY_SCALE))
    monkeypatch.setattr(linear_attention.named("fla"), "refusal", lambda hardware, call: None)  # `installed` is a CPU's
    with torch.no_grad(), use_kernels(linear_attention="fla"):
        actual = mlstm.named("composed")(*inputs)
    for one, other in zip(actual, mlstm.reference(*inputs), strict=True):
        assert (one - other).abs().max() <= 2e-2 * other.abs().max()
    assert installed == ["chunk_simple_gla"]
