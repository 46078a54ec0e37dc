"""A GGUF file: metadata and tensors, mapped into memory. Format: ggml/docs/gguf.md, versions 2 and 3."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.interop.stored_rows import StoredRows
from synthe_core.quantization.ggml import BLOCK_FORMATS, PLAIN_FORMATS
from synthe_core.storage.tensor_file import Extent

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_METADATA, MAX_TENSORS = 65_536, 1 << 20
MAX_NAME, MAX_DIMS, MAX_ALIGNMENT = 65_535, 4, 1 << 24
DAMAGED = "fetch it again"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """A tensor's shape, slowest dimension first, its type's number, and the place of its bytes in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int
    nbytes: int


class GgufFile(Mapping[str, Tensor]):
    """The tensors of a file by name, each dequantised to float32 when it is read; float types keep theirs.

    metadata: by key; arrays of numbers are numpy's, arrays of texts lists. InputError for a file that violates the
    format: lengths beyond its end, tensors that overlap, counts without end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}", DAMAGED) from None
        header = _Header(path, self._bytes.data)
        self.metadata, self.tensors = header.metadata, header.tensors

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        return self.metadata.get(key, default)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def raw(self, name: str) -> Tensor:
        """The bytes of a tensor as they are stored, without a copy."""
        info = self.tensors[name]
        return torch.from_numpy(self._bytes[info.start : info.start + info.nbytes])

    def __getitem__(self, name: str) -> Tensor:
        info, data = self.tensors[name], self.raw(name)
        if info.kind in PLAIN_FORMATS:
            return data.view(PLAIN_FORMATS[info.kind]).view(info.shape)
        return BLOCK_FORMATS[info.kind].dequantize(data, info.shape)

    def part(self, name: str, index: int) -> Tensor:
        """A tensor's entry at `index` along its first dimension, which alone is read. It has more dimensions."""
        info = self.tensors[name]
        size = info.nbytes // info.shape[0]
        data = self.raw(name)[index * size : (index + 1) * size]
        if info.kind in PLAIN_FORMATS:
            return data.view(PLAIN_FORMATS[info.kind]).view(info.shape[1:])
        return BLOCK_FORMATS[info.kind].dequantize(data, info.shape[1:])

    def rows(self, name: str, index: int | None = None) -> StoredRows | None:
        """A matrix as it is stored, or the one at `index` of several; None for a tensor that is no matrix."""
        info = self.tensors[name]
        shape = info.shape if index is None else info.shape[1:]
        if len(shape) != 2:
            return None
        data = self.raw(name)
        if index is not None:
            data = data.unflatten(0, (info.shape[0], -1))[index]
        if info.kind in PLAIN_FORMATS:
            return StoredRows(data.view(PLAIN_FORMATS[info.kind]).view(shape))
        return StoredRows(data.view(shape[0], -1), BLOCK_FORMATS[info.kind])

    def extents(self, name: str, index: int | None = None) -> list[Extent] | None:
        """Where the numbers of a tensor stand, or of its entry at `index`; None for a quantised one."""
        info = self.tensors[name]
        if info.kind not in PLAIN_FORMATS:
            return None
        size = info.nbytes if index is None else info.nbytes // info.shape[0]
        return [Extent(self.path, info.start + size * (index or 0), size, PLAIN_FORMATS[info.kind])]

    def release(self) -> None:
        """Gives back the memory of what was read of the file; it is read again where it is used."""
        mapping = getattr(self._bytes, "_mmap", None)
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class _Header:
    """Reads the header from the front. No length is believed before the file is seen to have as much."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self._data, self._at = path, data, 0
        if bytes(self._take(4)) != MAGIC:
            raise InputError(f"{path} is not a GGUF file", "a GGUF file begins with the letters GGUF")
        if (version := self._scalar("I")) not in VERSIONS:
            if version & 0xFFFF == 0:
                raise InputError(f"{path} is a GGUF file of a big-endian machine, which is not supported")
            raise InputError(f"{path} is of GGUF version {version}", "versions 2 and 3 can be read")
        tensors, values = self._scalar("Q"), self._scalar("Q")
        if tensors > MAX_TENSORS or values > MAX_METADATA:
            raise self._damaged(f"its header counts {tensors} tensors and {values} values")
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            self._add(self.metadata, self._text(MAX_NAME), lambda key: self._value(key, self._scalar("I")))
        infos: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            self._add(infos, self._text(MAX_NAME), self._info)
        self.tensors = self._placed(infos)

    def _damaged(self, reason: str) -> InputError:
        return InputError(f"{self.path} is damaged: {reason}", DAMAGED)

    def _take(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            raise self._damaged(f"{count} bytes should follow at byte {self._at}, and {len(self._data) - self._at} do")
        taken, self._at = self._data[self._at : end], end
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _text(self, longest: int | None = None) -> str:
        length = self._scalar("Q")
        if longest is not None and length > longest:
            raise self._damaged(f"a name has {length} bytes")
        return str(self._take(length), "utf-8", "replace")

    def _add(self, table: dict[str, Any], key: str, read: Callable[[str], Any]) -> None:
        if key in table:
            raise self._damaged(f"it has {key[:80]!r} twice")
        table[key] = read(key)

    def _value(self, key: str, kind: int) -> Any:
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            raise self._damaged(f"{key[:80]!r} has a type {kind} that does not exist")
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == STRING:
            if count > (len(self._data) - self._at) // 8:
                raise self._damaged(f"{key[:80]!r} counts {count} texts")
            return [self._text() for _ in range(count)]
        if kind not in SCALARS:
            raise self._damaged(f"{key[:80]!r} is a list of type {kind}")
        dtype = np.dtype(f"<{SCALARS[kind]}")
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _info(self, name: str) -> TensorInfo:
        """Its place is an offset in the data until all are read."""
        dims = self._scalar("I")
        if not 0 < dims <= MAX_DIMS:
            raise self._damaged(f"{name[:80]!r} has {dims} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dims))[::-1]
        kind, start = self._scalar("I"), self._scalar("Q")
        count = math.prod(shape)
        if kind in PLAIN_FORMATS:
            nbytes = count * PLAIN_FORMATS[kind].itemsize
        elif kind in BLOCK_FORMATS:
            form = BLOCK_FORMATS[kind]
            if not shape or shape[-1] % form.size:
                raise self._damaged(f"{name[:80]!r} is {list(shape)}, and {form.name} has blocks of {form.size}")
            nbytes = count // form.size * form.nbytes
        else:
            known = ", ".join(form.name for form in BLOCK_FORMATS.values())
            raise InputError(
                f"{self.path}: {name[:80]!r} is stored in type {kind}, which is not supported",
                f"F32, F16, BF16, {known} can be read",
            )
        if not count or nbytes > len(self._data):
            raise self._damaged(f"{name[:80]!r} is {list(shape)}, which the file has no room for")
        return TensorInfo(shape, kind, start, nbytes)

    def _placed(self, infos: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {str(alignment)[:40]}")
        first = end = -(-self._at // alignment) * alignment
        placed = {name: info._replace(start=first + info.start) for name, info in infos.items()}
        for name, info in sorted(placed.items(), key=lambda item: item[1].start):
            if info.start % alignment or info.start < end or info.start + info.nbytes > len(self._data):
                raise self._damaged(f"{name[:80]!r} begins at byte {info.start} and takes {info.nbytes}")
            end = info.start + info.nbytes
        return placed
