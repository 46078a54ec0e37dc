"""What the promotion gate measures of an adapter beside the current one, and what it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthe_core.swarm.spec import PromotionSpec


@dataclass(frozen=True)
class PairFigures:
    """Of held-out pairs, with the model without an adapter as reference: log p(chosen) - log p(rejected) beyond that of
    the reference is the *margin* of a pair.

    wins:     the share of pairs whose margin is larger than before; equal ones count half.
    accuracy: the share of pairs with a margin above 0, before and after; those of 0 count half.
    margin:   its mean in nats, before and after.
    """

    pairs: int
    wins: float
    accuracy: tuple[float, float]
    margin: tuple[float, float]

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float]) -> PairFigures:
        """Of the margins of each pair."""
        count = len(before)
        wins = sum(_share(b - a) for a, b in zip(before, after, strict=True)) / count
        accuracy = (sum(map(_share, before)) / count, sum(map(_share, after)) / count)
        return cls(count, wins, accuracy, (sum(before) / count, sum(after) / count))

    def json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "wins": round(self.wins, 4),
            "accuracy": _change(self.accuracy),
            "margin": _change(self.margin),
        }


@dataclass(frozen=True)
class Figures:
    """held_out: of the new pairs. earlier: of those held out before, None without any.

    canary: bits per byte of other text, tasks: accuracy at general questions; each of the adapter that swarm.yaml
    names, and after learning. questions: how many.
    """

    held_out: PairFigures
    earlier: PairFigures | None
    canary: tuple[float, float]
    tasks: tuple[float, float]
    questions: int

    def json(self) -> dict[str, Any]:
        """For the ledger."""
        return {
            "held_out": self.held_out.json(),
            "earlier": None if self.earlier is None else self.earlier.json(),
            "canary_bits_per_byte": _change(self.canary),
            "tasks": {"questions": self.questions, "accuracy": _change(self.tasks)},
        }

    def faults(self, spec: PromotionSpec) -> list[str]:
        """Why it is not promoted, in words; empty where it is."""
        faults, held_out, earlier = [], self.held_out, self.earlier
        if held_out.pairs < spec.min_held_out:
            faults.append(f"{held_out.pairs} held-out pairs fit into learning.sequence, not {spec.min_held_out}")
        if not held_out.wins >= spec.min_wins:
            faults.append(
                f"it is better on {held_out.wins:.0%} of {held_out.pairs} held-out pairs, not {spec.min_wins:.0%}"
            )
        if not held_out.accuracy[1] >= held_out.accuracy[0]:
            faults.append(f"held-out pairs: right on {held_out.accuracy[1]:.0%}, before {held_out.accuracy[0]:.0%}")
        if earlier is not None:
            faults += _earlier_faults(earlier, spec)
        before, after = self.canary
        if not after <= before * (1 + spec.max_canary_increase):
            faults.append(f"other text takes {after:.3f} bits per byte, before {before:.3f}")
        if not self.tasks[1] >= self.tasks[0] - spec.max_task_loss:
            faults.append(f"general questions: right on {self.tasks[1]:.0%}, before {self.tasks[0]:.0%}")
        return faults


def _earlier_faults(earlier: PairFigures, spec: PromotionSpec) -> list[str]:
    faults = []
    before, after = earlier.accuracy
    if not after >= before - spec.max_earlier_loss:
        faults.append(f"pairs held out earlier: right on {after:.0%}, before {before:.0%}")
    before, after = earlier.margin
    if not after >= before - spec.max_earlier_margin_loss * abs(before):
        faults.append(f"pairs held out earlier: preferred by {after:.2f} nats, before by {before:.2f}")
    return faults


def _share(difference: float) -> float:
    """1 above 0, a half at 0. NaN is no success."""
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def _change(values: tuple[float, float]) -> Mapping[str, float]:
    return {"before": round(values[0], 5), "after": round(values[1], 5)}
