"""Interpolation towards another model where it is close to the base."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import One

Near = Annotated[float, Field(gt=0, description="entries nearer than this become the other model's")]


def nearswap(models: One, base: Tensor, *, t: Near) -> Tensor:
    """The other model's entries where it is within `t` of the base; farther away, a step of t towards it.

    Source: alchemonaut, QuartetAnemoi-70B-t0.0001 (its model card on the hub), 2024.
    """
    (other,) = models
    difference = other - base
    return difference.clamp_(-t, t).add_(base)
