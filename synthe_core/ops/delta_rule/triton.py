"""The delta rule in Triton, in float32."""

from __future__ import annotations

from torch import Tensor

from synthe_core.ops.delta_rule.reference import delta_rule, per_value_head
from synthe_core.ops.triton_beta_memory import triton_beta_memory
from synthe_core.ops.triton_memory import RANK, refusal


@delta_rule.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: token by token, the memory in registers; S_t = α S + k β (v - α kᵀ S)."""
    return triton_beta_memory(per_value_head(q, v), per_value_head(k, v), v, beta, log_decay, state, overwrite=True)


triton.refuses(refusal)
