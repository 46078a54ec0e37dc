"""Weighted sum of differences from the base."""

from __future__ import annotations

from torch import Tensor

from synthe_core.merging.method import Lambda, Models, Normalize, Weight
from synthe_core.merging.task_vectors import add_differences, differences, per_model


def task_arithmetic(
    models: Models, base: Tensor, *, weight: Weight = (1.0,), normalize: Normalize = False, lambda_: Lambda = 1.0
) -> Tensor:
    """The base plus the weighted sum of differences from it: b + λ sum_i w_i (m_i - b).

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089.
    """
    return add_differences(base, differences(models, base), per_model(weight, len(models)), normalize, lambda_)
