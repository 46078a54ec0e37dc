"""The objectives that training minimises. Each is `objective(model, batch, ctx) -> Loss`; the table is in
`synthe_core.recipe.objective_table`."""

from __future__ import annotations

from synthe_core.errors import InputError
from synthe_core.model.classifier import Classifier, Model
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.objective_table import OBJECTIVES
from synthe_core.recipe.objectives import ObjectiveConfig, parse
from synthe_core.training.objectives.objective import Objective


def objective_for(model: Model | ModelSpec, config: ObjectiveConfig | str | None = None) -> Objective:
    """The objective of a configuration or a name, for a model or its specification; of null, classification for an
    encoder and language modeling otherwise.

    Raises InputError for an unknown name, and for an objective of the other kind of model.
    """
    is_encoder = model.head is not None if isinstance(model, ModelSpec) else isinstance(model, Classifier)
    chosen: ObjectiveConfig = parse(config or ("classification" if is_encoder else "language_modeling"))
    objective: Objective = OBJECTIVES[chosen.type](chosen)
    if objective.of_encoders != is_encoder:
        kinds = ("a language model", "an encoder")
        raise InputError(
            f"objective: {chosen.type} trains {kinds[objective.of_encoders]}, and the model is {kinds[is_encoder]}",
            "leave it out: the model's head then decides",
        )
    return objective
