"""Language modeling: cross-entropy of the next token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field

from synthe_core.data.stream import Batch, Window
from synthe_core.evaluation.bits_per_byte import TextScore, evaluate_bits_per_byte
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.early_exit import EarlyExitLoss
from synthe_core.model.language_model import LanguageModel, Loss
from synthe_core.recipe.objectives import ObjectiveConfig
from synthe_core.training.objectives.objective import Objective, ObjectiveContext


class LanguageModeling(Objective):
    """-log p(target | the tokens up to it), summed over the targets that are not -100; with `early_exit` also under the
    model's first blocks, for `--speculate early-exit`."""

    divides = True

    class Config(ObjectiveConfig):
        """The keys of `objective: language_modeling`."""

        type: Literal["language_modeling"] = "language_modeling"
        early_exit: EarlyExitLoss | None = Field(
            None, description="the first blocks learn to predict too, so that they may draft: --speculate early-exit"
        )

    def __call__(self, model: LanguageModel, batch: Batch, ctx: ObjectiveContext) -> Loss:
        exit: EarlyExitLoss | None = self.config.early_exit if torch.is_grad_enabled() else None
        options: dict[str, Any] = {} if exit is None else {"early_exit": exit}  # other models than ours have none
        loss, state = model.loss(batch.inputs, batch.targets, ctx.state, batch.lengths, **options)
        return loss._replace(state=state)

    def evaluate(
        self, model: LanguageModel, batches: Iterable[Window], context: ExecutionContext
    ) -> Iterator[TextScore]:
        return evaluate_bits_per_byte(model, batches, context)
