"""What a swarm remembers of its answers: rating one teaches router, pathways and confidence together."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from synthe_core.errors import InputError
from synthe_core.swarm.answers import Answer, Answers, rating_of
from synthe_core.swarm.confidence import Calibration, Rating, Records, Signals, expected_calibration_error
from synthe_core.swarm.router import observations
from synthe_core.swarm.router.observations import Observation
from synthe_core.swarm.router.pathways import Pathways
from synthe_core.swarm.spec import SwarmSpec
from synthe_core.swarm.store import Store
from synthe_core.swarm.unknown_name import unknown_name

MAX_RATED = 5000
"""The newest rated answers that confidence is made of."""
REFIT = 0.01
"""The share of them after which the calibration is fitted again."""


class Record:
    """Answers, pathways, records and calibration of a swarm, in its database."""

    def __init__(self, store: Store, spec: SwarmSpec) -> None:
        self.store, self.spec = store, spec
        self.answers, self.pathways = Answers(store), Pathways(store, spec.pathways)
        self._lock = threading.Lock()
        self.reload()

    def reload(self) -> None:
        """Computes records and calibration anew from the rated answers."""
        rated = self.answers.ratings(MAX_RATED)
        with self._lock:
            self._rated = rated
            self.records = Records(self.spec.confidence, rated.values())
            self._calibrate()

    @property
    def ratings(self) -> list[Rating]:
        """The rated answers, oldest first."""
        return list(self._rated.values())

    def rate(
        self,
        answer_id: str,
        success: float,
        *,
        right: str | None = None,
        user: str | None = None,
    ) -> Observation | None:
        """Records how good an answer was, 0 to 1, in one transaction; returns what the router learns from it.

        right: the specialist who should have answered, where one knows. user: whose answer it must be; None: anybody's.
        InputError for an answer that there is not, or that is not the user's.
        """
        if not 0 <= success <= 1:
            raise InputError(f"a success is between 0 and 1, not {success:g}")
        if right is not None and right not in self.spec.specialists:
            raise unknown_name("specialist", right, self.spec.specialists)
        with self.store.transaction():
            answer = self.answers.get(answer_id, user)
            members = [name for name in answer.specialists if name in self.spec.specialists]
            outcomes = dict.fromkeys(members, success)
            if right is not None:
                outcomes = {name: float(name == right) for name in self.spec.specialists}
            self.answers.rate(answer_id, success)
            if answer.success is None and members:
                self.pathways.learn(members, success)
            observation = observations.rate(self.store, answer_id, outcomes) if outcomes else None
        self._note(answer, success)
        return observation if answer.success is None else None

    def _note(self, answer: Answer, success: float) -> None:
        """Takes a rating into the records at once, and into the calibration with the next `REFIT` of all ratings."""
        rating = rating_of(answer.by, answer.domain, success, answer.signals, answer.confidence)
        with self._lock:
            if (earlier := self._rated.get(answer.id)) is not None:
                self.records.remove(earlier)
            elif len(self._rated) >= MAX_RATED:
                self.records.remove(self._rated.pop(next(iter(self._rated))))
            self._rated[answer.id] = rating
            self.records.add(rating)
            self._uncalibrated += 1
            if self._uncalibrated >= REFIT * len(self._rated):
                self._calibrate()

    def _calibrate(self) -> None:
        self.calibration, self._uncalibrated = Calibration(list(self._rated.values())), 0

    def confidence_of(
        self, specialist: str, domain: str, estimate: float, means: Mapping[str, float]
    ) -> tuple[float, Signals]:
        """The calibrated confidence of an answer, and its signals. means: `logprob` and `confidence` of its tokens."""
        signals = Signals(self.records.of(specialist, domain).mean, estimate, means["logprob"], means["confidence"])
        return self.calibration(signals), signals

    def calibration_error(self) -> float | None:
        """ECE of the confidences that rated answers had when they were given; None without any."""
        return _calibration_error(self.ratings)

    def calibration_errors(self) -> dict[str, float | None]:
        """The same of each specialist's own answers."""
        ratings: dict[str, list[Rating]] = {}
        for each in self.ratings:
            ratings.setdefault(each.specialist, []).append(each)
        return {name: _calibration_error(own) for name, own in ratings.items()}


def _calibration_error(ratings: Sequence[Rating]) -> float | None:
    pairs = [(each.predicted, each.success) for each in ratings if each.predicted is not None]
    return expected_calibration_error([p for p, _ in pairs], [s for _, s in pairs])
