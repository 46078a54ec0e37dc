"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from synthe_core.merging.method import One

PARALLEL = 0.9995  # above this cosine the arc is a straight line within float precision
At = Annotated[float, Field(ge=0, le=1, description="0 is the base, 1 the other model")]


def arc(one: Tensor, other: Tensor, t: float) -> Tensor:
    """Between two tensors, seen as vectors, at constant angular speed; straight where they are nearly parallel."""
    norms = float(one.norm()) * float(other.norm())
    cosine = float(one.flatten() @ other.flatten()) / norms if norms else 1.0
    if abs(cosine) > PARALLEL:
        return one * (1 - t) + other * t
    angle = math.acos(cosine)
    return one * (math.sin((1 - t) * angle) / math.sin(angle)) + other * (math.sin(t * angle) / math.sin(angle))


def slerp(models: One, base: Tensor, *, t: At = 0.5) -> Tensor:
    """Spherical interpolation from the base (t = 0) to the other model (t = 1).

    Source: Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985.
    """
    (other,) = models
    return arc(base, other, t)
