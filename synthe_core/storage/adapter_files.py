"""An adapter as a checkpoint's folder: PEFT's files, and which model they change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from synthe_core.adapters import peft
from synthe_core.adapters.peft_config import read_config
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.storage.manifest import MANIFEST, Base, FileDigest, Manifest

OTHER = "say which it is: synthe generate MODEL --adapter ADAPTER"


def manifest_of(path: Path) -> Manifest:
    """The manifest of a folder of PEFT's that has none."""
    config = read_config(path / peft.CONFIG)
    files = [path / name for name in (peft.CONFIG, peft.WEIGHTS)]
    if not files[1].is_file():
        raise InputError(f"{path} has no {peft.WEIGHTS}", "pickle files (.bin) are not read")
    base = config.values.get("base_model_name_or_path")
    return Manifest(
        kind="adapter",
        base=Base(path=base) if isinstance(base, str) else None,
        files={file.name: FileDigest.of(file) for file in files},
    )


def locate_base(path: Path, manifest: Manifest) -> Path:
    """Where the model of the adapter at `path` is; InputError where it is not."""
    if manifest.base is None:
        raise InputError(f"{path} does not say which model it is an adapter of", OTHER)
    where = Path(os.path.normpath(path / manifest.base.path))
    if not where.exists():
        mend = f"bring it back, write its new place into {path / MANIFEST} (base.path), or "
        hint = mend + OTHER if (path / MANIFEST).is_file() else OTHER
        raise InputError(f"the model that {path} is an adapter of is not there: {where}", hint)
    return where


def write(folder: Path, tensors: Mapping[str, Tensor], spec: LoraSpec, start: Path, base: Path) -> str:
    """Writes PEFT's files of the factors `tensors` into `folder`; returns the path of `base` that they name.

    It is relative to `start`, so that both may be moved together; absolute if there is no relative one.
    """
    try:
        base_path = Path(os.path.relpath(base.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        base_path = str(base.resolve())
    peft.write(folder, tensors, spec, base_path)
    return base_path
