"""The linear scan of flash-linear-attention (its HGRN kernels, written in Triton) on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, Slower
from synthe_core.ops.linear_scan.blocked import AdjointScan
from synthe_core.ops.linear_scan.reference import linear_scan

SMALLEST = 1e-30  # these kernels want log decays; below this a decay counts as zero in float32


@linear_scan.kernel("fla", rank=30, tolerance=1e-4)
def fla(decay: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Only their forward scan is used, both ways, so that a decay of zero keeps its gradient."""
    h = AdjointScan.apply(_scan, decay, value, state)
    return h, h[:, -1].clone()


@fla.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.device != "cuda":
        return f"written for CUDA, and the tensors are on {call.device}"
    missing = [name for name in ("fla-core", "triton") if name not in hardware.libraries]
    if missing:
        return f"{' and '.join(missing)} not installed (pip install 'synthe[gpu]')"
    if call.dtype != torch.float32:
        return f"computes in float32, not {call.dtype}"
    return None if call.time > 1 else Slower("a single step: the recurrence itself is one operation")


def _scan(decay: Tensor, value: Tensor, state: Tensor | None) -> Tensor:
    from fla.ops.hgrn import chunk_hgrn  # optional, and slow to import

    gate = decay.clamp_min(SMALLEST).log()
    h, _ = chunk_hgrn(value.contiguous(), gate, initial_state=None if state is None else state.contiguous())
    return h
