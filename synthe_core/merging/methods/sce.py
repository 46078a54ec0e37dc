"""Select what varies, calculate weights, erase what disagrees."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Several, Share
from synthe_core.merging.task_vectors import agreed, differences, largest

SelectTopk = Annotated[Share, Field(description="share of entries kept: those that vary most between the models")]


def sce(models: Several, base: Tensor, *, select_topk: SelectTopk = 1.0) -> Tensor:
    """The entries that vary most between the models, weighted by each model's mean square, by the majority's sign.

    Source: Wan et al., FuseChat (its SCE method), arXiv:2408.07990.
    """
    found = differences(models, base)
    if select_topk < 1:
        mean = sum(found[1:], found[0].clone()) / len(found)
        spread = torch.zeros_like(mean)
        for difference in found:
            spread.add_((difference - mean).square_())
        kept = largest(spread, select_topk)
        for difference in found:
            difference.mul_(kept)
    squares = [float(difference.square().mean()) for difference in found]
    whole = sum(squares)
    weights = [square / whole for square in squares] if whole > 1e-6 else [1 / len(found)] * len(found)
    return agreed(base, found, weights, normalize=True, scale=1.0, sign="plain")
