"""Differences with entries dropped at random and the rest scaled up, merged by the majority's sign."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Rescale, RescaleBy, Weight
from synthe_core.merging.methods.dare_linear import drop
from synthe_core.merging.methods.ties import Sign
from synthe_core.merging.task_vectors import differences, merge_by_sign, per_model, sparsified


def dare_ties(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    normalize: Normalize = False,
    rescale: Rescale = True,
    rescale_by: RescaleBy = "chance",
    lambda_: Lambda = 1.0,
    sign: Sign = "sum",
    generator: torch.Generator,
) -> Tensor:
    """TIES with entries dropped at random and the rest scaled up, instead of the largest entries.

    Source: Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099; Yadav et al., arXiv:2306.01708.
    """
    weights, densities = per_model(weight, len(models)), per_model(density, len(models))
    by = rescale_by if rescale else None
    vectors = sparsified(differences(models, base), lambda i, vector: drop(vector, densities[i], by, generator))
    return merge_by_sign(base, vectors, weights, normalize, lambda_, sign)
