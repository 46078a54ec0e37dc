"""The table of objectives: what training minimises. Each is `objective(model, batch, ctx) -> Loss`."""

from __future__ import annotations

from synthe_core.errors import InputError
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


def objective_for(model: Model, name: str | None = None) -> Objective:
    """The objective called `name`; without a name, classification for an encoder and language modeling otherwise.

    Raises InputError for an unknown name, and for an objective of the other kind of model.
    """
    is_encoder = isinstance(model, Classifier)
    name = name or ("classification" if is_encoder else "language_modeling")
    objective: Objective = OBJECTIVES[name]()
    if objective.of_encoders != is_encoder:
        kinds = ("a language model", "an encoder")
        raise InputError(
            f"train.objective: {name} trains {kinds[objective.of_encoders]}, and the model is {kinds[is_encoder]}",
            "leave it out: the model's head then decides",
        )
    return objective
