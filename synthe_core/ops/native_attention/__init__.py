"""`window_attention` and `probed_attention` in C: a query's numbers do not depend on where a text is cut.

The sums of a query go over its own valid keys, the oldest first. torch's fused attention cuts keys into blocks that
start with the first one it is given: there the last bits depend on how many keys a pass has. No gradient.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.native import library, pointer, refusal

SOURCE = "native_attention/native_attention.c"


def native_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    valid: Tensor | None,
    cap: float | None,
    selected: Tensor | None = None,
) -> Tensor:
    """float32 as in `window_attention`, or with `selected` as in `probed_attention`. A row's only query is read by
    itself; of several, four at a time against keys that are transposed once."""
    (heads, size), (batch, length, groups), time = q.shape[-2:], k.shape[:3], q.shape[1]
    starts = positions = None
    if selected is not None:
        time, counts = selected.shape[1], selected.sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        positions = selected.nonzero()[:, 1] + (length - time)
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    tensors = [None if x is None else x.contiguous() for x in (q, k, v, valid, starts, positions)]
    run = library(SOURCE).native_attention
    run.restype = ctypes.c_int64
    factors = map(ctypes.c_double, (size**-0.5, cap or 0))
    sizes = map(ctypes.c_int64, (batch, time, length, heads, groups, size, window))
    if run(*map(pointer, (*tensors, y)), *factors, *sizes):
        raise MemoryError(f"no memory for attention to {length} keys")
    return y


def unavailable(hardware: Hardware, device: str) -> str | None:
    """Why it cannot run on a type of device, or None."""
    return refusal(hardware, device, SOURCE)
