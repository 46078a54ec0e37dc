"""The start of training an adapter: a model that is frozen, and what it wears."""

from __future__ import annotations

from synthe_core.adapters.lora import put_on
from synthe_core.adapters.targets import find, fresh
from synthe_core.errors import InputError
from synthe_core.model.classifier import Model
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.run_folder import differences


def base_of(source: Checkpoint | None, recipe: Recipe) -> Checkpoint:
    """The model to be adapted, as it must be: that of `recipe`. An adapter stands for its base."""
    if source is None:
        raise InputError("train.lora: an adapter needs a model to adapt", "begin with one: --init CHECKPOINT")
    base = source.base or source
    if changes := differences(base.recipe.model.model_dump(mode="json"), recipe.model.model_dump(mode="json"), "model"):
        raise InputError(
            f"an adapter leaves the model as it is, and {base.path} has another: {'; '.join(changes[:3])}",
            "leave out the recipe to use that model's own: synthe train --init CHECKPOINT --lora ...",
        )
    assert recipe.train.lora is not None
    find(recipe.meta_model(base.vocab), recipe.train.lora.targets)  # so that a wrong name is told before any work
    return base


def adapt(model: Model, recipe: Recipe, source: Checkpoint) -> None:
    """Freezes the model, which has its base's weights, and makes it wear what is to be trained: the adapter `source`,
    or a fresh one over it."""
    assert recipe.train.lora is not None
    adapter = fresh(model, recipe.train.lora)
    if source.adapter is not None:
        asked, found = ({name: t.shape for name, t in each.tensors.items()} for each in (adapter, source.adapter))
        if asked != found or any(c.scale != recipe.train.lora.scale for c in source.adapter.maps.values()):
            raise InputError(
                f"{source.path} is an adapter of other rank, scale or targets than train.lora asks for",
                "leave out --lora to train it as it is, or begin with its model",
            )
        adapter = source.adapter
    put_on(model, adapter, learns=True, source=source.path)
