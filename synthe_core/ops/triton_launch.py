"""Triton kernels of our own: which calls they serve, and how they are launched.

The kernels of an operator stand in its `triton_kernels.py`, which is imported at the first launch: neither a start of
the program nor a machine without a GPU imports Triton. With TRITON_INTERPRET=1 in the environment Triton computes on
the CPU, statement by statement; that is how the kernels are tested without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call

RANK = 40  # before kernels of other libraries (30), compiled C (20) and torch (10)
FLOATS = (torch.float32, torch.float64)


def interpreted() -> bool:
    """Whether Triton computes on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refusal(hardware: Hardware, call: Call, dtypes: Collection[torch.dtype] = FLOATS) -> str | None:
    """Why a Triton kernel for tensors of `dtypes` cannot serve a call, or None."""
    if call.device != "cuda" and not (call.device == "cpu" and interpreted()):
        return f"written for CUDA, and the tensors are on {call.device}"
    if "triton" not in hardware.libraries:
        return "triton not installed (pip install 'synthe[gpu]')"
    if call.dtype not in dtypes:
        return f"written for {' and '.join(str(each) for each in dtypes)}, not {call.dtype}"
    return None


def mixed_types(call: Call) -> str | None:
    """A refusal where the floating-point tensors of a call differ in type, or None."""
    tensors = [value for value in call.arguments.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return "its tensors are of different types" if len({tensor.dtype for tensor in tensors}) > 1 else None


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel over a grid of programs on the device of `like`, which need not be the current one."""
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[grid](*arguments, **constants)


def cdiv(n: int, size: int) -> int:
    """n / size, rounded up."""
    return -(-n // size)


def block(n: int, most: int, least: int = 1) -> int:
    """The smallest power of two from n on, between `least` and `most`, which are powers of two."""
    return max(least, min(most, 1 << max(n - 1, 0).bit_length()))


def wide(dtype: torch.dtype) -> Any:
    """Triton's name of the type that numbers stored as `dtype` are computed in."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32
