"""Products with a matrix that stays in bfloat16 or float16: two bytes a number are read, and widened in registers.

    y = W x        x float32 [..., I], W [O, I], y float32 [..., O]

Sums are in float32, as if W had been widened before: nothing but W is rounded. A row of y does not depend on other
rows. No gradient.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.native import library, pointer, refusal

SOURCE = "float_linear/float_linear.c"
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def float_linear(x: Tensor, weight: Tensor) -> Tensor:
    """W x of a contiguous W in one of `STORED`."""
    x = x.float().contiguous()
    y = torch.empty(*x.shape[:-1], len(weight))
    size = ctypes.c_int64
    rows = x.numel() // x.shape[-1]
    library(SOURCE).float_linear(
        *map(pointer, (weight, x, y)), *map(size, (STORED[weight.dtype], rows, x.shape[-1], len(weight)))
    )
    return y


def unavailable(device: str) -> str | None:
    """Why there are no such products on a type of device, or None."""
    return refusal(probe(), device, SOURCE)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    """`float_linear`, float64 [..., O]."""
    return x.double() @ weight.double().T
