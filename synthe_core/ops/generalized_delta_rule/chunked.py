"""The generalised delta rule in parallel chunks of time, in torch, for any device.

Within a chunk of C tokens, what is recalled, r_t = S_{t-1}ᵀ a_t, solves a triangular system (the WY form); between
chunks the memory is carried by matrix products. With S the memory before a chunk, W_t the decay from its start through
t, D_ts that from s through t, all per key channel, and <x, y> a sum over channels:

    (I - A_ab) R = (W_{t-1} a_t) S + A_ak V     A_ab[t, s] = <a_t, D_{t-1,s} b_s> for s < t
    O = (W_t q_t) S + A_qk V + A_qb R           A_qk[t, s] = <q_t, D_ts k_s> for s <= t
    S' = W_C S + (D_Cs k_s)ᵀ V + (D_Cs b_s)ᵀ R

The sums over channels cannot be factorised into exp(w) and exp(-w), which overflow. Here the keys of all chunks
decay token by token (`decayed_keys`): C steps, each a pass over the keys, no exponential of a sum and no difference of
sums, so any decay is exact.

Source: Yang et al. 2024, "Parallelizing linear transformers with the delta rule", with the decays of RWKV-7 and KDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.delta_rule.chunked import refusal, solver
from synthe_core.ops.frames import join_chunks, split_chunks
from synthe_core.ops.generalized_delta_rule.reference import generalized_delta_rule

CHUNK = 16
MOST_NUMBERS = 1 << 24  # that the backward pass holds of keys as they fade


def chunks(x: Tensor) -> Tensor:
    """x [B, T, H, ...] as [G, N, C, ...], G = B H heads of N chunks; zeros after the end of time."""
    return split_chunks(x, CHUNK)


class Chunks:
    """The terms of the module's equations, of the chunked q, k, a, b [G, N, C, K] and log decays w."""

    def __init__(self, *tensors: Tensor) -> None:
        self.q, self.k, self.a, self.b, log_decay = (chunks(x) for x in tensors)
        self.decay = log_decay.exp()
        self.from_start = self.decay.cumprod(2)  # W_t
        self.before = torch.cat([torch.ones_like(self.decay[:, :, :1]), self.from_start[:, :, :-1]], 2)  # W_{t-1}
        self.through = self.from_start[:, :, -1, :, None]
        # A query reads after its own token's decay, a recall before it.
        self.readers = torch.stack([self.a, self.decay * self.q], 3)

    def decayed_keys(self) -> Iterator[tuple[int, Tensor]]:
        """Each t and the keys k, then b [G, N, 2C, K] of the tokens before it, as faded when it comes; at last those of
        all tokens, as faded when the chunk ends. One tensor, faded in place: it is read before the next step."""
        keys = self.k.new_zeros(*self.k.shape[:2], 2 * CHUNK, self.k.shape[-1])
        for t in range(CHUNK):
            yield t, keys
            keys *= self.decay[:, :, t, None]
            keys[:, :, t], keys[:, :, CHUNK + t] = self.k[:, :, t], self.b[:, :, t]
        yield CHUNK, keys

    def solve(self) -> None:
        """A_ak, A_ab, A_qk, A_qb, and the keys decayed to the chunk's end."""
        scores = self.q.new_empty(*self.q.shape[:3], 2, 2 * CHUNK)
        for t, keys in self.decayed_keys():
            if t < CHUNK:
                scores[:, :, t] = self.readers[:, :, t] @ keys.mT
        self.k_end, self.b_end = keys.split(CHUNK, 2)
        (self.A_ak, self.A_ab), (self.A_qk, self.A_qb) = (x.split(CHUNK, -1) for x in scores.unbind(3))
        self.A_qk.diagonal(dim1=2, dim2=3).add_((self.q * self.k).sum(-1))
        self.A_qb.diagonal(dim1=2, dim2=3).add_((self.q * self.b).sum(-1))


class Within(NamedTuple):
    """Gradients by what passes between the tokens of a chunk, and from its keys into the memory after it; of the keys k
    and b together, as `keys`."""

    da: Tensor
    dq: Tensor
    keys: tuple[Tensor, Tensor]
    dw: Tensor


def within_chunks(at: Chunks, flow: Tensor, ended: Tensor) -> Within:
    """flow [G, N, C, 2, 2C]: of the two readers at t through the keys of s < t. ended [G, N, 2C, K]: the gradient of
    the keys as they are at the chunk's end.

    Chunks are done some at a time: the keys of each token's time are needed again on the way back.
    """
    flat = [x.flatten(0, 1) for x in (flow, ended, at.q, at.k, at.b, at.decay, at.readers)]
    some = max(1, MOST_NUMBERS // (2 * CHUNK * CHUNK * at.k.shape[-1]))
    parts = [_within(*part) for part in zip(*(x.split(some) for x in flat), strict=True)]
    da, dq, dk, db, dw = (torch.cat(each).unflatten(0, at.k.shape[:2]) for each in zip(*parts, strict=True))
    return Within(da, dq, (dk, db), dw)


def _within(
    flow: Tensor, ended: Tensor, q: Tensor, k: Tensor, b: Tensor, decay: Tensor, readers: Tensor
) -> tuple[Tensor, ...]:
    """The same of some chunks [M, C, ...]: the gradients of a, q, k, b and log decays."""
    da, dq, dk, db, dw = (torch.zeros_like(k) for _ in range(5))
    times = list(_times(k, b, decay))
    for t, keys in enumerate(times):
        da[:, t], of_q = (flow[:, t] @ keys).unbind(1)
        dq[:, t] = decay[:, t] * of_q
    for t in reversed(range(CHUNK)):
        dk[:, t], db[:, t] = ended[:, t], ended[:, CHUNK + t]
        ended = ended * decay[:, t, None]  # a token's own key does not fade when it comes: its row is 0 in `keys`
        dw[:, t] = (ended * times[t]).sum(1) + q[:, t] * dq[:, t]
        ended = flow[:, t].mT @ readers[:, t] + ended
    return da, dq, dk, db, dw


def _times(k: Tensor, b: Tensor, decay: Tensor) -> Iterator[Tensor]:
    """For each token of a chunk the keys k, then b [M, 2C, K] of those before it, as faded when it comes."""
    keys = k.new_zeros(k.shape[0], 2 * CHUNK, k.shape[-1])
    for t in range(CHUNK):
        yield keys
        keys = keys * decay[:, t, None]
        keys[:, t], keys[:, CHUNK + t] = k[:, t], b[:, t]


class ChunkedRule(torch.autograd.Function):
    """Saves the memory before every chunk, the recalls and the inverses; the backward pass recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        at, vs = Chunks(q, k, a, b, log_decay), chunks(v)
        at.solve()
        inverse = solver(-at.A_ab)
        own = inverse @ (at.A_ak @ vs)
        recall = inverse @ (at.before * at.a)
        written = at.k_end.mT @ vs
        memory = q.new_zeros(written.shape[0], *written.shape[2:]) if state is None else state.flatten(0, 1)
        memories, recalls = [memory], []
        for n in range(vs.shape[1]):
            recalls.append(torch.baddbmm(own[:, n], recall[:, n], memory))
            memory = torch.addcmul(written[:, n], memory, at.through[:, n])
            memory = torch.baddbmm(memory, at.b_end[:, n].mT, recalls[-1])
            memories.append(memory)
        before, recalled = torch.stack(memories[:-1], 1), torch.stack(recalls, 1)
        out = (at.from_start * at.q) @ before + at.A_qk @ vs + at.A_qb @ recalled
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, a, b, log_decay, before, recalled, inverse)
            ctx.has_state = state is not None
        return join_chunks(out, q).contiguous(), memory.unflatten(0, (q.shape[0], q.shape[2])).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor, final_grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(out_grad.device.type, enabled=False):
            return ChunkedRule.gradients(ctx, out_grad, final_grad)

    @staticmethod
    def gradients(ctx: Any, out_grad: Tensor, final_grad: Tensor) -> tuple[Tensor | None, ...]:
        """d followed by a name is the gradient of that name in the module's equations."""
        q, k, v, a, b, log_decay, before, recalled, inverse = ctx.saved_tensors
        at, vs, dO = Chunks(q, k, a, b, log_decay), chunks(v), chunks(out_grad)
        at.solve()
        own, carried = inverse.mT @ (at.A_qb.mT @ dO), inverse.mT @ at.b_end
        outer = (at.from_start * at.q).mT @ dO
        recall_keys = (at.before * at.a).mT
        dS = final_grad.flatten(0, 1)
        later, recall_grads = [], []
        for n in reversed(range(vs.shape[1])):
            later.append(dS)
            recall_grads.append(torch.baddbmm(own[:, n], carried[:, n], dS))
            dS = torch.baddbmm(torch.addcmul(outer[:, n], dS, at.through[:, n]), recall_keys[:, n], recall_grads[-1])
        after, dR = torch.stack(later[::-1], 1), torch.stack(recall_grads[::-1], 1)
        dv = at.A_qk.mT @ dO + at.k_end @ after + at.A_ak.mT @ dR

        values = torch.cat([vs, recalled], 2)
        flow = torch.stack([dR @ values.mT, dO @ values.mT], 3)  # of the readers at t through the keys of s
        own_k, own_b = (flow[:, :, :, 1, i * CHUNK :].diagonal(dim1=2, dim2=3)[..., None] for i in range(2))
        own_k, own_b = own_k.clone(), own_b.clone()
        earlier = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril(-1).repeat(1, 2)
        flow *= earlier[:, None]
        da, dq = at.before * (dR @ before.mT), at.from_start * (dO @ before.mT)
        # What passes through a decay, and no difference of sums: read of the memory before the chunk, by a recall at
        # later tokens alone; from that to the memory after it; and below between tokens of the chunk.
        recalls, reads = F.pad((at.a * da)[:, :, 1:], (0, 0, 0, 1)), at.q * dq
        dw = (recalls + reads).flip(2).cumsum(2).flip(2) + (at.through * after * before).sum(-1)[:, :, None]
        within = within_chunks(at, flow, values @ after.mT)
        da, dq = da + within.da, dq + within.dq + own_k * at.k + own_b * at.b
        dk, db = (own + inner for own, inner in zip((own_k * at.q, own_b * at.q), within.keys, strict=True))
        dw = dw + within.dw
        dstate = dS.unflatten(0, (q.shape[0], q.shape[2])) if ctx.has_state else None
        return *(join_chunks(x, q).contiguous() for x in (dq, dk, dv, da, db, dw)), dstate


@generalized_delta_rule.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Torch: chunks of 16 tokens in WY form, a hand-written backward."""
    with torch.autocast(q.device.type, enabled=False):
        return ChunkedRule.apply(q, k, v, a, b, log_decay, state)


chunked.refuses(refusal)
