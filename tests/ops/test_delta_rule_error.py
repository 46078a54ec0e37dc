"""The delta rule's errors: those of its definition, in every kernel and with every gradient."""

from __future__ import annotations

import pytest
import torch

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.delta_rule_error import delta_rule_error, read_before
from tests.conftest import needs_compiler

NAMES = ("q", "k", "v", "beta", "log_decay", "state")


def problem(time: int, decays: bool = True, begun: bool = True):
    torch.manual_seed(time)
    heads, key, value = 3, 5, 20
    q, k = (torch.nn.functional.normalize(torch.randn(2, time, heads, key).double(), dim=-1) for _ in range(2))
    v = torch.randn(2, time, heads, value).double()
    beta = 2 * torch.rand(2, time, heads).double()
    log_decay = -torch.rand(2, time, heads).double() if decays else None
    state = torch.randn(2, heads, key, value).double() if begun else None
    return [x if x is None else x.requires_grad_() for x in (q, k, v, beta, log_decay, state)]


def outcome(rule, arguments):
    results = rule(*arguments)
    torch.manual_seed(0)
    total = sum((r * torch.randn(r.shape, dtype=r.dtype)).sum() for r in results)
    return results, torch.autograd.grad(total, [a for a in arguments if a is not None])


def assert_same(actual, expected, arguments):
    given = [name for name, a in zip(NAMES, arguments, strict=True) if a is not None]
    for name, a, b in zip(("o", "S", "e"), actual[0], expected[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    for name, a, b in zip(given, actual[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("decays,begun", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("time", [1, 15, 71, 130])
@pytest.mark.parametrize("kernel", [pytest.param("native", marks=needs_compiler), "chunked", "read before"])
def test_kernels_give_the_errors_of_the_definition(kernel, time, decays, begun):
    arguments = problem(time, decays, begun)
    rule = (
        delta_rule_error.named(kernel) if kernel != "read before" else lambda *a: read_before(delta_rule.reference, *a)
    )
    assert_same(outcome(rule, arguments), outcome(delta_rule_error.reference, arguments), arguments)


def test_all_but_the_errors_is_the_delta_rule():
    arguments = problem(19)
    o, memory, error = delta_rule_error.reference(*arguments)
    expected, after = delta_rule.reference(*arguments)
    assert torch.equal(o, expected) and torch.equal(memory, after)
    first = arguments[2][:, 0] - torch.einsum("bhk,bhkv->bhv", arguments[1][:, 0], arguments[5])
    decayed = arguments[4][:, 0, :, None].exp() * (arguments[2][:, 0] - first)
    torch.testing.assert_close(error[:, 0], arguments[2][:, 0] - decayed)


@needs_compiler
@pytest.mark.parametrize("kernel", ["native", "chunked"])
def test_unused_errors_change_no_gradient(kernel):
    arguments = problem(40)
    gradients = []
    for rule in (delta_rule_error, delta_rule):
        o, memory, *_ = rule.named(kernel)(*arguments)
        gradients.append(torch.autograd.grad(o.square().sum() + memory.sum(), arguments))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
