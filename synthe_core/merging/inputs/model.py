"""A model for merging: tensors by name, read one at a time, and the other files of its folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.merging.hashed_file import HashedFile, TensorInfo
from synthe_core.storage.hub.snapshot import source_name
from synthe_core.storage.manifest import FileDigest


@dataclass(frozen=True)
class Changes:
    """How the result differs from the base, apart from its values.

    dtype: of its numbers. layers: with slices, the base's layers that it has. vocab, tokenizer: the rows of its
    embedding and the content of its tokenizer.json, if the vocabulary changed.
    """

    dtype: str = "float32"
    layers: Sequence[int] | None = None
    vocab: int | None = None
    tokenizer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished merge, for the manifest and the model card."""

    name: str
    parameters: int
    parents: list[dict[str, Any]]
    merge: dict[str, Any]
    files: dict[str, FileDigest] = field(default_factory=dict)


class Model(ABC):
    """A folder (or a file) of tensors. `named` is what the user called it."""

    kind: str
    name: str

    def __init__(self, path: Path, named: str) -> None:
        self.path, self.named = path, named

    @classmethod
    @abstractmethod
    def claims(cls, path: Path) -> bool:
        """Whether `path` is a model of this kind."""

    @abstractmethod
    def locate_tensors(self) -> Mapping[str, HashedFile]:
        """The file of each tensor."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The configuration beside the tensors: models that differ in it compute different functions."""

    @property
    @abstractmethod
    def vocab(self) -> int | None:
        """Rows of the embedding."""

    @property
    @abstractmethod
    def tokenizer(self) -> dict[str, Any] | None:
        """The content of tokenizer.json; None without one."""

    @abstractmethod
    def write_files(self, folder: Path, changes: Changes, outcome: Outcome) -> None:
        """Writes the files beside the weights of a model of this kind into `folder`, the manifest last."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Names of parts that share a tensor with another part of the model, and the name of that tensor in `tensors`,
        which they are not in themselves."""
        return {}

    @property
    def copies(self) -> Mapping[str, str]:
        """The tied names under which the files store the tensor once more."""
        return {}

    def expected(self) -> Mapping[str, FileDigest]:
        """The digests that files must have, by name, as far as they are known."""
        return {}

    @cached_property
    def _files(self) -> Mapping[str, HashedFile]:
        return self.locate_tensors()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Shape and type of each tensor, in the order of the files, so that reading is sequential."""
        order: dict[HashedFile, int] = {}
        for file in self._files.values():
            order.setdefault(file, len(order))
        names = sorted(self._files, key=lambda name: (order[self._files[name]], self._files[name].offset(name)))
        return {name: self._files[name].tensors[name] for name in names}

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self._files[name].read(name)

    def result_dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor in a result without a configured dtype."""
        return self.tensors[name].dtype

    @property
    def files(self) -> list[HashedFile]:
        """The files of weights."""
        return list(dict.fromkeys(self._files.values()))

    def provenance(self) -> dict[str, Any]:
        """The manifest's entry of a parent: its path, and size and SHA-256 of each file of weights."""
        expected: Mapping[str, FileDigest] = self.expected()
        files: dict[str, Any] = {}
        for file in self.files:
            digest, expected_digest = file.digest(), expected.get(file.name)
            if digest is not None and expected_digest is not None and expected_digest != digest:
                path = self.path / file.name
                raise InputError(f"{path} is damaged: it is not what was written", "use another checkpoint")
            files[file.name] = digest and digest.model_dump()
        return {
            "model": self.named,
            "path": source_name(self.path),
            "kind": self.kind,
            "files": files,
        }


class View(Model):
    """A model whose tensors are changed while they are read; subclasses say how."""

    def __init__(self, inner: Model) -> None:
        super().__init__(inner.path, inner.named)
        self.inner, self.kind, self.name = inner, inner.kind, inner.name

    @classmethod
    def claims(cls, path: Path) -> bool:
        return False

    def locate_tensors(self) -> Mapping[str, HashedFile]:
        return self.inner.locate_tensors()

    @property
    def config(self) -> dict[str, Any]:
        return self.inner.config

    @property
    def vocab(self) -> int | None:
        return self.inner.vocab

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        return self.inner.tokenizer

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return self.inner.tensors

    @property
    def tied(self) -> Mapping[str, str]:
        return self.inner.tied

    @property
    def copies(self) -> Mapping[str, str]:
        return self.inner.copies

    @property
    def files(self) -> list[HashedFile]:
        return self.inner.files

    def result_dtype(self, name: str) -> torch.dtype:
        return self.inner.result_dtype(name)

    def read(self, name: str) -> Tensor:
        return self.inner.read(name)

    def provenance(self) -> dict[str, Any]:
        return self.inner.provenance()

    def write_files(self, folder: Path, changes: Changes, outcome: Outcome) -> None:
        self.inner.write_files(folder, changes, outcome)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
