"""Weighted sum of differences with entries dropped at random and the rest scaled up."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Rescale, RescaleBy, Weight
from synthe_core.merging.task_vectors import add_differences, differences, per_model, rescaled, sparsified


def drop(difference: Tensor, density: float, rescale: str | None, generator: torch.Generator) -> Tensor:
    """Retains each entry with probability `density` and scales the retained ones by `rescale`."""
    if density >= 1:
        return difference
    mask = torch.bernoulli(torch.full_like(difference, density), generator=generator)
    return rescaled(difference, mask, density, rescale)


def dare_linear(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    normalize: Normalize = False,
    rescale: Rescale = True,
    rescale_by: RescaleBy = "chance",
    lambda_: Lambda = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """The base plus the weighted sum of differences with entries dropped at random and the rest scaled up.

    Source: Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099.
    """
    weights, densities = per_model(weight, len(models)), per_model(density, len(models))
    by = rescale_by if rescale else None
    vectors = sparsified(differences(models, base), lambda i, vector: drop(vector, densities[i], by, generator))
    return add_differences(base, vectors, weights, normalize, lambda_)
