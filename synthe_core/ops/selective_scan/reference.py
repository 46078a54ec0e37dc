"""The definition of `selective_scan`."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.ops.dispatch import op, require_float


@op(batch_invariant=("cpu",))
def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t ⊙ x_t) B_tᵀ,  y_t = h_t C_t + D ⊙ x_t: N leaky sums of every channel.

    With E channels and N numbers of state in each of them:
    x      [batch, T, E]
    delta  [batch, T, E], at least 0: how much time passes at a token. 0 leaves the state, which is how padding is
           written.
    A      [E, N], at most 0: the rates of decay.
    B, C   [batch, T, N]: what the state takes of an input, and what is read of it; all channels share them.
    D      [E]: how much of the input passes by the state.
    state  [batch, E, N]: h before the first token; None is zeros.

    Returns y [batch, T, E] and the last h [batch, E, N]. All of one dtype, float32 or float64; InputError for narrower
    ones and for shapes that do not fit. Source: Gu & Dao 2023, "Mamba: Linear-time sequence modeling with selective
    state spaces" (S6).
    """
    check(x, delta, A, B, C, D, state)
    h = x.new_zeros(x.shape[0], *A.shape) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, 1), h


def check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None) -> None:
    """InputError unless dtypes are wide enough and shapes fit each other."""
    require_float("x", x)
    (batch, time, channels), size = x.shape, A.shape[-1]
    expected = {
        "delta": (delta, (batch, time, channels)),
        "A": (A, (channels, size)),
        "B": (B, (batch, time, size)),
        "C": (C, (batch, time, size)),
        "D": (D, (channels,)),
        "state": (state, (batch, channels, size)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise InputError(
                f"{name} is {list(tensor.shape)}, not {list(shape)}", f"x is {list(x.shape)} and A {list(A.shape)}"
            )
