"""The average direction at the average length."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Several, Weight
from synthe_core.merging.task_vectors import per_model, weight_sum

NormalizeWeights = Annotated[bool, Field(description="divide the weights by their sum")]
Eps = Annotated[float, Field(gt=0, description="a shorter average has no direction and is used as it is")]


def multislerp(
    models: Several,
    base: Tensor | None = None,
    *,
    weight: Weight = (1.0,),
    normalize_weights: NormalizeWeights = True,
    eps: Eps = 1e-8,
) -> Tensor:
    """Models' directions averaged on the sphere, at their average length; with a base, of the differences from it.

    Directions are projected onto the tangent plane of the sphere at their weighted mean. The average of the projections
    is the point of tangency, so the result is that mean, normalized.
    Source: mergekit's method of that name.
    """
    weights = per_model(weight, len(models))
    divisor = weight_sum(weights) if normalize_weights else 1.0
    point, plain, length = None, None, 0.0
    for model, share in zip(models, weights, strict=True):
        tensor = model if base is None else model - base
        norm = float(tensor.norm())
        length += norm * share / divisor
        point = torch.zeros_like(tensor) if point is None else point
        plain = torch.zeros_like(tensor) if plain is None else plain
        point.add_(tensor, alpha=share / divisor / (norm or 1.0))
        plain.add_(tensor, alpha=share / divisor)
    assert point is not None and plain is not None
    size = float(point.norm())
    merged = plain if size < eps else point.mul_(length / size)
    return merged if base is None else merged.add_(base)
