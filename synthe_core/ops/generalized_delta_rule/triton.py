"""The generalised delta rule in Triton, in float32."""

from __future__ import annotations

from torch import Tensor

from synthe_core.ops.generalized_delta_rule.reference import generalized_delta_rule
from synthe_core.ops.triton_memory import RANK, refusal, triton_memory


@generalized_delta_rule.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: token by token, the memory in registers."""
    return triton_memory(q, k, v, a, b, log_decay, state)


triton.refuses(refusal)
