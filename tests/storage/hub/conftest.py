"""A hub on this machine with small repositories, and the events of fetching from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from synthe_core.events import Event, Result
from synthe_core.storage.hub.fetch import fetch
from synthe_core.storage.hub.model_id import HubId
from tests.hub_standin import Hub, hub_on_this_machine

CONFIG = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_on_this_machine(monkeypatch, tmp_path) as server:
        yield server


def shards(count: int = 2, size: int = 50_000) -> dict[str, bytes]:
    """Safetensors files of `size` bytes and more, with their index."""
    files, weight_map = {}, {}
    for number in range(1, count + 1):
        name = f"model-{number:05}-of-{count:05}.safetensors"
        files[name] = save({f"w{number}": torch.full((size // 4,), float(number))})
        weight_map[f"w{number}"] = name
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


def model_files(**more: bytes) -> dict[str, bytes]:
    """The files of a model folder, with others that are not to be fetched."""
    others = {
        "README.md": b"# x",
        "pytorch_model.bin": b"\x80\x04.",
        "modeling_x.py": b"import os",
        "onnx/a.json": b"{}",
    }
    small = {"config.json": CONFIG, "tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "chat_template.jinja": b""}
    return small | shards() | others | more


def events_of(text: str, **options: object) -> list[Event]:
    model = HubId.parse(text)
    assert model is not None
    return list(fetch(model, **options))  # type: ignore[arg-type]


def path_of(text: str, **options: object) -> Path:
    """The path that a fetch ends with."""
    last = events_of(text, **options)[-1]
    assert isinstance(last, Result) and last.path is not None
    return last.path


def outside(tmp_path: Path) -> list[str]:
    """What lies in the working folder beside the cache."""
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "hub")
