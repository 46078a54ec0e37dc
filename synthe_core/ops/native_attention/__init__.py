"""`window_attention` in C: a query's numbers are the same wherever a text is cut, and in any company.

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


def native_attention(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """float32 as in `window_attention`. One token's queries by themselves; of several tokens, four queries at a time
    against keys that are transposed once."""
    (batch, time, heads, size), (entries, groups) = q.shape, k.shape[1:3]
    y = torch.empty_like(q, memory_format=torch.contiguous_format)
    q, k, v = (x.contiguous() for x in (q, k, v))
    valid = None if valid is None else valid.contiguous()
    run = library(SOURCE).native_attention
    run.restype = ctypes.c_int64
    sizes = map(ctypes.c_int64, (batch, time, entries, heads, groups, size, window))
    if run(*map(pointer, (q, k, v, valid, y)), ctypes.c_double(size**-0.5), *sizes):
        raise MemoryError(f"no memory for attention to {entries} keys")
    return y


def unavailable(hardware: Hardware, device: str) -> str | None:
    """Why it cannot run on a type of device, or None."""
    return refusal(hardware, device, SOURCE)
