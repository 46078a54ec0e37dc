"""The definition of `gated_average`."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.activations import sigmoid
from synthe_core.ops.dispatch import op, require_float


@op(batch_invariant=("cpu",))
def gated_average(gate: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = σ(gate_t) ⊙ h_{t-1} + σ(-gate_t) ⊙ value_t, where σ(-x) = 1 - σ(x).

    gate (any real number; +inf leaves h untouched, which is how padding is written) and value [B, T, D], state h_{-1}
    [B, D] (None = zeros), all of one dtype, float32 or float64. Returns every h [B, T, D] and the last one [B, D].
    Raises InputError for narrower dtypes.
    """
    require_float("gate", gate)
    h = torch.zeros_like(value[:, 0]) if state is None else state
    history = []
    for x, v in zip(gate.unbind(1), value.unbind(1), strict=True):
        h = sigmoid(x) * h + sigmoid(-x) * v
        history.append(h)
    return torch.stack(history, dim=1), h
