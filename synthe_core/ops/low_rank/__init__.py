"""What low-rank adapters add to the outputs of a map, each row with its own: one call for all rows and adapters.

    y_n += s B A x_n        A, B and s of row n's adapter

x float32 [N, T, I], y float32 [N, T, O] in place, A [r, I] and B [O, r] in float32 or bfloat16. A row's numbers do not
depend on other rows, and are those of `fused_decode`. No gradient.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.native import library, pointer, refusal

SOURCE = "low_rank/low_rank.c"
NONE = -1

_address, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Change(ctypes.Structure):
    """s B A of an adapter; without addresses none."""

    _fields_ = (("a", _address), ("b", _address), ("rank", _int), ("is_bfloat16", _int), ("scaling", _double))

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scaling: float) -> Change:
        """Of factors [r, I] and [r, O], B by its columns, both float32 or bfloat16, whose memory the caller keeps."""
        assert a.dtype == b.dtype
        return cls(pointer(a), pointer(b), len(a), a.dtype == torch.bfloat16, scaling)


def add_low_rank(y: Tensor, x: Tensor, changes: Sequence[tuple[Tensor, Tensor, float]], numbers: Sequence[int]) -> None:
    """Adds to y what `changes` (A, B, s) make of x, contiguous both. numbers: of each n its change, or NONE."""
    made = (Change * len(changes))(*(Change.of(a, b.t(), scaling) for a, b, scaling in changes))
    sizes = (len(numbers), x[0].numel() // x.shape[-1], x.shape[-1], y.shape[-1], max(len(a) for a, _, _ in changes))
    library(SOURCE).add_low_rank(made, (_int * len(numbers))(*numbers), pointer(x), pointer(y), *map(_int, sizes))


def suits(y: Tensor, x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Whether `add_low_rank` computes it: float32 on the CPU, no gradient. factors: A and B of each, B by columns."""
    tensors = (y, x, *factors)
    return (
        all(each.device.type == "cpu" and not (each.requires_grad and torch.is_grad_enabled()) for each in tensors)
        and x.dtype == y.dtype == torch.float32
        and all(each.dtype in (torch.float32, torch.bfloat16) for each in factors)
        and all(a.is_contiguous() and b.t().is_contiguous() for a, b in zip(factors[::2], factors[1::2], strict=True))
        and refusal(probe(), "cpu", SOURCE) is None
    )


def reference(y: Tensor, x: Tensor, changes: Sequence[tuple[Tensor, Tensor, float]], numbers: Sequence[int]) -> Tensor:
    """The sum, float64."""
    total = y.double()
    for n, number in enumerate(numbers):
        if number != NONE:
            a, b, scaling = changes[number]
            total[n] += scaling * (x[n].double() @ a.double().T @ b.double().T)
    return total
