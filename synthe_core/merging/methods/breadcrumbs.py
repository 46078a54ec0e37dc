"""Weighted sum of differences without their largest and smallest entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Weight
from synthe_core.merging.task_vectors import add_differences, differences, largest, per_model, sparsified

Gamma = Annotated[
    Sequence[Annotated[float, Field(ge=0, lt=1)]], Field(description="share of largest entries that is dropped")
]


def middle(difference: Tensor, density: float, gamma: float) -> Tensor:
    """Drops the `gamma` share of largest magnitude, and as many of the smallest as leave a share `density`.

    If that drops less than gamma in all, fewer of the largest are dropped.
    """
    count = difference.numel()
    retained = int(density * count)
    top = min(int(gamma * count), count - retained)
    size = difference.abs()
    outside = ~largest(size, (retained + top) / count) if retained + top < count else size < 0
    if top:
        outside |= largest(size, (top + 0.5) / count)
    return difference.masked_fill_(outside, 0.0)


def breadcrumbs(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    gamma: Gamma = (0.01,),
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """The base plus the weighted sum of differences without their largest and smallest entries.

    Source: Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795.
    """
    weights, densities, gammas = (per_model(values, len(models)) for values in (weight, density, gamma))
    vectors = sparsified(differences(models, base), lambda i, vector: middle(vector, densities[i], gammas[i]))
    return add_differences(base, vectors, weights, normalize, lambda_)
