"""Spherical interpolation by weights, of whole tensors or of their rows, around the origin or around a base."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Two, Weight
from synthe_core.merging.task_vectors import per_model, weight_sum

Flatten = Annotated[bool, Field(description="a tensor is one vector; false: each column, or row, is one")]
RowWise = Annotated[bool, Field(description="with nuslerp_flatten false: rows, and not columns")]
STRAIGHT = 1e-7  # below this sine of the angle the arc is a line


def arcs(one: Tensor, other: Tensor, t: float, axis: int) -> Tensor:
    """Spherical interpolation of the vectors along `axis`, each pair by its own angle."""
    norms = one.norm(dim=axis, keepdim=True) * other.norm(dim=axis, keepdim=True)
    cosine = ((one * other).sum(dim=axis, keepdim=True) / norms.clamp_min(1e-30)).clamp_(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    straight = (sine.abs() < STRAIGHT) | (norms == 0)
    sine = sine.masked_fill(straight, 1.0)
    from_one = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine)
    from_other = torch.where(straight, t, (t * angle).sin() / sine)
    return one * from_one + other * from_other


def nuslerp(
    models: Two,
    base: Tensor | None = None,
    *,
    weight: Weight = (1.0,),
    nuslerp_flatten: Flatten = True,
    nuslerp_row_wise: RowWise = False,
) -> Tensor:
    """Spherical interpolation of two models, or with a base of their differences from it, at w_2 / (w_1 + w_2).

    Source: mergekit's method of that name; Shoemake, SIGGRAPH 1985.
    """
    one, other = models
    weights = per_model(weight, 2)
    t = weights[1] / weight_sum(weights)
    if base is not None:
        one, other = one - base, other - base
    shape = one.shape
    if nuslerp_flatten or one.ndim < 2:
        merged = arcs(one.reshape(-1), other.reshape(-1), t, 0).reshape(shape)
    else:
        merged = arcs(one, other, t, 0 if nuslerp_row_wise else -1)
    return merged if base is None else merged.add_(base)
