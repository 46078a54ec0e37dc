"""The verb `pack inspect`: the contents of a file, without unpacking it or reading its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthe_core.events import Event, Result
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.knowledge import check_database, tables
from synthe_core.packing.members import KNOWLEDGE
from synthe_core.packing.sign import fingerprint, signer
from synthe_core.packing.titan import TitanFolder, is_titan


def inspect(path: Path) -> Iterator[Event]:
    """A Result with the manifest, the signer and the tables of its knowledge. `verify` checks digests; this does
    not.
    """
    if is_titan(path):
        yield Result(_titan(TitanFolder(path)))
        return
    bundle = Bundle(path)
    public = signer(bundle)
    values: dict[str, Any] = bundle.pack_manifest.model_dump(mode="json")
    values["signed_by"] = None if public is None else fingerprint(public)
    values["knowledge"] = tables(bundle) if KNOWLEDGE in bundle.pack_manifest.files else None
    yield Result(values)


def _titan(folder: TitanFolder) -> dict[str, Any]:
    values: dict[str, Any] = folder.pack_manifest.model_dump(mode="json")
    values["models"] = {name: folder.tree.size(name) for name in folder.models}
    values["adapters"] = {name: len(folder.adapter(name)) for name in folder.adapters}
    values["knowledge"] = check_database(folder.path / KNOWLEDGE) if KNOWLEDGE in folder.tree else None
    return values
