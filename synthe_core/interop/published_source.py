"""A model folder that transformers runs as a checkpoint source: its files as they are."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.hardware.probe import probe
from synthe_core.interop.converted import FINE_TUNING, recipe_name
from synthe_core.interop.huggingface.context_limit import context_limit
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.huggingface.pretrained import without_floats
from synthe_core.interop.huggingface.published import CONFIG, INDEX, check_depth
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint.sources import CheckpointSource
from synthe_core.storage.hub.snapshot import reference_to, source_name
from synthe_core.storage.manifest import FileDigest, Manifest, describe_hardware, package_versions
from synthe_core.storage.yaml_reader import YamlSource

STORED = ("F64", "F32", "BF16", "F16")
NARROWEST = ("F8_", "F6_", "F4")
"""The beginnings of the names of types with 8 bits and less."""


class PublishedSource(CheckpointSource):
    """A model folder that transformers runs, as it is: config.json and weights are its files. Its recipe and the files
    of its tokenizer are in memory."""

    def __init__(self, published: HuggingFaceModel) -> None:
        self.path, self.published = published.path, published
        check_depth(published.config, len(published))
        self.vocab = published.config.language().size("vocab_size")
        check_stored(published)

    @cached_property
    def spec(self) -> PublishedSpec:
        return PublishedSpec(config=without_floats(self.published.config.values))

    @cached_property
    def _small(self) -> dict[str, bytes]:
        tokenizer = self.published.tokenizer(self.vocab, [])
        recipe = published_recipe(self.spec, self.path, None if tokenizer is None else self.path)
        small = {"recipe.yaml": recipe.to_yaml().encode(), CONFIG: json.dumps(self.spec.config, indent=1).encode()}
        return small if tokenizer is None else small | files_of(tokenizer)

    @cached_property
    def manifest(self) -> Manifest:  # type: ignore[override]
        files = {
            name: FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in self._small.items()
        }
        weights = {name: FileDigest.of(self.path / name) for name in sorted(set(self.published.files.values()))}
        if (self.path / INDEX).is_file():
            weights[INDEX] = FileDigest.of(self.path / INDEX)
        context = context_limit(self.published.config.language())
        origin: dict[str, Any] = {"format": "huggingface", "architecture": self.spec.architecture}
        return Manifest.model_validate(
            {
                "parameters": sum(math.prod(self.published.shape(name)) for name in self.published),
                "parents": [source_name(self.path)],
                "source": origin if context is None else origin | {"context": context},
                "versions": package_versions(),
                "hardware": describe_hardware(probe()),
                "files": files | weights,
            }
        )

    def locate(self, name: str) -> tuple[Path, int, int]:
        if name in self._small or name not in self.manifest.files:
            raise InputError(f"{self.path} is a published model, and has no file {name}", "copy the folder again")
        return self.path / name, 0, self.manifest.files[name].bytes

    def read(self, name: str) -> bytes:
        return self._small[name] if name in self._small else super().read(name)


def check_stored(published: HuggingFaceModel) -> None:
    """InputError for quantised weights: those of a model whose largest tensor is not of numbers with a fraction, or
    that has numbers of 8 bits and less with one."""
    kinds = {name: published.kind(name) for name in published}
    largest = max(kinds, key=lambda name: math.prod(published.shape(name)), default=None)
    for name, kind in kinds.items():
        if kind.startswith(NARROWEST) or (name == largest and kind not in STORED):
            raise InputError(
                f"{name} of {published.path} is stored as {kind}, and transformers runs {', '.join(STORED)}",
                "use the original model, or a GGUF file of it, which may be quantised",
            )


def published_recipe(spec: PublishedSpec, path: Path, tokenizer: Path | None) -> Recipe:
    """The recipe of a published model at `path`, whose text is read by the tokenizer at another."""
    values: dict[str, Any] = {
        "name": recipe_name(path),
        "description": f"{spec.architecture} of {source_name(path)}, run by transformers",
        "model": spec,
        "data": {} if tokenizer is None else {"tokenizer": reference_to(tokenizer)},
        "train": FINE_TUNING,
    }
    if spec.positions is not None:
        values["data"] |= {"sequence": min(DataSpec().sequence, spec.positions)}
    return Recipe.from_source(YamlSource(str(path), values, {}))


def files_of(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that a tokenizer is saved as, by name."""
    with tempfile.TemporaryDirectory(prefix="synthe-") as folder:
        tokenizer.save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
