"""Where the files of a checkpoint are: in a folder, or in one file that holds them all.

Another format is one more subclass of CheckpointSource: an entry of FORMATS, or an entry point in the group
`synthe.checkpoint_formats`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.quantization.matrix import QuantizedMatrix
from synthe_core.quantization.tensor_file import open_tensors
from synthe_core.registry import Table
from synthe_core.storage import adapter_files
from synthe_core.storage.checkpoint.locate import checkpoints
from synthe_core.storage.manifest import MANIFEST, FileDigest, Manifest
from synthe_core.storage.tensor_file import Extent

FORMATS = Table(
    "checkpoint format",
    "synthe.checkpoint_formats",
    {
        "gguf": "synthe_core.interop.source:gguf",
        "hub": "synthe_core.interop.hub:source",
        "huggingface": "synthe_core.interop.source:huggingface",
        "synapse": "synthe_core.packing.bundle:Bundle",
    },
)
"""What opens a path of each format. A checkpoint's own folder has no entry."""
DAMAGED = "the checkpoint is damaged: use another of the run"


class CheckpointSource(ABC):
    """The files of a checkpoint, under the names that `manifest.files` lists. `path` is its name in messages.

    on_disk: `locate` finds its files. Those of a converted model exist in memory only.
    """

    on_disk: ClassVar[bool] = True

    path: Path
    manifest: Manifest

    @abstractmethod
    def locate(self, name: str) -> tuple[Path, int, int]:
        """The file on disk that contains file `name` of the checkpoint, its offset in bytes there, and its size.

        InputError if it is missing, or if its SHA-256 is not the manifest's.
        """

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if there is a quicker way to it than its files."""
        return None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        path, offset, size = self.locate(name)
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a safetensors file, each mapped into memory when it is read."""
        return open_tensors(*self.locate(name), str(self.path / name))

    def fitted(self, adapter: Adapter, path: Path) -> Adapter:
        """An adapter of this model, on the maps that the model has here; path: the adapter's, for messages."""
        return adapter

    @property
    def alternatives(self) -> list[Path]:
        """Checkpoints that may be used if this one is damaged."""
        return []

    def damaged(self, name: str, reason: str) -> InputError:
        """The error for a file whose content is wrong."""
        others = [path for path in self.alternatives if path != self.path]
        hint = f"remove it to use {others[-1]} instead" if others else "copy it again from where it came"
        return InputError(f"{self.path / name} is damaged: {reason}", hint)


class FolderSource(CheckpointSource):
    """A checkpoint's own folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path) if (path / MANIFEST).is_file() else adapter_files.manifest_of(path)
        self._verified: set[str] = set()
        for name, digest in self.manifest.files.items():
            file = path / name
            if not file.is_file():
                raise InputError(f"{file} is missing", DAMAGED)
            if (size := file.stat().st_size) != digest.bytes:
                raise self.damaged(name, f"it has {size} bytes and should have {digest.bytes}")

    @property
    def alternatives(self) -> list[Path]:
        return checkpoints(self.path.parent.parent)

    def locate(self, name: str) -> tuple[Path, int, int]:
        if name not in self.manifest.files:
            raise InputError(f"{self.path} has no {name}", DAMAGED)
        if name not in self._verified:
            if FileDigest.of(self.path / name) != self.manifest.files[name]:
                raise self.damaged(name, "it is not what was written")
            self._verified.add(name)
        return self.path / name, 0, self.manifest.files[name].bytes


def extents_of(tensors: Mapping[str, Tensor], name: str) -> list[Extent] | None:
    """`tensors.extents(name)`, None for tensors that have no such method."""
    find = getattr(tensors, "extents", None)
    return None if find is None else find(name)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of the shards that an index lists, read one at a time."""

    def __init__(self, source: CheckpointSource, folder: str, name: str) -> None:
        self._source = source
        self._readers: dict[str, Any] = {}
        index = f"{folder}{name}.index.json"
        if index in source.manifest.files:
            try:
                weight_map = json.loads(source.read(index))["weight_map"].items()
                self._file = {str(tensor): f"{folder}{file}" for tensor, file in weight_map}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise source.damaged(index, "it is no index of tensors") from None
        else:
            self._file = dict.fromkeys(self._reader(f"{folder}{name}"), f"{folder}{name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading the tensor."""
        return self._reader_of(name).shape(name)

    def quantized(self, name: str) -> QuantizedMatrix | None:
        """A matrix with the codes that the file has, None for one without."""
        find = getattr(self._reader_of(name), "quantized", None)
        return None if find is None else find(name)

    def extents(self, name: str) -> list[Extent] | None:
        """Where the numbers of a tensor stand in files, one after the other; None for one that is computed from
        them."""
        return extents_of(self._reader_of(name), name)

    def release(self) -> None:
        """Gives back the memory of what was read."""
        for reader in self._readers.values():
            if (release := getattr(reader, "release", None)) is not None:
                release()

    def __getitem__(self, name: str) -> Tensor:
        return self._reader_of(name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def _reader_of(self, name: str) -> Any:
        file = self._file[name]
        reader = self._reader(file)
        if name not in reader:
            raise self._source.damaged(file, f"it has no tensor {name}, which the index places there")
        return reader

    def _reader(self, file: str) -> Any:
        if file not in self._readers:
            self._readers[file] = self._source.tensors(file)
        return self._readers[file]
