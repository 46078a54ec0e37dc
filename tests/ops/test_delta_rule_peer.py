"""The delta rule against another implementation: transformers' gated delta rule of Qwen3-Next, in pure torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.delta_rule import delta_rule

qwen3_next = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")


@pytest.mark.parametrize("name", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_outputs_state_and_gradients_equal_the_peers(name):
    peer = getattr(qwen3_next, name, None)
    if peer is None:
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    batch, time, heads, size = 2, 77, 3, 16
    q, k = (F.normalize(torch.randn(batch, time, heads, size), dim=-1).requires_grad_() for _ in range(2))
    v = torch.randn(batch, time, heads, size, requires_grad=True)
    beta = torch.rand(batch, time, heads, requires_grad=True)
    log_decay = (-torch.rand(batch, time, heads)).requires_grad_()
    state = torch.randn(batch, heads, size, size)

    ours, last = delta_rule(q * size**-0.5, k, v, beta, log_decay, state)
    theirs, their_last = peer(
        q, k, v, g=log_decay, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=False
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, their_last.to(last.dtype), rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(ours)
    inputs = (q, k, v, beta, log_decay)
    slopes = zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    )
    for a, b in slopes:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
