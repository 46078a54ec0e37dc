"""One model unchanged: for stacking layers of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import Number, One

Scale = Annotated[Sequence[Number], Field(description="multiplies the tensor")]


def passthrough(models: One, *, scale: Scale = (1.0,)) -> Tensor:
    """A model's tensor as it is, or scaled; with `slices`, layers of several models one after the other.

    Source: the practice of stacking layers; see mergekit's method of that name.
    """
    (model,) = models
    return model if scale[0] == 1 else model * scale[0]
