"""Folders of titan-synapse 0.2: shown, refused where they cannot be run, and carried over."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from synthe_core.errors import InputError
from synthe_core.events import Notice
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.inspect import inspect
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.unpack import unpack
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint
from tests.packing.conftest import result, write_graph

MANIFEST = {
    "format": "synapse",
    "version": "0.2.0",
    "name": "python expert",
    "base_model": "qwen3-3b",
    "base_quantization": "Q4_K_M",
    "vram_estimate_mb": 2100,
    "capabilities": ["python"],
    "adapter_count": 1,
    "training_pairs_collected": 12,
    "last_trained": "2026-03-20T10:00:00Z",
    "performance_score": 0.5,
    "created_by": "titan-synapse/0.2.0",
}
"""As its packer writes it, key for key."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old.synapse"
    (folder / "adapters").mkdir(parents=True)
    (folder / "knowledge").mkdir()
    (folder / "manifest.json").write_text(json.dumps(MANIFEST, indent=2))
    (tmp_path / "somewhere.gguf").write_bytes(b"GGUF" + bytes(100))
    (folder / "model.gguf").symlink_to(tmp_path / "somewhere.gguf")  # its packer links where it can
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{q}.lora_A.weight": torch.randn(16, 64), f"{q}.lora_B.weight": torch.randn(64, 16)}
    save_file(pair, folder / "adapters" / "python_qlora.safetensors")
    write_graph(folder / "knowledge" / "graph.sqlite", rows=9)
    (folder / "agent.yaml").write_text("specialists: [{name: general, capabilities: [chat], priority: 50}]\n")
    return folder


def test_it_is_inspected(old):
    values = result(inspect(old)).values
    assert {key: values[key] for key in MANIFEST} == MANIFEST
    assert values["models"] == {"model.gguf": 104} and values["adapters"] == {"python_qlora": 2}
    assert values["knowledge"] == {"facts": 9}


def test_its_model_is_not_run(old):
    for verb in (lambda: Checkpoint.open(old), lambda: list(verify(old)), lambda: list(unpack(old))):
        with pytest.raises(InputError, match=r"titan-synapse 0\.2\.0, whose model cannot be run") as refused:
            verb()
        assert "pack FOLDER -o FILE" in refused.value.hint


def test_it_is_repacked(old, tmp_path):
    events = list(pack(old, tmp_path / "new.synapse", PackOptions(licence="apache-2.0")))
    assert any(isinstance(event, Notice) and "no alpha was recorded" in event.message for event in events)
    bundle = Bundle(tmp_path / "new.synapse")
    about = bundle.pack_manifest
    assert (about.name, about.base.model, about.base.carried) == ("python-expert", "qwen3-3b", False)
    assert (about.training.pairs, about.training.last) == (12, "2026-03-20T10:00:00Z")
    assert [s.model_dump() for s in about.scores] == [
        {"name": "performance_score", "value": 0.5, "how": "as titan-synapse recorded it"}
    ]
    assert about.capabilities == ["python"] and about.specialists == ["general"] and about.licence == "apache-2.0"
    (adapter,) = about.adapters
    assert (adapter.name, adapter.rank, adapter.alpha, adapter.checked) == ("python_qlora", 16, 16.0, False)
    config = json.loads(bundle.read("adapters/python_qlora/adapter_config.json"))
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (16, 16.0, ["q_proj"])
    gguf = (tmp_path / "somewhere.gguf").read_bytes()
    assert bundle.reference.files == {"model.gguf": hashlib.sha256(gguf).hexdigest()}
    assert result(verify(tmp_path / "new.synapse")).values["status"] == "unsigned"
    with pytest.raises(InputError, match="contains no model that can be run"):
        Checkpoint.open(tmp_path / "new.synapse")
    out = result(unpack(tmp_path / "new.synapse", tmp_path / "out", "adapters")).path
    old_bytes = (old / "adapters" / "python_qlora.safetensors").read_bytes()
    assert (out / "adapters" / "python_qlora" / "adapter_model.safetensors").read_bytes() == old_bytes


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: (p / "setup.sh").write_text("x"), "has a file 'setup.sh'"),
        (lambda p: (p / "knowledge" / "graph.sqlite").write_bytes(b"x" * 3000), "SQLite says"),
        (lambda p: (p / "adapters" / "python_qlora.safetensors").write_bytes(b"x" * 30), "is damaged"),
        (lambda p: (p / "manifest.json").write_text('{"format": "synapse", "version": "0.2.0"}'), "field required"),
        (lambda p: os.replace(p / "agent.yaml", p / "model.gguf"), "is no GGUF file"),
        (lambda p: (p / "adapters" / "x.safetensors").symlink_to("/etc/passwd"), "is a symbolic link"),
    ],
)
def test_damaged_ones(old, tmp_path, harm, message):
    harm(old)
    with pytest.raises(InputError) as refused:
        list(pack(old, tmp_path / "new.synapse"))
    assert message.lower() in refused.value.message.lower()
    assert not (tmp_path / "new.synapse").exists()
