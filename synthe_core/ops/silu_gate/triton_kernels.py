"""Triton: a SiLU output gate, number by number. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu_gate_forward(
    value, gate, out, numbers, time, width, gate_row, gate_token, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numbers
    token = at // width
    place = token // time * gate_row + token % time * gate_token + at % width
    v = tl.load(value + at, mask=mask, other=0.0).to(WIDE)
    g = tl.load(gate + place, mask=mask, other=0.0).to(WIDE)
    tl.store(out + at, (v * g / (1 + tl.exp(-g))).to(out.dtype.element_ty), mask=mask)


@triton.jit
def silu_gate_backward(
    value, gate, out_grad, value_grad, gate_grad, numbers, time, width, gate_row, gate_token,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < numbers
    token = at // width
    place = token // time * gate_row + token % time * gate_token + at % width
    v = tl.load(value + at, mask=mask, other=0.0).to(WIDE)
    g = tl.load(gate + place, mask=mask, other=0.0).to(WIDE)
    slope = tl.load(out_grad + at, mask=mask, other=0.0).to(WIDE)
    open = 1 / (1 + tl.exp(-g))
    tl.store(value_grad + at, (slope * g * open).to(value_grad.dtype.element_ty), mask=mask)
    of_gate = slope * v * open * (1 + g * (1 - open))
    tl.store(gate_grad + at, of_gate.to(gate_grad.dtype.element_ty), mask=mask)
