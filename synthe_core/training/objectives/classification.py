"""Classification: cross-entropy of the class of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from synthe_core.data.stream import Batch
from synthe_core.evaluation.classification import ClassificationScore, evaluate_classification
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.classifier import Classifier
from synthe_core.model.language_model import Loss
from synthe_core.recipe.objectives import ObjectiveConfig
from synthe_core.training.objectives.objective import Objective, ObjectiveContext


class Classification(Objective):
    """-log p(class | text), summed over rows. `targets` hold a row's class at one token and -100 at the others."""

    class Config(ObjectiveConfig):
        """The keys of `objective: classification`."""

        type: Literal["classification"] = "classification"

    of_encoders = True

    def __call__(self, model: Classifier, batch: Batch, ctx: ObjectiveContext) -> Loss:
        loss, _ = model.loss(batch.inputs, batch.targets, ctx.state, batch.lengths)
        return loss

    def evaluate(
        self, model: Classifier, batches: Iterable[Batch], context: ExecutionContext
    ) -> Iterator[ClassificationScore]:
        return evaluate_classification(model, batches, context)
