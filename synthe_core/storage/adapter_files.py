"""An adapter as a checkpoint's folder: PEFT's files, and which model they change."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from synthe_core.adapters import peft
from synthe_core.adapters.peft_config import read_config
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.storage.hub.model_id import PREFIX, HubId
from synthe_core.storage.hub.snapshot import origin_of
from synthe_core.storage.manifest import MANIFEST, Base, FileDigest, Manifest
from synthe_core.storage.tensor_file import TensorFile

OTHER = "say which it is: synthe generate MODEL --adapter ADAPTER"


def manifest_of(path: Path) -> Manifest:
    """The manifest of a folder of PEFT's that has none."""
    config = read_config(path / peft.CONFIG)
    files = [path / name for name in (peft.CONFIG, peft.WEIGHTS)]
    if not files[1].is_file():
        raise InputError(f"{path} has no {peft.WEIGHTS}", "pickle files (.bin) are not read")
    base, revision = (config.values.get(key) for key in ("base_model_name_or_path", "revision"))
    if isinstance(base, str) and isinstance(revision, str) and HubId.parse(base):
        base = f"{base}@{revision}"
    return Manifest(
        kind="adapter",
        base=Base(path=base if isinstance(base, str) else "", sha256=recorded_base(TensorFile(files[1]))),
        files={file.name: FileDigest.of(file) for file in files},
    )


def locate_base(path: Path, manifest: Manifest) -> Path:
    """Where the model of the adapter at `path` is; InputError where it is not."""
    if manifest.base is None or not manifest.base.path:
        raise InputError(f"{path} does not say which model it is an adapter of", OTHER)
    where = Path(os.path.normpath(path / manifest.base.path))
    if not where.exists():
        if HubId.parse(manifest.base.path) is not None:
            return Path(f"{PREFIX}{manifest.base.path}")
        mend = f"bring it back, write its new place into {path / MANIFEST} (base.path), or "
        hint = mend + OTHER if (path / MANIFEST).is_file() else OTHER
        raise InputError(f"the model that {path} is an adapter of is not there: {where}", hint)
    return where


def recorded_base(file: TensorFile) -> str | None:
    """The digest of the weights that an adapter was trained on, as the metadata of its factors records it."""
    return file.metadata.get(peft.BASE_DIGEST)


def check_base(name: object, recorded: str | None, digests: Collection[str], base: object) -> None:
    """InputError if the adapter `name` records that it was trained on other weights than those of `base`, which have
    one of the digests. A warning if it records none."""
    if recorded is None:
        warnings.warn(f"{name} does not record which weights it was trained on; it fits {base} in shape", stacklevel=2)
    elif recorded not in digests:
        raise InputError(f"{base} is not the model that {name} is an adapter of: its weights are others", OTHER)


def write(
    folder: Path, tensors: Mapping[str, Tensor], spec: LoraSpec, start: Path, base: Path, base_digest: str
) -> str:
    """Writes PEFT's files of the factors `tensors` into `folder`; returns the path of `base` that they name.

    It is relative to `start`, so that both may be moved together; absolute if there is no relative one; the id of a
    model of the hub.
    """
    if origin := origin_of(base):
        peft.write(folder, tensors, spec, origin.repo, base_digest, origin.commit)
        return str(origin)
    try:
        base_path = Path(os.path.relpath(base.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        base_path = str(base.resolve())
    peft.write(folder, tensors, spec, base_path, base_digest)
    return base_path
