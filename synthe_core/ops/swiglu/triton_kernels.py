"""Triton: the gate of a SwiGLU MLP, number by number. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def swiglu_forward(gate_up, out, numbers, width, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numbers
    source = at // width * 2 * width + at % width
    gate = tl.load(gate_up + source, mask=mask, other=0.0).to(WIDE)
    up = tl.load(gate_up + source + width, mask=mask, other=0.0).to(WIDE)
    tl.store(out + at, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def swiglu_backward(gate_up, out_grad, gate_up_grad, numbers, width, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numbers
    source = at // width * 2 * width + at % width
    gate = tl.load(gate_up + source, mask=mask, other=0.0).to(WIDE)
    up = tl.load(gate_up + source + width, mask=mask, other=0.0).to(WIDE)
    slope = tl.load(out_grad + at, mask=mask, other=0.0).to(WIDE)
    open = 1 / (1 + tl.exp(-gate))
    kind = gate_up_grad.dtype.element_ty
    tl.store(gate_up_grad + source, (slope * up * open * (1 + gate * (1 - open))).to(kind), mask=mask)
    tl.store(gate_up_grad + source + width, (slope * gate * open).to(kind), mask=mask)
