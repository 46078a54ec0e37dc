"""How sure a specialist may be of an answer: its record in the domain, joined with the model's own signals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from synthe_core.evaluation.calibration import calibration_error, reliability
from synthe_core.swarm.credible_interval import credible_interval
from synthe_core.swarm.spec import ConfidenceSpec

STEPS = 25
"""Newton's steps of a fit, at most."""
PRIOR_WEIGHTS = (0.0, 1.0, 0.0, 0.0, 0.0)
PRIOR_DEVIATIONS = (0.5, 0.5, 0.5, 0.5, 0.5)
"""Of the weights of `Signals`: before anything is rated, confidence is the record alone."""
EDGE = 1e-4


class Signals(NamedTuple):
    """What is known of an answer when it ends.

    record:     success of the specialist in the domain, by its posterior.
    estimate:   the router's estimate.
    logprob:    mean log-probability of the tokens, in nats.
    confidence: mean of the confidence head, or of the likeliest tokens' probabilities.
    """

    record: float
    estimate: float
    logprob: float
    confidence: float

    def features(self) -> np.ndarray:
        """float64 [5]: 1, and each signal on a scale on which 0 says nothing."""
        return np.array(
            [1.0, _logit(self.record), 4 * (self.estimate - 0.5), self.logprob + 1.0, _logit(self.confidence)]
        )


@dataclass(frozen=True)
class Rating:
    """A rated answer. success: 0 to 1. signals, predicted: None where it was rated without one. domain: may be ""."""

    specialist: str
    domain: str
    success: float
    signals: Signals | None = None
    predicted: float | None = None


class Beta(NamedTuple):
    """The posterior Beta(successes, failures) of a rate."""

    successes: float
    failures: float

    @property
    def mean(self) -> float:
        return self.successes / (self.successes + self.failures)

    @property
    def deviation(self) -> float:
        total = self.successes + self.failures
        return math.sqrt(self.successes * self.failures / (total * total * (total + 1)))

    @property
    def interval(self) -> tuple[float, float]:
        """Between which values the rate lies with probability 0.9."""
        return credible_interval(self.successes, self.failures)


class Records:
    """Success of each specialist, overall and by domain.

    A specialist's rate in a domain begins at its overall one, which counts as `pooling` answers there; its overall rate
    begins at Beta(prior_successes, prior_failures).
    """

    def __init__(self, spec: ConfidenceSpec, ratings: Iterable[Rating] = ()) -> None:
        self._spec = spec
        self._counts: dict[tuple[str, str], list[float]] = {}
        for each in ratings:
            self.add(each)

    def add(self, rating: Rating) -> None:
        """Takes in a rated answer. One of a mixture, `a+b`, counts for each of its specialists too."""
        self._count(rating, 1.0)

    def remove(self, rating: Rating) -> None:
        """Takes out a rated answer that was taken in."""
        self._count(rating, -1.0)

    def _count(self, rating: Rating, weight: float) -> None:
        names = {rating.specialist, *rating.specialist.split("+")}
        for key in {(name, domain) for name in names for domain in ("", rating.domain)}:
            counts = self._counts.setdefault(key, [0.0, 0.0])
            counts[0] += weight * rating.success
            counts[1] += weight * (1 - rating.success)

    def overall(self, specialist: str) -> Beta:
        """The posterior over all domains."""
        good, bad = self._counts.get((specialist, ""), (0.0, 0.0))
        return Beta(self._spec.prior_successes + good, self._spec.prior_failures + bad)

    def of(self, specialist: str, domain: str) -> Beta:
        """The posterior in a domain; for the domain "" it is the overall one."""
        overall = self.overall(specialist)
        if not domain:
            return overall
        good, bad = self._counts.get((specialist, domain), (0.0, 0.0))
        pooling = max(self._spec.pooling, 1e-6)
        return Beta(pooling * overall.mean + good, pooling * (1 - overall.mean) + bad)

    def domains(self, specialist: str) -> dict[str, tuple[Beta, float]]:
        """The domains that a specialist has rated answers in, with the posterior and the number of answers."""
        counts = list(self._counts.items())  # others may add to them
        own = {domain: sum(each) for (name, domain), each in counts if name == specialist and domain and sum(each)}
        return {domain: (self.of(specialist, domain), count) for domain, count in own.items()}


class Calibration:
    """The probability that an answer is right, by logistic regression over its signals.

    The weights are the most probable ones (MAP) under a Gaussian prior whose mean says: the record, as it is. They are
    fitted anew to all rated answers, so that their order and the deletion of some leave no trace.
    """

    def __init__(self, ratings: Sequence[Rating] = ()) -> None:
        self.weights = np.array(PRIOR_WEIGHTS)
        rows = [(each.signals.features(), each.success) for each in ratings if each.signals is not None]
        if rows:
            self._fit(np.stack([row for row, _ in rows]), np.array([success for _, success in rows]))

    def __call__(self, signals: Signals) -> float:
        """The probability for an answer with these signals."""
        return float(_sigmoid(self.weights @ signals.features()))

    def _fit(self, xs: np.ndarray, ys: np.ndarray) -> None:
        """Newton's method, which converges here: the posterior is log-concave."""
        prior, precision = np.array(PRIOR_WEIGHTS), np.diag(1 / np.array(PRIOR_DEVIATIONS) ** 2)
        for _ in range(STEPS):
            p = _sigmoid(xs @ self.weights)
            gradient = xs.T @ (p - ys) + precision @ (self.weights - prior)
            curvature = xs.T @ (xs * (p * (1 - p))[:, None]) + precision
            step = np.linalg.solve(curvature, gradient)
            self.weights = self.weights - step / max(1.0, float(np.abs(step).max()))
            if float(np.abs(step).max()) < 1e-8:
                return


def expected_calibration_error(predicted: Sequence[float], success: Sequence[float], bins: int = 10) -> float | None:
    """ECE of confidences against what was rated; None without any."""
    if not predicted:
        return None
    right = np.array(success) >= 0.5
    return calibration_error(reliability(np.array(predicted), right, min(bins, len(predicted))))


def success_of(score: float) -> float:
    """A score from -1 to 1 as a success from 0 to 1."""
    return min(1.0, max(0.0, (score + 1) / 2))


def mean_signals(logprobs: Sequence[float], confidences: Sequence[float]) -> Mapping[str, float]:
    """The mean log-probability and confidence of an answer's tokens; of an empty answer, those of a wild guess."""
    return {
        "logprob": sum(logprobs) / len(logprobs) if logprobs else -10.0,
        "confidence": sum(confidences) / len(confidences) if confidences else 0.0,
    }


def _logit(p: float) -> float:
    p = min(1 - EDGE, max(EDGE, p))
    return math.log(p / (1 - p))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -50, 50))))
