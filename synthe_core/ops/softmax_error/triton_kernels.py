"""Triton: cross-entropy and its gradient, a row of logits a program. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softmax_error_kernel(logits, labels, losses, width, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Two passes over a row: its largest number and the sum of exponentials, and then the errors in its place."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    start = logits + row * width
    largest = tl.full([BLOCK], -float("inf"), dtype=WIDE)
    total = tl.zeros([BLOCK], dtype=WIDE)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(start + at, mask=at < width, other=-float("inf")).to(WIDE)
        higher = tl.maximum(largest, x)
        lost = tl.where(higher == largest, 1.0, tl.exp(largest - higher))
        total = total * lost + tl.where(x == -float("inf"), 0.0, tl.exp(x - higher))
        largest = higher
    top = tl.max(largest, 0)
    normaliser = top + tl.log(tl.sum(tl.where(largest == -float("inf"), 0.0, total * tl.exp(largest - top)), 0))
    scored = label >= 0
    own = tl.load(start + tl.maximum(label, 0)).to(WIDE)
    tl.store(losses + row, tl.where(scored, normaliser - own, 0.0))
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(start + at, mask=at < width, other=-float("inf")).to(WIDE)
        error = tl.exp(x - normaliser) - tl.where(at == label, 1.0, 0.0)
        tl.store(start + at, tl.where(scored, error, 0.0).to(logits.dtype.element_ty), mask=at < width)
