"""The verb `unpack`: writes the members of a file into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from synthe_core.data.tokenizers import FILES
from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Progress, Result
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.contents import read_range
from synthe_core.packing.members import BASE, is_weights
from synthe_core.packing.verify import check_contents
from synthe_core.storage.atomic import new_folder
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.claim import claim
from synthe_core.storage.manifest import MANIFEST
from synthe_core.storage.run_folder import taken

MODEL = ("recipe.yaml", "config.json", *FILES)
ONLY: dict[str, Callable[[str], bool]] = {
    "model": lambda name: name in MODEL or is_weights(name),
    "adapters": lambda name: name.startswith("adapters/"),
    "knowledge": lambda name: name.startswith("knowledge/"),
}


def unpack(path: Path, out: Path | None = None, only: str | None = None) -> Iterator[Event]:
    """Writes a file's members into a folder atomically and yields events; the last is a Result.

    out:  by default the file's name without its suffix.
    only: one of ONLY. Without it, the folder has the layout of the file with manifest and signature, and can be used,
          verified and packed again; `model` gives an ordinary checkpoint.
    """
    if only is not None and only not in ONLY:
        raise unknown("part", only, ONLY)
    bundle = Bundle(path)
    out = Path(path.stem if path.suffix else f"{path.name}-unpacked") if out is None else out
    with claim(out, parents=True):
        if taken(out):
            raise InputError(f"{out} exists already", "name another folder with -o")
        yield from _unpack(bundle, out, only)


def _unpack(bundle: Bundle, out: Path, only: str | None) -> Iterator[Event]:
    """Writes the folder `out`, which is claimed."""
    files = (
        bundle.manifest.files if only == "model" and BASE in bundle.pack_manifest.files else bundle.pack_manifest.files
    )
    chosen = [name for name in files if only is None or ONLY[only](name)]
    if not chosen:
        raise InputError(f"{bundle.path} has no {only}", "`synthe pack inspect` shows its contents")
    for name in chosen:  # before a byte is written
        bundle.locate(name)
    check_contents(bundle)
    total, done = sum(files[name].bytes for name in chosen), 0
    with new_folder(out, claimed=True) as folder:
        extra = [name for name in bundle.container if name not in bundle.pack_manifest.files] if only is None else []
        for name in [*chosen, *extra]:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for piece in read_range(*(bundle.container.locate(name) if name in extra else bundle.locate(name))):
                    file.write(piece)
                    done += len(piece)
                    yield Progress("unpack", done, total, "bytes")
        if only == "model":
            about = bundle.manifest.with_files(folder)
            (folder / MANIFEST).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if only == "model":
        Checkpoint.open(out)
    yield Result({"members": len(chosen), "bytes": total}, out)
