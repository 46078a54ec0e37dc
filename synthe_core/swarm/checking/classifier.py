"""The classifier of pairs of sentences: three-class logistic regression on features and on states of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from synthe_core.errors import InputError
from synthe_core.storage.atomic import new_file
from synthe_core.swarm.checking.claim_states import ClaimStates
from synthe_core.swarm.checking.features import NAMES, pair_features

SUPPORTED, OPEN, CONTRADICTED = 0, 1, 2
"""The classes: what is known supports the stated sentence, says nothing of it, or contradicts it."""
FORMAT = "synthe pair classifier 1"
FEATURE_SCALE = 3.0
"""How much larger features are than states before the penalty, which shrinks what is small: there are few of them."""
PENALTY = 333.0
"""Of the squared weights, against the summed loss. Both numbers are by cross-validation on the training rows."""


@dataclass(frozen=True)
class Standard:
    """The mean and the scale [D] by which inputs are standardised."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, factor: float = 1.0) -> Standard:
        return cls(rows.mean(0), factor / np.maximum(rows.std(0), 1e-6))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) * self.scale


class PairClassifier:
    """Judges pairs of (known, stated) sentences, as `Verifier` says.

    weights:   float64 [3, F + D + 1]: of the features, the states and the bias.
    threshold: the probability of CONTRADICTED from which a pair counts as a contradiction.
    states:    reads the model's states, for a classifier that uses them.
    base:      the digest of the model whose states it was trained with; "" for features alone.
    """

    def __init__(
        self,
        weights: np.ndarray,
        features: Standard,
        hidden: Standard | None,
        threshold: float,
        *,
        base: str = "",
        states: ClaimStates | None = None,
    ) -> None:
        self.weights, self.features, self.hidden = weights, features, hidden
        self.threshold, self.base, self.states = threshold, base, states

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """float [N]: the probability that the second sentence of each pair contradicts the first."""
        if not pairs:
            return np.zeros(0)
        hidden = None
        if self.hidden is not None:
            if self.states is None:
                raise InputError("the classifier reads states of a model, and there is none", "open it with the base")
            hidden = self.states(pairs)
        return self.probabilities(pair_features(pairs), hidden)[:, CONTRADICTED]

    def probabilities(self, features: np.ndarray, hidden: np.ndarray | None) -> np.ndarray:
        """float [N, 3] from features [N, F] and states [N, D]."""
        inputs = [self.features(features)]
        if self.hidden is not None:
            assert hidden is not None
            inputs.append(self.hidden(hidden))
        logits = np.concatenate([*inputs, np.ones((len(features), 1))], axis=1) @ self.weights.T
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        return exponents / exponents.sum(1, keepdims=True)

    def save(self, path: Path) -> None:
        """Writes it as a safetensors file."""
        arrays = {"weights": self.weights, "features.mean": self.features.mean, "features.scale": self.features.scale}
        if self.hidden is not None:
            arrays |= {"states.mean": self.hidden.mean, "states.scale": self.hidden.scale}
        about = {"format": FORMAT, "base": self.base, "threshold": self.threshold, "features": list(NAMES)}
        with new_file(path) as partial:
            contiguous = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in arrays.items()}
            save_file(contiguous, partial, {"synthe": json.dumps(about)})

    @classmethod
    def load(cls, path: Path, *, base: str = "", states: ClaimStates | None = None) -> PairClassifier:
        """Reads one. InputError for a damaged file, one of other features, or one of another model than `base`."""
        hint = "train it again: synthe swarm knowledge verifier"
        try:
            with safe_open(path, "numpy") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {}).get("synthe", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{path} is no classifier: {error}", hint) from None
        if about.get("format") != FORMAT or about.get("features") != list(NAMES):
            raise InputError(f"{path} was trained by another version of synthe", hint)
        if about["base"] not in ("", base):
            raise InputError(f"{path} was trained with states of another model than the swarm's base", hint)
        hidden = Standard(arrays["states.mean"], arrays["states.scale"]) if "states.mean" in arrays else None
        features = Standard(arrays["features.mean"], arrays["features.scale"])
        return cls(arrays["weights"], features, hidden, about["threshold"], base=about["base"], states=states)


def fit(
    features: np.ndarray, hidden: np.ndarray | None, labels: np.ndarray, penalty: float = PENALTY
) -> PairClassifier:
    """The classifier with the least cross-entropy plus penalty, by L-BFGS in float64. The threshold is 0.5.

    features [N, F]; hidden [N, D], or None; labels int [N] of 0, 1 and 2.
    """
    standard = Standard.of(features, FEATURE_SCALE)
    inputs = [standard(features)]
    of_states = None
    if hidden is not None:
        of_states = Standard.of(hidden)
        inputs.append(of_states(hidden))
    rows = torch.tensor(np.concatenate([*inputs, np.ones((len(labels), 1))], axis=1), dtype=torch.float64)
    target = torch.tensor(labels, dtype=torch.long)
    weights = torch.zeros(3, rows.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        total = torch.nn.functional.cross_entropy(rows @ weights.T, target, reduction="sum")
        total = total + 0.5 * penalty * weights[:, :-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return PairClassifier(weights.detach().numpy(), standard, of_states, 0.5)
