"""The definition of `long_conv`."""

from __future__ import annotations

from torch import Tensor

from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.short_conv import with_history


@op(batch_invariant=("cpu",))
def long_conv(u: Tensor, taps: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y_t = Σ_{j < L} taps[:, j] ⊙ u_{t-j}: channel by channel, over the last L inputs.

    u [B, T, D]; taps [D, L], tap 0 being the present (`short_conv` has it last); state [B, L-1, D], the inputs before
    u, None is zeros; all of one dtype, float32 or float64. Returns y [B, T, D] and the last L-1 inputs [B, L-1, D].
    Raises InputError for narrower dtypes.
    """
    require_float("u", u)
    length = taps.shape[1]
    history = with_history(u, state, length)
    windows = history.unfold(1, length, 1)  # [B, T, D, L], the present last
    return (windows * taps.flip(1)).sum(-1), history[:, u.shape[1] :]
