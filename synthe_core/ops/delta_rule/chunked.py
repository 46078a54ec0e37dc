"""The delta rule and gated linear attention in parallel chunks of time, in torch, for any device.

Within a chunk of C tokens the errors e_t solve a triangular system (the WY form); between chunks the memory is carried
by matrix products. With S the memory before a chunk, γ_t the decay from its start and D_ts from s to t:

    (I + L) E = V - γ K S,   L_ts = D_ts (k_t·k_s) β_s below the diagonal,   U = β E
    O = γ Q S + (D ∘ Q Kᵀ) U,   S' = γ_C S + (D_C K)ᵀ U

Sources: Yang et al. 2024, "Parallelizing linear transformers with the delta rule"; Yang et al. 2025, Gated DeltaNet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.delta_rule.reference import delta_rule, per_value_head
from synthe_core.ops.dispatch import Call, Slower
from synthe_core.ops.frames import join_chunks, split_chunks

CHUNK = 64


def chunks(x: Tensor) -> Tensor:
    """x [B, T, H, ...] as [B H, N, C, ...], zeros after the end of time."""
    return split_chunks(x, CHUNK)


class Decays(NamedTuple):
    """D [G, N, C, C], γ and D_C [G, N, C, 1], γ_C [G, N, 1, 1] over G = B H heads."""

    between: Tensor
    from_start: Tensor
    to_end: Tensor
    through: Tensor


def decays(log_decay: Tensor | None, k: Tensor) -> Decays:
    """The decays of chunked keys k [G, N, C, K]; without `log_decay` they are 1, or 0 for s > t."""
    return chunk_decays(k.new_zeros(k.shape[:3]) if log_decay is None else chunks(log_decay))


def chunk_decays(steps: Tensor) -> Decays:
    """The decays of log decays [G, N, C] by chunks."""
    size = steps.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=steps.device).triu(1)
    # Summed from s to t, not as a difference of long sums, which loses small steps behind large ones; and masked before
    # the exponential, which would overflow for s > t.
    since = steps[..., None].expand(*steps.shape, size).tril(-1).cumsum(-2)
    between = since.masked_fill_(future, float("-inf")).exp_()
    from_start = steps.cumsum(-1).exp()[..., None]
    return Decays(between, from_start, between[:, :, -1, :, None], from_start[:, :, -1:])


def solver(lower: Tensor) -> Tensor:
    """(I + lower)⁻¹ for strictly lower triangular matrices [..., C, C]."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)


class ChunkedMemory(torch.autograd.Function):
    """Saves the memory before every chunk, the errors and the inverses; the backward pass recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        state: Tensor | None,
        overwrite: bool,
        with_error: bool,
    ) -> tuple[Tensor, ...]:
        inputs = (q, k, v, beta, log_decay)
        qs, ks, error, strength = chunks(q), chunks(k), chunks(v), chunks(beta)[..., None]
        decay = decays(log_decay, ks)
        ended = ks * decay.to_end
        recall = inverse = None
        if overwrite:
            lower = (ks @ ks.mT).mul_(decay.between).mul_(strength.mT).tril_(-1)
            inverse = solver(lower)
            error = inverse @ error
            recall = inverse @ (ks * decay.from_start)
        memory = q.new_zeros(qs.shape[0], k.shape[-1], v.shape[-1]) if state is None else state.flatten(0, 1)
        memories, errors = [memory], []
        for n in range(qs.shape[1]):
            e = error[:, n] if recall is None else torch.baddbmm(error[:, n], recall[:, n], memory, alpha=-1)
            memory = torch.baddbmm(memory * decay.through[:, n], ended[:, n].mT, strength[:, n] * e)
            memories.append(memory)
            errors.append(e)
        before, error = torch.stack(memories[:-1], 1), torch.stack(errors, 1)
        read = (qs @ ks.mT).mul_(decay.between)
        out = (qs * decay.from_start) @ before + read @ (strength * error)
        final = memory.unflatten(0, (q.shape[0], q.shape[2]))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*inputs, before, error if overwrite else None, inverse)
            ctx.overwrite, ctx.has_state = overwrite, state is not None
        errors_out = (join_chunks(error, q).contiguous(),) if with_error else ()
        return join_chunks(out, q).contiguous(), final.clone(), *errors_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor, final_grad: Tensor, *error_grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(out_grad.device.type, enabled=False):
            return ChunkedMemory.gradients(ctx, out_grad, final_grad, *error_grad)

    @staticmethod
    def gradients(ctx: Any, out_grad: Tensor, final_grad: Tensor, *error_grad: Tensor) -> tuple[Tensor | None, ...]:
        """d followed by a name is the gradient of that name in the module's equations; dR is that of V - γ K S, and dE
        the errors' gradient as outputs of their own."""
        q, k, v, beta, log_decay, before, error, inverse = ctx.saved_tensors
        qs, ks, vs, strength, dO = chunks(q), chunks(k), chunks(v), chunks(beta)[..., None], chunks(out_grad)
        decay = decays(log_decay, ks)
        error = error if ctx.overwrite else vs
        u, ended = strength * error, ks * decay.to_end
        read = (qs @ ks.mT).mul_(decay.between)
        dU = read.mT @ dO
        dR, carried = strength * dU, strength * ended
        dE = chunks(error_grad[0]) if error_grad else None
        if dE is not None:
            dR = dR + dE
        if ctx.overwrite:
            dR, carried = inverse.mT @ dR, inverse.mT @ carried
        outer = (qs * decay.from_start).mT @ dO
        recalled = (ks * decay.from_start).mT
        dS = final_grad.flatten(0, 1)
        later, rights = [], []
        for n in reversed(range(qs.shape[1])):
            later.append(dS)
            right = torch.baddbmm(dR[:, n], carried[:, n], dS)
            rights.append(right)
            dS = torch.addcmul(outer[:, n], dS, decay.through[:, n])
            if ctx.overwrite:
                dS = torch.baddbmm(dS, recalled[:, n], right, alpha=-1)
        after, dR = torch.stack(later[::-1], 1), torch.stack(rights[::-1], 1)
        dU = dU + ended @ after

        flow = dO @ u.mT
        within, flow = flow * read, flow.mul_(decay.between)
        onto, into = (dO @ before.mT).mul_(decay.from_start), (u @ after.mT).mul_(decay.to_end)
        leaving, entering = (qs * onto).sum(-1), (ks * into).sum(-1)
        dq = onto + flow @ ks
        dk = flow.mT @ qs + into
        if ctx.overwrite:
            lower = (ks @ ks.mT).mul_(decay.between).tril_(-1)
            dU = dU - lower.mT @ dR
            clash, onto = dR @ u.mT, (dR @ before.mT).mul_(decay.from_start)
            within, clash = within - clash * lower, clash.mul_(decay.between).tril_(-1)
            leaving = leaving - (ks * onto).sum(-1)
            dk = dk - onto - (clash + clash.mT) @ ks
        dbeta = (dU * error).sum(-1)
        dlog = None
        if log_decay is not None:
            through = decay.through[..., 0] * (after * before).sum((-1, -2))[..., None]
            dlog = join_chunks(through + _passing(leaving, entering, within), q)
        dstate = dS.unflatten(0, (q.shape[0], q.shape[2])) if ctx.has_state else None
        return (
            join_chunks(dq, q),
            join_chunks(dk, q),
            join_chunks(dR, q),
            join_chunks(dbeta, q),
            dlog,
            dstate,
            None,
            None,
        )


def _passing(leaving: Tensor, entering: Tensor, within: Tensor) -> Tensor:
    """The gradient of the logarithm of a decay at r, Σ_{t≥r} leaving_t + Σ_{s<r} entering_s + Σ_{t≥r>s} within_ts:
    [..., C] of [..., C], [..., C] and [..., C, C], of what is read from the memory before a chunk, what is written into
    that after it, and what is read of another token of the chunk. No term is of a token with itself, which would
    cancel."""
    within = within.tril(-1)
    between = (within.cumsum(-1) - within).tril().sum(-2)
    return leaving.flip(-1).cumsum(-1).flip(-1) + entering.cumsum(-1) - entering + between


def chunked_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    overwrite: bool,
    with_error: bool = False,
) -> Any:
    """Either rule (see `delta_rule`, `linear_attention`) by chunks; `overwrite` False adds instead.

    With `with_error`, the errors v_t - S k_t [B, T, H, V] are the third output.
    """
    q, k = per_value_head(q, v), per_value_head(k, v)  # chunks are copies in any case
    with torch.autocast(q.device.type, enabled=False):
        return ChunkedMemory.apply(q, k, v, beta, log_decay, state, overwrite, with_error)


def refusal(hardware: Hardware, call: Call) -> str | None:
    """Why chunks do not serve a call, or None."""
    return Slower("a few tokens are cheaper one by one") if call.time < 8 else None


@delta_rule.kernel("chunked", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Torch: chunks of 64 tokens in WY form, a hand-written backward."""
    return chunked_memory(q, k, v, beta, log_decay, state, True)


chunked.refuses(refusal)
