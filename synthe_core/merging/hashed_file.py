"""Safetensors files that are read a tensor at a time and hashed while they are read.

They are read with `pread` and not memory-mapped: mapped pages count as resident memory until the system reclaims them,
and the memory of a merge must not depend on the size of its inputs.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.buffers import BUFFERS
from synthe_core.quantization.tensor_file import METADATA_KEY
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.tensor_file import NAMES, TensorFile

CHUNK = 1 << 19  # bytes read, compared or hashed at a time: a part of a processor's L2 cache
MERGEABLE = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class TensorInfo(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def floats(self) -> bool:
        return self.dtype.is_floating_point


class HashedFile:
    """A safetensors file, or `size` bytes from `start` of a larger file, such as a .synapse file, that are one.

    name: the file's name within the larger file. Several threads may read at once.
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> None:
        self.path, self.name, self._start = path, name or path.name, start
        file = TensorFile(path, start, size, None if name is None else str(path / name))
        if METADATA_KEY in file.metadata:
            raise InputError(f"{file.name} holds quantised weights, which cannot be merged", "use the original model")
        for tensor, entry in file.entries.items():
            if entry.dtype not in MERGEABLE:
                raise InputError(
                    f"{file.name}: {tensor[:80]} is stored as {NAMES[entry.dtype]}, which cannot be merged",
                    "quantised weights cannot be merged: use the original model",
                )
        self.metadata = file.metadata
        self.tensors = {name: TensorInfo(entry.shape, entry.dtype) for name, entry in file.entries.items()}
        self.size = file.data + max((entry.end for entry in file.entries.values()), default=0) - start
        self._offsets = {name: file.data + entry.begin for name, entry in file.entries.items()}
        self._handle = os.open(path, os.O_RDONLY)
        self.hashed = True  # whether reading also hashes
        self._hash, self._done, self._hashing = hashlib.sha256(), start, threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        info, offset = self.tensors[name], self._offsets[name]
        data = BUFFERS.empty(info.nbytes)
        view = data.numpy().data
        if self.hashed and self._hashing.acquire(blocking=False):
            try:
                self._hash_to(offset)
                self._fill_and_hash(view, offset)
            finally:
                self._hashing.release()
        else:  # another thread is hashing the file
            self._fill(view, offset)
        return data.view(info.dtype).reshape(info.shape)

    def equal(self, name: str, other: HashedFile, other_name: str) -> bool:
        """Whether two tensors have the same type, shape and bytes."""
        info = self.tensors[name]
        if info != other.tensors[other_name]:
            return False
        for begin in range(0, info.nbytes, CHUNK):
            size = min(CHUNK, info.nbytes - begin)
            here, there = bytearray(size), bytearray(size)
            self._fill(memoryview(here), self._offsets[name] + begin)
            other._fill(memoryview(there), other._offsets[other_name] + begin)
            if here != there:
                return False
        return True

    def digest(self) -> FileDigest | None:
        """Size and SHA-256 of the whole file; None without hashing."""
        if not self.hashed:
            return None
        with self._hashing:
            self._hash_to(self._start + self.size)
            return FileDigest(bytes=self.size, sha256=self._hash.hexdigest())

    def offset(self, name: str) -> int:
        """The offset of a tensor in the file, for reading in the file's order."""
        return self._offsets[name]

    def _fill_and_hash(self, view: memoryview, offset: int) -> None:
        """Reads the bytes from `offset`, and hashes those behind what was hashed before: a piece at a time, while it is
        in the processor's cache."""
        for begin in range(0, len(view), CHUNK):
            piece = view[begin : begin + CHUNK]
            self._fill(piece, offset + begin)
            if self._done == offset + begin:
                self._hash.update(piece)
                self._done += len(piece)

    def _hash_to(self, end: int) -> None:
        """Hashes what was read by threads that could not, up to `end`."""
        if self._done < end:
            buffer = memoryview(bytearray(min(CHUNK, end - self._done)))
            while self._done < end:
                piece = buffer[: end - self._done]
                self._fill(piece, self._done)
                self._hash.update(piece)
                self._done += len(piece)

    def _fill(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._handle, [view], offset)
            if not count:
                raise self._truncated()
            view, offset = view[count:], offset + count

    def _truncated(self) -> InputError:
        return InputError(f"{self.path} is damaged: it became shorter while it was read", "copy it again")
