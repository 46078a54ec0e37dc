"""Direct preference optimisation: the chosen answer over the rejected one, against a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import Loss, Mean
from synthe_core.recipe.objectives import ObjectiveConfig, Reads
from synthe_core.training.objectives.answers import answer_logprobs, answer_tokens
from synthe_core.training.objectives.objective import ObjectiveContext
from synthe_core.training.objectives.preference_score import PreferenceScore, answer_means, pair_means
from synthe_core.training.objectives.reference_objective import REFERENCE, ReferenceObjective


class DPO(ReferenceObjective):
    """A loss of d = s_w - s_l, where s = log p(y | x) - log p_ref(y | x) of the chosen answer y_w and of the rejected
    y_l to a prompt x; with `length_normalized` each s is divided by the answer's tokens.

    sigmoid   -(1 - e) log sigma(b d) - e log sigma(-b d)                   b = beta, e = label_smoothing
    robust    [-(1 - e) log sigma(b d) + e log sigma(-b d)] / (1 - 2 e)
    ipo       (d - 1 / (2 b))^2

    The loss is the mean over pairs. A prompt is never scored, so that what the two sides have in common cancels.
    Sources: Rafailov et al. 2023 (sigmoid), Mitchell 2023 (its label smoothing), Chowdhury et al. 2024 (robust), Azar
    et al. 2023 (ipo).
    """

    reads: Reads = "preferences"  # type: ignore[misc]

    class Config(ObjectiveConfig):
        """The keys of `objective: dpo`."""

        type: Literal["dpo"] = "dpo"
        beta: float = Field(0.1, gt=0, description="how closely the model stays with its reference; of ipo, tau")
        loss_type: Literal["sigmoid", "robust", "ipo"] = Field("sigmoid", description="the loss of a pair")
        label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="the share of pairs whose sides may be swapped")
        length_normalized: bool | None = Field(
            None, description="divide log-ratios by the answer's tokens; null: of ipo only"
        )

        @model_validator(mode="after")
        def _ipo_has_no_smoothing(self) -> DPO.Config:
            if self.loss_type == "ipo" and self.label_smoothing:
                raise PydanticCustomError("smoothing", "label_smoothing goes with sigmoid or robust, not with ipo")
            return self

        @property
        def normalizes(self) -> bool:
            """Whether log-ratios are divided by the answer's tokens."""
            return self.loss_type == "ipo" if self.length_normalized is None else self.length_normalized

    def prepare(self, model: Any, batch: Batch) -> Batch:
        return batch._replace(extras={**batch.extras, REFERENCE: self.reference.logprobs(model, batch)})

    def __call__(self, model: Any, batch: Batch, ctx: ObjectiveContext) -> Loss:
        loss, logprobs = answer_logprobs(model, batch)
        ratios, tokens = logprobs - batch.extras[REFERENCE].to(logprobs.dtype), answer_tokens(batch)
        scores = ratios / tokens.clamp_min(1) if self.config.normalizes else ratios
        losses = pair_losses(scores[::2] - scores[1::2], self.config)
        chosen = torch.arange(len(ratios), device=ratios.device) % 2 == 0
        means = {
            **pair_means(*(self.config.beta * scores.detach()).view(-1, 2).T),
            **answer_means(logprobs, tokens, chosen),
            "kl": Mean.of(ratios),
        }
        scored = torch.full((), len(losses), device=losses.device)
        return loss._replace(total=losses.sum(), scored=scored, means=means)

    def count(self, batch: Batch) -> int:
        return len(batch.inputs) // 2

    def evaluate(self, model: Any, batches: Iterable[Batch], context: ExecutionContext) -> Iterator[PreferenceScore]:
        score = PreferenceScore()
        for batch in batches:
            prepared = self.prepare(model, batch).to(context.device)
            with torch.no_grad(), context.activate():
                score.add(self(model, prepared, ObjectiveContext()), len(batch.inputs) // 2)
            yield score
        self.reference.store()


def pair_losses(difference: Tensor, config: DPO.Config) -> Tensor:
    """The loss of each pair [N] by the difference d of its scores."""
    scaled, smoothing = config.beta * difference, config.label_smoothing
    if config.loss_type == "ipo":
        return (difference - 1 / (2 * config.beta)).square()
    right, swapped = -(1 - smoothing) * F.logsigmoid(scaled), smoothing * F.logsigmoid(-scaled)
    return right - swapped if config.loss_type == "sigmoid" else (right + swapped) / (1 - 2 * smoothing)
