"""The matrix memory of xLSTM: exponential gates, kept finite by a scale that follows the largest of them.

Source: Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", equations 19-27 and appendix A.3 (stabilisation).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import probe
from synthe_core.ops.delta_rule.fla import refusal as fla_refusal
from synthe_core.ops.dispatch import op, require_float
from synthe_core.ops.linear_attention import linear_attention
from synthe_core.ops.linear_scan import linear_scan
from synthe_core.ops.native import call, refusal
from synthe_core.ops.triton_maximum import serves, triton_running_maximum

SCAN = "running_maximum.c"
EMPTY_SCALE = -1e30  # the scale of an empty memory: below that of any token


@op(batch_invariant=("cpu",))
def mlstm(
    q: Tensor, k: Tensor, v: Tensor, log_input: Tensor, log_forget: Tensor, memory: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """C_t = f_t C_{t-1} + i_t v_t k_tᵀ, n_t = f_t n_{t-1} + i_t k_t and h_t = C_t q_t / max(|n_t·q_t|, 1).

    q, k        [B, T, H, K]: as they are; the operator neither scales nor normalises them.
    v           [B, T, H, V]
    log_input   [B, T, H]: log i of any size; -inf writes nothing.
    log_forget  [B, T, H]: log f of any finite size; log σ for a sigmoid gate, the logit itself for an exponential one.
    memory      [B, H, K, V + 1]: Cᵀ, and n as its last column, both divided by exp(m).
    scale       [B, H]: m; `EMPTY_SCALE`, with a memory of zeros, before the first token.

    Gates of e^100 stay finite by m_t = max(log f_t + m_{t-1}, log i_t): what is stored is C e^{-m} and n e^{-m}, and
    the bound of 1 becomes e^{-m}. h does not depend on m, so m carries no gradient of its own. A token with log_input
    -inf and log_forget 0 leaves memory and scale as they are, which is how padding is written.

    Returns h [B, T, H, V], memory and scale. float32 or float64, one dtype for all.
    """
    require_float("q", q)
    outputs = []
    for t in range(q.shape[1]):
        new = torch.maximum(log_forget[:, t] + scale, log_input[:, t]).detach()
        forget, write = torch.exp(log_forget[:, t] + scale - new), torch.exp(log_input[:, t] - new)
        column = torch.cat([v[:, t], torch.ones_like(v[:, t, :, :1])], -1)
        memory = forget[..., None, None] * memory + write[..., None, None] * k[:, t, :, :, None] * column[:, :, None]
        scale = new
        outputs.append(normalised(torch.einsum("bhk,bhkv->bhv", q[:, t], memory), scale))
    return torch.stack(outputs, 1), memory, scale


def normalised(read: Tensor, scale: Tensor) -> Tensor:
    """h = C q / max(|n·q|, e^{-m}) from what is read [..., V + 1] at the scale m [...]."""
    return read[..., :-1] / torch.maximum(read[..., -1:].abs(), output_bound(scale))


def output_bound(scale: Tensor) -> Tensor:
    """e^{-m} [..., 1], clamped between what overflows and ε², which is far below the rounding of n·q: h is finite where
    n·q is 0."""
    kind = torch.finfo(scale.dtype)
    return torch.exp(-scale.clamp(-0.9 * math.log(kind.max), -2 * math.log(kind.eps)))[..., None]


class Normalised(torch.autograd.Function):
    """`normalised` with a backward pass that writes the gradient of what is read in its place, once."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, scale: Tensor) -> Tensor:
        total, bound = read[..., -1:], output_bound(scale)
        inverse = torch.maximum(total.abs(), bound).reciprocal()
        h = read[..., :-1] * inverse
        ctx.save_for_backward(h, inverse, total.sign() * (total.abs() > bound))
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        h, inverse, slope = ctx.saved_tensors
        read_grad = h.new_empty(*h.shape[:-1], h.shape[-1] + 1)
        torch.mul(grad, inverse, out=read_grad[..., :-1])
        read_grad[..., -1:] = -(grad * h).sum(-1, keepdim=True) * slope * inverse
        return read_grad, None


@torch.no_grad()
def running_maximum(value: Tensor, step: Tensor, first: Tensor) -> Tensor:
    """m_t = max(m_{t-1} + step_t, value_t) [B, T, H] from m_0 = `first` [B, H]. In Triton a tile at a time; in C token
    by token, so that a cut of a text changes no bit; elsewhere over twice as many tokens at each round.

    Not as a running sum and its maximum: float32 loses small terms behind a large sum of decays.
    """
    if serves(value):
        return triton_running_maximum(value, step, first)
    if value.device.type == "cpu" and refusal(probe(), "cpu", SCAN) is None:
        value, step, first = value.contiguous(), step.contiguous(), first.contiguous()
        call(SCAN, "running_maximum", value, value, step, first, m := torch.empty_like(value))
        return m
    m, reach, time = value.clone(), step.clone(), value.shape[1]
    m[:, 0] = torch.maximum(value[:, 0], first + step[:, 0])
    span = 1
    while span < time:
        m[:, span:] = torch.maximum(m[:, span:], m[:, :-span] + reach[:, span:])
        reach[:, span:] = reach[:, span:] + reach[:, :-span]
        span *= 2
    return m


@mlstm.kernel("fla", rank=30, tolerance=2e-2)
def fla(
    q: Tensor, k: Tensor, v: Tensor, log_input: Tensor, log_forget: Tensor, memory: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton: fla's linear attention for the matrix C, in bfloat16; the normaliser n is a linear scan in float32, as
    what is read is divided by n·q, which may be near 0."""
    write, decay, scales = scaled_gates(log_input, log_forget, scale)
    read, matrix = linear_attention.named("fla")(q, k, v, write, decay, memory[..., :-1])
    first = memory[..., -1].flatten(1)
    steps = decay.exp()[..., None].expand(k.shape).flatten(2)
    sums, last = linear_scan(steps, (write[..., None] * k).flatten(2), first)
    total = (sums.view(k.shape) * q).sum(-1, keepdim=True)
    after = torch.cat([matrix, last.view(k[:, 0].shape)[..., None]], -1)
    return Normalised.apply(torch.cat([read, total], -1), scales), after, scales[:, -1].clone()


fla.refuses(fla_refusal)


def scaled_gates(log_input: Tensor, log_forget: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """i and log f [B, T, H] of a memory divided by exp(m), and every m [B, T, H]."""
    scales = running_maximum(log_input, log_forget, scale)
    step = torch.cat([scale[:, None], scales[:, :-1]], 1) - scales  # the difference first: it is exact where m is large
    # A decay of e^-1e30 is 0, and would lose the others where a kernel takes differences of running sums.
    decay = (log_forget + step).clamp_min(math.log(torch.finfo(scale.dtype).tiny))
    return torch.exp(log_input - scales), decay, scales


@mlstm.kernel("composed", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def composed(
    q: Tensor, k: Tensor, v: Tensor, log_input: Tensor, log_forget: Tensor, memory: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Every scale at once, then linear attention, whichever of its kernels serves.

    Scales are rounded otherwise than by the recurrence. As gates and bound are taken at the very scale that the memory
    is divided by, that alters no output.
    """
    write, decay, scales = scaled_gates(log_input, log_forget, scale)
    column = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    read, memory = linear_attention(q, k, column, write, decay, memory)
    return Normalised.apply(read, scales), memory, scales[:, -1].clone()
