"""What 512 ranks would write and 384 would read of a checkpoint, by torch's planner: every number once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from synthe_core.model.sharded_tensors import local, shard_of

WRITERS, READERS = 512, 384
SHAPES = {"weights.a": (1000, 4), "weights.b": (512, 2, 3), "weights.c": (7, 5), "optimizer.adamw.exp_avg.d": (513,)}


@contextmanager
def virtual_rank(rank: int, size: int) -> Iterator[dict[str, Tensor]]:
    """The tensors of a rank among `size`: of each its own rows, which have their numbers as values."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        mesh = DeviceMesh("cpu", torch.arange(size))
        tensors: dict[str, Tensor] = {}
        for name, shape in SHAPES.items():
            numbers = torch.arange(shape[0] * 1.0).view(-1, *[1] * (len(shape) - 1)).expand(shape)
            sizes = {"shape": numbers.shape, "stride": torch.empty(shape).stride()}
            like = DTensor.from_local(torch.empty(shape), mesh, [Shard(0)], run_check=False, **sizes)
            part = shard_of(numbers, like).contiguous()
            tensors[name] = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, **sizes)
        yield tensors
    finally:
        dist.destroy_process_group()


def rows(offset: torch.Size, size: torch.Size) -> range:
    return range(offset[0], offset[0] + size[0])


@pytest.fixture(scope="module")
def saved() -> Any:
    """The plans of all writers, and the metadata of the whole checkpoint."""
    plans = []
    for rank in range(WRITERS):
        with virtual_rank(rank, WRITERS) as tensors:
            planner = DefaultSavePlanner()
            planner.set_up_planner(dict(tensors), is_coordinator=rank == 0)
            plans.append(planner.create_local_plan())
            for name, tensor in tensors.items():
                assert len(local(tensor)) in (0, 1, -(-SHAPES[name][0] // WRITERS))
    return create_default_global_save_plan(plans)


def test_every_row_is_written_once(saved: Any) -> None:
    plans, _ = saved
    written: dict[str, list[int]] = defaultdict(list)
    for plan in plans:
        for item in plan.items:
            written[item.index.fqn] += rows(item.tensor_data.chunk.offsets, item.tensor_data.chunk.sizes)
    assert {name: sorted(each) for name, each in written.items()} == {
        name: list(range(shape[0])) for name, shape in SHAPES.items()
    }


def test_fewer_ranks_read_every_row_once(saved: Any) -> None:
    _, metadata = saved
    read: dict[str, list[int]] = defaultdict(list)
    for rank in range(READERS):
        with virtual_rank(rank, READERS) as tensors:
            planner = DefaultLoadPlanner()
            planner.set_up_planner(dict(tensors), metadata, is_coordinator=rank == 0)
            for item in planner.create_local_plan().items:
                first = int(local(tensors[item.dest_index.fqn]).flatten()[0])
                start = torch.Size([first + item.dest_offsets[0]])
                read[item.dest_index.fqn] += rows(start, item.lengths)
    assert {name: sorted(each) for name, each in read.items()} == {
        name: list(range(shape[0])) for name, shape in SHAPES.items()
    }
