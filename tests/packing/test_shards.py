"""Checkpoints whose weights lie in several files, of whatever names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.unpack import unpack
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.manifest import FileDigest
from tests.packing.conftest import result, write_checkpoint
from tests.packing.test_pack import text
from tests.paths import ROOT


def test_shards_stay_shards(tmp_path):
    write_checkpoint(tmp_path / "c", shard_bytes=60_000)
    result(pack(tmp_path / "c", tmp_path / "c.synapse"))
    names = set(Bundle(tmp_path / "c.synapse").pack_manifest.files)
    assert "model.safetensors.index.json" in names and "model-00002-of-" in "".join(names)
    assert text(Checkpoint.open(tmp_path / "c.synapse")) == text(Checkpoint.open(tmp_path / "c"))
    result(
        pack(tmp_path / "c", tmp_path / "q.synapse", PackOptions(quantize="int8", sources=[str(ROOT / "README.md")]))
    )
    assert "model.safetensors" in Bundle(tmp_path / "q.synapse").pack_manifest.files


def renamed_shards(path: Path, pattern: str) -> None:
    """Gives the shards of a checkpoint other names, in its index and manifest too."""
    index = json.loads((path / "model.safetensors.index.json").read_text())
    manifest = json.loads((path / "manifest.json").read_text())
    names = {old: pattern.format(place) for place, old in enumerate(sorted(set(index["weight_map"].values())))}
    index["weight_map"] = {tensor: names[file] for tensor, file in index["weight_map"].items()}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for old, new in names.items():
        (path / old).rename(path / new)
        manifest["files"][new] = manifest["files"].pop(old)
    manifest["files"]["model.safetensors.index.json"] = FileDigest.of(
        path / "model.safetensors.index.json"
    ).model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_shards_of_other_names_are_packed(tmp_path):
    write_checkpoint(tmp_path / "c", shard_bytes=60_000)
    expected = text(Checkpoint.open(tmp_path / "c"))
    renamed_shards(tmp_path / "c", "model-{:05}.safetensors")
    result(pack(tmp_path / "c", tmp_path / "c.synapse"))
    assert "model-00001.safetensors" in Bundle(tmp_path / "c.synapse").pack_manifest.files
    assert text(Checkpoint.open(tmp_path / "c.synapse")) == expected
    result(unpack(tmp_path / "c.synapse", tmp_path / "out"))
    assert text(Checkpoint.open(tmp_path / "out")) == expected


def test_a_name_that_no_member_may_have_is_named(tmp_path):
    write_checkpoint(tmp_path / "c", shard_bytes=60_000)
    renamed_shards(tmp_path / "c", "weights-{}.safetensors")
    with pytest.raises(InputError, match=r"weights-\d\.safetensors cannot be packed under this name") as caught:
        result(pack(tmp_path / "c", tmp_path / "c.synapse"))
    assert "rename it" in str(caught.value.hint) and not (tmp_path / "c.synapse").exists()
