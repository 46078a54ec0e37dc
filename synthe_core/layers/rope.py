"""Rotary position embeddings: the angles, and the published ways to scale them to longer contexts."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from synthe_core.layers.learner import Spec


class LinearScaling(Spec):
    """f' = f / factor. Source: Chen et al. 2023, "Extending Context Window via Positional Interpolation"."""

    type: Literal["linear"] = "linear"
    factor: float = Field(..., gt=0, description="how much longer texts are to become")

    def apply(self, frequencies: Tensor) -> Tensor:
        return frequencies / self.factor


class Llama3Scaling(Spec):
    """Slow pairs are stretched, quick ones stay: f' = (1 - s) f / factor + s f.

        s = (context f / 2 pi - low) / (high - low), cut to [0, 1]

    context f / 2 pi is how often the pair turns within `context` tokens. Source: Llama Team 2024, "Llama 3 Herd".
    """

    type: Literal["llama3"] = "llama3"
    factor: float = Field(8.0, gt=0, description="how much longer texts are to become")
    low: float = Field(1.0, gt=0, description="pairs that turn less often than this within `context` are stretched")
    high: float = Field(4.0, gt=0, description="pairs that turn more often than this are left alone; above `low`")
    context: int = Field(8192, ge=1, description="length of the texts before stretching")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Llama3Scaling:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self

    def apply(self, frequencies: Tensor) -> Tensor:
        turns = self.context * frequencies / (2 * math.pi)
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - share) * frequencies / self.factor + share * frequencies


Scaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="type")]


def rotary_angles(
    positions: Tensor, size: int, base: float | None, scaling: LinearScaling | Llama3Scaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, K/2] as `dtype` of each token's angles: `positions` int64 [B, T] times base^(-2i / K).

    K is the head's `size`. Without a base all angles are 0. Angles are float64, which keeps late positions
    exact.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # mps has no float64
    steps = torch.arange(0, size, 2, device=positions.device, dtype=wide)
    frequencies = torch.zeros_like(steps) if base is None else base ** (-steps / size)
    if scaling is not None:
        frequencies = scaling.apply(frequencies)
    angles = positions[..., None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)
