"""Tensors that may be sharded over processes: their local part, and the whole."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; torch's module of them is imported only where there are some."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, which shares its memory; another tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    part: Tensor = sharded._local_tensor  # `to_local` is an operation with a gradient
    return part


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, of which every process gets a copy; another tensor as it is. All processes call it."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():
        full: Tensor = sharded.detach().full_tensor()
    return full


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which every process has the `part` that it has of `like`."""
    return whole(as_sharded(part, like))


def as_sharded(part: Tensor, like: Tensor) -> Tensor:
    """A sharded tensor of the size of `like` with this process's `part`; the part where `like` is not sharded."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    shape, stride = sharded.shape, sharded.stride()
    return DTensor.from_local(
        part, sharded.device_mesh, sharded.placements, run_check=False, shape=shape, stride=stride
    )


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as `like` is; of a sharded one the part that it has."""
    if not is_sharded(like):
        return tensor
    if is_sharded(tensor):
        return local(tensor)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = like
    shape, offset = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    for dimension, (first, length) in enumerate(zip(offset, shape, strict=True)):
        tensor = tensor.narrow(dimension, min(first, tensor.shape[dimension]), length)
    return tensor


@torch.no_grad()
def exchange(target: Tensor, other: Tensor) -> Tensor:
    """Gives `target` the values of `other`, and returns its old ones. Nothing is copied but shards, whose memory FSDP
    holds."""
    if not is_sharded(target):
        target.data, other = other, target.data
        return other
    mine, theirs = local(target), local(other)
    before = mine.clone()
    mine.copy_(theirs)
    theirs.copy_(before)
    return other
