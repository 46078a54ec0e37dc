"""TLM's correction memory: the delta rule with small, bounded steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from synthe_core.layers.delta import Delta


class DeltaMemory(Delta):
    """The `delta` learner with TLM's settings: β in [0.01, 0.3], written values of length at most 10, output times 0.1.

    Only defaults differ; every key of `delta` is accepted. TLM puts one after every m-th layer; a recipe's `block`
    lists the layers between.
    """

    class Config(Delta.Config):
        type: Literal["delta_memory"] = "delta_memory"  # type: ignore[assignment]
        beta_range: tuple[float, float] = Field((0.01, 0.3), description="of the write strength; up to [0, 2]")
        clip: float | None = Field(10.0, gt=0, description="largest length of a written value; null = any")
        scale: float = Field(0.1, gt=0, description="what the output is multiplied by")
