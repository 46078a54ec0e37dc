"""The expected success of each specialist at a request: from its capabilities at first, later from what was rated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthe_core.swarm.features import Standardizer
from synthe_core.swarm.router.bm25 import BM25
from synthe_core.swarm.router.linear import BayesianLinear
from synthe_core.swarm.router.observations import Observation
from synthe_core.swarm.spec import RouterSpec

SHARPNESS = 24.0
"""How much likelier a specialist is whose capabilities are nearer by one, in cosine."""
WORDS_WEIGHT, WORDS_SATURATION = 5.0, 4.0
"""What matching words of capabilities count in the same measure, and the BM25 score at which they count half of it."""
COVERED_WEIGHT = 10.0
"""What they count against nobody's covering the request."""
SUCCESS_SATURATION = 8.0
"""The BM25 score at which words of past successes have half of their share."""
GENERAL = 0.75
"""Nobody covers a request that is no nearer to any capability than this share of general texts is: a larger share sends
more of what nobody covers to the fallback, and more of what somebody does."""
COLD, SHARE, BIAS = (0.8, 0.3), (0.3, 0.3), (0.0, 0.2)
"""Mean and standard deviation of the weights of what is known before anything is learned."""


@dataclass(frozen=True)
class Features:
    """What the estimates are made of.

    embedding: float64 [D], standardised and of length 1. cold: each specialist's share by its capabilities, which add
    up to 1 with nobody's. shares: each one's share of the words that match those of its past successes.
    """

    embedding: np.ndarray
    cold: Mapping[str, float]
    shares: Mapping[str, float]

    def of(self, name: str) -> np.ndarray:
        """The regression's input for one specialist: float64 [D + 3]."""
        return np.concatenate([self.embedding, [self.cold[name], self.shares[name], 1.0]])


class Profile:
    """A specialist before it has answered: embeddings [N, D] of its capabilities, and their words."""

    def __init__(self, embeddings: np.ndarray, capabilities: Sequence[str], words: str) -> None:
        self.embeddings, self.capabilities, self.words = embeddings, tuple(capabilities), words


class Estimator:
    """general: embeddings [N, D] of texts of many kinds; None: somebody covers every request.

    One Bayesian linear regression of success a specialist, over the embedding, the capabilities' share, the words'
    share and a constant. Every observation updates it exactly.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        spec: RouterSpec,
        standardizer: Standardizer,
        general: np.ndarray | None = None,
    ) -> None:
        self.profiles, self.spec, self.standardizer = dict(profiles), spec, standardizer
        self._general = general
        self.refit(())

    def refit(self, observations: Iterable[Observation]) -> None:
        """Forgets what was learned, and learns from these in the centre and scale of now."""
        self.words = BM25(self.profiles)
        self.capability_words = BM25(self.profiles)
        for name, profile in self.profiles.items():
            self.capability_words.add(name, profile.words)
        self._place_profiles()
        self.models = {name: self._new_model() for name in self.profiles}
        rows: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in self.profiles}
        for each in observations:
            features = self._features(each.text, each.embedding, each.shares)
            for name, success in each.outcomes.items():
                if name in rows:
                    rows[name].append((features.of(name), success))
                    if success > 0.5:
                        self.words.add(name, each.text)
        for name, own in rows.items():
            if own:
                self.models[name].fit(np.stack([x for x, _ in own]), np.array([y for _, y in own]))

    def features(self, text: str, embedding: np.ndarray) -> Features:
        """Those of a request with the base's embedding [D]."""
        return self._features(text, embedding, None)

    def estimates(self, features: Features) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of every specialist's success."""
        return {name: model.predict(features.of(name)) for name, model in self.models.items()}

    def learn(self, text: str, features: Features, outcomes: Mapping[str, float]) -> None:
        """Takes in the success, 0 to 1, of each specialist of which it is known."""
        for name, success in outcomes.items():
            if name in self.models:
                self.models[name].update(features.of(name), success)
                if success > 0.5:
                    self.words.add(name, text)

    def matching_words(self, text: str, name: str) -> list[str]:
        """The words of a request that are in a specialist's capabilities, then those of its past successes."""
        every = (*self.capability_words.matches(text, name), *self.words.matches(text, name))
        return list(dict.fromkeys(every))

    def nearest_capability(self, embedding: np.ndarray) -> str:
        """The capability, of any specialist, that a request is nearest to; "" if there is none."""
        z = self.standardizer(embedding)
        best, most = "", -np.inf
        for name, profile in self.profiles.items():
            count = len(profile.capabilities)
            scores = self._placed[name][:count] @ z
            if count and float(scores.max()) > most:
                best, most = profile.capabilities[int(scores.argmax())], float(scores.max())
        return best

    def _features(self, text: str, embedding: np.ndarray, shares: Mapping[str, float] | None) -> Features:
        z = self.standardizer(embedding)
        if shares is None:
            shares = self.words.shares(text, SUCCESS_SATURATION)
        shares = {name: shares.get(name, 0.0) for name in self.profiles}
        return Features(z, self._cold(text, z), shares)

    def _cold(self, text: str, z: np.ndarray) -> dict[str, float]:
        """Softmax over the specialists and nobody, of the nearest capability's cosine and the capabilities' words.

        Words count for the specialists that have them, and against nobody.
        """
        words = self.capability_words.shares(text, WORDS_SATURATION)
        scores = {
            name: SHARPNESS * float((placed @ z).max()) + WORDS_WEIGHT * words[name]
            for name, placed in self._placed.items()
        }
        nobody = self._nobody - COVERED_WEIGHT * sum(words.values())
        most = max([*scores.values(), nobody])
        weights = {name: float(np.exp(score - most)) for name, score in scores.items()}
        total = sum(weights.values()) + float(np.exp(nobody - most))
        return {name: weight / total for name, weight in weights.items()}

    def _place_profiles(self) -> None:
        """Capabilities are short texts, which have a centre of their own; scaled as requests are."""
        self._placed: dict[str, np.ndarray] = {}
        self._nobody = -np.inf
        if not self.profiles:
            return
        centre = np.concatenate([each.embeddings for each in self.profiles.values()]).mean(0)
        for name, profile in self.profiles.items():
            self._placed[name] = self.standardizer.direction(profile.embeddings - centre)
        if self._general is not None:
            texts = self.standardizer(self._general)
            nearest = np.max([(placed @ texts.T).max(0) for placed in self._placed.values()], 0)
            self._nobody = SHARPNESS * float(np.quantile(nearest, GENERAL))

    def _new_model(self) -> BayesianLinear:
        size = self.standardizer.size
        mean = np.concatenate([np.zeros(size), [COLD[0], SHARE[0], BIAS[0]]])
        deviation = np.concatenate([np.full(size, self.spec.prior), [COLD[1], SHARE[1], BIAS[1]]])
        return BayesianLinear(mean, deviation, self.spec.noise)
