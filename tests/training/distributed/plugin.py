"""An objective as another package would bring it: it is in no table of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from synthe_core.evaluation.bits_per_byte import TextScore, evaluate_bits_per_byte
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import Loss
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objectives import ObjectiveConfig
from synthe_core.training.objectives.objective import Objective, ObjectiveContext

ENTRY_POINT = "[synthe.objectives]\nfocal = tests.training.distributed.plugin:Focal\n"


class Focal(Objective):
    """(1 - p)^γ log p of each target, summed. Source: Lin et al. 2017."""

    class Config(ObjectiveConfig):
        type: Literal["focal"] = "focal"
        gamma: float = Field(2.0, ge=0)

    def __call__(self, model: Any, batch: Any, ctx: ObjectiveContext) -> Loss:
        loss, _ = model.loss(batch.inputs, batch.targets, ctx.state, batch.lengths, per_token=True)
        weight = (1 - torch.exp(-loss.each)) ** self.config.gamma
        return loss._replace(total=torch.where(batch.targets != IGNORED, weight * loss.each, 0.0).sum())

    def evaluate(self, model: Any, batches: Iterable[Any], context: ExecutionContext) -> Iterator[TextScore]:
        return evaluate_bits_per_byte(model, batches, context)


def install(folder: Path) -> Path:
    """Writes the package's metadata into a folder, which is then to be on the path."""
    facts = folder / "focal-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: focal\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINT)
    return folder
