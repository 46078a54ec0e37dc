"""The large tensors of a training state by name: as they are saved in shards, and read again by any mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import SyntheError
from synthe_core.storage.checkpoint import Checkpoint, load_weights, weights
from synthe_core.storage.checkpoint.shards import headers, load_shards, read_shards, verified_folder

WEIGHTS, AVERAGE, OPTIMIZER = "weights.", "average.", "optimizer."


def sharded_tensors(state: Any) -> dict[str, Tensor]:
    """The weights, their average and the optimizer's state, with a prefix for each."""
    groups = {WEIGHTS: weights(state.model), OPTIMIZER: state.optimizer.tensors()}
    if state.average is not None:
        with state.average.applied():
            groups[AVERAGE] = {name: tensor.clone() for name, tensor in weights(state.model).items()}
    return {prefix + name: tensor for prefix, group in groups.items() for name, tensor in group.items()}


def restore_shards(state: Any, checkpoint: Checkpoint) -> None:
    """Reads weights, average and the optimizer's state. All processes call it; each reads the parts that it has."""
    ranks, error, folder = state.engine.ranks, None, None
    try:
        folder = verified_folder(checkpoint.source, ranks.rank, ranks.size)
    except SyntheError as each:
        error = each
    for damaged in ranks.gather(error):
        if damaged is not None:
            raise damaged
    assert folder is not None
    tensors = _in_place(state, folder) if state.engine.sharded else read_shards(folder)
    tensors |= dict(checkpoint.training_tensors("scalars"))
    load_weights(state.model, _of(tensors, WEIGHTS), checkpoint.path)
    if state.average is not None:
        state.average.load(_of(tensors, AVERAGE))
    state.optimizer.load(_of(tensors, OPTIMIZER))


def _in_place(state: Any, folder: Any) -> dict[str, Tensor]:
    """The saved tensors, sharded as the parameters that they belong to."""
    own = dict(state.model.named_parameters())
    targets = {}
    for name, stored in headers(folder).items():
        named = (own[each] for each in _parameter_names(name) if each in own)
        like = next((each for each in named if each.shape == stored.shape), None)
        targets[name] = torch.empty_like(stored, device="cpu") if like is None else torch.zeros_like(like.detach())
    load_shards(folder, targets)
    return targets


def _parameter_names(name: str) -> list[str]:
    """What the parameter may be called whose tensor has this name, as optimizer.adamw.exp_avg.head.weight."""
    parts = name.split(".")
    return [".".join(parts[1:]), ".".join(parts[3:])]


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
