"""Differences without their largest and smallest entries, merged by the majority's sign."""

from __future__ import annotations

from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Weight
from synthe_core.merging.methods.breadcrumbs import Gamma, middle
from synthe_core.merging.methods.ties import Sign
from synthe_core.merging.task_vectors import differences, merge_by_sign, per_model, sparsified


def breadcrumbs_ties(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    gamma: Gamma = (0.01,),
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
    sign: Sign = "sum",
) -> Tensor:
    """TIES with entries of middle magnitude instead of the largest.

    Source: Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795; Yadav et al., arXiv:2306.01708.
    """
    weights, densities, gammas = (per_model(values, len(models)) for values in (weight, density, gamma))
    vectors = sparsified(differences(models, base), lambda i, vector: middle(vector, densities[i], gammas[i]))
    return merge_by_sign(base, vectors, weights, normalize, lambda_, sign)
