"""Heads that read the same keys, as further queries of them: what attention with a mask computes on CUDA."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.attention import _heads_as_queries


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_numbers_are_those_of_repeated_keys(time, rows):
    torch.manual_seed(0)
    q = torch.randn(2, 6, time, 4, dtype=torch.float64)
    k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(rows, 1, time, 7) > 0.3
    mask[..., 0] = True
    queries, wide = _heads_as_queries(q, mask, 3)
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=wide).unflatten(2, (2, -1)).flatten(1, 2)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert torch.allclose(out, expected, atol=1e-12)
