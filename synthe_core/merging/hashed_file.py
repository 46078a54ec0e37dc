"""Safetensors files, read a tensor at a time with plain reads, and hashed on the way.

Plain reads rather than a memory map: what was mapped counts as resident until the system takes it back, and a merge is
to stay small whatever the size of its inputs.
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
from synthe_core.quantization.formats import KEY
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.tensor_file import NAMES, TensorFile

CHUNK = 1 << 22  # bytes hashed at a time
MERGED = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Facts(NamedTuple):
    """What a tensor is, without its values."""

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
    """One safetensors file, or the stretch of `size` bytes from `start` that is one. May be read from several threads
    at once. `name`: what the file is called where the stretch lies in another, as in a .synapse file."""

    def __init__(self, path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> None:
        self.path, self.name, self._start = path, name or path.name, start
        file = TensorFile(path, start, size, None if name is None else str(path / name))
        if KEY in file.metadata:
            raise InputError(f"{file.name} holds quantised weights, which cannot be merged", "take the model as it was")
        for tensor, entry in file.entries.items():
            if entry.dtype not in MERGED:
                raise InputError(
                    f"{file.name}: {tensor[:80]} is stored as {NAMES[entry.dtype]}, which cannot be merged",
                    "quantised weights cannot be merged: take the model as it was before",
                )
        self.tensors = {name: Facts(entry.shape, entry.dtype) for name, entry in file.entries.items()}
        self.size = file.data + max((entry.end for entry in file.entries.values()), default=0) - start
        self._at = {name: file.data + entry.begin for name, entry in file.entries.items()}
        self._handle = os.open(path, os.O_RDONLY)
        self.hashed = True  # whether reading also hashes
        self._hash, self._done, self._hashing = hashlib.sha256(), start, threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, name: str) -> Tensor:
        """The tensor as it is stored."""
        facts = self.tensors[name]
        data = torch.empty(facts.nbytes, dtype=torch.uint8)
        self._fill(data.numpy().data, self._at[name])
        if self.hashed:
            self._follow(self._at[name] + facts.nbytes)
        return data.view(facts.dtype).reshape(facts.shape)

    def facts(self) -> FileDigest | None:
        """Size and SHA-256 of the whole file; None where hashing was not wanted."""
        if not self.hashed:
            return None
        with self._hashing:
            self._hash_to(self._start + self.size)
            return FileDigest(bytes=self.size, sha256=self._hash.hexdigest())

    def place(self, name: str) -> int:
        """Where in the file the tensor begins, for reading in the file's order."""
        return self._at[name]

    def _follow(self, end: int) -> None:
        """Hashes the file as far as what was just read and is still in the system's memory.

        Left to whoever is hashing the file, if another thread is.
        """
        if self._hashing.acquire(blocking=False):
            try:
                self._hash_to(end)
            finally:
                self._hashing.release()

    def _hash_to(self, end: int) -> None:
        while self._done < end:
            part = os.pread(self._handle, min(CHUNK, end - self._done), self._done)
            if not part:
                raise self._shorter()
            self._hash.update(part)
            self._done += len(part)

    def _fill(self, view: memoryview, at: int) -> None:
        while view:
            count = os.preadv(self._handle, [view], at)
            if not count:
                raise self._shorter()
            view, at = view[count:], at + count

    def _shorter(self) -> InputError:
        return InputError(f"{self.path} is damaged: it became shorter while it was read", "copy it again")
