"""The verifier of a swarm's folder."""

from __future__ import annotations

from pathlib import Path

from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.swarm.checking.claim_states import ClaimStates, claim_states
from synthe_core.swarm.checking.classifier import PairClassifier

FILE = "verifier.safetensors"


def open_verifier(folder: Path, model: LoadedModel, states: ClaimStates | None = None) -> PairClassifier | None:
    """The classifier that `synthe swarm knowledge verifier` trained for the swarm in `folder`; None if it has none.

    states: reads the base's states where `model` runs on an engine's thread; by default it is run here. InputError if
    it was trained with another base.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    return PairClassifier.load(path, base=model.digest, states=states or (lambda pairs: claim_states(model, pairs)))
