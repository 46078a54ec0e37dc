"""The learning rate as a function of the fraction of the budget that is spent, whatever its unit."""

from __future__ import annotations

import math

from synthe_core.recipe.schema import TrainSpec

LEAST = 0.01  # so that the first step, at f = 0, is not wasted


def rate(spec: TrainSpec, fraction: float) -> float:
    """The learning rate as a fraction of its peak, at `fraction` f in [0, 1] of the budget.

    With w the warmup, e the final and p = (f - w) / (1 - w) the progress after it:

        warmup   f / w, at least 0.01                      while f < w
        cosine   e + (1 - e) (1 + cos(pi p)) / 2           Loshchilov & Hutter 2017
        linear   1 - (1 - e) p
        wsd      1 until f = 1 - decay, then linear to e   Hu et al. 2024, "MiniCPM"
    """
    if fraction < spec.warmup:
        return max(fraction / spec.warmup, LEAST)
    fraction = min(fraction, 1.0)
    if spec.schedule == "wsd":
        fallen = max(0.0, fraction - max(1 - spec.decay, spec.warmup)) / min(spec.decay, 1 - spec.warmup)
        return 1 - (1 - spec.final) * fallen
    progress = (fraction - spec.warmup) / (1 - spec.warmup)
    if spec.schedule == "linear":
        return 1 - (1 - spec.final) * progress
    return spec.final + (1 - spec.final) * (1 + math.cos(math.pi * progress)) / 2
