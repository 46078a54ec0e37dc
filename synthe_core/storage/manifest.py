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
from synthe_core.storage import path_format

FORMAT = 2
MANIFEST, MAX_BYTES = path_format.MANIFEST, path_format.MAX_BYTES


class FileDigest(BaseModel):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        with path.open("rb") as file:
            return cls(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


class Base(BaseModel):
    """The base of an adapter: its path, relative to the adapter's folder, and its `Checkpoint.digest`."""

    path: str
    sha256: str | None = None


class Manifest(BaseModel):
    """What a checkpoint is. It is written last, after the files that it lists.

    kind: "model" or "adapter"; an adapter has a `base`.
    context: the longest text that it is made for, if it was trained or merged from a published model.
    step, tokens, seconds: how far training was. parents: the checkpoints that it was made from.
    metrics: validation metrics of exactly these weights, if they were measured.
    without: parts of the model that training has not used yet; inference does not use them either.
    kernels: the implementations of each operator that have run.
    """

    model_config = ConfigDict(extra="allow")  # a later minor version may add keys

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
    context: int | None = None
    without: list[str] = []
    kernels: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    files: dict[str, FileDigest] = {}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a checkpoint folder. InputError if it is damaged or of another format."""
        path = folder / MANIFEST
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise InputError(f"{path} has {size:,} bytes, and may have {MAX_BYTES:,}", "use another checkpoint")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", "the checkpoint is damaged: use another") from None
        try:
            values = json.loads(text)
            if isinstance(values, dict):
                check_format(values, str(folder))
            return cls.model_validate(values)
        except (ValueError, RecursionError):
            raise InputError(f"{path} is damaged: it is no manifest", "use another checkpoint of the run") from None

    @property
    def published(self) -> dict[str, Any]:
        """Where an imported model came from (see `Checkpoint.published`)."""
        source = getattr(self, "source", None)
        return source if isinstance(source, dict) else {}

    def with_files(self, folder: Path, known: Mapping[str, FileDigest] | None = None) -> Manifest:
        """The manifest with the digests of all files in `folder`; those in `known` are not computed again."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        names = [path.relative_to(folder).as_posix() for path in paths]
        files = {name: (known or {}).get(name) or FileDigest.of(folder / name) for name in names}
        return self.model_copy(update={"files": files})


def check_format(values: dict[str, Any], name: str) -> None:
    """InputError if a manifest's values are of a checkpoint format that this version does not read."""
    version = values.get("format", FORMAT)
    if not isinstance(version, int) or version == FORMAT:
        return
    hint = "train it again, or use the version of synthe that wrote it"
    if version > FORMAT:
        hint = "a newer synthe wrote it: upgrade with pip install -U synthe"
    raise InputError(f"{name} has checkpoint format {version}, and this synthe reads format {FORMAT}", hint)


def kernels_used() -> dict[str, list[str]]:
    """The operators that have run in this process, and the implementations of each."""
    return {name: sorted(op.used) for name, op in sorted(OPS.items()) if op.used}


def package_versions() -> dict[str, str]:
    """The versions of synthe and of the packages that results depend on."""
    versions = {"synthe": synthe_core.__version__, "python": platform.python_version()}
    for name in ("torch", "safetensors", "numpy", "triton", "fla-core"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def describe_hardware(hardware: Hardware) -> dict[str, Any]:
    """The hardware as a manifest records it."""
    facts: dict[str, Any] = {"processor": hardware.processor, "cores": hardware.cores, "memory": hardware.memory}
    if hardware.gpu is not None:
        facts["gpu"] = hardware.gpu.name
    return facts
