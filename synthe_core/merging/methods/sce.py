"""Select, calculate and erase: entries with high variance, weighted by mean square, by majority sign."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Several, Share
from synthe_core.merging.task_vectors import differences, largest, merge_by_sign

SelectTopk = Annotated[Share, Field(description="share of entries retained: those of highest variance over the models")]


def sce(models: Several, base: Tensor, *, select_topk: SelectTopk = 1.0) -> Tensor:
    """The entries that vary most between the models, weighted by each model's mean square, by the majority's sign.

    Source: Wan et al., FuseChat (its SCE method), arXiv:2408.07990.
    """
    vectors = differences(models, base)
    if select_topk < 1:
        mean = sum(vectors[1:], vectors[0].clone()) / len(vectors)
        spread = torch.zeros_like(mean)
        for difference in vectors:
            spread.add_((difference - mean).square_())
        mask = largest(spread, select_topk)
        for difference in vectors:
            difference.mul_(mask)
    squares = [float(difference.square().mean()) for difference in vectors]
    whole = sum(squares)
    weights = [square / whole for square in squares] if whole > 1e-6 else [1 / len(vectors)] * len(vectors)
    return merge_by_sign(base, vectors, weights, normalize=True, scale=1.0, sign="plain")
