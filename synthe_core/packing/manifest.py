"""The manifest of a .synapse file: its contents, their scores, and the digest of every member."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import synthe_core
from synthe_core.errors import InputError
from synthe_core.packing.members import COUNT
from synthe_core.storage.json_reader import UNTRUSTED, canonical_json, parse_untrusted_json
from synthe_core.storage.manifest import FileDigest

FORMAT = "synapse"
FORMAT_VERSION = 2
VERSION = "2.0"
"""The major version is the format of the checkpoint in it."""


class Part(BaseModel):
    """Part of the manifest; a later minor version may add keys."""

    model_config = ConfigDict(extra="allow")


class Loss(Part):
    """The loss from quantisation, measured when the file was packed."""

    before: float = Field(..., description="bits per byte of the original weights")
    after: float = Field(..., description="bits per byte of the weights in this file")
    tokens: int = Field(..., description="held-out tokens, the same for both")
    text: str = Field(..., description="the source of those tokens")


class Quantization(Part):
    kind: Literal["int8", "int4"]
    group: int = Field(..., ge=1, description="numbers of a row that share a scale")
    matrices: int = Field(..., ge=0, description="how many tensors are quantised; the others are unchanged")
    bytes_before: int = Field(..., ge=0)
    bytes_after: int = Field(..., ge=0)
    loss: Loss | None = Field(None, description="null for an encoder, which has no bits per byte")


class Base(Part):
    """The base model of the file."""

    model: str
    carried: bool = Field(..., description="whether its weights are in this file; otherwise base.json references them")
    parameters: int = Field(0, ge=0)
    quantization: Quantization | None = None


class Memory(Part):
    """Estimates: bytes of the loaded weights, and of the state of one sequence by its number of tokens."""

    weights: int = Field(0, ge=0)
    state: dict[str, int] = {}


class Adapter(Part):
    name: str
    rank: int | None = Field(None, description="null if the matrices differ in rank")
    alpha: float | None = None
    modules: list[str] = Field([], description="the adapted modules")
    parameters: int = Field(0, ge=0)
    checked: bool = Field(True, description="whether its tensors were compared with the base's, which needs the base")


class Training(Part):
    steps: int = Field(0, ge=0)
    tokens: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0)
    pairs: int | None = Field(None, ge=0, description="preference pairs it was trained on")
    last: str | None = Field(None, description="when it was last trained")


class Score(Part):
    name: str
    value: float
    how: str


class Specialist(BaseModel):
    """A specialist of agent.yaml."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(..., min_length=1, max_length=100)
    capabilities: list[str] = []
    system_prompt: str | None = None
    priority: int = 0
    adapter: str | None = Field(None, description="an adapter in the file")
    base_model: str | None = None


class PackManifest(Part):
    """manifest.json of a .synapse file. `files` lists every other member but the signature, with its SHA-256."""

    format: Literal["synapse"] = "synapse"
    version: str = Field(VERSION, pattern=r"^2\.\d{1,4}$")
    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    description: str = ""
    created_by: str = f"synthe/{synthe_core.__version__}"
    base: Base
    memory: Memory = Memory()
    capabilities: list[str] = []
    adapters: list[Adapter] = []
    specialists: list[str] = []
    sessions: list[str] = []
    training: Training = Training()
    scores: list[Score] = []
    parents: list[str] = []
    licence: str | None = None
    checkpoint: dict[str, Any] = Field({}, description="the manifest of the checkpoint without its files")
    files: dict[str, FileDigest]

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


class TitanManifest(Part):
    """manifest.json of titan-synapse 0.2, whose bundles are folders without digests."""

    format: Literal["synapse"]
    version: str
    name: str
    base_model: str
    base_quantization: str = ""
    vram_estimate_mb: int = 0
    capabilities: list[str] = []
    adapter_count: int = 0
    training_pairs_collected: int = 0
    last_trained: str | None = None
    performance_score: float = 0.0
    created_by: str = ""


def read_manifest(content: bytes, name: str) -> PackManifest | TitanManifest:
    """The manifest in `content`. InputError if it is damaged or of a newer format."""
    values = parse_untrusted_json(content, name)
    version = values.get("version")
    if values.get("format") != FORMAT or not isinstance(version, str):
        raise InputError(f"{name} is not the manifest of a .synapse file", "its format must be 'synapse'")
    major = version.partition(".")[0]
    if major.isdigit() and len(major) < 5 and int(major) not in (0, FORMAT_VERSION):
        newer = "a newer synthe wrote it: upgrade with pip install -U synthe"
        older = "pack its model again, or use the version of synthe that wrote it"
        raise InputError(
            f"{name} has .synapse version {version[:20]}, and this synthe reads {FORMAT_VERSION}",
            newer if int(major) > FORMAT_VERSION else older,
        )
    if isinstance(files := values.get("files"), dict) and len(files) > COUNT:
        raise InputError(f"{name} lists {len(files):,} members, and may list {COUNT:,}", UNTRUSTED)
    kind: type[PackManifest | TitanManifest] = TitanManifest if major == "0" else PackManifest
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))[:80]
        raise InputError(f"{name}: {key}: {fault['msg'][:120]}", "`synthe pack schema` prints its schema") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deep", "this file is not to be trusted") from None
