"""Weighted sum of the largest entries of differences from the base."""

from __future__ import annotations

from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Weight
from synthe_core.merging.task_vectors import add_differences, differences, per_model, sparsified, trim


def magnitude_prune(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """The base plus the weighted sum of each difference's largest entries: TIES without the vote on signs.

    Source: Yadav et al., TIES-Merging (its trim step alone), arXiv:2306.01708; Ilharco et al., arXiv:2212.04089.
    """
    weights, densities = per_model(weight, len(models)), per_model(density, len(models))
    vectors = sparsified(differences(models, base), lambda i, vector: trim(vector, densities[i]))
    return add_differences(base, vectors, weights, normalize, lambda_)
