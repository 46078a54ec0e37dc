"""What objectives have in common that compare the model with the one that a run begins with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from synthe_core.events import Event
from synthe_core.training.objectives.objective import Objective, ObjectiveSetup
from synthe_core.training.objectives.reference import Reference

REFERENCE = "reference"
"""The name in a batch's `extras` of log p_ref(answer | prompt), [B]."""


class ReferenceObjective(Objective):
    """An objective with a reference, which checkpoints hold."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.reference = Reference()

    def begin(self, setup: ObjectiveSetup) -> Iterator[Event]:
        self.reference.begin(setup)
        return super().begin(setup)

    def tensors(self) -> Mapping[str, Tensor]:
        return self.reference.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.reference.load(tensors)
