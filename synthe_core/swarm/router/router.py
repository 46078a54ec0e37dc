"""The router: one specialist, several, or the fallback, with bounded exploration, and what is learned from ratings."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from synthe_core.swarm.features import SAMPLES, Embed, Standardizer, capability_texts
from synthe_core.swarm.router.decision import Candidate, Decision
from synthe_core.swarm.router.estimator import Estimator, Features, Profile
from synthe_core.swarm.router.observations import Observation, Observations
from synthe_core.swarm.router.pathways import Pathways
from synthe_core.swarm.spec import SpecialistSpec, SwarmSpec

RECENT = 200
"""Decisions of which at most a share explores."""
CAUTION = 0.1
"""Success is drawn with so much of its deviation: what requests differ in explores by itself (Bastani et al. 2021)."""
MAX_WORDS = 5


class Router:
    """Decides who answers, for any thread.

    Specialists on other servers are no candidates: they answer as the fallback, or if they are addressed.

    embed:        the base's embedding of texts. observations, pathways: where it remembers; None in a trial.
    generator:    of the exploration.
    """

    def __init__(
        self,
        spec: SwarmSpec,
        embed: Embed,
        observations: Observations | None = None,
        pathways: Pathways | None = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.spec, self._embed = spec, embed
        self._observations, self._pathways = observations, pathways
        self._generator = generator or np.random.default_rng()
        self._lock = threading.Lock()
        self._rated: list[Observation] = []
        self._explored: deque[bool] = deque(maxlen=RECENT)
        statistics = None if observations is None else observations.statistics()
        general = embed(SAMPLES)
        standardizer = Standardizer(*statistics) if statistics is not None else Standardizer.of(general)
        if observations is not None and statistics is None:
            observations.save_statistics(*standardizer.state())
        here = {name: each for name, each in spec.specialists.items() if each.url is None}
        self.estimator = Estimator(profiles(here, embed), spec.router, standardizer, general)
        if observations is not None:
            self.estimator.refit(observations.newest(spec.router.window))

    def route(self, text: str) -> tuple[Decision, Observation]:
        """Who answers a request, and what a rating of the answer will be learned from."""
        began = time.perf_counter()
        embedding = self._embed([text])[0]
        decision, observation = self.decide(text, embedding)
        return replace(decision, seconds=time.perf_counter() - began), observation

    def decide(self, text: str, embedding: np.ndarray) -> tuple[Decision, Observation]:
        """The same for a request whose embedding [D] is known."""
        with self._lock:
            if self.estimator.standardizer.observe(embedding):
                self._move_centre()
            features = self.estimator.features(text, embedding)
            candidates = self._candidates(text, features)
            chosen, explored = self._choose(candidates)
            self._explored.append(explored)
            domain = self.estimator.nearest_capability(embedding)
        fallback = self.spec.router.fallback
        why = _reason(chosen, candidates, explored, fallback, self.spec.router.threshold)
        decision = Decision(chosen, fallback, explored, domain, tuple(candidates), why)
        return decision, Observation(text, embedding, features.shares, {})

    def learn(self, observation: Observation) -> None:
        """Takes in a rated request, which is among the observations already if they are stored."""
        with self._lock:
            if self._observations is None:
                self._rated.append(observation)
            features = self.estimator.features(observation.text, observation.embedding)
            features = replace(features, shares={name: observation.shares.get(name, 0.0) for name in features.shares})
            self.estimator.learn(observation.text, features, observation.outcomes)

    def reload(self) -> None:
        """Learns again from the stored observations: others have rated, or ratings were deleted."""
        with self._lock:
            if self._observations is not None:
                self.estimator.refit(self._observations.newest(self.spec.router.window))

    def _move_centre(self) -> None:
        """What was learned is learned again about the new centre."""
        rated = self._rated
        if self._observations is not None:
            self._observations.save_statistics(*self.estimator.standardizer.state())
            rated = self._observations.newest(self.spec.router.window)
        self.estimator.refit(rated)

    def _candidates(self, text: str, features: Features) -> list[Candidate]:
        """Every specialist, the best first."""
        candidates = [
            Candidate(
                name,
                mean + self.spec.specialists[name].priority,
                deviation,
                features.cold[name],
                features.shares[name],
                tuple(self.estimator.matching_words(text, name)[:MAX_WORDS]),
                self.estimator.models[name].observations,
            )
            for name, (mean, deviation) in self.estimator.estimates(features).items()
        ]
        return sorted(candidates, key=lambda each: -each.estimate)

    def _choose(self, candidates: Sequence[Candidate]) -> tuple[tuple[str, ...], bool]:
        """The names of those who answer, the first first, and whether that is exploration.

        Marginal Thompson sampling: a success is drawn for each specialist from its own posterior, and the largest one
        answers. As soon as the share of recent requests that went to another than the best reaches `explore`, the best
        answers.
        """
        router = self.spec.router
        if not candidates:
            return (), False
        best, explored = candidates[0], False
        if len(candidates) > 1 and sum(self._explored) < router.explore * (len(self._explored) + 1):
            deviations = [CAUTION * each.deviation for each in candidates]
            draws = self._generator.normal([each.estimate for each in candidates], deviations)
            first = candidates[int(draws.argmax())]
            explored = first is not best
            if explored:
                return (first.name,), True
        if best.estimate < router.threshold:
            return (), False
        chosen = [best.name]
        for each in candidates[1:]:
            joined = each.estimate + self._pathway(best.name, each.name)
            close = joined >= best.estimate - router.margin and joined >= router.threshold
            if close and len(chosen) < router.max_specialists:
                chosen.append(each.name)
        return tuple(chosen), False

    def _pathway(self, one: str, other: str) -> float:
        """What the record of both together adds to the estimate of the second."""
        if self._pathways is None or not self.spec.pathways.influence:
            return 0.0
        return self.spec.pathways.influence * self._pathways.weight(one, other)


def profiles(specialists: Mapping[str, SpecialistSpec], embed: Embed) -> dict[str, Profile]:
    """What is known of specialists before they have answered. Their texts are embedded in one go."""
    texts, sizes = [], {}
    for name, spec in specialists.items():
        own = capability_texts(spec.description, spec.capabilities, spec.prompt or name)
        texts += own
        sizes[name] = len(own)
    embeddings = iter(embed(texts)) if texts else iter(())
    return {
        name: Profile(
            np.stack([next(embeddings) for _ in range(sizes[name])]),
            spec.capabilities or [name],
            " ".join((name, spec.description, *spec.capabilities)),
        )
        for name, spec in specialists.items()
    }


def _reason(
    chosen: Sequence[str], candidates: Sequence[Candidate], explored: bool, fallback: str, threshold: float
) -> str:
    """The decision in a sentence."""
    if not candidates:
        return f"there are no specialists, so {fallback} answers"
    best = candidates[0]
    if not chosen:
        nearest = f"{best.name} is the nearest, with {best.probability:.0%}"
        return f"{nearest}, which is below {threshold:.0%}: {fallback} answers"
    by_name = {each.name: each for each in candidates}
    parts = [_about(by_name[name]) for name in chosen]
    said = "; ".join(parts)
    return f"{said}; explored: {best.name} has {best.probability:.0%}" if explored else said


def _about(candidate: Candidate) -> str:
    if candidate.observations:
        count = candidate.observations
        grounds = [f"by {count} rated answer{'s' if count > 1 else ''}"]
    else:
        grounds = ["by its capabilities"]
    if candidate.words:
        grounds.append(f"matching {', '.join(candidate.words)}")
    return f"{candidate.name}: {candidate.probability:.0%} {' and '.join(grounds)}"
