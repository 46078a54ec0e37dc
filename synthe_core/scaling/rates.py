"""How a learning rate changes with the width of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from synthe_core.errors import InputError
from synthe_core.recipe.schema import Recipe

MUP_EXPONENT = {"adamw": 1.0, "muon": 0.5}
"""p of lr ∝ width^-p. A step must change what a matrix returns by as much at any width. An update of AdamW has entries
of size lr, so that its norm grows with the width; the scale of Muon's has a norm of lr sqrt(width)."""
LEAST_RATES, LEAST_WIDTHS = 3, 2


@dataclass(frozen=True)
class RateRule:
    """lr(W) = lr_0 (W_0 / W)^p, with W the width. Depth does not change it, and neither does the number of tokens.

    A recipe has one rate for all parameters, so the embedding follows it too, which µP leaves constant.
    Source: Yang et al. 2022, "Tensor programs V"; the scale of Muon: Liu et al. 2025.
    """

    lr: float
    width: int
    exponent: float
    name: str

    def at(self, width: int) -> float:
        """The rate at a width, to four digits."""
        return float(f"{self.lr * (self.width / width) ** self.exponent:.4g}")

    def __str__(self) -> str:
        return f"lr = {self.lr:.3g} ({self.width} / width)^{self.exponent:.3g} ({self.name})"


class Trial(NamedTuple):
    """One run of a sweep over rates and widths."""

    learner: str
    width: int
    lr: float
    loss: float


def transfer_rule(recipe: Recipe, name: str) -> RateRule:
    """The rule `mup` or `constant`, from a recipe's rate and width."""
    exponent = MUP_EXPONENT[recipe.train.optimizer] if name == "mup" else 0.0
    kind = f"µP, {recipe.train.optimizer}" if name == "mup" else "constant"
    return RateRule(recipe.train.lr, recipe.model.width, exponent, kind)


def fit_rules(trials: Iterable[Trial]) -> dict[str, RateRule]:
    """Of each learner the rule through its best rates: ln lr* = ln lr_0 - p ln(W / W_0) by least squares.

    The best rate of a width is the minimum of a parabola of the loss in ln lr, through the three rates around the
    lowest. InputError where a width has fewer than three rates, the lowest loss is at the edge of them, or there are
    fewer than two widths.
    """
    by_learner: dict[str, dict[int, dict[float, float]]] = {}
    for trial in trials:
        by_learner.setdefault(trial.learner, {}).setdefault(trial.width, {})[trial.lr] = trial.loss
    rules = {}
    for learner, widths in by_learner.items():
        if len(widths) < LEAST_WIDTHS:
            raise InputError(f"{learner}: the sweep has one width", "a fitted rule needs at least 2")
        best = {width: _best_rate(learner, width, losses) for width, losses in sorted(widths.items())}
        first = min(best)
        across = np.log([width / first for width in best])
        slope, start = np.polyfit(across, np.log(list(best.values())), 1)
        rules[learner] = RateRule(float(math.exp(start)), first, float(-slope), "fitted")
    return rules


def _best_rate(learner: str, width: int, losses: Mapping[float, float]) -> float:
    if len(losses) < LEAST_RATES:
        raise InputError(
            f"{learner}, width {width}: {len(losses)} learning rates", f"a fitted rule needs at least {LEAST_RATES}"
        )
    rates = sorted(losses)
    lowest = min(range(len(rates)), key=lambda index: losses[rates[index]])
    if lowest in (0, len(rates) - 1):
        side = "smaller" if lowest == 0 else "larger"
        raise InputError(
            f"{learner}, width {width}: the lowest loss is at the edge, lr {rates[lowest]:g}", f"sweep {side} rates too"
        )
    around = rates[lowest - 1 : lowest + 2]
    a, b, _ = np.polyfit(np.log(around), [losses[rate] for rate in around], 2)
    return float(math.exp(-b / (2 * a)))
