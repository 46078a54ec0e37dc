"""The gated average in Triton: gates, product and scan in one kernel each way."""

from __future__ import annotations

from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import Call, require_float
from synthe_core.ops.gated_average.reference import gated_average
from synthe_core.ops.linear_scan.triton import TritonScan
from synthe_core.ops.triton_launch import RANK, mixed_types, refusal


@gated_average.kernel("triton", rank=RANK, tolerance=1e-5)
def triton(gate: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Triton: the linear scan's kernel, with the sigmoids inside."""
    require_float("gate", gate)
    return TritonScan.apply(gate, value, state, True)


@triton.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return refusal(hardware, call) or mixed_types(call)
