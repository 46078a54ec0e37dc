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
    names = (f"{place}.{expert}.{out}.weight" for expert in range(count))
    outputs = origin(*names, make=_side_by_side, undo=lambda ours: ours.chunk(count, 1))
    ours, theirs = ("gate_up", "gate_up_proj") if len(into) == 2 else ("up", "up_proj")
    return {
        f"pool.{ours}.weight": inputs._replace(otherwise=stacked_below(f"{fused}.{theirs}", count)),
        "pool.out.weight": outputs._replace(otherwise=stacked_beside(f"{fused}.down_proj", count)),
    }


def _side_by_side(*matrices: Tensor) -> Tensor:
    return torch.cat(matrices, 1)


def stacked_below(name: str, count: int) -> Origin:
    """Matrices [N, H, D], N = `count`, one below the other."""
    return origin(name, make=lambda stack: stack.flatten(0, 1), undo=lambda ours: [ours.unflatten(0, (count, -1))])


def stacked_beside(name: str, count: int) -> Origin:
    """Matrices [N, D, H], N = `count`, side by side."""

    def undo(ours: Tensor) -> list[Tensor]:
        return [ours.unflatten(1, (count, -1)).transpose(0, 1)]

    return origin(name, make=lambda stack: stack.transpose(0, 1).flatten(1), undo=undo)
