"""How well a confidence score predicts whether an answer is right: calibration, discrimination, risk and coverage.

Throughout, a higher `score` float [N] means more confidence, and `right` bool [N] says whether the answer was right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BINS = 15


class Bin(NamedTuple):
    """Mean score, share that is right, and number of the answers in a bin."""

    score: float
    right: float
    answers: int


@dataclass(frozen=True)
class ScoreQuality:
    """The quality of one confidence score.

    bins:  its reliability diagram, in bins of equal mass.
    ece:   expected calibration error; None for a score that is not a probability.
    auroc: area under the ROC curve of right against wrong; 0.5 is chance.
    aurc:  area under the risk-coverage curve; lower is better, and the share of wrong tokens is chance.
    half:  the share of wrong tokens in the more confident half.
    risk:  the curve as points (coverage, share of wrong tokens), thinned for a chart.
    """

    score: str
    ece: float | None
    auroc: float
    aurc: float
    half: float
    bins: list[Bin]
    risk: list[tuple[float, float]]


def reliability(score: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability diagram in bins of equally many answers, by rising score (Nguyen & O'Connor 2015)."""
    parts = np.array_split(np.argsort(score, kind="stable"), bins)
    return [Bin(float(score[p].mean()), float(right[p].mean()), len(p)) for p in parts if len(p)]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: |mean score - share right|, weighted by the bins' sizes. 0 is calibrated."""
    total = sum(each.answers for each in bins)
    return sum(each.answers * abs(each.score - each.right) for each in bins) / total if total else float("nan")


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    """The probability that a right answer has a higher score than a wrong one, ties counting half; NaN without both."""
    hits, misses = int(right.sum()), int((~right).sum())
    if not hits or not misses:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][right].sum() - hits * (hits + 1) / 2) / (hits * misses))


def risk_coverage(score: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The share of wrong answers among the n most confident, for n = 1 ... N (El-Yaniv & Wiener 2010).

    Answers of equal score count as in random order: each as the mean of them.
    """
    values, place, counts = np.unique(-score, return_inverse=True, return_counts=True)
    wrong = np.bincount(place, weights=~right, minlength=len(values)) / counts
    return np.cumsum(np.repeat(wrong, counts)) / np.arange(1, len(score) + 1)


def area(risk: np.ndarray) -> float:
    """The area under a risk-coverage curve: its mean over all coverages. Chance is the share of wrong answers."""
    return float(risk.mean()) if len(risk) else float("nan")
