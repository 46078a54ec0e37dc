"""A memory that is a small network and is trained on every token that it is shown, by gradient descent with momentum.

Sources: Sun et al. 2024 (TTT: the network of a norm and a residual, mini-batches), Behrouz et al. 2025 (Titans:
momentum and forgetting, parallel in chunks).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.activations import sigmoid
from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.frames import gather_padded, gather_rows, may_read_sizes

EPS = 1e-6  # added to a variance


class Weights(NamedTuple):
    """The matrices of a network of one or two layers: first [B, H, K + 1, M], and second [B, H, M + 1, V] or None; the
    last row of each is its bias."""

    first: Tensor
    second: Tensor | None


@op(batch_invariant=("cpu",))
def deep_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    momentum: Tensor,
    decay: Tensor,
    scale: Tensor,
    shift: Tensor,
    positions: Tensor,
    real: Tensor,
    first: Tensor,
    second: Tensor | None,
    velocity_first: Tensor,
    velocity_second: Tensor | None,
    start_first: Tensor,
    start_second: Tensor | None,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """o_t = f(W_t; q_t), f(W; x) = x + scale ⊙ norm(net(W; x)) + shift; net is W₁ x, or W₂ silu(W₁ x), with biases.

        U_t = η_t U_{t-1} - θ_t ∇ ½ ‖f(W'; k_t) - v_t‖²,    W_t = (1 - α_t) W_{t-1} + U_t

    norm takes the mean from its argument and divides by the standard deviation. The gradient is at W', the weights
    before the chunk: the last token whose position is no multiple of `chunk` has the same W' as the one before it.

    q, k, v    [B, T, H, K]: queries, keys and values have one size.
    rate, momentum, decay  [B, T, H]: θ >= 0, η in [0, 1] and α in [0, 1].
    scale, shift           [H, K].
    positions  int64 [B, T], of consecutive tokens; real bool [B, T]: other tokens change nothing.
    first, second          W of the layers [B, H, K + 1, M] and [B, H, M + 1, K], None for the second of one layer
               ([B, H, K + 1, K]); velocity_* U and start_* W', of the same shapes.

    Returns o [B, T, H, K] and the six tensors of the state. float32 or float64, one dtype for all.
    """
    require_float("q", q)
    W, U = Weights(first, second), Weights(velocity_first, velocity_second)
    start, outputs = Weights(start_first, start_second), []
    for t in range(q.shape[1]):
        begins = (positions[:, t] % chunk == 0) & real[:, t]
        start = _where(begins, W, start)
        inputs, slopes = gradients(start, k[:, t, :, None], v[:, t, :, None], scale, shift)
        keep, eta, theta = (part[:, t, :, None, None] for part in (1 - decay, momentum, rate))
        moved = [None if u is None else eta * u - theta * x.mT @ d for u, x, d in zip(U, inputs, slopes, strict=True)]
        learned = [None if w is None or u is None else keep * w + u for w, u in zip(W, moved, strict=True)]
        U, W = _where(real[:, t], Weights(*moved), U), _where(real[:, t], Weights(*learned), W)  # type: ignore[arg-type]
        outputs.append(apply(W, q[:, t, :, None], scale, shift)[:, :, 0])
    return torch.stack(outputs, 1), *W, *U, *start


def _where(chosen: Tensor, new: Weights, old: Weights) -> Weights:
    """Rows of `new` where `chosen` [B], else of `old`."""
    pairs = zip(new, old, strict=True)
    return Weights(
        *(None if a is None or b is None else torch.where(chosen[:, None, None, None], a, b) for a, b in pairs)  # type: ignore[arg-type]
    )


def _with_one(x: Tensor) -> Tensor:
    """x [..., C, K] with a column of ones, which the bias multiplies."""
    return F.pad(x, (0, 1), value=1.0)


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """silu(z) and its slope."""
    gate = sigmoid(z)
    return z * gate, gate * (1 + z * (1 - gate))


def _standardized(z: Tensor) -> tuple[Tensor, Tensor]:
    """z less its mean over its standard deviation, and that deviation's reciprocal."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    return centred * inverse, inverse


def finish(x: Tensor, z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x + scale ⊙ norm(z) + shift of x, z [B, H, C, K]."""
    return x + scale[:, None] * _standardized(z)[0] + shift[:, None]


def apply(W: Weights, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """f(W; x) of x [B, H, C, K]."""
    z = _with_one(x) @ W.first
    return finish(x, z if W.second is None else _with_one(_silu(z)[0]) @ W.second, scale, shift)


def gradients(
    W: Weights, k: Tensor, v: Tensor, scale: Tensor, shift: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of ½ ‖f(W; k) - v‖² of every token of k, v [B, H, C, K]: the layers' inputs x and the slopes d of their outputs;
    xᵀ d of one token is the gradient of a matrix. The second of each is empty without a second layer."""
    x = _with_one(k)
    z = x @ W.first
    hidden, slope = _silu(z) if W.second is not None else (z, z)
    x_second = _with_one(hidden)
    z = z if W.second is None else x_second @ W.second
    normed, inverse = _standardized(z)
    error = scale[:, None] * (k + scale[:, None] * normed + shift[:, None] - v)
    d = inverse * (error - error.mean(-1, keepdim=True) - normed * (error * normed).mean(-1, keepdim=True))
    if W.second is None:
        return (x, x[..., :0]), (d, d)
    return (x, x_second), (slope * (d @ W.second[..., :-1, :].mT), d)


class _Frames(NamedTuple):
    """Tokens by chunks at absolute positions: source int64 [B, F C] of the token at a place, T for none; place int64
    [B, T] of each token."""

    source: Tensor
    place: Tensor

    @classmethod
    def of(cls, positions: Tensor, real: Tensor, chunk: int) -> _Frames:
        time, offset = positions.shape[1], positions[:, :1] % chunk
        most = int(offset.max()) if may_read_sizes(offset) else chunk - 1
        count = (most + time - 1) // chunk + 1
        token = torch.arange(count * chunk, device=offset.device) - offset
        inside = (token >= 0) & (token < time)
        index = torch.where(inside, token, time)
        index = torch.where(real.gather(1, token.clamp(0, time - 1)) & inside, index, time)
        return cls(index, offset + torch.arange(time, device=offset.device))


class _Steps(NamedTuple):
    """What W_t and U_t of a chunk are made of, with g the gradients: W_t = faded_t W_0 + carried_t U_0 - Σ_s written_ts
    g_s and U_t = rolled_t U_0 - Σ_s moved_ts g_s. faded, carried, rolled [..., C, 1]; written, moved [..., C, C]."""

    faded: Tensor
    carried: Tensor
    rolled: Tensor
    written: Tensor
    moved: Tensor

    @classmethod
    def of(cls, rate: Tensor, momentum: Tensor, decay: Tensor, real: Tensor) -> _Steps:
        """Of θ, η, α and whether a token is real [..., C]; others neither decay nor move."""
        keep, eta = torch.where(real, 1 - decay, 1.0), torch.where(real, momentum, 1.0)
        faded, rolled = _products(keep), _products(eta)
        adds = faded[..., 1:] * real[..., None, :].to(rate.dtype)  # of U_s in W_t
        carried = adds @ rolled[..., :1]
        moved = rolled[..., 1:]
        return cls(
            faded[..., :1], carried, rolled[..., :1], (adds @ moved) * rate[..., None, :], moved * rate[..., None, :]
        )


def _products(x: Tensor) -> Tensor:
    """Π_{s < i <= t} x_i for s = -1 ... t, 0 for later s: [..., C, C + 1] of [..., C]."""
    size = x.shape[-1]
    every = torch.ones(size, size, dtype=torch.bool, device=x.device)
    factors = torch.where(every.tril(-1), x[..., None], 1.0).cumprod(-2).tril()
    return torch.cat([x.cumprod(-1)[..., None], factors], -1)


@deep_memory.kernel("chunked", rank=10, tolerance=1e-4, batch_invariant=("cpu",))
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    momentum: Tensor,
    decay: Tensor,
    scale: Tensor,
    shift: Tensor,
    positions: Tensor,
    real: Tensor,
    first: Tensor,
    second: Tensor | None,
    velocity_first: Tensor,
    velocity_second: Tensor | None,
    start_first: Tensor,
    start_second: Tensor | None,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """Torch: chunk by chunk; its tokens' weights are never made, only products with them."""
    size = min(chunk, chunk if q.shape[1] > 1 else 1)
    frames = _Frames.of(positions, real, chunk) if size > 1 else _Frames(torch.where(real, 0, 1), real.long() * 0)

    def split(x: Tensor) -> Tensor:
        return gather_padded(x, frames.source).unflatten(1, (-1, size)).movedim(3, 2)  # [B, F, H, C, ...]

    begins = split(((positions % chunk == 0) & real)[..., None])[:, :, 0, 0]
    with torch.autocast(q.device.type, enabled=False):
        present = split(real[..., None])
        steps = _Steps.of(split(rate), split(momentum), split(decay), present)
        W, U = Weights(first, second), Weights(velocity_first, velocity_second)
        start, outputs = Weights(start_first, start_second), []
        parts = zip(
            *(split(x).unbind(1) for x in (q, k, v)), begins.unbind(1), *(x.unbind(1) for x in steps), strict=True
        )
        for queries, keys, values, begun, *step in parts:
            start = _where(begun, W, start)
            inputs, slopes = gradients(start, keys, values, scale, shift)
            out, W, U = _pass(_Steps(*step), W, U, inputs, slopes, queries)
            outputs.append(finish(queries, out, scale, shift))
        o = gather_rows(torch.stack(outputs, 1).movedim(2, 3).flatten(1, 2), frames.place)
    return o, *W, *U, *start


def _pass(
    steps: _Steps,
    W: Weights,
    U: Weights,
    inputs: tuple[Tensor, ...],
    slopes: tuple[Tensor, ...],
    queries: Tensor,
) -> tuple[Tensor, Weights, Weights]:
    """What the network of every token of a chunk makes of its query, before the norm, and W and U after the chunk."""
    x = queries
    weights: list[Tensor | None] = []
    velocities: list[Tensor | None] = []
    for layer, (w, u) in enumerate(zip(W, U, strict=True)):
        if w is None or u is None:
            weights.append(None)
            velocities.append(None)
            continue
        x = _with_one(_silu(x)[0] if layer else x)
        known, d = inputs[layer], slopes[layer]
        x, read = steps.faded * (x @ w) + steps.carried * (x @ u), (x @ known.mT) * steps.written
        x = x - read @ d
        last = [part[..., -1:, :] for part in steps]
        weights.append(last[0] * w + last[1] * u - (last[3].mT * known).mT @ d)
        velocities.append(last[2] * u - (last[4].mT * known).mT @ d)
    return x, Weights(*weights), Weights(*velocities)  # type: ignore[arg-type]
