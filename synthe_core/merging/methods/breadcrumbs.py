"""Differences without their largest and their smallest entries, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Weight
from synthe_core.merging.task_vectors import added, differences, each, largest, thinned

Gamma = Annotated[
    Sequence[Annotated[float, Field(ge=0, lt=1)]], Field(description="share of largest entries that is dropped")
]


def middle(difference: Tensor, density: float, gamma: float) -> Tensor:
    """Without the `gamma` share of largest magnitude, and of the smallest as many as leave a share `density`.

    Where less than gamma may be dropped, fewer of the largest are.
    """
    count = difference.numel()
    kept = int(density * count)
    top = min(int(gamma * count), count - kept)
    size = difference.abs()
    outside = ~largest(size, (kept + top) / count) if kept + top < count else size < 0
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
    weights, densities, gammas = (each(values, len(models)) for values in (weight, density, gamma))
    found = thinned(differences(models, base), lambda i, found: middle(found, densities[i], gammas[i]))
    return added(base, found, weights, normalize, lambda_)
