"""Weighted sum of differences with entries dropped at random, small ones more often, and the rest scaled up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Rescale, RescaleBy, Weight
from synthe_core.merging.task_vectors import add_differences, differences, per_model, rescaled, sparsified

Epsilon = Annotated[
    Sequence[Annotated[float, Field(ge=0, lt=1)]],
    Field(description="the chance to be mask runs from density - epsilon to density + epsilon, by rank of magnitude"),
]


def sample(
    difference: Tensor, density: float, epsilon: float, rescale: str | None, generator: torch.Generator
) -> Tensor:
    """Retains each entry with a probability that rises linearly with its rank in its row, density -/+ epsilon.

    Retained entries are scaled by `rescale`. Probabilities are clamped to [0, 1].
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
    mask = torch.bernoulli(chance, generator=generator)
    return rescaled(rows, mask, chance.masked_fill_(chance == 0, 1.0), rescale).reshape(difference.shape)


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
    """The base plus the weighted sum of differences with entries dropped at random, small ones more often.

    Source: Deep et al., DELLA-Merging, arXiv:2406.11617.
    """
    weights, densities, epsilons = (per_model(values, len(models)) for values in (weight, density, epsilon))
    by = rescale_by if rescale else None
    vectors = sparsified(
        differences(models, base), lambda i, vector: sample(vector, densities[i], epsilons[i], by, generator)
    )
    return add_differences(base, vectors, weights, normalize, lambda_)
