"""Differences with entries dropped at random, small ones more often, merged by the majority's sign."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Rescale, RescaleBy, Weight
from synthe_core.merging.methods.della_linear import Epsilon, sample
from synthe_core.merging.methods.ties import Sign
from synthe_core.merging.task_vectors import differences, merge_by_sign, per_model, sparsified


def della(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    epsilon: Epsilon = (0.15,),
    normalize: Normalize = True,
    rescale: Rescale = True,
    rescale_by: RescaleBy = "chance",
    lambda_: Lambda = 1.0,
    sign: Sign = "sum",
    generator: torch.Generator,
) -> Tensor:
    """TIES with entries dropped at random, small ones more often, instead of the largest entries.

    Source: Deep et al., DELLA-Merging, arXiv:2406.11617.
    """
    weights, densities, epsilons = (per_model(values, len(models)) for values in (weight, density, epsilon))
    by = rescale_by if rescale else None
    vectors = sparsified(
        differences(models, base), lambda i, vector: sample(vector, densities[i], epsilons[i], by, generator)
    )
    return merge_by_sign(base, vectors, weights, normalize, lambda_, sign)
