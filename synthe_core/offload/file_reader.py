"""Reading weights from files into tensors that exist, by several threads, past the system's page cache.

Where the file system allows it (O_DIRECT), a read goes from the disk into memory of this process, so that it takes no
other memory, and its speed is the disk's. Elsewhere pages are given back after each read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.errors import WorkError
from synthe_core.storage.tensor_file import Extent

CHUNK = 4 << 20  # bytes of one read
ALIGNMENT = 4096  # of a read past the page cache
THREADS = 4
DIRECT = getattr(os, "O_DIRECT", 0)
AGAIN = "start again with the file as it is now"
READABLE = (torch.float32, torch.bfloat16, torch.float16)
"""The types that are read into float32; any type is read into its own."""


class _Open(NamedTuple):
    """An open file, as it was when it was opened."""

    handle: int
    size: int
    modified: int


class _Piece(NamedTuple):
    """`nbytes` bytes from `start` of a file, and the address where they go: as they are (uint8), or as float32 of
    narrower floats."""

    path: Path
    start: int
    nbytes: int
    dtype: torch.dtype
    address: int


def is_readable(extents: Iterable[Extent] | None, dtype: torch.dtype) -> bool:
    """Whether these bytes can be read into a tensor of a type."""
    return extents is not None and all(
        each.dtype == dtype or (dtype == torch.float32 and each.dtype in READABLE) for each in extents
    )


class FileReader:
    """`read(extents, tensor)` for each of several at once. It may be used by one thread at a time.

    nbytes, seconds: what was read so far, and how long that took. WorkError if a file has changed since it was opened.
    """

    def __init__(self) -> None:
        self.nbytes, self.seconds = 0, 0.0
        self._files: dict[Path, _Open] = {}
        self._pool = ThreadPoolExecutor(THREADS, "weights")
        self._staging = threading.local()

    def read(self, wanted: Iterable[tuple[Iterable[Extent], Tensor]]) -> None:
        """Fills each tensor with the numbers of its extents, one after the other."""
        began = time.monotonic()
        pieces = [piece for extents, tensor in wanted for piece in _pieces(extents, tensor)]
        for path in dict.fromkeys(piece.path for piece in pieces):
            self._opened(path)
        for _ in self._pool.map(self._read, pieces):
            pass
        for path in dict.fromkeys(piece.path for piece in pieces):
            self._check(path)
        self.nbytes += sum(piece.nbytes for piece in pieces)
        self.seconds += time.monotonic() - began

    def close(self) -> None:
        """Closes the files, after the reads that are under way."""
        self._pool.shutdown()
        for each in self._files.values():
            os.close(each.handle)
        self._files.clear()

    def _opened(self, path: Path) -> _Open:
        if path not in self._files:
            try:
                self._files[path] = _open(path, DIRECT)
            except OSError as error:
                raise WorkError(f"{path} cannot be read: {error.strerror or error}") from None
        return self._files[path]

    def _check(self, path: Path) -> None:
        opened, now = self._files[path], os.fstat(self._files[path].handle)
        if (now.st_size, now.st_mtime_ns) != (opened.size, opened.modified):
            raise WorkError(f"{path} was changed while its weights were in use", AGAIN)

    def _read(self, piece: _Piece) -> None:
        if not hasattr(self._staging, "buffer"):
            self._staging.buffer = mmap.mmap(-1, CHUNK + 2 * ALIGNMENT)  # mappings begin at a page
        buffer: Any = self._staging.buffer
        first = piece.start // ALIGNMENT * ALIGNMENT
        needed = piece.start - first + piece.nbytes
        opened = self._files[piece.path]
        try:
            count = _pread(opened.handle, buffer, needed, first)
        except OSError as error:
            raise WorkError(f"{piece.path} cannot be read: {error.strerror or error}") from None
        if count < needed:
            raise WorkError(f"{piece.path} has become shorter while its weights were in use", AGAIN)
        data = np.frombuffer(buffer, np.uint8, piece.nbytes, piece.start - first)
        _copy(data, piece.dtype, piece.address)


def _open(path: Path, flags: int) -> _Open:
    try:
        handle = os.open(path, os.O_RDONLY | flags)
    except OSError:
        if not flags:
            raise
        return _open(path, 0)  # this file system has no reads past the page cache
    facts = os.fstat(handle)
    return _Open(handle, facts.st_size, facts.st_mtime_ns)


def _pread(handle: int, buffer: mmap.mmap, needed: int, first: int) -> int:
    """Reads at least `needed` bytes from `first`, or to the end of the file; returns how many."""
    wanted, count = -(-needed // ALIGNMENT) * ALIGNMENT, 0
    with memoryview(buffer) as view:
        while count < needed:
            with view[count:wanted] as rest:
                got = os.preadv(handle, [rest], first + count)
            if got == 0:
                break
            count += got
            if count < needed and count % ALIGNMENT:  # an aligned read again from there
                count -= count % ALIGNMENT
                if got < ALIGNMENT:
                    break
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, first, wanted, os.POSIX_FADV_DONTNEED)
    return count


def _copy(data: Any, dtype: torch.dtype, address: int) -> None:
    """Copies numbers to an address, bfloat16 and float16 as float32. No step of it holds Python's lock."""
    if dtype == torch.uint8:
        ctypes.memmove(address, data.ctypes.data, data.nbytes)
        return
    count = data.nbytes // 2
    target = np.frombuffer((ctypes.c_char * (4 * count)).from_address(address), np.uint32)
    if dtype == torch.bfloat16:
        np.left_shift(data.view(np.uint16), 16, out=target, dtype=np.uint32)
    else:
        target.view(np.float32)[:] = data.view(np.float16)


def _pieces(extents: Iterable[Extent], tensor: Tensor) -> Iterable[_Piece]:
    """The reads that fill a contiguous tensor."""
    assert tensor.is_contiguous()
    address = tensor.data_ptr()
    for each in extents:
        is_wider = each.dtype != tensor.dtype
        for offset in range(0, each.nbytes, CHUNK):
            nbytes = min(CHUNK, each.nbytes - offset)
            yield _Piece(each.path, each.start + offset, nbytes, each.dtype if is_wider else torch.uint8, address)
            address += nbytes // each.dtype.itemsize * tensor.dtype.itemsize
    assert address == tensor.data_ptr() + tensor.nbytes, "the extents are not the tensor's"
