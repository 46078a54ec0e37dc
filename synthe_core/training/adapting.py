"""The start of training an adapter: a frozen model and the adapter attached to it."""

from __future__ import annotations

import torch

from synthe_core.adapters.lora_linear import attach
from synthe_core.adapters.targets import find_targets, new_adapter
from synthe_core.errors import InputError
from synthe_core.hardware.free_memory import return_freed_memory
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.model.without_storage import without_storage
from synthe_core.recipe.differences import differences
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, load_weights
from synthe_core.storage.checkpoint.quantized import load_quantized


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
    if recipe.train.lora.quantize is not None and isinstance(recipe.model, PublishedSpec):
        raise InputError(
            f"train.lora.quantize: transformers runs {recipe.model.architecture}, and holds its matrices as floats",
            "leave out quantize",
        )
    find_targets(recipe.meta_model(base.vocab), recipe.train.lora.targets)  # a wrong name is an error before any work
    return base


def frozen_model(recipe: Recipe, vocab: int, base: Checkpoint) -> Model:
    """The model of `recipe` with the weights of `base`, its matrices in the format of `train.lora.quantize`."""
    lora = recipe.train.lora
    assert lora is not None
    if lora.quantize is None:
        model = build_model(recipe.model, vocab, recipe.runtime.recompute)
        load_weights(model, base.tensors, base.path)
        return model
    with without_storage():
        model = build_model(recipe.model, vocab, recipe.runtime.recompute)
    load_quantized(model, base.tensors, base.path, lora.quantize, double_quant=lora.double_quant)
    return_freed_memory()  # what was read to be quantised
    return model


def adapt(model: Model, recipe: Recipe, source: Checkpoint) -> None:
    """Freezes the model, which has its base's weights, and attaches the adapter to be trained: that of `source`, or a
    new one."""
    assert recipe.train.lora is not None
    torch.manual_seed(recipe.seed)  # however the model was loaded, its first values are those of the seed
    adapter = new_adapter(model, recipe.train.lora)
    if source.adapter is not None:
        expected, actual = ({name: t.shape for name, t in each.tensors.items()} for each in (adapter, source.adapter))
        if expected != actual or any(c.scaling != recipe.train.lora.scaling for c in source.adapter.maps.values()):
            raise InputError(
                f"{source.path} is an adapter of other rank, scale or targets than train.lora asks for",
                "leave out --lora to train it as it is, or begin with its model",
            )
        adapter = source.adapter
    attach(model, adapter, trainable=True, source=source.path)
