"""A matrix of memory that learns a span of tokens at a time, by a step of gradient descent on what it recalls.

Sources: Sun et al. 2024 (TTT: the memory's own loss, a step for every mini-batch of tokens), Behrouz et al. 2025
(Titans: momentum, decay, and a rate that follows surprise), Zinkevich 2003 (projected descent).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.ops.dispatch import op, require_float

FLOOR = 1e-4  # of the relative error, where its logarithm is taken


class SpanState(NamedTuple):
    """memory M [B, H, K, V] as tokens read it, which is as it was when the last span ended. velocity U, of the same
    shape, or [B, 0, K, V] without momentum. pending, of the span that has begun: Σ r k [k v]ᵀ [B, H, K, K + V], or
    where the memory learns token by token its running value [B, H, K, V]. tally [B, H, 3]: Σ w, Σ w α and Σ w η."""

    memory: Tensor
    velocity: Tensor
    pending: Tensor
    tally: Tensor


class Learned(NamedTuple):
    """read M q [B, T, H, V]; error ‖M k - v‖² / ‖v‖² and rate r, both [B, T, H]; the state after the last token."""

    read: Tensor
    error: Tensor
    rate: Tensor
    state: SpanState


@op
def span_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rate: Tensor,
    sharpness: Tensor | None,
    decay: Tensor,
    momentum: Tensor | None,
    weight: Tensor,
    finished: Tensor,
    memory: Tensor,
    velocity: Tensor,
    pending: Tensor,
    tally: Tensor,
    span: int,
    online: bool = False,
) -> Learned:
    """Tokens read the memory M as the last finished span left it; a span that ends moves M once.

    With M transposed to [V, K], every token t of a span has e_t = M k_t - v_t and r_t = w_t σ(rate_t + s log(ε + ‖e_t‖²
    / ‖v_t‖²)), where ε = 1e-4, and without `sharpness` r_t = w_t σ(rate_t). When the span is finished,

        g = Σ_t r_t e_t k_tᵀ / max(1, ‖Σ_t r_t k_t k_tᵀ‖_F)            = ∇_M ½ Σ_t lr_t ‖M k_t - v_t‖²
        U ← η U - g,   M ← P((1 - α) M + U)

    α and η the means over the span of `decay` and `momentum`, weighted by w, and P the projection onto the ball ‖M‖_F
    <= √K, in which every memory lies that recalls values of length 1 at K orthonormal keys. The rate lr_t is a constant
    in that gradient; the gradient of this operator goes through all of it.

    Why it cannot run away, whatever comes, for keys and values of length 1 at most: A = Σ lr_t k_t k_tᵀ has 0 <= A <=
    I, so a step does not overshoot what its span says. What it writes, B = Σ lr_t v_t k_tᵀ, is small however long the
    span is: with R = Σ r_t k_t k_tᵀ, Cauchy and Schwarz give ‖Σ r_t v_t k_tᵀ‖_F² <= ‖R‖_F Σ r_t, so ‖B‖_F² <= Σ r_t /
    max(1, ‖R‖_F). Where keys have length 1, Σ r_t = tr R <= √K ‖R‖_F and so ‖B‖_F <= K^¼. Hence ‖g‖_F <= √K + K^¼,
    ‖U‖_F is at most that over 1 - max η, and ‖M‖_F <= √K by P.

    With `online` the span's tokens are instead written one by one by the delta rule, S_t = S_{t-1} + r_t (v_t - S_{t-1}
    k_t) k_tᵀ from S = M, and M ← S ← P((1 - α) S) at the end of the span; there is no momentum then.

    query, key  [B, T, H, K], value [B, T, H, V]: as they are. rate [B, T, H]: logits. sharpness s [H] or None.
    decay       [B, T, H] in [0, 1]; momentum [B, T, H] in [0, 1) or None for none.
    weight w    [B, T] in [0, 1]; at 0 a token is read for but never learned: that is how padding is written.
    finished    bool [B, T]: the span before token t has ended. A span has at most `span` tokens that are not padding,
                and what is read or erred at padding means nothing.

    float32 or float64, one dtype for all.
    """
    require_float("query", query)
    reads, errors, rates = [], [], []
    state = SpanState(memory, velocity, pending, tally)
    for t in range(query.shape[1]):
        if finished[:, t].any():
            stepped = step(*state[:3], *means(state.tally), momentum is not None, online)
            after = SpanState(*stepped, torch.zeros_like(state.tally))
            state = SpanState(*(choose(finished[:, t], new, old) for new, old in zip(after, state, strict=True)))
        k, v, w = key[:, t, :, :, None], value[:, t, :, None, :], weight[:, t, None]
        recalled = (k * state.memory).sum(-2)
        error = (recalled - value[:, t]).square().sum(-1) / value[:, t].square().sum(-1).clamp_min(FLOOR)
        r = w * rated(rate[:, t], sharpness, error)
        if online:
            now = (k * state.pending).sum(-2, keepdim=True)
            pending = state.pending + r[..., None, None] * k * (v - now)
        else:
            pending = state.pending + r[..., None, None] * k * torch.cat([k.mT, v], -1)
        eta = torch.zeros_like(r) if momentum is None else momentum[:, t]
        told = torch.stack([w.expand_as(r), w * decay[:, t], w * eta], -1)
        state = SpanState(state.memory, state.velocity, pending, state.tally + told)
        reads.append((query[:, t, :, :, None] * state.memory).sum(-2))
        errors.append(error)
        rates.append(r)
    return Learned(torch.stack(reads, 1), torch.stack(errors, 1), torch.stack(rates, 1), state)


def rated(logit: Tensor, sharpness: Tensor | None, error: Tensor) -> Tensor:
    """σ(logit + s log(ε + error)): a token that the memory did not expect is learned faster."""
    return torch.sigmoid(logit if sharpness is None else logit + sharpness * (FLOOR + error).log())


def means(tally: Tensor) -> tuple[Tensor, Tensor]:
    """α and η [..., H, 1, 1] of spans with that tally [..., H, 3]."""
    average = tally[..., 1:] / tally[..., :1].clamp_min(FLOOR)
    return average[..., 0, None, None], average[..., 1, None, None]


def step(
    memory: Tensor, velocity: Tensor, pending: Tensor, alpha: Tensor, eta: Tensor, momentum: bool, online: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory, velocity and what is pending once the span has ended: one step, and nothing pending."""
    if online:
        memory = projected((1 - alpha) * pending)
        return memory, velocity, memory
    gram, written = pending.split([memory.shape[-2], memory.shape[-1]], -1)
    change = (written - gram @ memory) * gram.square().sum((-2, -1), keepdim=True).clamp_min(1).rsqrt()
    if momentum:
        change = velocity = eta * velocity + change
    return projected((1 - alpha) * memory + change), velocity, torch.zeros_like(pending)


def projected(memory: Tensor) -> Tensor:
    """The nearest memory [..., K, V] of Frobenius norm √K or less."""
    excess = memory.square().sum((-2, -1), keepdim=True) / memory.shape[-2]
    return memory * excess.clamp_min(1).rsqrt()


def choose(which: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` in the rows where `which` [B] is True, `other` elsewhere."""
    return torch.where(which.view(-1, *[1] * (one.dim() - 1)), one, other)
