"""Where the files of a checkpoint lie: a folder, or one file that holds them all. Whoever reads them need not know.

Another kind of source is one more class: in the table SOURCES of checkpoint.py, or an entry point `synthe.sources`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.quantization.formats import open_tensors
from synthe_core.storage import adapter_files
from synthe_core.storage.manifest import NAME, FileFacts, Manifest

CHECKPOINTS = "checkpoints"


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in (run / CHECKPOINTS).glob(f"step-*/{NAME}"))


def is_synapse(folder: Path) -> bool:
    """Whether a folder is laid out as a .synapse file is, not as a checkpoint."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == "synapse"


class Source(ABC):
    """The files of a checkpoint, by the names that `manifest.files` lists. `path` is what a person calls it."""

    path: Path
    manifest: Manifest

    @abstractmethod
    def where(self, name: str) -> tuple[Path, int, int]:
        """The file on disk that holds a file of the checkpoint, from which byte on, and how many. InputError where it
        is missing, or its SHA-256 is not what was written."""

    def read(self, name: str) -> bytes:
        """The content of a file."""
        path, start, size = self.where(name)
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a safetensors file, each mapped into memory where it lies when it is asked for."""
        return open_tensors(*self.where(name), str(self.path / name))

    @property
    def others(self) -> list[Path]:
        """Checkpoints that may serve where this one is damaged."""
        return []

    def damaged(self, name: str, how: str) -> InputError:
        others = [path for path in self.others if path != self.path]
        hint = f"remove it to use {others[-1]} instead" if others else "copy it again from where it came"
        return InputError(f"{self.path / name} is damaged: {how}", hint)


class Folder(Source):
    """A checkpoint's own folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path) if (path / NAME).is_file() else adapter_files.manifest_of(path)
        self._checked: set[str] = set()
        for name, facts in self.manifest.files.items():
            file = path / name
            if not file.is_file():
                raise InputError(f"{file} is missing", "the checkpoint is damaged: use another of the run")
            if (size := file.stat().st_size) != facts.bytes:
                raise self.damaged(name, f"it has {size} bytes and should have {facts.bytes}")

    @property
    def others(self) -> list[Path]:
        return checkpoints(self.path.parent.parent)

    def where(self, name: str) -> tuple[Path, int, int]:
        if name not in self.manifest.files:
            raise InputError(f"{self.path} has no {name}", "the checkpoint is damaged: use another of the run")
        if name not in self._checked:
            if FileFacts.of(self.path / name) != self.manifest.files[name]:
                raise self.damaged(name, "it is not what was written")
            self._checked.add(name)
        return self.path / name, 0, self.manifest.files[name].bytes


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file or of the files of an index, read one at a time."""

    def __init__(self, source: Source, folder: str, name: str) -> None:
        self._source = source
        self._open: dict[str, Any] = {}
        index = f"{folder}{name}.index.json"
        if index in source.manifest.files:
            try:
                places = json.loads(source.read(index))["weight_map"].items()
                self._file = {str(tensor): f"{folder}{file}" for tensor, file in places}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise source.damaged(index, "it is no index of tensors") from None
        else:
            self._file = dict.fromkeys(self._reader(f"{folder}{name}"), f"{folder}{name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return self._holding(name).shape(name)

    def __getitem__(self, name: str) -> Tensor:
        return self._holding(name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def _holding(self, name: str) -> Any:
        file = self._file[name]
        reader = self._reader(file)
        if name not in reader:
            raise self._source.damaged(file, f"it has no tensor {name}, which the index places there")
        return reader

    def _reader(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = self._source.tensors(file)
        return self._open[file]
