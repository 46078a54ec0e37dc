"""How a name in a recipe becomes a source of text."""

from __future__ import annotations

from pathlib import Path

from synthe_core.data.documents import Source
from synthe_core.data.files import Files
from synthe_core.data.hub import Hub
from synthe_core.data.listops import ListOps
from synthe_core.data.remote_files import RemoteFiles, is_remote
from synthe_core.data.stdlib import StandardLibrary
from synthe_core.errors import InputError, closest

BUILT_IN = ["stdlib", "listops"]


def open_source(text: str, field: str, labels: str | None = None) -> Source:
    """The source that `text` names in a recipe; `field` holds the text of the rows of tables and the hub.

    Documents have labels by their path where it gives any; `labels` = "field:NAME" takes them from that field of rows.

    Raises InputError where there is no such source, with the nearest name that exists.
    """
    label_field = labels.removeprefix("field:") if labels is not None and labels.startswith("field:") else None
    if text == "stdlib":
        return StandardLibrary()
    if text.startswith("hub:"):
        return Hub(text, field, label_field)
    if (generated := ListOps.open(text)) is not None:
        return generated
    if is_remote(text):
        if labels == "path":
            raise InputError(f"{text}: labels by path are read of local folders only", "set data.labels to field:NAME")
        return RemoteFiles.open(text, field, label_field)
    if (files := Files.open(text, field, label_field)) is not None:
        return files
    raise missing(text)


def missing(text: str) -> InputError:
    """The error for a source that is not there, with the nearest name that is."""
    path = Path(text).expanduser()
    if path.exists():
        return InputError(f"'{text}' is no regular file", "a source is a file, a folder or a glob; save a stream first")
    here = path.parent if path.parent.is_dir() else Path()
    names = [entry.name for entry in here.iterdir()] if here.is_dir() else []
    near = closest(text, BUILT_IN) or closest(path.name, names)
    if near in BUILT_IN:
        hint = f"did you mean '{near}'?"
    elif near is not None and path.parent.is_dir():
        hint = f"did you mean '{path.parent / near}'?"
    else:
        hint = "a source is 'stdlib', 'listops', a file, folder, glob or URL, or hub:NAME[@revision][:config][:split]"
    what = "no file matches" if any(c in text for c in "*?[") else "no such file or source"
    return InputError(f"{what}: '{text}'", hint)
