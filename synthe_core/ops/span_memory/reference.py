"""The definition of `span_memory`: a matrix that learns once a span of tokens, by gradient descent on its own recall.

With M transposed to [V, K], every token t of a span has e_t = M k_t - v_t and r_t = w_t σ(rate_t + s log(ε + ‖e_t‖² /
‖v_t‖²)), where ε = 1e-4, and without `sharpness` r_t = w_t σ(rate_t). When the span is finished,

    g = Σ_t r_t e_t k_tᵀ / max(1, ‖Σ_t r_t k_t k_tᵀ‖_F)            = ∇_M ½ Σ_t lr_t ‖M k_t - v_t‖²
    U ← η U - g,   M ← P((1 - α) M + U)

α and η are the means over the span of `decay` and `momentum`, weighted by w, and P the projection onto the ball ‖M‖_F
<= √K, which contains every memory that recalls values of length 1 at K orthonormal keys. The rate lr_t is a constant in
that gradient; the gradient of this operator goes through all of it.

Stability, for keys and values of length 1 at most: A = Σ lr_t k_t k_tᵀ has 0 <= A <= I, so a step does not overshoot
the values of its span. What it writes, B = Σ lr_t v_t k_tᵀ, is small however long the span is: with R = Σ r_t k_t k_tᵀ,
Cauchy and Schwarz give ‖Σ r_t v_t k_tᵀ‖_F² <= ‖R‖_F Σ r_t, so ‖B‖_F² <= Σ r_t / max(1, ‖R‖_F). Where keys have length
1, Σ r_t = tr R <= √K ‖R‖_F and so ‖B‖_F <= K^¼. Hence ‖g‖_F <= √K + K^¼, ‖U‖_F is at most that over 1 - max η, and
‖M‖_F <= √K by P.

With `online` the span's tokens are instead written one by one by the delta rule, S_t = S_{t-1} + r_t (v_t - S_{t-1}
k_t) k_tᵀ from S = M, and M ← S ← P((1 - α) S) at the end of the span, without momentum.

A token of weight 0 reads but is not learned: that is how padding is written. finished[t]: the span before token t has
ended. A span has at most `span` tokens that are not padding; readings and errors at padding are undefined.

Sources: Sun et al. 2024 (TTT: the memory's own loss, a step for every mini-batch of tokens), Behrouz et al. 2025
(Titans: momentum, decay, and a rate that follows surprise), Zinkevich 2003 (projected descent).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.ops.activations import sigmoid
from synthe_core.ops.dispatch import op, require_float

MIN_SQUARE = 1e-4  # of the relative error, where its logarithm is taken


class SpanState(NamedTuple):
    """memory M [B, H, K, V], as the last finished span left it. velocity U, of the same shape, or [B, 0, K, V] without
    momentum. pending, of the span that has begun: Σ r k [k v]ᵀ [B, H, K, K + V], or S [B, H, K, V] with `online`. tally
    [B, H, 3]: Σ w, Σ w α and Σ w η."""

    memory: Tensor
    velocity: Tensor
    pending: Tensor
    tally: Tensor


class SpanOutput(NamedTuple):
    """read M q [B, T, H, V]; error ‖M k - v‖² / ‖v‖² and rate r, both [B, T, H]; the state after the last token."""

    read: Tensor
    error: Tensor
    rate: Tensor
    state: SpanState


@op(batch_invariant=("cpu",))
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
) -> SpanOutput:
    """Tokens read the memory M as the last finished span left it; the end of a span updates M once.

    query, key [B, T, H, K], value [B, T, H, V]; rate [B, T, H], logits; sharpness s [H] or None; decay [B, T, H] in
    [0, 1]; momentum [B, T, H] in [0, 1), or None for none; weight w [B, T] in [0, 1]; finished bool [B, T]; memory,
    velocity, pending and tally: see `SpanState`. The module's docstring has the equations. float32 or float64, one
    dtype for all.
    """
    require_float("query", query)
    outputs = []
    state = SpanState(memory, velocity, pending, tally)
    for t in range(query.shape[1]):
        if finished[:, t].any():
            stepped = step(*state[:3], *means(state.tally), momentum is not None, online)
            after = SpanState(*stepped, torch.zeros_like(state.tally))
            state = SpanState(*(choose(finished[:, t], new, old) for new, old in zip(after, state, strict=True)))
        w = weight[:, t, None]
        error = relative_error(key[:, t], value[:, t], state.memory)
        r = w * learning_rate(rate[:, t], sharpness, error)
        eta = torch.zeros_like(r) if momentum is None else momentum[:, t]
        counts = torch.stack([w.expand_as(r), w * decay[:, t], w * eta], -1)
        read = (query[:, t, :, :, None] * state.memory).sum(-2)
        pending = accumulate(state.pending, key[:, t], value[:, t], r, online)
        state = state._replace(pending=pending, tally=state.tally + counts)
        outputs.append((read, error, r))
    read, error, r = (torch.stack(each, 1) for each in zip(*outputs, strict=True))
    return SpanOutput(read, error, r, state)


def relative_error(key: Tensor, value: Tensor, memory: Tensor) -> Tensor:
    """‖M k - v‖² / ‖v‖² [B, H] of one token, key [B, H, K] and value [B, H, V]."""
    recalled = (key[..., None] * memory).sum(-2)
    return (recalled - value).square().sum(-1) / value.square().sum(-1).clamp_min(MIN_SQUARE)


def largest_error(key: Tensor, value: Tensor) -> Tensor:
    """The bound of `relative_error` over all memories of Frobenius norm √K: (√K ‖k‖ + ‖v‖)² / ‖v‖² [...]."""
    recalled = key.shape[-1] ** 0.5 * key.norm(dim=-1)
    square = value.square().sum(-1)
    return (recalled + square.sqrt()).square() / square.clamp_min(MIN_SQUARE)


def accumulate(pending: Tensor, key: Tensor, value: Tensor, rate: Tensor, online: bool) -> Tensor:
    """What is pending of the span after one more token, learned at `rate` [B, H]."""
    k, v, r = key[..., None], value[..., None, :], rate[..., None, None]
    if online:
        return pending + r * k * (v - (k * pending).sum(-2, keepdim=True))
    return pending + r * k * torch.cat([k.mT, v], -1)


def learning_rate(logit: Tensor, sharpness: Tensor | None, error: Tensor) -> Tensor:
    """σ(logit + s log(ε + error)): a token that the memory did not predict is learned faster."""
    return sigmoid(logit if sharpness is None else logit + sharpness * (MIN_SQUARE + error).log())


def means(tally: Tensor) -> tuple[Tensor, Tensor]:
    """α and η [..., H, 1, 1] of spans with that tally [..., H, 3]."""
    average = tally[..., 1:] / tally[..., :1].clamp_min(MIN_SQUARE)
    return average[..., 0, None, None], average[..., 1, None, None]


def step(
    memory: Tensor, velocity: Tensor, pending: Tensor, alpha: Tensor, eta: Tensor, momentum: bool, online: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory, velocity and what is pending after the end of a span: one step, and nothing pending."""
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
