"""Memory-mapped safetensors files, with validation of the header."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.storage.json_reader import check_values

HEADER_LIMIT = 32 << 20  # bytes; the format allows 100 MB, of which parsing would make more than a gigabyte
MAX_VALUES = 4_000_000  # commas and brackets of a header
MIN_MAPPED = 1 << 16  # bytes; smaller tensors are read, because every mapping costs a page and a system call
ALIGN = 64  # bytes; the data of a written file begin at a multiple of this
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the mode that a new file has; the library's own only its owner may read."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata)
    path.chmod(mode)


class Entry(NamedTuple):
    """Type and shape of a tensor, and its bytes `begin` to `end` of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Extent(NamedTuple):
    """Where numbers of one type stand in a file: `nbytes` bytes from `start`."""

    path: Path
    start: int
    nbytes: int
    dtype: torch.dtype


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of `size` bytes from `start` of a larger file that are one.

    A tensor is a private mapping of the file: it is read when it is used, and writes to it stay in memory. entries:
    types and shapes; metadata: the file's metadata. InputError for a file that violates the format, such as wrong
    lengths, or tensors that overlap or leave gaps.
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2) - start if size is None else size
                file.seek(start)
                header = self._header(file, size)
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from None
        self.data = start + size - self._size_of_data  # offset of the data in the file
        self.metadata, self.entries = self._parse(header)

    def _header(self, file: BinaryIO, size: int) -> bytes:
        if size < 8:
            raise self._damaged("it is too short for a safetensors file")
        length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER_LIMIT, size - 8):
            raise self._damaged(f"its header says it is {length} bytes long, and {size - 8} follow")
        self._size_of_data = size - 8 - length
        return file.read(length)

    def _parse(self, header: bytes) -> tuple[dict[str, str], dict[str, Entry]]:
        try:
            check_values(header, MAX_VALUES)
            content = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is not JSON: {str(error)[:100]}") from None
        if not isinstance(content, dict):
            raise self._damaged("its header is not a table of tensors")
        metadata = content.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._damaged("its metadata are not texts")
        entries = {name: self._entry(name, value) for name, value in content.items()}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end:
                how = "overlap" if entry.begin < end else "leave a gap"
                raise self._damaged(f"its tensors {how} at {name[:80]}")
            end = entry.end
        if end != self._size_of_data:
            raise self._damaged(f"its header describes {end} bytes of data, and there are {self._size_of_data}")
        return metadata, entries

    def _entry(self, name: str, value: Any) -> Entry:
        short_name = name[:80]
        try:
            type_name, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise self._damaged(f"its header says no type, shape and place for {short_name}") from None
        if not isinstance(type_name, str) or type_name not in DTYPES:
            raise self._damaged(f"{short_name} has a type {str(type_name)[:20]!r} that is not supported")
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**62 for n in (*shape, begin, end)):
            raise self._damaged(f"the shape or place of {short_name} is not a list of sizes")
        dtype = DTYPES[type_name]
        if len(shape) > 32 or end - begin != math.prod(shape) * dtype.itemsize:
            raise self._damaged(f"{short_name} is {shape[:8]} of {type_name} and takes {end - begin} bytes")
        return Entry(dtype, tuple(shape), begin, end)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def extents(self, name: str) -> list[Extent]:
        """Where the numbers of a tensor stand, one after the other."""
        entry = self.entries[name]
        return [Extent(self.path, self.data + entry.begin, entry.end - entry.begin, entry.dtype)]

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        begin, size = self.data + entry.begin, entry.end - entry.begin
        first = begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as file:
                if size < MIN_MAPPED or begin % entry.dtype.itemsize:
                    file.seek(begin)
                    buffer: Any = bytearray(file.read(size))
                    first = begin
                else:
                    buffer = mmap.mmap(file.fileno(), begin - first + size, access=mmap.ACCESS_COPY, offset=first)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from None
        if len(buffer) < begin - first + size:
            raise self._damaged("it has become shorter")
        count = size // entry.dtype.itemsize
        return torch.frombuffer(buffer, dtype=entry.dtype, count=count, offset=begin - first).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def _damaged(self, reason: str) -> InputError:
        return InputError(f"{self.name} is damaged: {reason}", "use another copy, or another checkpoint of the run")


def write_tensors(
    path: Path,
    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file one tensor at a time. `described` has their names, types and shapes, in order.

    Equal content gives equal bytes, and the data begin at a multiple of ALIGN.
    """
    with path.open("wb") as file:
        file.write(header(described, metadata))
        for (name, tensor), (expected, (dtype, shape)) in zip(tensors, described.items(), strict=True):
            assert (name, tensor.dtype, tuple(tensor.shape)) == (expected, dtype, shape), name
            flat = tensor.detach().contiguous().view(-1)
            flat.view(torch.uint8).numpy().tofile(file)


def header(described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file with the tensors `described`, one after the other."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in described.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a duplicate key."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values
