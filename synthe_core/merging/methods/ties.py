"""Trim, elect sign, merge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Density, Lambda, Models, Normalize, Weight
from synthe_core.merging.task_vectors import differences, merge_by_sign, per_model, sparsified, trim

Sign = Annotated[Literal["sum", "count"], Field(description="the majority: by weighted sum, or by number of models")]


def ties(
    models: Models,
    base: Tensor,
    *,
    weight: Weight = (1.0,),
    density: Density = (1.0,),
    normalize: Normalize = True,
    lambda_: Lambda = 1.0,
    sign: Sign = "sum",
) -> Tensor:
    """Of each difference the largest entries; at each entry, the mean of those that have the majority's sign.

    Trimmed tensor by tensor. An entry without a majority (an exact tie) counts as positive.
    Source: Yadav et al., TIES-Merging, arXiv:2306.01708.
    """
    weights, densities = per_model(weight, len(models)), per_model(density, len(models))
    vectors = sparsified(differences(models, base), lambda i, vector: trim(vector, densities[i]))
    return merge_by_sign(base, vectors, weights, normalize, lambda_, sign)
