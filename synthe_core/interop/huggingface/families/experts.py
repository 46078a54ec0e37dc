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


def expert_tensors(
    place: str, count: int, into: Sequence[str], out: str, fused: str | None = None
) -> dict[str, Origin]:
    """The matrices of experts, each in tensors of its own below `place`, or all in one tensor below `fused`. into: the
    published names of gate and up, or of up alone."""
    fused = fused or place
    inputs = origin(*(f"{place}.{expert}.{name}.weight" for expert in range(count) for name in into))
    outputs = origin(*(f"{place}.{expert}.{out}.weight" for expert in range(count)), make=_side_by_side)
    ours, theirs = ("gate_up", "gate_up_proj") if len(into) == 2 else ("up", "up_proj")
    return {
        f"pool.{ours}.weight": inputs._replace(otherwise=origin(f"{fused}.{theirs}", make=stacked_below)),
        "pool.out.weight": outputs._replace(otherwise=origin(f"{fused}.down_proj", make=stacked_beside)),
    }


def _side_by_side(*matrices: Tensor) -> Tensor:
    return torch.cat(matrices, 1)


def stacked_below(matrices: Tensor) -> Tensor:
    """Matrices [N, H, D] one below the other."""
    return matrices.flatten(0, 1)


def stacked_beside(matrices: Tensor) -> Tensor:
    """Matrices [N, D, H] side by side."""
    return matrices.transpose(0, 1).flatten(1)
