"""The check that stored weights are numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from synthe_core.errors import InputError

DIVERGED = "the training that wrote it has diverged, or the file is damaged: use another"


def check_finite(name: str, tensor: Tensor, source: object) -> Tensor:
    """Returns the tensor. InputError if it contains NaN or infinity. One pass over it, without a copy."""
    if tensor.is_floating_point() and tensor.numel():
        values = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # 8 bits have no minimum and maximum
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(values)):
            what = "NaN" if bool(torch.isnan(values).any()) else "infinity"
            raise InputError(f"{name} of {source} contains {what}", DIVERGED)
    return tensor
