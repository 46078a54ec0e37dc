"""Differences dropped at random, small ones likelier, the rest scaled up, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Rescale, RescaleBy, Weight
from synthe_core.merging.task_vectors import added, differences, each, rescaled, thinned

Epsilon = Annotated[
    Sequence[Annotated[float, Field(ge=0, lt=1)]],
    Field(description="the chance to be kept runs from density - epsilon to density + epsilon, by rank of magnitude"),
]


def sample(
    difference: Tensor, density: float, epsilon: float, rescale: str | None, generator: torch.Generator
) -> Tensor:
    """Keeps each entry with a chance that rises evenly with its rank in its row, from density -/+ epsilon.

    What is left is scaled by `rescale`. Chances end at 0 and 1.
    """
    if density >= 1:
        return difference
    rows = difference.reshape(-1, difference.shape[-1]) if difference.ndim > 1 else difference.reshape(1, -1)
    length = rows.shape[1]
    chances = torch.linspace(density - epsilon, density + epsilon, length, dtype=rows.dtype).clamp_(0, 1)
    if length == 1:
        chances.fill_(density)
    order = rows.abs().argsort(dim=1, stable=True)
    chance = torch.empty_like(rows).scatter_(1, order, chances.expand_as(rows))
    kept = torch.bernoulli(chance, generator=generator)
    return rescaled(rows, kept, chance.masked_fill_(chance == 0, 1.0), rescale).reshape(difference.shape)


def della_linear(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    epsilon: Epsilon = (0.15,),
    normalize: Normalize = False,
    rescale: Rescale = True,
    rescale_by: RescaleBy = "chance",
    lambda_: Lambda = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """The base plus the weighted sum of differences of which small entries are likelier to be dropped.

    Source: Deep et al., DELLA-Merging, arXiv:2406.11617.
    """
    weights, densities, epsilons = (each(values, len(models)) for values in (weight, density, epsilon))
    by = rescale_by if rescale else None
    found = thinned(differences(models, base), lambda i, found: sample(found, densities[i], epsilons[i], by, generator))
    return added(base, found, weights, normalize, lambda_)
