"""Weighted average."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.merging.buffers import BUFFERS
from synthe_core.merging.method import Models, Normalize, Weight
from synthe_core.merging.task_vectors import per_model, weight_sum


def linear(models: Models, *, weight: Weight = (1.0,), normalize: Normalize = True) -> Tensor:
    """The weighted average of the models: sum_i w_i m_i / sum_i w_i.

    Source: Wortsman et al., Model soups, arXiv:2203.05482.
    """
    weights = per_model(weight, len(models))
    divisor = weight_sum(weights) if normalize else 1.0
    merged: Tensor | None = None
    for model, share in zip(models, weights, strict=True):
        if merged is None:
            merged = torch.mul(model, share / divisor, out=BUFFERS.empty_like(model))
        else:
            merged.add_(model, alpha=share / divisor)
    assert merged is not None
    return merged
