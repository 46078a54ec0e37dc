"""Safetensors files, read a tensor at a time with plain reads, and hashed on the way.

Plain reads rather than a memory map: what was mapped counts as resident until the system takes it back, and a merge is
to stay small whatever the size of its inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.manifest import FileFacts

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 22  # bytes hashed at a time
LARGEST_HEADER = 10**8


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


class TensorFile:
    """One safetensors file. May be read from several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._handle).st_size
            header = self._header()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}", "copy it again") from None
        self.tensors: dict[str, Facts] = {}
        self._at: dict[str, int] = {}
        for name, entry in header.items():
            self._add(name, entry)
        self.hashed = True  # whether reading also hashes
        self._hash, self._done, self._hashing = hashlib.sha256(), 0, threading.Lock()

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

    def facts(self) -> FileFacts | None:
        """Size and SHA-256 of the whole file; None where hashing was not wanted."""
        if not self.hashed:
            return None
        with self._hashing:
            self._hash_to(self.size)
            return FileFacts(bytes=self.size, sha256=self._hash.hexdigest())

    def _follow(self, end: int) -> None:
        """Hashes the file as far as what was just read and is still in the system's memory.

        Left to whoever is hashing the file, if another thread is.
        """
        if self._hashing.acquire(blocking=False):
            try:
                self._hash_to(end)
            finally:
                self._hashing.release()

    def place(self, name: str) -> int:
        """Where in the file the tensor begins, for reading in the file's order."""
        return self._at[name]

    def _hash_to(self, end: int) -> None:
        while self._done < end:
            part = os.pread(self._handle, min(CHUNK, end - self._done), self._done)
            if not part:
                raise self._damaged("it became shorter while it was read")
            self._hash.update(part)
            self._done += len(part)

    def _fill(self, view: memoryview, at: int) -> None:
        while view:
            count = os.preadv(self._handle, [view], at)
            if not count:
                raise self._damaged("it became shorter while it was read")
            view, at = view[count:], at + count

    def _header(self) -> dict[str, Any]:
        length = int.from_bytes(os.pread(self._handle, 8, 0), "little")
        if self.size < 8 or not 2 <= length <= min(LARGEST_HEADER, self.size - 8):
            raise self._damaged("it does not begin with a header")
        try:
            header = json.loads(os.pread(self._handle, length, 8))
        except ValueError:
            raise self._damaged("its header is no JSON") from None
        if not isinstance(header, dict):
            raise self._damaged("its header is no mapping")
        self._data = 8 + length
        header.pop("__metadata__", None)
        return header

    def _add(self, name: str, entry: Any) -> None:
        try:
            kind, shape, (begin, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
            if kind not in DTYPES:
                raise InputError(
                    f"{self.path}: {name} is stored as {kind}, which cannot be merged",
                    "quantised weights cannot be merged: take the model as it was before",
                )
            facts = Facts(shape, DTYPES[kind])
            fits = min(shape, default=0) >= 0 and begin >= 0 and end - begin == facts.nbytes
            if not fits or self._data + end > self.size:
                raise self._damaged(f"{name} does not lie in it")
        except (TypeError, KeyError, ValueError):
            raise self._damaged(f"its header does not describe {name}") from None
        self.tensors[name] = facts
        self._at[name] = self._data + begin

    def _damaged(self, how: str) -> InputError:
        return InputError(f"{self.path} is damaged: {how}", "copy it again")


def header(tensors: dict[str, Facts]) -> bytes:
    """The header of a file that holds these tensors one after the other."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, facts in tensors.items():
        entries[name] = {
            "dtype": NAMES[facts.dtype],
            "shape": list(facts.shape),
            "data_offsets": [at, at + facts.nbytes],
        }
        at += facts.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
