"""Names of models of the hub, and which texts are names rather than paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from synthe_core.errors import InputError

SYNTAX = "ORG/NAME[:QUANT|/FILE][@REVISION]"
PREFIX = "hub:"
_PART = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(
    rf"(?P<repo>{_PART}/{_PART})"
    r"(?::(?P<quant>[A-Za-z0-9][\w-]*)|/(?P<file>\w[\w .+/-]*\.(?:gguf|synapse)))?"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
OWN_FOLDERS = {"runs", "exports", "recipes"}
"""Folders of synthe itself: a name in one of them is a path, also where the folder does not exist."""

FILES = (".gguf", ".synapse", ".yaml", ".yml", ".json", ".safetensors")


class HubId(NamedTuple):
    """A model of the hub: of a repository at a revision the model folder, or one file.

    quant: the type in the name of a GGUF file, as Q4_K_M. file: a .gguf or .synapse file. revision: a branch, tag or
    commit; None is the branch main.
    """

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """The id of a text in the form of SYNTAX, with or without `hub:`; None for other texts."""
        match = _ID.fullmatch(text.removeprefix(PREFIX))
        if match is None or any(".." in part for part in match.groups() if part):
            return None
        return cls(**match.groupdict())

    @property
    def ref(self) -> str:
        return self.revision or "main"

    def __str__(self) -> str:
        part = f":{self.quant}" if self.quant else f"/{self.file}" if self.file else ""
        return f"{self.repo}{part}" + (f"@{self.revision}" if self.revision else "")


def hub_id(text: str) -> HubId | None:
    """The model of the hub that an argument names, None for a path.

    A path that exists always wins, and so does one whose first folder exists, or that ends like a file in a folder: a
    mistyped path is not looked for on the hub. With `hub:` in front the text is an id in any case; InputError if it is
    malformed.
    """
    if text.startswith(PREFIX):
        if (parsed := HubId.parse(text)) is None:
            raise InputError(f"'{text}' is no model of the hub", f"write {PREFIX}{SYNTAX}")
        return parsed
    first = text.partition("/")[0]
    if text.count("/") == 1 and text.endswith(FILES):
        return None
    if first in OWN_FOLDERS or Path(text).exists() or Path(first).exists():
        return None
    return HubId.parse(text)
