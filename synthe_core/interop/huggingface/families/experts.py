"""The experts of published models: how many there are, and their matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synthe_core.interop.huggingface.families.plan import Origin, origin
from synthe_core.interop.huggingface.published import Config


def number_of_experts(config: Config, key: str, default: int | None = None) -> int:
    if (number := config.size(key, default)) < 2:
        raise config.unsupported(key, number, ["2 or more"])
    return number


def expert_tensors(place: str, count: int, into: Sequence[str], out: str) -> dict[str, Origin]:
    """The matrices of experts, each in tensors of its own below `place`. into: gate and up, or up alone."""
    inputs = [f"{place}.{expert}.{name}.weight" for expert in range(count) for name in into]
    outputs = [f"{place}.{expert}.{out}.weight" for expert in range(count)]
    return {
        "pool.gate_up.weight" if len(into) == 2 else "pool.up.weight": origin(*inputs),
        "pool.out.weight": origin(*outputs, make=_side_by_side),
    }


def _side_by_side(*matrices: Tensor) -> Tensor:
    return torch.cat(matrices, 1)


def stacked_below(matrices: Tensor) -> Tensor:
    """Matrices [N, H, D] one below the other."""
    return matrices.flatten(0, 1)


def stacked_beside(matrices: Tensor) -> Tensor:
    """Matrices [N, D, H] side by side."""
    return matrices.transpose(0, 1).flatten(1)
