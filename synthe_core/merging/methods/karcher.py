"""The Karcher mean on the sphere."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Several

Iterations = Annotated[int, Field(ge=1, description="maximum number of steps")]
Tolerance = Annotated[float, Field(gt=0, description="a step shorter than this ends the search")]


def karcher(models: Several, *, max_iter: Iterations = 10, tol: Tolerance = 1e-5) -> Tensor:
    """The point of the sphere whose squared arcs to the models' directions sum to the least, at their mean norm.

    Each step goes to the mean of the models as seen from the point (log map), along the sphere (exp map).
    Source: Karcher, Riemannian center of mass and mollifier smoothing, Comm. Pure Appl. Math. 30, 1977.
    """
    vectors = list(models)
    shape, norms = vectors[0].shape, [float(model.norm()) for model in vectors]
    units = [model.reshape(-1) / norm for model, norm in zip(vectors, norms, strict=True) if norm > 0]
    if not units:
        return torch.zeros_like(vectors[0])
    point = torch.stack(units).mean(0) if len(units) < 3 else sum(units[1:], units[0].clone()) / len(units)
    length = float(point.norm())
    point = units[0].clone() if length < 1e-12 else point / length
    for _ in range(max_iter):
        step = torch.zeros_like(point)
        for unit in units:
            angle = math.acos(max(-1.0, min(1.0, float(unit @ point))))
            if angle > 1e-12 and math.sin(angle) > 1e-12:
                step.add_(unit - point * math.cos(angle), alpha=angle / math.sin(angle) / len(units))
        size = float(step.norm())
        if size < tol:
            break
        point = point * math.cos(size) + step * (math.sin(size) / size)
    return (point / point.norm() * (sum(norms) / len(norms))).reshape(shape)
