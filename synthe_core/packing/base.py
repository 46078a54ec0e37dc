"""The base of a file without weights: their digests, and where to look for them."""

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
MAX_CANDIDATES = 1000


class BaseReference(BaseModel):
    """base.json. files: the digests of the weights. hub, revision: where they were published."""

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
    """`ORG/NAME[@REVISION]`: the repository with the weights."""
    if text is None:
        return None, None
    hub, _, revision = text.partition("@")
    if not re.fullmatch(HUB, hub) or (revision and not re.fullmatch(REVISION, revision)):
        raise InputError(f"'{text}' is not a model of the hub", "write ORG/NAME@REVISION")
    return hub, revision or None


def candidate_bases(file: Path) -> Iterator[Path]:
    """Paths beside a file and under runs/ that may be a checkpoint, at most MAX_CANDIDATES."""
    count = 0
    for root in (file.absolute().parent, Path("runs").absolute()):
        for path in sorted(root.glob("*")):
            paths = [path] if path.suffix == ".synapse" or (path / MANIFEST).is_file() else checkpoints(path)
            for candidate in paths:
                count += 1
                if count > MAX_CANDIDATES:
                    return
                yield candidate
