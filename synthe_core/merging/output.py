"""Tensors as they come, into safetensors files whose layout is known before the first is made."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.merging.stream import Job
from synthe_core.storage.checkpoint.write import SHARD_BYTES
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.tensor_file import header

FLUSH = 128 * 2**20  # bytes after which the disk is set to work on what was written


def shards(jobs: list[Job], limit: int = SHARD_BYTES) -> list[list[Job]]:
    """The jobs of each file: at most `limit` bytes (a larger tensor has a file of its own), wide numbers first.

    Wide numbers first keeps every tensor aligned.
    """
    found: list[list[Job]] = [[]]
    used = 0
    for job in jobs:
        if found[-1] and used + job.facts.nbytes > limit:
            found.append([])
            used = 0
        found[-1].append(job)
        used += job.facts.nbytes
    return [sorted(each, key=lambda job: -job.facts.dtype.itemsize) for each in found]


def write(
    folder: Path, stem: str, files: list[list[Job]], results: Iterable[tuple[Job, Tensor]], known: dict[str, FileDigest]
) -> Iterator[int]:
    """Writes the results, which come in the order of `files`, and yields the bytes written so far.

    One file is STEM.safetensors; several have numbers, and an index. `known` receives size and SHA-256 of each.
    """
    names = [f"{stem}.safetensors"]
    if len(files) > 1:
        names = [f"{stem}-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    stream, total = iter(results), 0
    with ThreadPoolExecutor(1) as disk:
        for name, jobs in zip(names, files, strict=True):
            digest, size, unflushed = hashlib.sha256(), 0, 0
            flushed: Future[None] | None = None
            with (folder / name).open("wb", buffering=0) as file:
                described = {job.name: (job.facts.dtype, job.facts.shape) for job in jobs}
                head = memoryview(header(described, {"format": "pt"}))
                for piece in itertools.chain([head], (_bytes(next(stream), job) for job in jobs)):
                    _put(file.fileno(), piece)
                    digest.update(piece)
                    size += len(piece)
                    unflushed += len(piece)
                    if unflushed >= FLUSH and (flushed is None or flushed.done()):
                        flushed, unflushed = disk.submit(os.fdatasync, file.fileno()), 0
                    yield total + size - len(head)
                if flushed is not None:
                    flushed.result()
            total += size - len(head)
            known[name] = FileDigest(bytes=size, sha256=digest.hexdigest())
    if len(files) > 1:
        places = {job.name: name for name, jobs in zip(names, files, strict=True) for job in jobs}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _bytes(made: tuple[Job, Tensor], job: Job) -> memoryview:
    assert made[0] is job, (made[0].name, job.name)
    tensor = made[1]
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _put(handle: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(handle, piece) :]
