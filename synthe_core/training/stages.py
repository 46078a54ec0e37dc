"""Stages of training: which parts of the model take part, which are trained, and how long sequences are."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from synthe_core.model.classifier import Model
from synthe_core.model.parts import parts
from synthe_core.recipe.schema import TrainSpec
from synthe_core.storage.checkpoint import weights


class Phase(NamedTuple):
    """A part of training in which the same parameters are trained.

    stage:      counted from 1.
    sequence:   tokens of a sequence.
    without:    parts of the model that are left out.
    trained_alone: parts that have just joined, and are trained alone; empty where all parts are trained.
    """

    stage: int
    sequence: int
    without: frozenset[str]
    trained_alone: frozenset[str]


class Frozen(NamedTuple):
    """What does not change during a phase: parameters that take part, and the ids of buffers."""

    parameters: tuple[nn.Parameter, ...] = ()
    tensor_ids: frozenset[int] = frozenset()


def phase_at(spec: TrainSpec, fraction: float, longest: int) -> Phase:
    """The phase of training at `fraction` of the budget, of data with sequences of `longest` tokens."""
    index = next((index for index, stage in enumerate(spec.stages) if fraction < stage.until), len(spec.stages))
    current = spec.stages[index] if index < len(spec.stages) else None
    without = frozenset(current.without if current else ())
    previous = spec.stages[index - 1] if index else None
    joined = previous.without if previous and fraction < previous.until + previous.warm else ()
    alone = frozenset(name for name in joined if not without & {name, name.partition(".")[0]})
    return Phase(index + 1, (current and current.sequence) or longest, without, alone)


def frozen_in(phase: Phase, model: Model) -> Frozen:
    """What stays fixed in a phase: while parts are trained alone, everything else."""
    if not phase.trained_alone:
        return Frozen()
    trained = tuple(prefix for name in phase.trained_alone for prefix in parts(model.spec)[name].prefixes)
    tensors = model.state_dict(keep_vars=True)
    fixed = [tensors[name] for name in weights(model) if not name.startswith(trained)]
    return Frozen(tuple(t for t in fixed if isinstance(t, nn.Parameter)), frozenset(map(id, fixed)))


def describe(phase: Phase, spec: TrainSpec) -> str:
    """The phase in one line."""
    text = f"stage {phase.stage} of {len(spec.stages) + 1}: sequences of {phase.sequence} tokens"
    text += f", without {', '.join(sorted(phase.without))}" if phase.without else ""
    return text + (f"; first, {', '.join(sorted(phase.trained_alone))} alone" if phase.trained_alone else "")
