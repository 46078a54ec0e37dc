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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.ops.delta_rule.chunked import refusal, solver
from synthe_core.ops.frames import join_chunks, split_chunks
from synthe_core.ops.generalized_delta_rule.reference import generalized_delta_rule

CHUNK = 16


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
            ctx.save_for_backward(q, k, v, a, b, log_decay, before, memory, recalled, inverse)
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
        q, k, v, a, b, log_decay, before, final, recalled, inverse = ctx.saved_tensors
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
        da, dq = at.before * (dR @ before.mT), at.from_start * (dO @ before.mT) + own_k * at.k + own_b * at.b
        for t, keys in at.decayed_keys():
            if t < CHUNK:
                of_a, of_q = (flow[:, :, t] @ keys).unbind(2)
                da[:, :, t] += of_a
                dq[:, :, t] += at.decay[:, :, t] * of_q
        dk, db = own_k * at.q, own_b * at.q
        keys = values @ after.mT  # their gradient, from the chunk's end backwards
        for t in reversed(range(CHUNK)):
            dk[:, :, t] += keys[:, :, t]
            db[:, :, t] += keys[:, :, CHUNK + t]
            keys = torch.addcmul(flow[:, :, t].mT @ at.readers[:, :, t], keys, at.decay[:, :, t, None])

        # X_t, the diagonal of dS_t S_tᵀ, gives dw_t = X_t - b_t db_t - k_t dk_t and X_{t-1} = dw_t + a_t da_t +
        # q_{t-1} dq_{t-1}; each chunk starts anew at its end, so that rounding does not accumulate.
        along = (after * torch.cat([before[:, 1:], final[:, None]], 1)).sum(-1)[:, :, None]
        flux = at.q * dq - at.k * dk - at.b * db
        passed = F.pad((flux + at.a * da)[:, :, 1:], (0, 0, 0, 1))
        dw = along + flux + passed.flip(2).cumsum(2).flip(2)
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
