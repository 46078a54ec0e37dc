"""Interpolation from the base to the average of the models, by the angle between them."""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Several

FilterWise = Annotated[bool, Field(description="one angle for each row instead of one for the tensor")]


def model_stock(models: Several, base: Tensor, *, filter_wise: FilterWise = False) -> Tensor:
    """t average + (1 - t) base, with t = N cos / (1 + (N - 1) cos), cos the mean cosine of the N differences.

    Source: Jang et al., Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522.
    """
    vectors = [model - base for model in models]
    rows = vectors[0].shape[0] if filter_wise and base.ndim > 1 else 1
    flat = [difference.reshape(rows, -1) for difference in vectors]
    norms = [each.norm(dim=1) for each in flat]
    cosines = [
        (flat[i] * flat[j]).sum(1) / (norms[i] * norms[j]).clamp_min(1e-12)
        for i, j in itertools.combinations(range(len(flat)), 2)
    ]
    cosine = torch.stack(cosines).mean(0).clamp(-1, 1)
    count = len(vectors)
    t = (count * cosine / (1 + (count - 1) * cosine)).reshape(-1, *([1] * max(0, base.ndim - 1)))
    t = t.reshape(()) if base.ndim == 0 or rows == 1 else t
    average = sum(vectors[1:], vectors[0].clone()) / count
    return average.mul_(t).add_(base)
