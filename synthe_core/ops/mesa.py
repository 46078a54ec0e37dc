"""The mesa layer: at every token, the least-squares solution of all writes so far, read with the query.

Source: von Oswald et al. 2025, "MesaNet: sequence modeling by locally optimal test-time training".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower, op, require_float

CHUNK = 64
FEW = 16  # tokens whose matrices are made


@op(batch_invariant=("cpu",))
def mesa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    steps: int,
    keys: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A_t = α_t A_{t-1} + β_t k_t k_tᵀ, C_t = α_t C_{t-1} + β_t k_t v_tᵀ and o_t = C_tᵀ (A_t + Diag(λ))⁻¹ q_t.

    M_t = (A_t + Diag(λ))⁻¹ C_t, with o_t = M_tᵀ q_t, minimises Σ_s w_ts ‖Mᵀ k_s - v_s‖² + Σ_i λ_i ‖M_i‖², where w_ts is
    β_s times the decays after s. It is solved exactly here; `steps` bounds a kernel's conjugate gradients.

    q, k [B, T, H, K]; v [B, T, H, V]; beta [B, T, H] >= 0; log_decay [B, T, H] <= 0; ridge [H, K] > 0: λ;
    keys [B, H, K, K]: A_0, symmetric with no negative eigenvalue, and values [B, H, K, V]: C_0; None is zeros.

    Returns o [B, T, H, V], A_T and C_T. float32 or float64, one dtype for all. A token with beta = 0 and log_decay = 0
    changes neither, which is how padding is written.
    """
    require_float("q", q)
    A, C = _memories(q, v, keys, values)
    outputs = []
    for t in range(q.shape[1]):
        decay, write = log_decay[:, t, :, None, None].exp(), (beta[:, t, :, None] * k[:, t])[..., None]
        A, C = decay * A + write * k[:, t, :, None], decay * C + write * v[:, t, :, None]
        x = torch.linalg.solve(A + torch.diag_embed(ridge), q[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", x, C))
    return torch.stack(outputs, 1), A, C


def _memories(q: Tensor, v: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """A_0 and C_0: zeros where they are not given."""
    batch, _, heads, key = q.shape
    A = q.new_zeros(batch, heads, key, key) if keys is None else keys
    return A, q.new_zeros(batch, heads, key, v.shape[-1]) if values is None else values


@mesa.kernel("direct", rank=20, tolerance=1e-4, batch_invariant=("cpu",))
def direct(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    steps: int,
    keys: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The systems of a few tokens, solved together."""
    A, C = _memories(q, v, keys, values)
    with torch.autocast(q.device.type, enabled=False):
        decay, write = log_decay.exp()[..., None, None], (beta[..., None] * k)[..., None]
        systems, targets = [], []
        for t in range(q.shape[1]):
            A = decay[:, t] * A + write[:, t] * k[:, t, :, None]
            C = decay[:, t] * C + write[:, t] * v[:, t, :, None]
            systems.append(A)
            targets.append(C)
        x = torch.linalg.solve(torch.stack(systems, 1) + torch.diag_embed(ridge), q[..., None])
        o = (x * torch.stack(targets, 1)).sum(-2)
    return o, A, C


@direct.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.time <= FEW else f"it makes a matrix for every token, {FEW} at most"


@mesa.kernel("conjugate-gradient", rank=10, tolerance=1e-3, batch_invariant=("cpu",))
def conjugate_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    steps: int,
    keys: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of 64 tokens: neither A_t nor C_t is made for a token, only products with them. All tokens' systems are
    solved at once, and the gradient solves them once more."""
    time = q.shape[1]
    A, C = _memories(q, v, keys, values)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (_chunked(part) for part in (q, k, v))  # [B, H, N, C, ...]
        beta, log_decay = (_chunked(part[..., None])[..., 0] for part in (beta, log_decay))
        entering, within, leaving, passing = _decays(log_decay)
        read = within * beta[..., None, :]  # of writes of the chunk, by reading token
        written = (leaving * beta)[..., None] * k
        befores, lasts = [], []
        for memory, what in ((A, k), (C, v)):
            before = []
            for n in range(q.shape[2]):
                before.append(memory)
                memory = passing[:, :, n, None, None] * memory + written[:, :, n].transpose(-1, -2) @ what[:, :, n]
            befores.append(torch.stack(before, 2))
            lasts.append(memory)

        def apply(x: Tensor, before: Tensor, what: Tensor) -> Tensor:
            """x_tᵀ times the memory at token t, of all tokens."""
            return (entering[..., None] * x) @ before + ((x @ k.transpose(-1, -2)) * read) @ what

        def system(x: Tensor) -> Tensor:
            return apply(x, befores[0].transpose(-1, -2), k) + ridge[:, None, None] * x

        with torch.no_grad():
            first = _solve(system, q, steps)
        # One step of refinement, through which the gradient with respect to the system passes as it does to q.
        x = first + _Solved.apply(q - system(first), system, steps)
        o = apply(x, befores[1], v)
    return o.flatten(2, 3)[:, :, :time].transpose(1, 2), lasts[0], lasts[1]


@conjugate_gradient.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return Slower("few tokens: solving their systems directly takes fewer operations") if call.time <= FEW else None


def _chunked(x: Tensor) -> Tensor:
    """[B, T, H, E] as [B, H, N, C, E], zeros after the end."""
    time = x.shape[1]
    size = min(CHUNK, time)
    return F.pad(x.transpose(1, 2), (0, 0, 0, -time % size)).unflatten(2, (-1, size))


def _decays(log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of log decays [..., C] of a chunk: from its beginning to each token; from token s to t [..., t, s], 0 for s > t;
    from each token to its end; and of the whole chunk [...]."""
    total = log_decay.cumsum(-1)
    future = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=total.device).triu(1)
    within = (total[..., None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()
    return total.exp(), within, (total[..., -1:] - total).exp(), total[..., -1].exp()


def _solve(system: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """x of system(x) = right by conjugate gradients from 0, every vector of the last axis by itself.

    A vector stops where its residual is at rounding's size: further steps would divide rounding by rounding.
    """
    x, r = torch.zeros_like(right), right
    p, size = r, r.square().sum(-1, keepdim=True)
    least = size * torch.finfo(right.dtype).eps ** 2
    for _ in range(steps):
        turned = system(p)
        active = size > least
        length = torch.where(active, size / (p * turned).sum(-1, keepdim=True), 0.0)
        x, r = x + length * p, r - length * turned
        before, size = size, r.square().sum(-1, keepdim=True)
        p = torch.where(active, r + size / before * p, 0.0)
    return x


class _Solved(torch.autograd.Function):
    """The solution of a symmetric system that is constant here: its gradient is the solution for the gradient."""

    @staticmethod
    def forward(ctx: Any, right: Tensor, system: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        ctx.system, ctx.steps = system, steps
        return _solve(system, right, steps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return _solve(ctx.system, gradients[0], ctx.steps), None, None
