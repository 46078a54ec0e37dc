"""The definition of `linear_scan`."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.ops.dispatch import op, require_float


@op(batch_invariant=("cpu",))
def linear_scan(decay: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = decay_t ⊙ h_{t-1} + value_t.

    decay in [0, 1] and value [B, T, D], state h_{-1} [B, D] (None = zeros), all of one dtype, float32 or float64.
    Returns every h [B, T, D] and the last one [B, D]. Raises InputError for narrower dtypes.
    """
    require_float("decay", decay)
    h = torch.zeros_like(value[:, 0]) if state is None else state
    history = []
    for a, b in zip(decay.unbind(1), value.unbind(1), strict=True):
        h = a * h + b
        history.append(h)
    return torch.stack(history, dim=1), h
