"""A GGUF file as the checkpoint that `synthe import gguf` makes of it; its tensors are converted when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.interop.source import ConvertedSource
from synthe_core.merging.hashed_file import HashedFile, TensorInfo
from synthe_core.merging.inputs.checkpoint import CheckpointModel
from synthe_core.storage.manifest import FileDigest
from synthe_core.storage.path_format import is_gguf


class ConvertedFile(HashedFile):
    """The tensors of a converted model, in float32, in the place of a file with weights."""

    def __init__(self, source: ConvertedSource) -> None:
        tensors = source.model.tensors
        self.path, self.name, self.size, self.hashed = source.path, source.path.name, tensors.nbytes, True
        self.metadata, self._source = {}, source
        self.tensors = {name: TensorInfo(tuple(tensors.shape(name)), torch.float32) for name in tensors}
        self._order = {name: place for place, name in enumerate(tensors)}

    def read(self, name: str) -> Tensor:
        return self._source.model.tensors[name]

    def equal(self, name: str, other: HashedFile, other_name: str) -> bool:
        return self.tensors[name] == other.tensors[other_name] and torch.equal(self.read(name), other.read(other_name))

    def digest(self) -> FileDigest | None:
        return FileDigest(bytes=self.path.stat().st_size, sha256=self._source.model.digest) if self.hashed else None

    def offset(self, name: str) -> int:
        return self._order[name]


class GgufModel(CheckpointModel):
    """A GGUF file. The result of a merge is a checkpoint."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_file() and is_gguf(path)

    def locate_tensors(self) -> Mapping[str, HashedFile]:
        assert isinstance(self.checkpoint.source, ConvertedSource)
        file = ConvertedFile(self.checkpoint.source)
        return dict.fromkeys(file.tensors, file)

    def expected(self) -> Mapping[str, FileDigest]:
        return {}
