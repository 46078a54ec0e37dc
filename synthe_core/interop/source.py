"""A published model as a checkpoint source: what every verb takes, without a conversion on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.interop.converted import ConvertedModel, ConvertedTensors, PublishedModel
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.model import GgufModel
from synthe_core.interop.gguf.tokenizer import tokenizer_of
from synthe_core.interop.huggingface.families import plan
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.pretrained import library
from synthe_core.interop.huggingface.published import UnsupportedModel, check_depth, check_widths, longest_side
from synthe_core.interop.huggingface.saved_model import converted, is_own
from synthe_core.interop.published_adapter import on_learners
from synthe_core.interop.published_source import PublishedSource, files_of
from synthe_core.storage.checkpoint.read import WEIGHTS
from synthe_core.storage.checkpoint.sources import CheckpointSource
from synthe_core.storage.checkpoint.write import model_config
from synthe_core.storage.hub.snapshot import reference_to
from synthe_core.storage.manifest import FileDigest, Manifest


class ConvertedSource(CheckpointSource):
    """The checkpoint that `synthe import` would write: its small files in memory, its tensors converted when they are
    read. Nothing is written to disk."""

    on_disk = False

    def __init__(self, published: PublishedModel) -> None:
        self.path = published.path
        self.model = converted(published)

    @property
    def notices(self) -> list[str]:
        """What a user of the model should know: what of it is left out, for one."""
        return [each.message for each in self.model.notices] if isinstance(self.model, ConvertedModel) else []

    @cached_property
    def _small(self) -> dict[str, bytes]:
        tokenizer = self.model.tokenizer
        recipe = self.model.recipe(None if tokenizer is None else Path(reference_to(self.path)))
        config = model_config(recipe, self.model.vocab, (), self.model.context)
        files = {"recipe.yaml": recipe.to_yaml().encode(), "config.json": json.dumps(config).encode()}
        return files if tokenizer is None else files | files_of(tokenizer)

    @cached_property
    def manifest(self) -> Manifest:  # type: ignore[override]
        """Its weights have the digest of what they are made from."""
        files = {name: FileDigest(bytes=len(data), sha256=_sha256(data)) for name, data in self._small.items()}
        files[WEIGHTS] = FileDigest(bytes=self.model.tensors.nbytes, sha256=self.model.digest)
        return self.model.manifest().model_copy(update={"files": files})

    def locate(self, name: str) -> tuple[Path, int, int]:
        raise InputError(
            f"{self.path} is a published model, and has no file {name}", "convert it: synthe import hf, or import gguf"
        )

    def read(self, name: str) -> bytes:
        if name not in self._small:
            raise InputError(f"{self.path} has no {name}")
        return self._small[name]

    def tokenizer(self) -> Tokenizer | None:
        return self.model.tokenizer

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        return self.model.tensors

    def fitted(self, adapter: Adapter, path: Path) -> Adapter:
        tensors = self.model.tensors
        return on_learners(adapter, tensors.conversion, path) if isinstance(tensors, ConvertedTensors) else adapter


def huggingface(path: Path) -> CheckpointSource:
    """The model folder of transformers at `path`: of our learners where they express it, and else as it is."""
    published = HuggingFaceModel(path)
    return PublishedSource(published) if needs_transformers(published) else ConvertedSource(published)


def needs_transformers(published: HuggingFaceModel) -> bool:
    """Whether our learners do not express the architecture of a model folder, or an option of it."""
    if is_own(published.config.values):
        return False
    check_depth(published.config, len(published))  # before a plan of as many layers and experts is made
    check_widths(published.config, longest_side(published))
    try:
        plan(published.config)
    except UnsupportedModel:
        library(published.path)
        return True
    return False


def gguf(path: Path) -> ConvertedSource:
    """The GGUF file at `path`."""
    return ConvertedSource(GgufModel(path))


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file."""
    return tokenizer_of(GgufFile(path))


def huggingface_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder. InputError for a folder without one."""
    model = HuggingFaceModel(path)
    if (tokenizer := model.tokenizer(model.config.language().size("vocab_size"), [])) is None:
        raise InputError(f"{path} has no tokenizer.json", "fetch it as well")
    return tokenizer


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
