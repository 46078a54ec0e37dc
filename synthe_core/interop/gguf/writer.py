"""Writing a GGUF file, version 3: metadata, then tensors one after the other."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.interop.gguf.file import ARRAY, MAGIC, STRING
from synthe_core.quantization.ggml import BLOCK_FORMATS, PLAIN_FORMATS
from synthe_core.quantization.ggml_quantize import quantize

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7
LISTS = {bool: (BOOL, "?"), int: (INT32, "<i4"), float: (FLOAT32, "<f4")}


class PlannedTensor(NamedTuple):
    """A tensor to write: its shape, the number of its type, and what reads it."""

    shape: tuple[int, ...]
    kind: int
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        count = int(np.prod(self.shape, dtype=np.int64))
        if self.kind in PLAIN_FORMATS:
            return count * PLAIN_FORMATS[self.kind].itemsize
        form = BLOCK_FORMATS[self.kind]
        return count // form.size * form.nbytes


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, PlannedTensor]) -> None:
    """Writes the file. Values are texts, bools, whole numbers (uint32), floats (float32), or lists of texts, of
    bools, of whole numbers (int32) or of floats; an empty list is one of texts. One tensor is in memory at a time."""
    header = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    start = 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        header += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.kind, start)
        start += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    with path.open("wb") as file:
        _padded(file, bytes(header))
        for tensor in tensors.values():
            _padded(file, _stored(tensor))


def _padded(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.write(b"\0" * (-len(data) % ALIGNMENT))


def _stored(tensor: PlannedTensor) -> bytes:
    values = tensor.read()
    assert tuple(values.shape) == tensor.shape
    if tensor.kind in PLAIN_FORMATS:
        data = values.to(PLAIN_FORMATS[tensor.kind]).contiguous().view(torch.uint8)
    else:
        data = quantize(values, tensor.kind)
    return data.numpy().tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<I", ARRAY) + _items(value)


def _items(values: Sequence[Any]) -> bytes:
    if not values or isinstance(values[0], str):
        return struct.pack("<IQ", STRING, len(values)) + b"".join(map(_text, values))
    kind, dtype = LISTS[type(values[0])]
    return struct.pack("<IQ", kind, len(values)) + np.asarray(values, dtype).tobytes()
