"""A .synapse file as a source of checkpoints: opened where it lies, checked before use, its weights mapped in place."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.packing.archive import Archive, Tree
from synthe_core.packing.base import BaseReference, nearby
from synthe_core.packing.download import fetch_base
from synthe_core.packing.manifest import PackManifest, TitanManifest, read_manifest
from synthe_core.packing.members import BASE, MANIFEST, SIGNATURE, limit, place, shown, weights
from synthe_core.storage.checkpoint.locate import is_synapse
from synthe_core.storage.checkpoint.sources import CheckpointSource, FolderSource
from synthe_core.storage.json_reader import UNTRUSTED
from synthe_core.storage.manifest import Manifest, check_format
from synthe_core.storage.tensor_file import TensorFile
from synthe_core.storage.yaml_reader import decode_untrusted_yaml

LINKS = ("model.gguf",)  # titan-synapse links to the model that it packs


class Bundle(CheckpointSource):
    """What a .synapse file (or such a file unpacked) carries.

    Opening it reads the directory and the manifest and holds one against the other. Every other member is checked by
    its SHA-256 when it is first used; `verify` checks them all. InputError for what is damaged, hostile, or not here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = Tree(path, LINKS) if path.is_dir() else Archive(path)
        if MANIFEST not in self.container:
            raise InputError(f"{path} has no {MANIFEST}", "it is no .synapse file")
        if self.container.size(MANIFEST) > limit(MANIFEST):
            raise InputError(f"{path / MANIFEST} has {self.container.size(MANIFEST)} bytes", UNTRUSTED)
        self.manifest_bytes = b"".join(self.container.pieces(MANIFEST))
        found = read_manifest(self.manifest_bytes, str(path / MANIFEST))
        if isinstance(found, TitanManifest):
            raise InputError(
                f"{path} is a bundle of titan-synapse {found.version[:20]}, whose model no verb here runs",
                "`synthe pack inspect` shows what is in it; `synthe pack FOLDER -o FILE` carries it over",
            )
        self.about: PackManifest = found
        self._check_members()
        self._checked: set[str] = set()

    def _check_members(self) -> None:
        listed = self.about.files
        for name in self.container:
            place(name)
            if name not in listed and name not in (MANIFEST, SIGNATURE):
                raise InputError(f"{self.path} has a member {shown(name)} that its manifest does not list", UNTRUSTED)
        for name, facts in listed.items():
            if name in (MANIFEST, SIGNATURE) or name not in self.container:
                raise InputError(f"{self.path} has no member {shown(name)}, which its manifest lists", UNTRUSTED)
            if (size := self.container.size(name)) != facts.bytes:
                raise self.damaged(name, f"it has {size} bytes and should have {facts.bytes}")

    @cached_property
    def manifest(self) -> Manifest:  # type: ignore[override]
        """The checkpoint's manifest. Its files include the base's weights."""
        check_format(self.about.checkpoint, str(self.path))
        files = dict(self.about.files)
        if self.base is not None:
            files |= {name: facts for name, facts in self.base.manifest.files.items() if weights(name)}
        try:
            return Manifest.model_validate({**self.about.checkpoint, "files": files})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))[:80]
            raise InputError(f"{self.path / MANIFEST}: checkpoint.{where}: {fault['msg'][:120]}", UNTRUSTED) from None

    @cached_property
    def base(self) -> CheckpointSource | None:
        """Where the weights are, if not in this file; InputError where that cannot be found."""
        if BASE not in self.about.files:
            return None
        if "recipe.yaml" not in self.about.files:
            raise InputError(
                f"{self.path} carries no model that a verb here runs, only what belongs to {self.about.base.model}",
                "`synthe unpack FILE --only adapters` takes it out for a program that runs that model",
            )
        return find_base(self.reference, self.path)

    @property
    def reference(self) -> BaseReference:
        """What base.json says of the weights that are not in this file."""
        return BaseReference.read(self.read(BASE), str(self.path / BASE))

    def locate(self, name: str) -> tuple[Path, int, int]:
        if name not in self.about.files and weights(name) and self.base is not None:
            return self.base.locate(name)
        self.check(name)
        if name.endswith(".yaml"):  # before anybody composes it
            decode_untrusted_yaml(b"".join(self.container.pieces(name)), str(self.path / name))
        return self.container.locate(name)

    def open(self, name: str) -> TensorFile:
        """A safetensors member as it is, with what it says of itself."""
        return TensorFile(*self.locate(name), str(self.path / name))

    def check(self, name: str) -> None:
        """InputError where a member is not what was packed."""
        if name not in self.about.files:
            raise InputError(f"{self.path} has no {shown(name)}", "`synthe pack inspect` shows what it has")
        if name not in self._checked:
            digest = hashlib.sha256()
            for piece in self.container.pieces(name):
                digest.update(piece)
            if digest.hexdigest() != self.about.files[name].sha256:
                raise self.damaged(name, "it is not what was packed")
            self._checked.add(name)


def find_base(reference: BaseReference, asking: Path) -> CheckpointSource:
    """The source that holds the weights: beside the file that asks, under runs/, or on the hub. Known by digest."""
    for near in nearby(asking):
        try:
            source: CheckpointSource = Bundle(near) if near.is_file() or is_synapse(near) else FolderSource(near)
        except InputError:  # a damaged neighbour is not the base
            continue
        if _holds(source, reference):
            return source
    if reference.hub is not None:
        source = Bundle(fetch_base(reference.hub, reference.revision))
        if _holds(source, reference):
            return source
        raise InputError(
            f"{reference.hub} holds other weights than those {asking} was packed for", "name the right revision"
        )
    raise InputError(
        f"{asking} does not carry its base model {reference.name}, and its weights are not here",
        f"put {reference.name} beside it, as a checkpoint folder or a .synapse file",
    )


def _holds(source: CheckpointSource, reference: BaseReference) -> bool:
    """Whether a source carries exactly the weights that are looked for. It is not asked for a base of its own."""
    files = source.about.files if isinstance(source, Bundle) else source.manifest.files
    return {name: facts.sha256 for name, facts in files.items() if weights(name)} == reference.files
