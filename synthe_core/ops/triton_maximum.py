"""The running maximum behind an mLSTM's scale in Triton: one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.triton_launch import block, cdiv, interpreted, launch

HEADS, TILE = 16, 64  # of a program, and tokens that it scans at a time


def serves(value: Tensor) -> bool:
    """Whether the kernel exists for a tensor."""
    return (value.is_cuda and "triton" in probe().libraries) or (value.device.type == "cpu" and interpreted())


def triton_running_maximum(value: Tensor, step: Tensor, first: Tensor) -> Tensor:
    """m_t = max(m_{t-1} + step_t, value_t) [B, T, H] from m_0 = `first` [B, H]. No gradient."""
    from synthe_core.ops.triton_maximum_kernels import running_maximum_kernel

    batch, time, heads = value.shape
    m = torch.empty_like(value, memory_format=torch.contiguous_format)
    width = block(heads, HEADS)
    launch(
        running_maximum_kernel, (batch, cdiv(heads, width)), value, value.contiguous(), step.contiguous(),
        first.contiguous(), m, time, heads, BT=block(time, TILE, 2), BH=width,
    )  # fmt: skip
    return m
