"""A checkpoint of this project: its folder, the best of a run, or a .synapse file that carries it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from synthe_core.data.tokenizer_config import BESIDE, GENERATION, to_current_format
from synthe_core.data.tokenizers import read_tokenizer
from synthe_core.hardware.probe import probe
from synthe_core.merging.hashed_file import HashedFile
from synthe_core.merging.inputs.model import Changes, Model, Outcome, write_json
from synthe_core.storage.checkpoint import CHECKPOINTS, Checkpoint
from synthe_core.storage.checkpoint.read import WEIGHTS
from synthe_core.storage.checkpoint.sources import FolderSource
from synthe_core.storage.checkpoint.write import INDEX, model_config
from synthe_core.storage.manifest import MANIFEST, FileDigest, Manifest, describe_hardware, package_versions


class CheckpointModel(Model):
    """A checkpoint of synthe. All must have the same model in their recipes; the result is a checkpoint too."""

    kind = "checkpoint"

    def __init__(self, path: Path, named: str) -> None:
        self.checkpoint = Checkpoint.open(path)
        super().__init__(self.checkpoint.path, named)
        self.name = self.checkpoint.recipe.name

    @classmethod
    def claims(cls, path: Path) -> bool:
        return (path / MANIFEST).is_file() or (path / CHECKPOINTS).is_dir() or zipfile.is_zipfile(path)

    def locate_tensors(self) -> Mapping[str, HashedFile]:
        if INDEX not in self.checkpoint.manifest.files:
            file = self._file(WEIGHTS)
            return dict.fromkeys(file.tensors, file)
        index = self._object(INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise self.checkpoint.source.damaged(INDEX, "it has no weight_map")
        files = {name: self._file(name) for name in sorted(set(index.values()))}
        return {tensor: files[name] for tensor, name in index.items()}

    def _file(self, name: str) -> HashedFile:
        source = self.checkpoint.source
        if isinstance(source, FolderSource):  # hashed while it is read, and compared with the manifest at the end
            return HashedFile(source.path / name)
        return HashedFile(*source.locate(name), name)

    def expected(self) -> Mapping[str, FileDigest]:
        return self.checkpoint.manifest.files

    @property
    def config(self) -> dict[str, Any]:
        """The recipe's model, and the parts that it does not use yet."""
        return {
            "model": self.checkpoint.recipe.model.model_dump(mode="json"),
            "without": self.checkpoint.manifest.without,
        }

    @property
    def vocab(self) -> int | None:
        return self.checkpoint.vocab

    @cached_property
    def tokenizer(self) -> dict[str, Any] | None:
        name = "tokenizer.json"
        return to_current_format(self._object(name)) if name in self.checkpoint.manifest.files else None

    def _object(self, name: str) -> dict[str, Any]:
        """The JSON object in a file. InputError otherwise."""
        try:
            values = json.loads(self.checkpoint.source.read(name))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise self.checkpoint.source.damaged(name, "it is no JSON object")
        return values

    def write_files(self, folder: Path, changes: Changes, outcome: Outcome) -> None:
        recipe = self.checkpoint.recipe
        if changes.layers is not None:
            model = recipe.model.model_copy(update={"blocks": len(changes.layers)})
            recipe = recipe.model_copy(update={"model": model})
        recipe = recipe.model_copy(update={"name": outcome.name, "description": outcome.merge["summary"]})
        vocab = changes.vocab or self.checkpoint.vocab
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        labels = self.checkpoint.classes
        config = model_config(recipe, vocab, labels, self.checkpoint.context)
        write_json(folder / "config.json", config | {"torch_dtype": changes.dtype})
        if self.tokenizer is not None:
            self._write_tokenizer(folder, changes)
        manifest = Manifest.model_validate(
            {
                "parameters": outcome.parameters,
                "parents": [parent["path"] for parent in outcome.parents],
                "context": self.checkpoint.context,
                "without": self.checkpoint.manifest.without,
                "versions": package_versions(),
                "hardware": describe_hardware(probe()),
                "merge": {"parents": outcome.parents, **outcome.merge},
            }
        )
        manifest = manifest.with_files(folder, outcome.files)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _write_tokenizer(self, folder: Path, changes: Changes) -> None:
        """Writes the tokenizer, whose ids may have changed."""
        tokenizer = self.checkpoint.tokenizer()
        if changes.tokenizer is not None:
            names = [name for name in BESIDE if name in self.checkpoint.manifest.files and name != GENERATION]
            beside = {name: self.checkpoint.source.read(name) for name in names}
            ends = [tokenizer.spelling(i) for i in sorted(tokenizer.ends, key=lambda i: i != tokenizer.end)]
            content = json.dumps(changes.tokenizer).encode()
            changed = read_tokenizer(content, "the new tokenizer.json", beside, ends)
            changed.sampling = tokenizer.sampling
            tokenizer = changed
        tokenizer.save(folder)
        write_json(folder / "tokenizer.json", changes.tokenizer or self.tokenizer)
