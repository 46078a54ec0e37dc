"""Differences without their largest and their smallest entries, merged by the majority's sign."""

from __future__ import annotations

from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Weight
from synthe_core.merging.methods.breadcrumbs import Gamma, middle
from synthe_core.merging.methods.ties import Sign
from synthe_core.merging.task_vectors import agreed, differences, each, thinned


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
    """TIES, with the entries of middling magnitude where TIES keeps the largest.

    Source: Davari and Belilovsky, Model Breadcrumbs, arXiv:2312.06795; Yadav et al., arXiv:2306.01708.
    """
    weights, densities, gammas = (each(values, len(models)) for values in (weight, density, gamma))
    found = thinned(differences(models, base), lambda i, found: middle(found, densities[i], gammas[i]))
    return agreed(base, found, weights, normalize, lambda_, sign)
