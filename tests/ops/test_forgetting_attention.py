"""Forgetting attention in blocks equals its reference: outputs and every gradient, with a past, a window, padding."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.ops.attention import window_attention
from synthe_core.ops.forgetting_attention import forgetting_attention


def problem(time: int, past: int, padded: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    torch.manual_seed(0)
    q = torch.randn(2, time, 4, 6, dtype=torch.float64)
    k, v = (torch.randn(2, past + time, 2, 6, dtype=torch.float64) for _ in range(2))
    reach = -torch.rand(2, past + time, 4, dtype=torch.float64).cumsum(1)
    valid = torch.rand(2, past + time) > 0.4 if padded else None
    return [x.requires_grad_() for x in (q, k, v, reach)], valid


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("time,past,window", [(1, 0, 4), (1, 7, 8), (9, 0, 9), (37, 5, 5), (12, 30, 64), (301, 5, 280)])
def test_blocks_equal_the_reference(time: int, past: int, window: int, padded: bool) -> None:
    leaves, valid = problem(time, past, padded)
    expected = forgetting_attention.reference(*leaves, window, valid)
    actual = forgetting_attention.named("blocks")(*leaves, window, valid)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(expected)
    slopes = [torch.autograd.grad(o, leaves, upstream) for o in (actual, expected)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("time", [1, 9])
def test_a_row_has_the_bits_that_it_has_without_company_and_its_padding(time: int) -> None:
    (q, k, v, reach), _ = problem(time, 30, False)
    valid = torch.arange(30 + time) >= torch.tensor([[0], [17]])
    with torch.no_grad(), ExecutionContext(batch_invariant=True).activate():
        together = forgetting_attention(q, k, v, reach, 64, valid)
        alone = forgetting_attention(q[1:], k[1:, 17:], v[1:, 17:], reach[1:, 17:], 64, None)
    assert torch.equal(together[1:], alone)


def test_without_forgetting_it_is_attention() -> None:
    (q, k, v, reach), valid = problem(40, 3, True)
    still = torch.full_like(reach, 5.0)
    for kernel in ("reference", "blocks"):
        actual = forgetting_attention.named(kernel)(q, k, v, still, 11, valid)
        torch.testing.assert_close(actual, window_attention.reference(q, k, v, 11, valid))


def test_a_closed_gate_hides_all_that_came_before() -> None:
    (q, k, v, _), _ = problem(8, 0, False)
    reach = torch.where(torch.arange(8) >= 5, -1e4, 0.0).double().view(1, 8, 1).expand(2, 8, 4)
    o = forgetting_attention(q, k, v, reach, 8, None)
    torch.testing.assert_close(o[:, 5:], window_attention.reference(q[:, 5:], k[:, 5:], v[:, 5:], 8, None))
