"""The formats of quantised weights, and which tensors are quantised.

    w ~ scale * code        code int8 in [-127, 127], or two codes in [-8, 7] a byte; scale bfloat16 for each group

A group is a number of consecutive columns of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

MIN_NUMBERS = 4096  # a smaller tensor saves nothing worth mentioning
MIN_COLUMNS = 32
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class QuantizationFormat(NamedTuple):
    """Codes from `low` to `high`, with a scale for each `group` of columns.

    scale_shares: candidates for the scale, as shares of the largest number of a group over `high`; each group takes the
    one with the least squared error.
    """

    bits: int
    low: int
    high: int
    group: int
    scale_shares: tuple[float, ...]


FORMATS = {
    "int8": QuantizationFormat(8, -127, 127, 128, (1.0,)),
    "int4": QuantizationFormat(4, -8, 7, 32, (1.0, 0.9375, 0.875, 0.8125, 0.75)),
}


def quantizable(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a float matrix that is large and wide enough to be quantised."""
    return dtype in FLOATS and len(shape) >= 2 and shape[-1] >= MIN_COLUMNS and math.prod(shape) >= MIN_NUMBERS
