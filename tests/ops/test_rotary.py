import pytest
import torch

from synthe_core.ops.rotary import rotary
from tests.conftest import needs_compiler


def problem(dtype=torch.float64, heads=3, size=6, turned=6):
    torch.manual_seed(0)
    projected = torch.randn(2, 7, heads * size + 5, dtype=torch.float64).to(dtype).requires_grad_()
    angles = torch.randn(2, 7, turned // 2, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return projected, angles.cos().to(wide), angles.sin().to(wide)


def sliced(projected, heads=3, size=6, start=0):
    return projected[..., start : start + heads * size].unflatten(-1, (heads, size))


@needs_compiler
@pytest.mark.parametrize("eps", [None, 1e-6])
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("size,turned", [(6, 6), (6, 2), (7, 4), (5, 0)])
def test_native_equals_the_reference_on_a_slice_of_a_projection(eps, start, size, turned):
    projected, cos, sin = problem(size=size, turned=turned)
    heads = sliced(projected, size=size, start=start)
    actual, expected = (rotary.named(k)(heads, cos, sin, eps) for k in ("native", "reference"))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(actual.shape, dtype=torch.float64)
    a, b = (torch.autograd.grad(y, projected, upstream)[0] for y in (actual, expected))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@needs_compiler
def test_one_head_transposed_rows_are_copied_and_right():
    projected, cos, sin = problem()
    x = sliced(projected).transpose(0, 1)[:2].transpose(0, 1)[:, :2].transpose(2, 3).contiguous().transpose(2, 3)
    actual = rotary.named("native")(x, cos[:, :2], sin[:, :2], 1e-6)
    torch.testing.assert_close(actual, rotary.reference(x, cos[:, :2], sin[:, :2], 1e-6))


@needs_compiler
def test_bfloat16_heads_are_turned_in_float32():
    projected, cos, sin = problem(torch.bfloat16)
    actual, expected = (rotary.named(k)(sliced(projected), cos, sin, 1e-6) for k in ("native", "reference"))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_turning_keeps_lengths_and_makes_products_depend_on_distance():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    frequencies = torch.rand(4, dtype=torch.float64)

    def turned(x, position):
        angles = (position * frequencies)[None, None]
        return rotary(x, angles.cos(), angles.sin(), None)

    torch.testing.assert_close(turned(q, 5).norm(), q.norm())
    near, far = ((turned(q, 9 + shift) * turned(k, 4 + shift)).sum() for shift in (0, 100))
    torch.testing.assert_close(near, far)


def test_channels_that_are_not_turned_are_normalised_only():
    projected, cos, sin = problem(size=7, turned=4)
    x = sliced(projected, size=7)
    y = rotary(x, cos, sin, 1e-6)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y[..., 4:], normed[..., 4:])
    torch.testing.assert_close(y[..., :4], rotary(normed[..., :4], cos, sin, None))
