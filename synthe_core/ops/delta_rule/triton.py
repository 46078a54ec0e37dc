"""The delta rule in Triton, in float32."""

from __future__ import annotations

from torch import Tensor

from synthe_core.ops.delta_rule.reference import delta_rule, per_value_head
from synthe_core.ops.triton_memory import RANK, every_channel, refusal, triton_memory


@delta_rule.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Triton: token by token, the memory in registers; S_t = α S + k β (v - α kᵀ S)."""
    q, k = per_value_head(q, v), per_value_head(k, v)
    strong = beta[..., None] * k
    direction = k if log_decay is None else log_decay.exp()[..., None] * k
    return triton_memory(q, strong, v, direction, -strong, every_channel(log_decay, k), state)


triton.refuses(refusal)
