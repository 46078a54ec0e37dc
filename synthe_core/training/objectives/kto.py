"""Kahneman-Tversky optimisation: answers that are good or bad, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.data.conversations.example_batches import GOOD
from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.evaluation.accumulators import mean_values
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import Loss, Mean
from synthe_core.recipe.objectives import ObjectiveConfig, Reads
from synthe_core.training.objectives.answers import answer_logprobs, answer_tokens, mismatched
from synthe_core.training.objectives.frozen_pass import frozen_logprobs
from synthe_core.training.objectives.objective import ObjectiveContext
from synthe_core.training.objectives.preference_score import answer_means
from synthe_core.training.objectives.reference_objective import REFERENCE, ReferenceObjective

KL = "kl"
"""The name in a batch's `extras` of z, [B]."""
MIN_ROWS = 2
ALL = slice(None)


class KTO(ReferenceObjective):
    """w_good (1 - sigma(b (s - z))) of a good answer, w_bad (1 - sigma(b (z - s))) of a bad one, the mean over rows.

    s = log p(y | x) - log p_ref(y | x) of an answer y to a prompt x, b = beta. z = max(0, mean of s over prompts with
    answers of other rows) estimates KL(p || p_ref) and has no gradient; it is that of the whole batch, however the
    batch is cut. Source: Ethayarajh et al. 2024.
    """

    reads: Reads = "ratings"  # type: ignore[misc]
    whole_batch = True

    class Config(ObjectiveConfig):
        """The keys of `objective: kto`."""

        type: Literal["kto"] = "kto"
        beta: float = Field(0.1, gt=0, description="how closely the model stays with its reference")
        desirable_weight: float = Field(1.0, gt=0, description="of good answers")
        undesirable_weight: float = Field(1.0, gt=0, description="of bad answers")

    def prepare(self, model: Any, batch: Batch) -> Batch:
        if len(batch.inputs) < MIN_ROWS:
            raise InputError("kto pairs a prompt with the answer of another row, and a batch has one", "raise batch")
        mine = self.ranks.rows(len(batch.inputs))
        ratios = self.ranks.join_rows(self._mismatched_ratios(model, batch, mine))
        part = batch.select(mine)
        kl = ratios.mean().clamp_min(0).expand(len(part.inputs))
        extras = {**part.extras, REFERENCE: self.reference.logprobs(model, part), KL: kl}
        return part._replace(extras=extras)

    def _mismatched_ratios(self, model: Any, batch: Batch, rows: slice = ALL) -> Tensor:
        """log p - log p_ref of prompts of these `rows` with answers of other rows of the batch, [B]."""
        assert self.setup is not None, "`begin` comes first"
        others = mismatched(batch, self.setup.sequence).select(rows)
        reference = self.reference.logprobs(model, others, store=False)
        return frozen_logprobs(model, others, self.setup) - reference

    def __call__(self, model: Any, batch: Batch, ctx: ObjectiveContext) -> Loss:
        loss, logprobs = answer_logprobs(model, batch)
        ratios, good = logprobs - batch.extras[REFERENCE].to(logprobs.dtype), batch.extras[GOOD]
        kl = batch.extras[KL].to(logprobs.dtype)
        losses = rating_losses(ratios, good, kl, self.config)
        means = {
            **rating_means(ratios.detach(), good, kl, self.config.beta),
            **answer_means(logprobs, answer_tokens(batch), good),
        }
        scored = torch.full((), len(losses), device=losses.device)
        return loss._replace(total=losses.sum(), scored=scored, means=means)

    def count(self, batch: Batch) -> int:
        return len(batch.inputs)

    def evaluate(self, model: Any, batches: Iterable[Batch], context: ExecutionContext) -> Iterator[RatingScore]:
        score = RatingScore(self.config)
        for batch in batches:
            reference = self.reference.logprobs(model, batch).to(context.device)
            moved = batch.to(context.device)
            with torch.no_grad(), context.activate():
                ratios = answer_logprobs(model, moved)[1] - reference
            others = self._mismatched_ratios(model, batch) if len(batch.inputs) >= MIN_ROWS else torch.empty(0)
            score.add(ratios, batch.extras[GOOD], others)
            yield score
        self.reference.store()


class RatingScore:
    """Figures of held-out answers, with the z of all of them: the loss, the rewards b s, the margin between good and
    bad ones, and the accuracy.

    rows: answers read so far.
    """

    def __init__(self, config: KTO.Config) -> None:
        self.rows = 0
        self._config = config
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._others: list[Tensor] = []

    def add(self, ratios: Tensor, good: Tensor, others: Tensor) -> None:
        self.rows += len(ratios)
        self._parts.append((ratios.cpu(), good.cpu()))
        self._others.append(others)

    def values(self) -> dict[str, float]:
        ratios, good = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        others = torch.cat(self._others)
        kl = others.mean().clamp_min(0).to(ratios) if len(others) else ratios.new_zeros(())
        means = rating_means(ratios, good, kl.expand(len(ratios)), self._config.beta)
        values = mean_values(means)
        values["loss"] = float(rating_losses(ratios, good, kl, self._config).mean())
        if bool(good.any()) and not bool(good.all()):
            values["margin"] = values["rewards/chosen"] - values["rewards/rejected"]
        return values


def rating_losses(ratios: Tensor, good: Tensor, kl: Tensor, config: KTO.Config) -> Tensor:
    """The loss of each answer [B] by its log-ratio s, whether it is good, and z."""
    above = config.beta * (ratios - kl)
    weights = torch.where(good, config.desirable_weight, config.undesirable_weight)
    return weights * torch.sigmoid(torch.where(good, -above, above))


def rating_means(ratios: Tensor, good: Tensor, kl: Tensor, beta: float) -> dict[str, Mean]:
    """Figures of answers [B]. accuracy: the share of good ones with s > z and of bad ones with s < z; equal ones count
    half."""
    right = torch.where(good, 1.0, -1.0) * (ratios - kl).sign()
    return {
        "rewards/chosen": Mean.of(beta * ratios, good),
        "rewards/rejected": Mean.of(beta * ratios, ~good),
        "accuracy": Mean.of((right + 1) / 2),
        "kl": Mean.of(kl),
    }
