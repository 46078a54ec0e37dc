"""Writing tensors one by one into safetensors files whose layout is computed beforehand."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.merging.stream import Job
from synthe_core.storage.checkpoint.write import SHARD_BYTES
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.tensor_file import header

FLUSH = 128 * 2**20  # bytes after which the written data are synced in the background


def shards(jobs: list[Job], limit: int = SHARD_BYTES) -> list[list[Job]]:
    """The jobs of each file: at most `limit` bytes (a larger tensor has its own file).

    Within a file, wide dtypes come first, which aligns every tensor.
    """
    files: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if files[-1] and size + job.info.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(job)
        size += job.info.nbytes
    return [sorted(each, key=lambda job: -job.info.dtype.itemsize) for each in files]


def write(
    folder: Path,
    stem: str,
    files: list[list[Job]],
    results: Iterable[tuple[Job, Tensor]],
    digests: dict[str, FileDigest],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Writes the results, which come in the order of `files`, and yields the bytes written so far.

    One file is STEM.safetensors; several have numbers, and an index. `digests` receives size and SHA-256 of each,
    and each has `metadata` in its header.
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
                described = {job.name: (job.info.dtype, job.info.shape) for job in jobs}
                head = memoryview(header(described, {"format": "pt"} | dict(metadata or {})))
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
            digests[name] = FileDigest(bytes=size, sha256=digest.hexdigest())
    if len(files) > 1:
        weight_map = {job.name: name for name, jobs in zip(names, files, strict=True) for job in jobs}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _bytes(result: tuple[Job, Tensor], job: Job) -> memoryview:
    assert result[0] is job, (result[0].name, job.name)
    tensor = result[1]
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _put(handle: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(handle, piece) :]
