"""Rotary position embeddings: the angles, and the published ways to scale them to longer contexts."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass, Spec


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


class YarnScaling(Spec):
    """Slow pairs are stretched, quick ones stay, between them the share rises with the index i of the pair:

        f' = (1 - s) f + s f / factor,    s = (i - i_fast) / (i_slow - i_fast), cut to [0, 1]

    i_r is the index of the pair that turns r times within `context` tokens, rounded outward with `truncate`. cos and
    sin are multiplied by `attention_factor`. Source: Peng et al. 2023, "YaRN".
    """

    type: Literal["yarn"] = "yarn"
    factor: float = Field(..., gt=0, description="how much longer texts are to become")
    context: int = Field(..., ge=1, description="length of the texts before stretching")
    fast: float = Field(32.0, gt=0, description="pairs that turn more often than this within `context` are left alone")
    slow: float = Field(1.0, gt=0, description="pairs that turn less often are stretched by the whole factor")
    truncate: bool = Field(True, description="round the indices of these pairs outward")
    attention_factor: float | None = Field(
        None, gt=0, description="what rotated queries and keys are multiplied by; default 0.1 ln(factor) + 1"
    )

    @property
    def amplitude(self) -> float:
        return self.attention_factor or 0.1 * math.log(max(self.factor, 1.0)) + 1

    def apply(self, frequencies: Tensor) -> Tensor:
        if len(frequencies) == 1:  # the quickest pair is never stretched
            return frequencies
        step = -math.log(float(frequencies[1]))  # f_i = exp(-i step)
        first, last = (math.log(self.context / (2 * math.pi * turns)) / step for turns in (self.fast, self.slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(frequencies) - 1)
        index = torch.arange(len(frequencies), dtype=frequencies.dtype, device=frequencies.device)
        share = ((index - first) / (last - first if last != first else 1e-3)).clamp(0, 1)
        return (1 - share) * frequencies + share * frequencies / self.factor


class LongRopeScaling(Spec):
    """f'_i = f_i / factor_i, a factor for every pair; cos and sin are multiplied by `attention_factor`.

    Source: Ding et al. 2024, "LongRoPE". A published model has factors for short texts and others for long ones; these
    are the factors of one of them.
    """

    type: Literal["longrope"] = "longrope"
    factors: list[Annotated[float, Field(gt=0)]] = Field(
        ..., min_length=1, description="what the frequency of each pair is divided by"
    )
    attention_factor: float = Field(1.0, gt=0, description="what rotated queries and keys are multiplied by")

    @property
    def amplitude(self) -> float:
        return self.attention_factor

    def apply(self, frequencies: Tensor) -> Tensor:
        return frequencies / torch.tensor(self.factors, dtype=frequencies.dtype, device=frequencies.device)


AnyScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling
Scaling = Annotated[AnyScaling, Field(discriminator="type")]


def check_pairs(scaling: AnyScaling | None, pairs: int, learner: str) -> None:
    """InputError for a scaling that has factors for another number of pairs."""
    if isinstance(scaling, LongRopeScaling) and len(scaling.factors) != pairs:
        raise InputError(
            f"{learner}: rope_scaling has {len(scaling.factors)} factors, and {pairs} pairs of channels are rotated",
            "give a factor for each pair",
        )


class Angles(NamedTuple):
    """cos and sin [B, T, K/2] of `positions`, and what they were computed from."""

    positions: Tensor
    settings: tuple[int, float | None, torch.dtype]
    scaling: AnyScaling | None
    cos: Tensor
    sin: Tensor


def pass_angles(
    ctx: Pass, positions: Tensor, size: int, base: float | None, scaling: AnyScaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`rotary_angles`, computed once in a pass for all learners that turn by the same angles."""
    settings = (size, base, dtype)
    for known in ctx.angles:
        if known.positions is positions and known.settings == settings and known.scaling is scaling:
            return known.cos, known.sin
    cos, sin = rotary_angles(positions, size, base, scaling, dtype)
    ctx.angles.append(Angles(positions, settings, scaling, cos, sin))
    return cos, sin


def rotary_angles(
    positions: Tensor, size: int, base: float | None, scaling: AnyScaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [B, T, K/2] as `dtype` of each token's angles: `positions` int64 [B, T] times base^(-2i / K).

    K is the head's `size`. Without a base all angles are 0. Angles are float64, which keeps late positions
    exact. A `scaling` changes the frequencies, and may multiply cos and sin by its amplitude.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # mps has no float64
    steps = torch.arange(0, size, 2, device=positions.device, dtype=wide)
    frequencies = torch.zeros_like(steps) if base is None else base ** (-steps / size)
    if scaling is not None:
        frequencies = scaling.apply(frequencies)
    angles = positions[..., None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if isinstance(scaling, YarnScaling | LongRopeScaling):
        cos, sin = cos * scaling.amplitude, sin * scaling.amplitude
    return cos.to(dtype), sin.to(dtype)
