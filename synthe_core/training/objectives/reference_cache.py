"""Log-probabilities of a reference in a file of the cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.errors import SyntheError
from synthe_core.hardware.probe import cache_dir
from synthe_core.storage.atomic import new_file
from synthe_core.storage.tensor_file import TensorFile, save_tensors

FORMAT = "1"
KEY_BYTES = 16
MAX_ROWS = 1 << 20
"""Rows of a file: 24 MB."""
MAX_FILES = 32
"""The files that were not used for the longest time are removed."""


class ReferenceCache:
    """The values of rows by a digest of their tokens, of the reference with a `digest`. A damaged file counts as none,
    and is written again. Without a folder that can be written nothing is stored."""

    def __init__(self, digest: str) -> None:
        self.path: Path = cache_dir() / "reference" / f"{digest}-{FORMAT}.safetensors"
        self._stored: set[bytes] = set()

    def read(self) -> dict[bytes, float]:
        """All values."""
        try:
            file = TensorFile(self.path)
            keys, values = file["keys"].clone(), file["values"].clone()
            if file.metadata.get("digest") != _digest(keys, values):
                return {}
            read = from_tensors(keys, values)
        except (SyntheError, KeyError, ValueError, OSError):
            return {}
        with suppress(OSError):
            os.utime(self.path)
        self._stored = set(read)
        return read

    def write(self, values: Mapping[bytes, float]) -> None:
        """Adds values to the file: those that another process has written meanwhile stay."""
        if values.keys() <= self._stored or len(self._stored) >= MAX_ROWS:
            return
        everything = dict(list(({**values} | self.read()).items())[:MAX_ROWS])
        keys, numbers = to_tensors(everything)
        with suppress(SyntheError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(self.path, wait=10) as partial:
                save_tensors({"keys": keys, "values": numbers}, partial, {"digest": _digest(keys, numbers)})
            self._stored = set(everything)
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        files = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MAX_FILES]:
            path.unlink(missing_ok=True)


def to_tensors(values: Mapping[bytes, float]) -> tuple[Tensor, Tensor]:
    """Keys uint8 [N, KEY_BYTES] and values float64 [N]."""
    keys = torch.empty(len(values), KEY_BYTES, dtype=torch.uint8)
    if values:
        keys = torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8).view_as(keys)
    return keys, torch.tensor(list(values.values()), dtype=torch.float64)


def from_tensors(keys: Tensor, values: Tensor) -> dict[bytes, float]:
    """The inverse of `to_tensors`."""
    return dict(zip(map(bytes, keys.numpy()), values.tolist(), strict=True))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
