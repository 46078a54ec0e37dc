"""The folder of an adapter as a packed model takes it: on the maps of the model in the file."""

from __future__ import annotations

from pathlib import Path

from synthe_core.adapters import peft
from synthe_core.adapters.spec import LoraSpec
from synthe_core.storage.checkpoint import Checkpoint


def fitted_folder(checkpoint: Checkpoint, digest: str, folder: Path, scratch: Path) -> Path:
    """`folder`; or one in `scratch` with the same change on our maps, where the checkpoint is made of a published model
    and the adapter names the maps of that. digest: of the weights in the file."""
    files = [folder / name for name in (peft.CONFIG, peft.WEIGHTS)]
    if not all(file.is_file() for file in files):
        return folder
    adapter = peft.read(*files)
    fitted = checkpoint.fitted(adapter, folder)
    if fitted is adapter:
        return folder
    rank = max(change.r for change in fitted.maps.values())
    new = scratch / "adapters" / folder.name
    new.mkdir(parents=True)
    spec = LoraSpec(rank=rank, alpha=float(rank), dropout=fitted.dropout)  # s = 1: factors are scaled already
    peft.write(new, fitted.tensors, spec, str(checkpoint.path), digest)
    return new
