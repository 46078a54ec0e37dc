"""The generalised delta rule of flash-linear-attention (Triton, where it is called "DPLR") on CUDA."""

from __future__ import annotations

from torch import Tensor

from synthe_core.ops.delta_rule.fla import call_fla, chunked_call, even, refusal, to_bfloat16, use_recurrent
from synthe_core.ops.generalized_delta_rule.reference import generalized_delta_rule


@generalized_delta_rule.kernel("fla", rank=30, tolerance=2e-2)
def fla(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: all vectors rounded to bfloat16, decays and memory in float32; all float32 when decoding."""
    from fla.ops.generalized_delta_rule import (  # optional, and slow to import
        chunk_dplr_delta_rule,
        fused_recurrent_dplr_delta_rule,
    )

    if use_recurrent(q, k, v, a, b, log_decay, state):
        return call_fla(fused_recurrent_dplr_delta_rule, q, k, v, state, a=a, b=b, gk=log_decay)
    a, b, _ = to_bfloat16(even(a), even(b), v)
    return chunked_call(chunk_dplr_delta_rule, q, k, v, state, a=a, b=b, gk=even(log_decay))


fla.refuses(refusal)
