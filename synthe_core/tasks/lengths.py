"""Presets of the tasks whose axis is length: trained on short sequences, tested on up to eight times longer ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from synthe_core.layers.learner import Spec
from synthe_core.tasks.task import Preset, Share


def longer(config: Callable[..., Spec], train: Mapping[int, int], tests: int) -> Preset:
    """Trains on `train[length]` sequences of each length, and tests on `tests` of 1, 2, 4 and 8 times the longest.

    Short ones teach a step that long ones repeat: with long ones alone, a model that learns to track a state from as
    many tokens of both may not begin to. Several lengths also keep it from counting to the one it knows.
    """
    longest = max(train)
    return Preset(
        [Share(config(length=length), examples) for length, examples in train.items()],
        [Share(config(length=times * longest), tests) for times in (1, 2, 4, 8)],
    )
