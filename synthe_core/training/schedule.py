"""The learning rate and what is trained, as functions of the fraction of the budget spent, whatever its unit."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Phase(NamedTuple):
    """What is trained: the stage, counted from 1; tokens a sequence; the parts that are left out; and those that are
    trained alone as they have just joined, none where all are trained."""

    stage: int
    sequence: int
    without: frozenset[str]
    alone: frozenset[str]


def phase(spec: TrainSpec, fraction: float, longest: int) -> Phase:
    """The phase of training at `fraction` of the budget, of data with sequences of `longest` tokens."""
    place = next((place for place, stage in enumerate(spec.stages) if fraction < stage.until), len(spec.stages))
    now = spec.stages[place] if place < len(spec.stages) else None
    without = frozenset(now.without if now else ())
    before = spec.stages[place - 1] if place else None
    waited = before.without if before and fraction < before.until + before.warm else ()
    alone = frozenset(name for name in waited if not without & {name, name.partition(".")[0]})
    return Phase(place + 1, (now and now.sequence) or longest, without, alone)
