"""A GGUF file that is yet to be written: its metadata, from which the reader makes the same config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from synthe_core.interop.gguf.outline import Outline

SIZE = 1 << 20
"""The tensors that a file without any says to have: the reader bounds the layers by it."""


class Description(NamedTuple):
    """metadata: the values of an architecture, without its name. present: names of tensors that decide how it is read.
    constants: tensors whose values follow from the metadata. folds: what our tensors of these names become in a file
    whose architecture has no such factors, and `outline` the model without them."""

    metadata: dict[str, Any]
    present: frozenset[str] = frozenset()
    constants: Mapping[str, Tensor] = {}
    folds: Mapping[str, Callable[[Tensor], Tensor]] = {}
    outline: Outline | None = None


class PlannedFile(Mapping[str, Tensor]):
    """What `Metadata` reads of a file, before there is one."""

    def __init__(
        self, architecture: str, metadata: Mapping[str, Any], present: Collection[str], tensors: Mapping[str, Tensor]
    ) -> None:
        self.path = Path("model.gguf")
        self.metadata: dict[str, Any] = {"general.architecture": architecture}
        self.metadata |= {f"{architecture}.{key}": _stored(value) for key, value in metadata.items()}
        self._present, self._tensors = present, tensors

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(key, default)

    def __contains__(self, name: object) -> bool:
        return name in self._present or name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._tensors[name]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return SIZE


def _stored(value: Any) -> Any:
    """A value as it is read back: numbers of 32 bits."""
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, list) and value and not isinstance(value[0], str):
        return np.asarray(value, {bool: "?", float: "<f4"}.get(type(value[0]), "<i4"))
    return value
