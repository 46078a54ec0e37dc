"""Odds ratio preference optimisation: fine-tuning on the chosen answer and a penalty on the rejected one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from synthe_core.data.stream import Batch
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import Loss, Mean
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objectives import ObjectiveConfig, Reads
from synthe_core.training.objectives.answers import answer_tokens
from synthe_core.training.objectives.objective import Objective, ObjectiveContext
from synthe_core.training.objectives.preference_score import PreferenceScore, answer_means, pair_means

WEIGHT = "nll_weight"
"""The name in a batch's `extras` of what a nat of each row's likelihood counts, [B]."""
CERTAIN = -1e-7
"""The largest mean log-probability: the odds of a certain answer are infinite."""


class ORPO(Objective):
    """nll(y_w) - b log sigma(log odds(y_w) - log odds(y_l)) with odds(y) = p / (1 - p), b = beta.

    log p is the mean of the log-probabilities of an answer's tokens, y_w the chosen answer and y_l the rejected one.
    nll is the mean over all tokens of the chosen answers of a batch, the other term the mean over pairs. There is no
    reference. Source: Hong et al. 2024.
    """

    reads: Reads = "preferences"  # type: ignore[misc]
    whole_batch = True

    class Config(ObjectiveConfig):
        """The keys of `objective: orpo`."""

        type: Literal["orpo"] = "orpo"
        beta: float = Field(0.1, gt=0, description="the weight of the odds ratio: lambda of the paper")
        nll: Literal["answer", "text"] = Field(
            "answer", description="what the likelihood is of: the chosen answer, or its prompt too"
        )

    def prepare(self, model: Any, batch: Batch) -> Batch:
        return self._weighted(batch).select(self.ranks.rows(len(batch.inputs)))

    def _weighted(self, batch: Batch) -> Batch:
        chosen = answer_tokens(self._likely(batch))[::2]
        weight = torch.zeros(len(batch.inputs))
        weight[::2] = len(chosen) / max(1, int(chosen.sum()))
        return batch._replace(extras={**batch.extras, WEIGHT: weight})

    def _likely(self, batch: Batch) -> Batch:
        """The batch with the targets of the likelihood in the rows of chosen answers."""
        if self.config.nll == "answer":
            return batch
        following = F.pad(batch.inputs[:, 1:], (0, 1), value=IGNORED)
        before = (batch.targets != IGNORED).cumsum(1) == 0
        before[1::2] = False
        before[:, -1] = False
        return batch._replace(targets=torch.where(before, following, batch.targets))

    def __call__(self, model: Any, batch: Batch, ctx: ObjectiveContext) -> Loss:
        likely = self._likely(batch)
        loss, _ = model.loss(likely.inputs, likely.targets, None, likely.lengths, per_token=True)
        tokens = answer_tokens(batch)
        logprobs = -torch.where(batch.targets != IGNORED, loss.each, 0.0).sum(1)
        means = logprobs / tokens.clamp_min(1)
        odds = -self.config.beta * F.logsigmoid(log_odds_ratio(means[::2], means[1::2]))
        nats = loss.each.sum(1)
        total = (batch.extras[WEIGHT].to(nats.dtype) * nats).sum() + odds.sum()
        chosen = torch.arange(len(means), device=means.device) % 2 == 0
        figures = {
            **pair_means(*(self.config.beta * means.detach()).view(-1, 2).T),
            **answer_means(logprobs, tokens, chosen),
            "nll": Mean(nats.detach()[::2].sum(), answer_tokens(likely)[::2].sum()),
            "odds_loss": Mean.of(odds),
        }
        scored = torch.full((), len(odds), device=odds.device)
        return loss._replace(total=total, scored=scored, each=loss.each.detach(), means=figures)

    def count(self, batch: Batch) -> int:
        return len(batch.inputs) // 2

    def evaluate(self, model: Any, batches: Iterable[Batch], context: ExecutionContext) -> Iterator[ORPOScore]:
        score = ORPOScore()
        for batch in batches:
            prepared = self._weighted(batch).to(context.device)
            with torch.no_grad(), context.activate():
                score.add(self(model, prepared, ObjectiveContext()), len(batch.inputs) // 2)
            yield score


class ORPOScore(PreferenceScore):
    """The loss of held-out pairs is that of all of them as one batch."""

    def values(self) -> dict[str, float]:
        values = super().values()
        return values | {"loss": values["nll"] + values["odds_loss"]}


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log odds(chosen) - log odds(rejected) of mean log-probabilities [N], with log odds = x - log(1 - e^x)."""
    chosen, rejected = chosen.clamp_max(CERTAIN), rejected.clamp_max(CERTAIN)
    return (chosen - rejected) - (torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected)))
