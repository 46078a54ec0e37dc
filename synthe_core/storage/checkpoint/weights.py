"""The weights of a model by name, and copying tensors into a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import adapter_parameters
from synthe_core.errors import InputError
from synthe_core.model.sharded_tensors import local, shard_of
from synthe_core.storage.finite import check_finite


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a shared tensor appears once, under its first name.

    Of a model with an adapter these are the adapter's factors only: the other weights are in its base's checkpoint. A
    published model that a library runs has the names and shapes in which it is published.
    """
    if factors := adapter_parameters(model):
        return {name: tensor.detach() for name, tensor in factors.items()}
    if (published := getattr(model, "published_tensors", None)) is not None:
        return dict(published())
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path, fresh: tuple[str, ...] = ()) -> None:
    """Copies `tensors` into the model. InputError names the first tensor that does not fit, or is not finite.

    source: the checkpoint's path, for messages.
    fresh: prefixes of names that keep the model's initial values if `tensors` has none of them.
    """
    if not adapter_parameters(model) and (load := getattr(model, "load_published", None)) is not None:
        load(tensors, source)
        return
    own = weights(model)
    check_names(own, tensors, source, fresh)
    for name, target in own.items():
        if name in tensors:
            value = tensors[name]
            check_shape(name, target, tuple(value.shape), source)
            local(target).copy_(check_finite(name, shard_of(value, target), source))
    if (release := getattr(tensors, "release", None)) is not None:
        release()


def check_names(own: Iterable[str], stored: Iterable[str], source: Path, fresh: tuple[str, ...] = ()) -> None:
    """InputError unless the model's names `own` are exactly those that `source` stores, but for `fresh` prefixes."""
    own, stored = dict.fromkeys(own), set(stored)
    for name in own:
        if name not in stored and not name.startswith(fresh):
            raise InputError(f"{source} has no tensor {name}, which the model needs", "its recipe is of another model")
    for name in sorted(stored - own.keys()):
        raise InputError(f"{source} has a tensor {name}, which the model has not", "its recipe is of another model")


def check_shape(name: str, own: Tensor, stored: tuple[int, ...], source: Path) -> None:
    """InputError unless a tensor is stored in the model's shape."""
    if stored != tuple(own.shape):
        raise InputError(
            f"{name} is {list(stored)} in {source} and {list(own.shape)} in the model",
            "the sizes of the recipe are not those of the checkpoint",
        )
