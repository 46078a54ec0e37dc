"""The gated average as a linear scan, by whichever of its kernels serves the device."""

from __future__ import annotations

from torch import Tensor

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.dispatch import Call, Slower, require_float
from synthe_core.ops.gated_average.reference import gated_average
from synthe_core.ops.linear_scan import linear_scan


@gated_average.kernel("composed", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
def composed(gate: Tensor, value: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sigmoids and a product first, then `linear_scan`."""
    require_float("gate", gate)
    return linear_scan(sigmoid(gate), sigmoid(-gate) * value, state)


@composed.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.time > 1 else Slower("a single step: the recurrence itself is a few operations")
