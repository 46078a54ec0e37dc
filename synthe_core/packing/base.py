"""The base of a file that carries none: which weights it needs, by their digests, and where they may be found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synthe_core.errors import InputError
from synthe_core.storage.checkpoint.locate import checkpoints
from synthe_core.storage.json_reader import UNTRUSTED, parse_untrusted_json
from synthe_core.storage.manifest import MANIFEST

HUB = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
REVISION = r"[\w./-]{1,200}"
SEEN = 1000  # places that are looked at


class BaseReference(BaseModel):
    """base.json. `files` are the digests of the weights; `hub` and `revision` name where they were published."""

    model_config = ConfigDict(extra="forbid")

    name: str
    files: dict[str, str] = Field(..., description="name -> SHA-256")
    hub: str | None = Field(None, pattern=f"^{HUB}$")
    revision: str | None = Field(None, pattern=f"^{REVISION}$")

    @classmethod
    def read(cls, content: bytes, name: str) -> BaseReference:
        try:
            return cls.model_validate(parse_untrusted_json(content, name))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise InputError(
                f"{name}: {'.'.join(map(str, fault['loc']))[:80]}: {fault['msg'][:120]}", UNTRUSTED
            ) from None


def parse_published(text: str | None) -> tuple[str | None, str | None]:
    """`ORG/NAME[@REVISION]`: where weights were published."""
    if text is None:
        return None, None
    hub, _, revision = text.partition("@")
    if not re.fullmatch(HUB, hub) or (revision and not re.fullmatch(REVISION, revision)):
        raise InputError(f"'{text}' names no model of the hub", "write ORG/NAME@REVISION")
    return hub, revision or None


def nearby(asking: Path) -> Iterator[Path]:
    """Files and folders near by that may be a checkpoint, a bounded number of them."""
    seen = 0
    for root in (asking.absolute().parent, Path("runs").absolute()):
        for path in sorted(root.glob("*")):
            found = [path] if path.suffix == ".synapse" or (path / MANIFEST).is_file() else checkpoints(path)
            for place in found:
                seen += 1
                if seen > SEEN:
                    return
                yield place
