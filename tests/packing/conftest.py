"""A small model with weights, and everything that may be packed with it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save_file

from synthe_core.data.tokenizers import ByteTokenizer, FileTokenizer, Tokenizer
from synthe_core.events import Event, Result
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.model.language_model import LanguageModel
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.manifest import Manifest

BLOCK = [{"type": "attention", "heads": 2, "window": 16}, {"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 160}]
ADAPTED = "blocks.0.learners.2"
AGENT = """\
specialists:
  - name: coder
    capabilities: [python, sql]
    system_prompt: Write code.
    priority: 60
    adapter: code
  - {name: writer, capabilities: [prose, sql]}
"""


def result(events: Iterator[Event]) -> Result:
    """The last event of a verb, which is its Result."""
    last = list(events)[-1]
    assert isinstance(last, Result)
    return last


def write_checkpoint(
    path: Path,
    *,
    shard_bytes: int = 10**9,
    seed: int = 1,
    width: int = 64,
    blocks: int = 2,
    tokenizer: Tokenizer | None = None,
    **facts: Any,
) -> Path:
    tokenizer = tokenizer or ByteTokenizer()
    recipe = Recipe.model_validate(
        {"name": "small", "model": {"width": width, "blocks": blocks, "block": BLOCK}, "data": {"sequence": 32}}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LanguageModel(recipe.model, tokenizer.vocab_size)
    save(
        path,
        recipe=recipe,
        vocab=tokenizer.vocab_size,
        tensors=weights(model),
        manifest=Manifest(created="2026-01-01T00:00:00+00:00", **facts),
        tokenizer=tokenizer,
        shard_bytes=shard_bytes,
    )
    return path


def write_adapter(folder: Path, module: str = f"{ADAPTED}.gate_up", sizes: tuple[int, int] = (64, 320)) -> Path:
    folder.mkdir(parents=True)
    down, up = torch.randn(4, sizes[0]), torch.randn(sizes[1], 4)
    tensors = {f"base_model.model.{module}.lora_A.weight": down, f"base_model.model.{module}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


def write_graph(path: Path, rows: int = 50) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE facts (subject, predicate, object)")
    connection.executemany("INSERT INTO facts VALUES (?, 'is', 'so')", [(f"s{i}",) for i in range(rows)])
    connection.commit()
    connection.close()
    return path


@dataclass(frozen=True)
class Things:
    """What there is to pack."""

    folder: Path
    checkpoint: Path
    adapter: Path
    graph: Path
    session: Path
    agent: Path
    private: Path
    public: Path

    @property
    def parts(self) -> PackOptions:
        return PackOptions(
            adapters=[f"code={self.adapter}"],
            knowledge=self.graph,
            sessions=[self.session],
            agent=self.agent,
            licence="mit",
        )


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    return make_things(tmp_path_factory.mktemp("things"))


def subword_tokenizer() -> Tokenizer:
    """A small tokenizer.json of the kind that published models have."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "th", "the", "<|endoftext|>"])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("t", "h"), ("th", "e")]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return FileTokenizer(inner, "subwords")


def make_things(folder: Path, width: int = 64, blocks: int = 2, subwords: bool = False) -> Things:
    """A checkpoint and its company in `folder`."""
    tokenizer = subword_tokenizer() if subwords else ByteTokenizer()
    metrics = {"bits_per_byte": 8.0, "loss": 5.5}
    sizes = {"width": width, "blocks": blocks}
    checkpoint = write_checkpoint(folder / "small", **sizes, tokenizer=tokenizer, step=10, tokens=640, metrics=metrics)
    model = Checkpoint.open(checkpoint).model().eval()
    writing = generate(LoadedModel("model", model, tokenizer), ["once upon a time"], 3)
    while True:
        try:
            next(writing)
        except StopIteration as end:
            end.value.save(folder / "chat.safetensors", model)
            break
    (folder / "agent.yaml").write_text(AGENT)
    private, public = write_keys(folder)
    return Things(
        folder,
        checkpoint,
        write_adapter(folder / "lora", sizes=(width, 320)),
        write_graph(folder / "graph.sqlite"),
        folder / "chat.safetensors",
        folder / "agent.yaml",
        private,
        public,
    )


def write_keys(folder: Path, name: str = "k") -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


@pytest.fixture(scope="session")
def packed(things: Things) -> Path:
    """A signed file with a member of every kind. Copy it before changing it."""
    from synthe_core.packing.sign import sign

    path = things.folder / "full.synapse"
    result(pack(things.checkpoint, path, things.parts))
    result(sign(path, things.private))
    return path


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(packed, tmp_path / "full.synapse"))
