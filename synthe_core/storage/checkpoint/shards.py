"""Tensors that several processes write together: every process its own file, with torch.distributed.checkpoint.

The files are safetensors, and each says which parts of which tensors it has, so that any number of processes can read
them again, each the parts that it needs. A tensor without dimensions has no parts, and is not written so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.storage.checkpoint.sources import CheckpointSource

SHARDS = "training/shards"
"""The folder of these files in a checkpoint."""


def write_shards(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> Future[Any]:
    """Begins to write `tensors` into `folder`, and returns at once; they may change then. All processes of `group`
    call it with the same names, and with their own parts of sharded tensors."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, async_save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    future: Any = async_save(dict(tensors), storage_writer=writer, process_group=group)
    return getattr(future, "upload_completion", future)


def headers(folder: Path) -> dict[str, Tensor]:
    """The names of a folder's tensors, each with a tensor of its shape and dtype that has no storage."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(each.size, dtype=each.properties.dtype, device="meta")
        for name, each in known.items()
        if isinstance(each, TensorStorageMetadata)
    }


def read_shards(folder: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Whole tensors of a folder, all or those of these `names`."""
    known = headers(folder)
    tensors = {name: torch.empty_like(known[name], device="cpu") for name in (known if names is None else names)}
    load_shards(folder, tensors, together=False)
    return tensors


def load_shards(folder: Path, tensors: dict[str, Tensor], *, together: bool = True) -> None:
    """Fills `tensors` from a folder: of sharded ones this process's parts. together: all processes call it."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process, where there is
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=not together)


def has_shards(files: Iterable[str]) -> bool:
    """Whether a checkpoint with these files has such tensors."""
    return any(name.startswith(f"{SHARDS}/") for name in files)


def verified_folder(source: CheckpointSource, rank: int = 0, size: int = 1) -> Path:
    """The folder of a checkpoint's shards, of whose files every `size`-th is verified. InputError for a damaged one."""
    names = sorted(name for name in source.manifest.files if name.startswith(f"{SHARDS}/"))
    if not source.on_disk or not names:
        raise InputError(f"{source.path} has no shards", "resume from another checkpoint of the run")
    for name in names[rank::size]:
        source.locate(name)
    return source.path / SHARDS
