"""Held-out figures of preference objectives."""

from __future__ import annotations

from torch import Tensor

from synthe_core.evaluation.accumulators import add_means, mean_values
from synthe_core.model.language_model import Loss, Mean


class PreferenceScore:
    """Means over held-out pairs: the loss and the objective's figures, as training logs them.

    rows: pairs read so far.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._means: dict[str, Mean] = {}

    def add(self, loss: Loss, rows: int) -> None:
        self.rows += rows
        add_means(self._means, {"loss": Mean(loss.total.detach(), loss.scored), **loss.means})

    def values(self) -> dict[str, float]:
        return mean_values(self._means)


def pair_means(chosen: Tensor, rejected: Tensor) -> dict[str, Mean]:
    """Figures of the rewards of pairs [N]. accuracy: the share of pairs whose chosen answer has the larger one; equal
    ones count half. margin: by how much it is larger."""
    margin = chosen - rejected
    return {
        "rewards/chosen": Mean.of(chosen),
        "rewards/rejected": Mean.of(rejected),
        "margin": Mean.of(margin),
        "accuracy": Mean.of((margin.sign() + 1) / 2),
    }


def answer_means(logprobs: Tensor, tokens: Tensor, chosen: Tensor) -> dict[str, Mean]:
    """Figures of answers [B]: nats and tokens of those that `chosen` bool [B] marks, and of the others."""
    means = {}
    for name, where in (("chosen", chosen), ("rejected", ~chosen)):
        means[f"logps/{name}"] = Mean.of(logprobs, where)
        means[f"tokens/{name}"] = Mean.of(tokens.to(logprobs.dtype), where)
    return means
