"""Supervised fine-tuning: cross-entropy of the assistant's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch

from synthe_core.data.stream import Batch
from synthe_core.evaluation.accumulators import WeightedMeans
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel, Loss
from synthe_core.recipe.objectives import ObjectiveConfig, Reads
from synthe_core.training.objectives.objective import Objective, ObjectiveContext


class SFT(Objective):
    """-log p(token | the conversation up to it), summed over the tokens of a conversation that are trained on.

    Which these are is up to `data.trained`. The mean is over all of them in a batch: a conversation counts by its
    tokens.
    """

    reads: Reads = "conversations"  # type: ignore[misc]

    class Config(ObjectiveConfig):
        """The keys of `objective: sft`."""

        type: Literal["sft"] = "sft"

    def __call__(self, model: LanguageModel, batch: Batch, ctx: ObjectiveContext) -> Loss:
        return model.loss(batch.inputs, batch.targets, None, batch.lengths)[0]

    def evaluate(self, model: Any, batches: Iterable[Batch], context: ExecutionContext) -> Iterator[AnswerScore]:
        score = AnswerScore()
        for batch in batches:
            moved = batch.to(context.device)
            with torch.no_grad(), context.activate():
                loss = self(model, moved, ObjectiveContext())
            score.add(batch, loss)
            yield score


class AnswerScore:
    """Means over held-out conversations: the loss in nats per token that is trained on, and perplexity = exp(loss).

    rows: conversations read so far.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._means = WeightedMeans()

    def add(self, batch: Batch, loss: Loss) -> None:
        self.rows += len(batch.inputs)
        scored = float(loss.scored)
        self._means.add({"loss": loss.total / max(scored, 1)}, scored)

    def values(self) -> dict[str, float]:
        loss = self._means.values()["loss"]
        return {"loss": float(loss), "perplexity": float(loss.clamp(max=700.0).exp())}
