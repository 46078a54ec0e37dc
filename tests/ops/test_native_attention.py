"""Attention in C: the numbers of the reference, whatever is cut, padded or beside them, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.ops.attention import window_attention
from synthe_core.ops.dispatch import Call
from synthe_core.ops.native_attention import native_attention, unavailable

pytestmark = pytest.mark.skipif(unavailable(probe(), "cpu") is not None, reason="no C compiler")

SHAPES = [  # time, heads, groups, size, window
    (37, 1, 1, 64, 100), (37, 6, 2, 20, 100), (50, 3, 3, 5, 7), (21, 4, 1, 8, 1), (70, 9, 3, 64, 33),
    (19, 2, 2, 88, 16),
]  # fmt: skip


def sample(time: int, heads: int, groups: int, size: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(time * heads + size)
    return tuple(torch.randn(batch, time, n, size, generator=made) * 2 for n in (heads, groups, groups))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("past", [0, 5, 40])
def test_it_is_the_reference(shape: tuple[int, ...], past: int) -> None:
    time, heads, groups, size, window = shape
    q, k, v = sample(time + past, heads, groups, size)
    q = q[:, past:]
    valid = torch.ones(2, time + past, dtype=torch.bool)
    valid[0, : past // 2] = False
    valid[1, time + past - 3 :] = False
    for mask in (None, valid):
        for cap in (None, 3.0):
            expected = window_attention.reference(q.double(), k.double(), v.double(), window, mask, cap).float()
            torch.testing.assert_close(native_attention(q, k, v, window, mask, cap), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_selected_tokens_have_the_bits_they_have_among_all(shape: tuple[int, ...], share: float) -> None:
    time, heads, groups, size, window = shape
    q, k, v = sample(time + 11, heads, groups, size)
    q, valid = q[:, 11:], torch.ones(2, time + 11, dtype=torch.bool)
    valid[0, :4] = False
    selected = torch.rand(2, time, generator=torch.Generator().manual_seed(time)) < share
    whole = native_attention(q, k, v, window, valid, 3.0)
    assert torch.equal(native_attention(q[selected], k, v, window, valid, 3.0, selected), whole[selected])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_cut_changes_no_bit(shape: tuple[int, ...], cap: float | None) -> None:
    time, heads, groups, size, window = shape
    q, k, v = sample(time, heads, groups, size)
    whole = native_attention(q, k, v, window, None, cap)
    for cut in range(1, time):
        first = native_attention(q[:, :cut], k[:, :cut], v[:, :cut], window, None, cap)
        rest = native_attention(q[:, cut:], k, v, window, None, cap)
        assert torch.equal(torch.cat([first, rest], 1), whole), cut


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_at_a_time_has_the_same_bits(shape: tuple[int, ...]) -> None:
    time, heads, groups, size, window = shape
    q, k, v = sample(time, heads, groups, size)
    each = [native_attention(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1], window, None, None) for t in range(time)]
    assert torch.equal(torch.cat(each, 1), native_attention(q, k, v, window, None, None))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("front", [1, 7, 16, 130])
def test_padding_before_the_first_key_changes_no_bit(shape: tuple[int, ...], front: int) -> None:
    time, heads, groups, size, window = shape
    q, k, v = sample(time, heads, groups, size)
    alone = native_attention(q, k, v, window, None, None)
    padding = torch.full((2, front, groups, size), torch.nan)
    valid = torch.cat([torch.zeros(2, front, dtype=torch.bool), torch.ones(2, time, dtype=torch.bool)], 1)
    padded = native_attention(q, torch.cat([padding, k], 1), torch.cat([padding, v], 1), window, valid, None)
    assert torch.equal(padded, alone)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_later_key_reaches_no_earlier_query(bad: float) -> None:
    q, k, v = sample(23, 4, 2, 20)
    before = native_attention(q, k, v, 9, None, None)
    k[:, 10], v[:, 10] = bad, bad
    after = native_attention(q, k, v, 9, None, None)
    assert torch.equal(after[:, :10], before[:, :10])
    assert torch.equal(after[:, 19:], before[:, 19:])  # outside the window again
    assert not after[:, 10].isfinite().any()


def test_a_query_without_a_key_gives_zeros() -> None:
    q, k, v = sample(9, 4, 2, 20)
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[1, 6:] = True
    y = native_attention(q, k, v, 9, valid, None)
    assert not y[0].any() and not y[1, :6].any() and y[1, 6:].all()
    assert not native_attention(q[:, :1], k[:, :1], v[:, :1], 9, valid[:, :1], None).any()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
def test_an_infinite_score_is_bounded(bad: float) -> None:
    q, k, v = sample(9, 2, 2, 8)
    k[:, 4, :, 0] = bad
    y = native_attention(q, k, v, 9, None, 3.0)
    torch.testing.assert_close(y, window_attention.reference(q, k, v, 9, None, 3.0), rtol=1e-5, atol=1e-5)


def test_a_bounded_score_of_no_number_is_none() -> None:
    q, k, v = sample(9, 2, 2, 8)
    k[:, 4, :, 0] = torch.nan
    y = native_attention(q, k, v, 9, None, 3.0)
    assert y[:, :4].isfinite().all() and y[:, 4:].isnan().all()


def test_it_serves_single_tokens_and_batch_invariant_contexts() -> None:
    q, k, v = sample(5, 4, 2, 20)

    def chosen(q: Tensor, **changes: object) -> str:
        call = Call.of({"q": q, "k": k, "v": v, "window": 9, "valid": None, "cap": None} | changes)
        return next(choice.kernel for choice in window_attention.explain(call) if choice.chosen)

    assert chosen(q[:, :1]) == "native"
    assert chosen(q) != "native"
    assert chosen(q[:, :1], cap=5.0) == "native"
    assert chosen(q[:, :1].double()) != "native"
    assert chosen(q[:, :1].clone().requires_grad_()) != "native"
    with ExecutionContext(batch_invariant=True).activate():
        assert chosen(q) == "native"
