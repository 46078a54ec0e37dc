"""The sequence length that a model was trained on."""

from __future__ import annotations

from typing import Any

from synthe_core.storage.checkpoint import Checkpoint


def trained_length(checkpoint: Checkpoint) -> tuple[int, bool]:
    """The tokens of a training sequence, and whether the state grows with longer sequences."""
    trained = int(checkpoint.context or checkpoint.recipe.data.sequence)
    model: Any = checkpoint.recipe.meta_model(checkpoint.vocab)
    return trained, model.state_bytes(2 * trained) > model.state_bytes(trained)
