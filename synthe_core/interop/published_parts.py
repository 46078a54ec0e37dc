"""The way back from our tensors to the published ones: what `Plan` says, read from the other end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synthe_core.interop.huggingface.families.plan import Origin


def published_parts(origin: Origin, ours: Tensor) -> tuple[Tensor, ...]:
    """The published tensors that `ours` is made of, in the order of their names; works on shapes too (device `meta`).

    A `make` without `undo` must only move numbers: it is tried on their indices.
    """
    if origin.undo is not None:
        return tuple(origin.undo(ours))
    count = len(origin.names)
    rows = origin.rows or (ours.shape[0] // count,) * count
    if origin.make is None:
        return ours.split(rows) if count > 1 else (ours,)
    return moved_back(origin.make, [(each, *ours.shape[1:]) for each in rows], ours)


def moved_back(move: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], moved: Tensor) -> tuple[Tensor, ...]:
    """The tensors of `shapes` of which `move`, which only changes the order of numbers, makes `moved`."""
    if moved.is_meta:
        return tuple(torch.empty(shape, dtype=moved.dtype, device="meta") for shape in shapes)
    sizes = [math.prod(shape) for shape in shapes]
    places = [each.view(shape) for each, shape in zip(torch.arange(sum(sizes)).split(sizes), shapes, strict=True)]
    order = move(*places).flatten()
    assert order.numel() == moved.numel() and bool((order.bincount(minlength=len(order)) == 1).all()), "it computes"
    back = torch.empty_like(moved.reshape(-1))
    back[order] = moved.reshape(-1)
    return tuple(each.view(shape) for each, shape in zip(back.split(sizes), shapes, strict=True))
