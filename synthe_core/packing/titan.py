"""Converting bundles of titan-synapse 0.2: a folder with manifest.json, model.gguf, adapters/*.safetensors,
knowledge/graph.sqlite and agent.yaml.

Its model is in a format that cannot be run: the new file references it by name and digest. Its adapters record neither
rank nor alpha; the rank follows from the tensors, and the scale is taken as 1.
"""

from __future__ import annotations

import re
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.packing.adapters import check_adapter
from synthe_core.packing.agent import read_agent
from synthe_core.packing.archive import Tree
from synthe_core.packing.base import BaseReference
from synthe_core.packing.contents import Bytes, Content, FileRange, digest_and_crc
from synthe_core.packing.knowledge import check_database
from synthe_core.packing.manifest import (
    Adapter,
    Base,
    Memory,
    PackManifest,
    Score,
    TitanManifest,
    Training,
    read_manifest,
)
from synthe_core.packing.members import AGENT, BASE, KNOWLEDGE, MANIFEST, MIB, NAME
from synthe_core.storage.json_reader import UNTRUSTED, canonical_json
from synthe_core.storage.path_format import is_synapse
from synthe_core.storage.tensor_file import TensorFile

GGUF = "model.gguf"
MODELS = re.compile(r"model\.gguf|model(?:(?:\.safetensors)?-\d{5}-of-\d{5})?\.safetensors")
LINKS = (GGUF,)  # the bundle has a link to its model


def is_titan(path: Path) -> bool:
    return path.is_dir() and is_synapse(path) and isinstance(_manifest(path), TitanManifest)


def _manifest(path: Path) -> PackManifest | TitanManifest:
    file = path / MANIFEST
    if file.stat().st_size > 16 * MIB:
        raise InputError(f"{file} has {file.stat().st_size} bytes", UNTRUSTED)
    return read_manifest(file.read_bytes(), str(file))


class TitanFolder:
    """The contents of such a folder. Names, sizes and headers are checked; there are no digests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = _manifest(path)
        assert isinstance(manifest, TitanManifest)
        self.pack_manifest = manifest
        self.tree = Tree(path, LINKS)
        self.models = [name for name in self.tree if MODELS.fullmatch(name)]
        self.adapters: dict[str, str] = {}
        for name in self.tree:
            adapter = re.fullmatch(rf"adapters/({NAME})\.safetensors", name)
            if adapter:
                self.adapters[adapter[1]] = name
            elif name not in (MANIFEST, KNOWLEDGE, AGENT, *self.models):
                raise InputError(f"{path} has a file {name!r} that is not part of a bundle", "remove it")
        if GGUF in self.models and next(self.tree.pieces(GGUF), b"")[:4] != b"GGUF":
            raise InputError(f"{path / GGUF} is no GGUF file", "it is damaged")

    def adapter(self, name: str) -> TensorFile:
        return TensorFile(self.path / self.adapters[name])


def titan_members(path: Path, name: str | None, licence: str | None) -> tuple[dict[str, Content], PackManifest]:
    """The members and the manifest of the converted bundle."""
    folder = TitanFolder(path)
    old = folder.pack_manifest
    contents: dict[str, Content] = {}
    digests = {each: digest_and_crc(FileRange.of(path / each))[0].sha256 for each in folder.models}
    contents[BASE] = Bytes(canonical_json(BaseReference(name=old.base_model, files=digests).model_dump(mode="json")))
    adapters = []
    for each, file in folder.adapters.items():
        tensors = folder.adapter(each)
        adapter = check_adapter(each, {}, tensors, None)
        adapter = adapter.model_copy(update={"alpha": float(adapter.rank) if adapter.rank else None})
        adapters.append(adapter)
        contents[f"adapters/{each}/adapter_config.json"] = Bytes(canonical_json(_config(old.base_model, adapter)))
        contents[f"adapters/{each}/adapter_model.safetensors"] = FileRange.of(path / file)
    if KNOWLEDGE in folder.tree:
        check_database(path / KNOWLEDGE)
        contents[KNOWLEDGE] = FileRange.of(path / KNOWLEDGE)
    specialists = []
    if AGENT in folder.tree:
        contents[AGENT] = Bytes((path / AGENT).read_bytes())
        agent = read_agent((path / AGENT).read_bytes(), str(path / AGENT), folder.adapters)
        specialists = [specialist.name for specialist in agent.specialists]
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", old.name).lstrip("._-") or "imported"
    scores = [Score(name="performance_score", value=old.performance_score, how="as titan-synapse recorded it")]
    return contents, PackManifest(
        name=name,
        description=f"converted from {old.created_by or 'titan-synapse'}",
        base=Base(model=old.base_model, carried=False),
        memory=Memory(weights=old.vram_estimate_mb * MIB),
        capabilities=old.capabilities,
        adapters=adapters,
        specialists=specialists,
        training=Training(pairs=old.training_pairs_collected, last=old.last_trained),
        scores=scores if old.performance_score else [],
        licence=licence,
        files={},
    )


def _config(base: str, adapter: Adapter) -> dict[str, object]:
    """adapter_config.json as PEFT reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted({module.rpartition(".")[2] for module in adapter.modules}),
    }
