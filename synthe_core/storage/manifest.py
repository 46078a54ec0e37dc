"""The manifest of a checkpoint: what it is, where it came from, and what its files must be."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

import synthe_core
from synthe_core.errors import InputError
from synthe_core.hardware.probe import Hardware
from synthe_core.ops.dispatch import OPS

FORMAT = 1
NAME = "manifest.json"


class FileFacts(BaseModel):
    """Size and SHA-256 of a file of the checkpoint."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        with path.open("rb") as file:
            return cls(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class Base(BaseModel):
    """The model that an adapter changes: where it is, seen from the adapter's folder, and `Checkpoint.digest` of it."""

    path: str
    sha256: str | None = None


class Manifest(BaseModel):
    """`step`, `tokens` and `seconds` say how far training was; `parents` are the checkpoints it was made from.

    Written last, after the files it names. `kernels` are the implementations of each operator that have run;
    `metrics` the validation figures of exactly these weights, where they were measured. `without` are the parts of the
    model that have taken no part yet, in an early stage of training: they take none when it is used either. `kind` is
    "model" or "adapter"; an adapter has a `base`.
    """

    model_config = ConfigDict(extra="allow")  # a later minor version may say more

    format: int = FORMAT
    kind: str = "model"
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    parameters: int = 0
    metrics: dict[str, float] = {}
    parents: list[str] = []
    base: Base | None = None
    without: list[str] = []
    kernels: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    files: dict[str, FileFacts] = {}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a checkpoint folder; InputError where it is damaged or of a newer format."""
        path = folder / NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", "the checkpoint is damaged: use another") from None
        try:
            facts = json.loads(text)
            found = facts.get("format", FORMAT) if isinstance(facts, dict) else FORMAT
            if isinstance(found, int) and found > FORMAT:
                raise InputError(
                    f"{folder} has checkpoint format {found}, and this synthe reads up to {FORMAT}",
                    "a newer synthe wrote it: upgrade with pip install -U synthe",
                )
            return cls.model_validate(facts)
        except ValueError:
            raise InputError(f"{path} is damaged: it is no manifest", "use another checkpoint of the run") from None

    def with_files(self, folder: Path, known: Mapping[str, FileFacts] | None = None) -> Manifest:
        """The same with the facts of every file that is in `folder` now; `known` are those that need no reading."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
        names = [path.relative_to(folder).as_posix() for path in paths]
        files = {name: (known or {}).get(name) or FileFacts.of(folder / name) for name in names}
        return self.model_copy(update={"files": files})


def kernels_used() -> dict[str, list[str]]:
    """Every operator that has run in this process and the implementations that did."""
    return {name: sorted(op.used) for name, op in sorted(OPS.items()) if op.used}


def versions() -> dict[str, str]:
    """Of synthe and what numbers depend on."""
    found = {"synthe": synthe_core.__version__, "python": platform.python_version()}
    for name in ("torch", "safetensors", "numpy", "triton", "fla-core"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(hardware: Hardware) -> dict[str, Any]:
    """What of the hardware is worth writing down."""
    facts: dict[str, Any] = {"processor": hardware.processor, "cores": hardware.cores, "memory": hardware.memory}
    if hardware.gpu is not None:
        facts["gpu"] = hardware.gpu.name
    return facts
