"""Activations of single numbers; `sigmoid`, `softplus`, `silu` and `gelu` have a batch-invariant kernel for CPUs.

Torch's own take other instructions for the last few numbers of a tensor, so a row's numbers depend on where in the
tensor they stand. The batch-invariant kernels are made of exp, log1p, erf and tanh, which do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.ops.dispatch import primitive


@primitive(torch.sigmoid)
def sigmoid(x: Tensor) -> Tensor:
    """σ(x) = 1 / (1 + exp(-x))."""
    return 1 / (1 + torch.exp(-x))


@sigmoid.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_sigmoid(x: Tensor) -> Tensor:
    """The definition."""
    return torch.reciprocal(torch.neg(x).exp_().add_(1))


@primitive(F.softplus)
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); x itself where x > 20."""
    return torch.where(x > 20, x, torch.log1p(torch.exp(x)))


@softplus.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_softplus(x: Tensor) -> Tensor:
    """The definition."""
    return torch.where(x > 20, x, x.exp().log1p())


@primitive(F.silu)
def silu(x: Tensor) -> Tensor:
    """x σ(x)."""
    return x * sigmoid.reference(x)


@silu.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_silu(x: Tensor) -> Tensor:
    """The definition."""
    return x * batch_invariant_sigmoid(x)


@primitive(F.gelu)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x Φ(x), or with approximate="tanh" its approximation by tanh (Hendrycks and Gimpel 2016)."""
    if approximate == "none":
        return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@gelu.kernel("batch-invariant", rank=0, tolerance=1e-6, batch_invariant=("cpu",))
def batch_invariant_gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """The definition."""
    return gelu.reference(x, approximate=approximate)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)². Source: So et al. 2021, "Primer"."""
    return F.relu(x).square()


Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
}


def sigmoid_gate(value: Tensor, gate: Tensor) -> Tensor:
    """value ⊙ σ(gate), computed in the dtype of value, returned in that of gate."""
    return (value * sigmoid(gate.to(value.dtype))).to(gate.dtype)
