"""Differences dropped at random, the rest scaled up, added up."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Rescale, RescaleBy, Weight
from synthe_core.merging.task_vectors import added, differences, each, rescaled, thinned


def drop(difference: Tensor, density: float, rescale: str | None, generator: torch.Generator) -> Tensor:
    """Keeps each entry with probability `density`, and scales what is left by `rescale`."""
    if density >= 1:
        return difference
    kept = torch.bernoulli(torch.full_like(difference, density), generator=generator)
    return rescaled(difference, kept, density, rescale)


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
    """The base plus the weighted sum of differences of which entries were dropped at random and the rest scaled up.

    Source: Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099.
    """
    weights, densities = each(weight, len(models)), each(density, len(models))
    by = rescale_by if rescale else None
    found = thinned(differences(models, base), lambda i, found: drop(found, densities[i], by, generator))
    return added(base, found, weights, normalize, lambda_)
