"""The batch-invariant kernels of products and attention: torch's numbers, whatever rows stand beside a row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.hardware.execution import ExecutionContext
from synthe_core.ops import linear as products_module
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.linear import addmm, batch_invariant_linear, grouped_mm, linear
from synthe_core.ops.scaled_dot_product_attention import capped_attention, scaled_dot_product_attention

KERNEL = "batch-invariant"
attend = scaled_dot_product_attention.named(KERNEL)


@pytest.fixture(params=[True, False], ids=["strict", "in fours"])
def products(request, monkeypatch):
    """As on a processor whose products do not depend on their rows, and on one whose products do."""
    monkeypatch.setattr(products_module, "is_strict", lambda dtype: request.param)


def drawn(*size, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(len(size)), dtype=dtype)


def alike_in_fours(dtype):
    """Skips on a processor whose own products of 4, 8, 12 ... rows do not agree."""
    x, weight = drawn(64, 96, dtype=dtype), drawn(40, 96, dtype=dtype)
    whole = F.linear(x, weight)
    if not all(torch.equal(F.linear(x[:rows], weight), whole[:rows]) for rows in range(4, 64, 4)):
        pytest.skip("products of this processor depend on their rows even so")


@pytest.mark.parametrize("size", [(1, 7), (3, 7), (4, 7), (2, 3, 7), (1, 1, 7), (5, 0, 7), (0, 7), (7,)])
def test_a_product_is_torchs(products, size):
    x, weight, bias = drawn(*size), drawn(5, 7), drawn(5)
    for b in (None, bias):
        torch.testing.assert_close(linear.named(KERNEL)(x, weight, b), F.linear(x, weight, b), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("ends", [[2, 2, 7, 8], [0, 0, 0, 8], [8, 8, 8, 8], [1, 3, 6, 8]])
def test_a_product_of_groups_is_each_ones(products, ends):
    x, weight = drawn(8, 12, dtype=torch.float32), drawn(4, 16, 12, dtype=torch.float32)
    product = grouped_mm.named(KERNEL)(x, weight.transpose(1, 2), offs=torch.tensor(ends, dtype=torch.int32))
    expected = [x[start:end] @ weight[i].t() for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]
    torch.testing.assert_close(product, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [96, 6, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_the_same_in_any_company(dtype, width):
    """On processors whose products round alike in full fours; where they do not, `exact` is false."""
    alike_in_fours(dtype)
    x, weight = drawn(23, width, dtype=dtype), drawn(40, width, dtype=dtype)
    whole = linear.named(KERNEL)(x, weight)
    for rows in range(1, 23):
        assert torch.equal(linear.named(KERNEL)(x[:rows], weight), whole[:rows])
        assert torch.equal(linear.named(KERNEL)(x[rows:], weight), whole[rows:])


def test_a_context_chooses_the_kernels_and_leaves_torch_alone():
    before = F.linear, F.grouped_mm, torch.sigmoid
    x, weight = drawn(3, 7), drawn(5, 7)
    with ExecutionContext(batch_invariant=True).activate():
        assert (F.linear, F.grouped_mm, torch.sigmoid) == before
        assert torch.equal(linear(x, weight), linear.named(KERNEL)(x, weight))
        assert torch.equal(sigmoid(x), sigmoid.named(KERNEL)(x))
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("keys", [1, 7, 128, 129, 200])
@pytest.mark.parametrize("cap", [None, 0.9])
def test_attention_of_one_query_is_the_same_beside_longer_windows(heads, groups, keys, cap):
    alike_in_fours(torch.float32)
    q, k, v = (drawn(3, h, n, 16, dtype=torch.float32) for h, n in ((heads, 1), (groups, 300), (groups, 300)))
    real = torch.zeros(3, 1, 1, 300, dtype=torch.bool)
    real[:2, ..., 300 - keys :] = True
    real[2] = True

    def answers(q, k, v, mask):
        if cap is None:
            return attend(q, k, v, mask, enable_gqa=True)
        with ExecutionContext(batch_invariant=True).activate():
            return capped_attention(q, k, v, mask, cap)

    together = answers(q, k, v, real)
    if cap is None:
        expected = F.scaled_dot_product_attention(q, k, v, real, enable_gqa=True)
    else:
        expected = capped_attention(q, k, v, real, cap)
    torch.testing.assert_close(together, expected)
    for row in range(2):
        own = (x[row : row + 1, :, 300 - keys :].contiguous() for x in (k, v))
        assert torch.equal(answers(q[row : row + 1], *own, real[row : row + 1, ..., 300 - keys :])[0], together[row])


def test_a_sum_of_products_is_torchs(products):
    for rows in (1, 3, 4, 6):
        y, x, weight = drawn(rows, 5), drawn(rows, 7), drawn(7, 5)
        product = addmm.named(KERNEL)(y, x, weight, alpha=0.5)
        torch.testing.assert_close(product, torch.addmm(y, x, weight, alpha=0.5), rtol=1e-13, atol=1e-13)


def test_a_product_does_not_depend_on_the_strides_of_its_rows() -> None:
    """Of a slice in the middle of three dimensions torch itself takes a product of batches."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 2, 64, generator=generator), torch.randn(4, 64, generator=generator)
    whole = batch_invariant_linear.fn(x, weight)
    for row in range(6):
        for step in range(2):
            one = x[row : row + 1, step : step + 1]
            assert torch.equal(batch_invariant_linear.fn(one, weight), batch_invariant_linear.fn(one.clone(), weight))
    assert whole.shape == (6, 2, 4)
