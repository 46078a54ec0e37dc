"""Gated linear attention: every kernel equals the recurrence, in outputs, memory and every gradient."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import Call
from synthe_core.ops.linear_attention import linear_attention
from tests.ops.memory_rules import NAMES, arguments, assert_same, outcome


@pytest.fixture(params=["native", "chunked"])
def kernel(request):
    kernel = linear_attention.named(request.param)
    reason = kernel.refusal(probe(), Call.of(dict(zip(NAMES, arguments(32), strict=True))))
    if reason is not None:
        pytest.skip(reason)
    return kernel


def test_the_reference_is_masked_attention_without_softmax():
    q, k, v, beta, log_decay, _ = arguments(9)
    o, state = linear_attention.reference(q, k, v, beta, log_decay, None)
    since = log_decay.cumsum(1)[0, :, 1]
    weights = (q[0, :, 1] @ k[0, :, 1].T) * (since[:, None] - since).exp() * beta[0, :, 1]
    torch.testing.assert_close(o[0, :, 1], weights.tril() @ v[0, :, 1])
    written = beta[0, :, 1] * (since[-1] - since).exp()
    torch.testing.assert_close(state[0, 1], (written[:, None] * k[0, :, 1]).T @ v[0, :, 1])


@pytest.mark.parametrize("time", [1, 2, 17, 63, 65, 130])
@pytest.mark.parametrize("decay", [1.0, None])
def test_equals_the_reference(kernel, time, decay):
    inputs = arguments(time, decay=decay)
    assert_same(outcome(kernel, inputs), outcome(linear_attention.reference, inputs), 1e-11)


@pytest.mark.parametrize(("key", "value"), [(1, 1), (17, 3), (8, 70)])
def test_any_size_of_head_and_no_state(kernel, key, value):
    inputs = arguments(37, key, value, state=False)
    assert_same(outcome(kernel, inputs), outcome(linear_attention.reference, inputs), 1e-11)


@pytest.mark.parametrize("at", [1, 40, 64])
def test_time_may_be_split_anywhere(kernel, at):
    *inputs, state = arguments(100)
    o, final = kernel(*inputs, state)
    o1, middle = kernel(*(x[:, :at] for x in inputs), state)
    o2, last = kernel(*(x[:, at:] for x in inputs), middle)
    assert_same({"o": torch.cat([o1, o2], 1), "S": last}, {"o": o, "S": final}, 1e-12)


def test_float32_over_a_long_time_and_strong_decay(kernel):
    for decay in (0.1, 40.0):
        inputs = arguments(500, 32, 32, heads=1, decay=decay, dtype=torch.float32)
        exact = outcome(linear_attention.reference, [x.double() for x in inputs])
        assert_same(outcome(kernel, inputs), exact, kernel.tolerance)
