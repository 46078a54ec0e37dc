import pytest
import torch

from synthe_core.hardware.probe import probe
from synthe_core.ops.attention import probed_attention, window_attention
from synthe_core.ops.dispatch import Call


def problem(time, past, window, padded):
    torch.manual_seed(0)
    q = torch.randn(2, time, 4, 6, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, past + time, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    valid = torch.rand(2, past + time) > 0.4 if padded else None
    return q, k, v, window, valid


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "time,past,window",
    [
        (1, 0, 4),
        (1, 7, 8),
        (9, 0, 9),
        (9, 0, 64),
        (37, 0, 5),
        (37, 5, 5),
        (37, 3, 5),
        (37, 5, 1),
        (12, 30, 64),
        (8, 4, 4),
        (300, 5, 280),
    ],
)
def test_kernels_equal_the_reference(time, past, window, padded, cap):
    arguments = (*problem(time, past, window, padded), cap)
    upstream = torch.randn_like(arguments[0])
    expected = window_attention.reference(*arguments)
    slopes = torch.autograd.grad(expected, arguments[:3], upstream)
    call = Call.of(dict(zip(("q", "k", "v", "window", "valid", "cap"), arguments, strict=True)))
    served = [kernel for kernel in window_attention.kernels if kernel.refusal(probe(), call) is None]
    names = {kernel.name for kernel in served}
    assert "masked-sdpa" in names if cap is None else names == {"capped-blocks"}
    for kernel in served:
        actual = kernel(*arguments)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=kernel.name)
        for a, b in zip(torch.autograd.grad(actual, arguments[:3], upstream), slopes, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=kernel.name)


def test_a_cap_bounds_scores():
    """With scores of ±cap the weights are known, whatever queries and keys are."""
    q, k, v, _, _ = problem(2, 0, 2, padded=False)
    q, k = 1e6 * torch.ones_like(q), torch.cat([torch.ones_like(k[:, :1]), -torch.ones_like(k[:, :1])], 1)
    weights = torch.tensor([1.5, -1.5], dtype=torch.float64).softmax(0)
    expected = torch.einsum("s,bsgk->bgk", weights, v).repeat_interleave(2, 1)
    torch.testing.assert_close(window_attention(q, k, v, 2, None, 1.5)[:, 1], expected)


def test_bounded_scores_of_a_narrow_type():
    q, k, v, _, _ = problem(40, 0, 40, padded=False)
    narrow = [x.detach().to(torch.bfloat16) for x in (q, k, v)]
    out = window_attention(*narrow, 40, None, 3.0)
    assert out.dtype == torch.bfloat16
    exact = window_attention.reference(*(x.double() for x in narrow), 40, None, 3.0)
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.01)


def test_a_query_that_may_read_nothing_gives_zeros():
    q, k, v, window, _ = problem(5, 0, 3, padded=False)
    valid = torch.zeros(2, 5, dtype=torch.bool)
    for kernel, cap in (("reference", None), ("masked-sdpa", None), ("reference", 2.0), ("capped-blocks", 2.0)):
        out = window_attention.named(kernel)(q, k, v, window, valid, cap)
        assert (out == 0).all()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_refusals_say_why():
    q, k, v, _, _ = problem(9, 4, 8, padded=False)
    reasons = {
        choice.kernel: choice.reason
        for choice in window_attention.explain(Call.of({"q": q, "k": k, "v": v, "window": 8, "valid": None}))
    }
    assert "window is shorter" in reasons["causal-sdpa"]
    assert reasons["masked-sdpa"] is None and "not bounded" in reasons["capped-blocks"]
    arguments = {"q": q, "k": k, "v": v, "window": 8, "valid": None, "cap": 2.0}
    choices = {choice.kernel: choice for choice in window_attention.explain(Call.of(arguments))}
    assert all("bounded" in choices[name].reason for name in ("causal-sdpa", "banded-sdpa", "masked-sdpa"))
    assert choices["capped-blocks"].chosen


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "time,past,window",
    [
        (1, 0, 4),
        (1, 7, 8),
        (9, 0, 64),
        (9, 9, 9),
        (37, 0, 5),
        (37, 5, 5),
        (37, 3, 5),
        (37, 5, 1),
        (12, 30, 6),
        (13, 30, 64),
    ],
)
def test_selected_queries_equal_rows_of_full_attention(time, past, window, rate, padded, cap):
    """Against attention of all tokens, masked afterwards: values, and the gradients of queries, keys and values."""
    everyone, k, v, window, valid = problem(time, past, window, padded)
    selected = torch.rand(2, time) < rate
    upstream = torch.randn_like(everyone)
    expected = window_attention.reference(everyone, k, v, window, valid, cap)
    slopes = torch.autograd.grad((expected * upstream)[selected].sum(), (everyone, k, v))
    assert (slopes[0][~selected] == 0).all()
    q = everyone.detach()[selected].requires_grad_()
    for kernel in ("reference", "packed-sdpa"):
        actual = probed_attention.named(kernel)(q, k, v, selected, window, valid, cap)
        torch.testing.assert_close(actual, expected[selected], rtol=1e-10, atol=1e-10, msg=kernel)
        got = torch.autograd.grad(
            (actual * upstream[selected]).sum(), (q, k, v), allow_unused=True, materialize_grads=True
        )
        for a, b in zip(got, (slopes[0][selected], *slopes[1:]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=kernel)
