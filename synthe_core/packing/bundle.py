"""A .synapse file as a checkpoint source: checked before use, its weights memory-mapped."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.packing.archive import Archive, Tree
from synthe_core.packing.base import BaseReference, candidate_bases
from synthe_core.packing.manifest import PackManifest, TitanManifest, read_manifest
from synthe_core.packing.members import (
    BASE,
    MANIFEST,
    SIGNATURE,
    SPECIALIST,
    is_weights,
    member_index,
    quoted,
    size_limit,
)
from synthe_core.storage.checkpoint.sources import FORMATS, CheckpointSource, FolderSource
from synthe_core.storage.hub.model_id import PREFIX
from synthe_core.storage.json_reader import UNTRUSTED
from synthe_core.storage.manifest import Manifest, check_format
from synthe_core.storage.path_format import is_synapse
from synthe_core.storage.tensor_file import TensorFile
from synthe_core.storage.yaml_reader import decode_untrusted_yaml

LINKS = ("model.gguf",)  # bundles of titan-synapse have a link to their model


class Bundle(CheckpointSource):
    """A .synapse file, or the folder that one was unpacked into.

    Opening compares the directory with the manifest. Every other member is checked by its SHA-256 when it is first
    used; `verify` checks them all. InputError for a file that is damaged, hostile or incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = Tree(path, LINKS) if path.is_dir() else Archive(path)
        if MANIFEST not in self.container:
            raise InputError(f"{path} has no {MANIFEST}", "it is not a .synapse file")
        if self.container.size(MANIFEST) > size_limit(MANIFEST):
            raise InputError(f"{path / MANIFEST} has {self.container.size(MANIFEST)} bytes", UNTRUSTED)
        self.manifest_bytes = b"".join(self.container.pieces(MANIFEST))
        manifest = read_manifest(self.manifest_bytes, str(path / MANIFEST))
        if isinstance(manifest, TitanManifest):
            raise InputError(
                f"{path} is a bundle of titan-synapse {manifest.version[:20]}, whose model cannot be run",
                "`synthe pack inspect` shows what is in it; `synthe pack FOLDER -o FILE` converts it",
            )
        self.pack_manifest: PackManifest = manifest
        self._check_members()
        self._verified: set[str] = set()

    def _check_members(self) -> None:
        listed = self.pack_manifest.files
        for name in self.container:
            member_index(name)
            if name not in listed and name not in (MANIFEST, SIGNATURE):
                raise InputError(f"{self.path} has a member {quoted(name)} that its manifest does not list", UNTRUSTED)
        for name, facts in listed.items():
            if name in (MANIFEST, SIGNATURE) or name not in self.container:
                raise InputError(f"{self.path} has no member {quoted(name)}, which its manifest lists", UNTRUSTED)
            if (size := self.container.size(name)) != facts.bytes:
                raise self.damaged(name, f"it has {size} bytes and should have {facts.bytes}")

    @cached_property
    def manifest(self) -> Manifest:  # type: ignore[override]
        """The checkpoint's manifest. Its files include the base's weights."""
        check_format(self.pack_manifest.checkpoint, str(self.path))
        files = dict(self.pack_manifest.files)
        if self.base is not None:
            files |= {name: facts for name, facts in self.base.manifest.files.items() if is_weights(name)}
        try:
            return Manifest.model_validate({**self.pack_manifest.checkpoint, "files": files})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            key = ".".join(map(str, fault["loc"]))[:80]
            raise InputError(f"{self.path / MANIFEST}: checkpoint.{key}: {fault['msg'][:120]}", UNTRUSTED) from None

    @cached_property
    def base(self) -> CheckpointSource | None:
        """The source of the weights, if they are not in this file. InputError if it cannot be found."""
        if BASE not in self.pack_manifest.files:
            return None
        if "recipe.yaml" not in self.pack_manifest.files:
            raise InputError(
                f"{self.path} contains no model that can be run, only what belongs to {self.pack_manifest.base.model}",
                "`synthe swarm install TEAM FILE` adds its specialist to a swarm on that model"
                if SPECIALIST in self.pack_manifest.files
                else "`synthe unpack FILE --only adapters` takes it out for a program that runs that model",
            )
        return find_base(self.reference, self.path)

    @property
    def reference(self) -> BaseReference:
        """The reference in base.json to weights that are not in this file."""
        return BaseReference.read(self.read(BASE), str(self.path / BASE))

    def locate(self, name: str) -> tuple[Path, int, int]:
        if name not in self.pack_manifest.files and is_weights(name) and self.base is not None:
            return self.base.locate(name)
        self.check(name)
        if name.endswith(".yaml"):  # before it is parsed
            decode_untrusted_yaml(b"".join(self.container.pieces(name)), str(self.path / name))
        return self.container.locate(name)

    def open(self, name: str) -> TensorFile:
        """A safetensors member with its metadata."""
        return TensorFile(*self.locate(name), str(self.path / name))

    def check(self, name: str) -> None:
        """InputError if a member is not what was packed."""
        if name not in self.pack_manifest.files:
            raise InputError(f"{self.path} has no {quoted(name)}", "`synthe pack inspect` shows what it has")
        if name not in self._verified:
            digest = hashlib.sha256()
            for piece in self.container.pieces(name):
                digest.update(piece)
            if digest.hexdigest() != self.pack_manifest.files[name].sha256:
                raise self.damaged(name, "it is not what was packed")
            self._verified.add(name)


def find_base(reference: BaseReference, file: Path) -> CheckpointSource:
    """The source of the weights, identified by digest: beside the file, under runs/, or on the hub."""
    for candidate in candidate_bases(file):
        try:
            source: CheckpointSource = (
                Bundle(candidate) if candidate.is_file() or is_synapse(candidate) else FolderSource(candidate)
            )
        except InputError:  # a damaged neighbour is not the base
            continue
        if _has_weights(source, reference):
            return source
    if reference.hub is not None:
        at = f"@{reference.revision}" if reference.revision else ""
        source = FORMATS["hub"](Path(f"{PREFIX}{reference.hub}{at}"))
        if _has_weights(source, reference):
            return source
        raise InputError(
            f"{reference.hub} holds other weights than those {file} was packed for", "name the right revision"
        )
    raise InputError(
        f"{file} does not contain its base model {reference.name}, and its weights were not found",
        f"put {reference.name} beside it, as a checkpoint folder or a .synapse file",
    )


def _has_weights(source: CheckpointSource, reference: BaseReference) -> bool:
    """Whether a source itself contains exactly the referenced weights."""
    files = source.pack_manifest.files if isinstance(source, Bundle) else source.manifest.files
    return {name: facts.sha256 for name, facts in files.items() if is_weights(name)} == reference.files
