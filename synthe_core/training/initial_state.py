"""The state at the start of a run: model, engine, optimizer, and where the first weights come from."""

from __future__ import annotations

from typing import NamedTuple

import torch

from synthe_core.errors import InputError
from synthe_core.model.classifier import Model, build_model
from synthe_core.ops.dispatch import OPS
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, load_weights
from synthe_core.storage.hub.snapshot import source_name
from synthe_core.training.adapting import adapt, frozen_model
from synthe_core.training.data import TrainingData
from synthe_core.training.distributed.engine_for import engine_for
from synthe_core.training.distributed.mesh import Mesh
from synthe_core.training.distributed.ranks import Ranks
from synthe_core.training.objectives import objective_for
from synthe_core.training.objectives.objective import Objective
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.state import TrainState
from synthe_core.training.weight_average import WeightAverage


class Setting(NamedTuple):
    """What a run trains, on what, and by which processes."""

    recipe: Recipe
    data: TrainingData
    settings: Settings
    ranks: Ranks
    mesh: Mesh


def initial_state(setting: Setting, source: Checkpoint | None, base: Checkpoint | None, *, begins: bool) -> TrainState:
    """The state at the start of a run. Initial values are drawn on the CPU, so that a seed means the same on every
    device.

    source: has the first weights of a run that `begins`; of a resumed run, only the size of its vocabulary
            and whether it is an adapter are used here.
    base:   the model that an adapter is trained over.
    """
    recipe, data, settings, ranks, mesh = setting
    for op in OPS.values():
        op.used.clear()
    torch.manual_seed(recipe.seed)
    objective = objective_for(recipe.model, recipe.objective)
    model = _initial_model(recipe, data, source, base, objective, begins)
    engine = engine_for(model, ranks, mesh, recipe.runtime.mesh, settings.device)
    if ranks.rank:  # the first values are the same everywhere; what is drawn from here on is not
        torch.manual_seed(recipe.seed + (ranks.rank << 40))
    spec, origin = recipe.train, source or objective.origin
    state = TrainState(
        model,
        objective,
        Optimizer(model, spec),
        spec,
        settings,
        average=WeightAverage(model, spec.ema) if spec.ema is not None else None,
        cursor=data.stream.cursor(),
        parents=[source_name(origin.path)] if begins and origin is not None else [],
        context=_context(origin, recipe) if begins else None,
        base=base,
        epoch=data.epoch,
        engine=engine,
    )
    if base is not None and data.classes and list(data.classes) != base.classes:
        raise InputError(
            f"the text has other classes than {base.path}: {', '.join(data.classes)}",
            "an adapter keeps the head: use text with the same labels, or leave out train.lora",
        )
    return state


def _context(source: Checkpoint | None, recipe: Recipe) -> int | None:
    """The longest text of the model that a run begins with: what that was made for, or longer ones that it reads."""
    if source is None or source.context is None:
        return None
    return max(source.context, recipe.data.sequence)


def _initial_model(
    recipe: Recipe,
    data: TrainingData,
    source: Checkpoint | None,
    base: Checkpoint | None,
    objective: Objective,
    begins: bool,
) -> Model:
    """The model with its first weights. Its vocabulary may be larger than its tokenizer's: published models pad it."""
    origin = source or objective.origin
    vocab = max(data.tokenizer.vocab_size, origin.vocab if origin else 0)
    if begins and source is not None and source.tokenizer().digest != data.tokenizer.digest:
        owner = (source.base or source).path
        theirs = str(owner / "tokenizer.json" if owner.is_dir() else owner)
        if owner.suffix == ".synapse":
            theirs = "DIR, after synthe unpack -o DIR"
        raise InputError(
            f"{source.path} was trained with other tokens than the recipe's",
            f"use its tokenizer: --set data.tokenizer={theirs}",
        )
    if begins and source is not None and vocab > source.vocab:
        raise InputError(
            f"the tokenizer of {source.path} has {vocab:,} tokens, and the model has {source.vocab:,}",
            "fetch the model's own tokenizer, or name an eos_token that the model has in tokenizer_config.json",
        )
    if base is not None and source is not None:
        model = frozen_model(recipe, vocab, base)
        adapt(model, recipe, source)
        return model
    model = build_model(recipe.model, vocab, recipe.runtime.recompute)
    if begins and source is not None:
        load_weights(model, source.tensors, source.path, fresh=("router.", "confidence."))  # may be trained afterwards
    elif begins:
        objective.initialise(model)
    return model
