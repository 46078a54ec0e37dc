"""A model as a merge sees it: tensors by name, read one at a time, and the files around them."""

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
from synthe_core.merging.hashed_file import Facts, HashedFile
from synthe_core.storage.manifest import FileDigest


@dataclass(frozen=True)
class Changes:
    """In what the result differs from the base, beside its values.

    dtype: how its numbers are stored. layers: the base's layers that it has, where layers were picked. vocab: rows of
    its embedding, and tokenizer: the content of its tokenizer.json, where the vocabulary changed.
    """

    dtype: str = "float32"
    layers: Sequence[int] | None = None
    vocab: int | None = None
    tokenizer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What the merge was, for the manifest and the card."""

    name: str
    parameters: int
    parents: list[dict[str, Any]]
    merge: dict[str, Any]
    files: dict[str, FileDigest] = field(default_factory=dict)


class Model(ABC):
    """A folder (or a file) of tensors. `named` is what the person called it."""

    kind: str
    name: str

    def __init__(self, path: Path, named: str) -> None:
        self.path, self.named = path, named

    @classmethod
    @abstractmethod
    def claims(cls, path: Path) -> bool:
        """Whether what is at `path` is of this kind."""

    @abstractmethod
    def places(self) -> Mapping[str, HashedFile]:
        """The file that holds each tensor."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What tensors alone do not tell: two models that differ here compute different things."""

    @property
    @abstractmethod
    def vocab(self) -> int | None:
        """Rows of the embedding."""

    @property
    @abstractmethod
    def tokenizer(self) -> dict[str, Any] | None:
        """The content of tokenizer.json, where there is one."""

    @abstractmethod
    def describe(self, folder: Path, changes: Changes, outcome: Outcome) -> None:
        """Writes what belongs beside the weights of a model like this one into `folder`; the manifest last."""

    def expected(self) -> Mapping[str, FileDigest]:
        """By path, what a file must be, where that is known."""
        return {}

    @cached_property
    def _places(self) -> Mapping[str, HashedFile]:
        return self.places()

    @cached_property
    def tensors(self) -> dict[str, Facts]:
        """In the order of the files, so that reading in this order never goes back."""
        order: dict[HashedFile, int] = {}
        for file in self._places.values():
            order.setdefault(file, len(order))
        names = sorted(self._places, key=lambda name: (order[self._places[name]], self._places[name].place(name)))
        return {name: self._places[name].tensors[name] for name in names}

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self._places[name].read(name)

    def stored(self, name: str) -> torch.dtype:
        """The type in which a result keeps a tensor, where none is asked for."""
        return self.tensors[name].dtype

    @property
    def files(self) -> list[HashedFile]:
        """The files of weights."""
        return list(dict.fromkeys(self._places.values()))

    def facts(self) -> dict[str, Any]:
        """What the manifest says of a parent: its path, and size and SHA-256 of each file of weights."""
        expected: Mapping[str, FileDigest] = self.expected()
        found: dict[str, Any] = {}
        for file in self.files:
            facts, wanted = file.facts(), expected.get(file.name)
            if facts is not None and wanted is not None and wanted != facts:
                where = self.path / file.name
                raise InputError(f"{where} is damaged: it is not what was written", "use another checkpoint")
            found[file.name] = facts and facts.model_dump()
        return {
            "model": self.named,
            "path": str(self.path),
            "kind": self.kind,
            "files": found,
        }


class View(Model):
    """A model seen through something that changes tensors on the way; all else is as it is."""

    def __init__(self, inner: Model) -> None:
        super().__init__(inner.path, inner.named)
        self.inner, self.kind, self.name = inner, inner.kind, inner.name

    @classmethod
    def claims(cls, path: Path) -> bool:
        return False

    def places(self) -> Mapping[str, HashedFile]:
        return self.inner.places()

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
    def tensors(self) -> dict[str, Facts]:
        return self.inner.tensors

    @property
    def files(self) -> list[HashedFile]:
        return self.inner.files

    def stored(self, name: str) -> torch.dtype:
        return self.inner.stored(name)

    def read(self, name: str) -> Tensor:
        return self.inner.read(name)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def describe(self, folder: Path, changes: Changes, outcome: Outcome) -> None:
        self.inner.describe(folder, changes, outcome)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
