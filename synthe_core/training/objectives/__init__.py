"""The table of objectives: what training minimises. Each is `objective(model, batch, ctx) -> Loss`."""

from __future__ import annotations

from synthe_core.model.classifier import Classifier, Model
from synthe_core.registry import Table
from synthe_core.training.objectives.objective import Objective

OBJECTIVES = Table(
    "objective",
    "synthe.objectives",
    {
        "classification": "synthe_core.training.objectives.classification:Classification",
        "language_modeling": "synthe_core.training.objectives.language_modeling:LanguageModeling",
    },
)


def default_objective(model: Model) -> Objective:
    """The objective of a model's head: classification for an encoder, else language modeling."""
    objective: Objective = OBJECTIVES["classification" if isinstance(model, Classifier) else "language_modeling"]()
    return objective
