"""The specialist of a swarm in a .synapse file: specialist.json, its documents, and facts.

specialist.json        who it is, on which base, and what else is in the file
documents/1, 2 ...     the texts that follow its system prompt, in their order
adapters/NAME/         its adapter, sessions/NAME.safetensors its remembered state
knowledge/facts.jsonl  facts of everybody, one JSON object a line
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from synthe_core.errors import InputError
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.members import FACTS, SPECIALIST
from synthe_core.storage.json_reader import UNTRUSTED, parse_untrusted_json

MAX_FACTS = 100_000
DIGEST = r"^[0-9a-f]{64}$"
FILE_NAME = r"^[^\x00-\x1f\x7f/\\.:][^\x00-\x1f\x7f/\\:]{0,99}$"
"""Of a document: no path, and no hidden file."""
Digest = Annotated[str, Field(pattern=DIGEST)]
Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BaseIdentity(_Strict):
    """The base that a specialist was made on. digests: those by which it may be known, its own first."""

    name: str = Field(..., max_length=300)
    digests: list[Digest] = Field(..., min_length=1, max_length=8)


class SpecialistManifest(_Strict):
    """specialist.json.

    documents: names of the files, in the order of the members documents/1, 2 ... adapter: its digest, null for none.
    remembered_tokens: what its remembered state has read, null for none. facts: how many there are.
    """

    format: Literal["specialist"] = "specialist"
    version: Literal[1] = 1
    name: str = Field(..., pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    description: str = Field("", max_length=1000)
    capabilities: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field([], max_length=64)
    prompt: str = Field("", max_length=20_000)
    priority: float = Field(0.0, ge=-1, le=1)
    remember: bool | None = None
    documents: list[Annotated[str, Field(pattern=FILE_NAME)]] = Field([], max_length=32)
    base: BaseIdentity
    adapter: Digest | None = None
    remembered_tokens: int | None = Field(None, ge=1, le=1 << 24)
    facts: int = Field(0, ge=0, le=MAX_FACTS)

    @field_validator("priority", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return float(value) if type(value) is int else value


class SharedFact(_Strict):
    """A line of facts.jsonl. valid_from: seconds since 1970."""

    subject: str = Field(..., min_length=1, max_length=1000)
    predicate: str = Field(..., min_length=1, max_length=1000)
    object: str = Field(..., min_length=1, max_length=1000)
    negated: bool = False
    functional: bool = False
    confidence: float = Field(1.0, ge=0, le=1)
    valid_from: float = Field(0.0, ge=0)

    @field_validator("confidence", "valid_from", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        value = float(value) if type(value) is int else value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("no number")
        return value


def read_specialist(bundle: Bundle) -> SpecialistManifest:
    """The specialist of a file. InputError if it has none, or is not what its manifest says."""
    names = bundle.pack_manifest.files
    if SPECIALIST not in names:
        raise InputError(f"{bundle.path} has no specialist", "`synthe swarm export` makes a file of one")
    place = str(bundle.path / SPECIALIST)
    about = _valid(SpecialistManifest, parse_untrusted_json(bundle.read(SPECIALIST), place), place)
    documents = {f"documents/{number}" for number in range(1, len(about.documents) + 1)}
    adapter = {f"adapters/{about.name}/{part}" for part in ("adapter_config.json", "adapter_model.safetensors")}
    expected = documents | (adapter if about.adapter else set())
    expected |= {f"sessions/{about.name}.safetensors"} if about.remembered_tokens else set()
    expected |= {FACTS} if about.facts else set()
    kinds = ("documents/", "adapters/", "sessions/", "knowledge/")
    actual = {name for name in names if name.startswith(kinds)}
    if actual != expected:
        odd = sorted(actual ^ expected)[0]
        raise InputError(f"{place} and the file's members differ in {odd}", UNTRUSTED)
    return about


def read_facts(bundle: Bundle) -> list[SharedFact]:
    """The facts of a file. InputError with the line of the first that is none."""
    if FACTS not in bundle.pack_manifest.files:
        return []
    lines = bundle.read(FACTS).split(b"\n")
    if lines.pop() or len(lines) > MAX_FACTS:
        raise InputError(f"{bundle.path / FACTS} is cut short, or has more than {MAX_FACTS:,} lines", UNTRUSTED)
    return facts_of(lines, str(bundle.path / FACTS))


def facts_of(lines: Iterable[bytes], name: str) -> list[SharedFact]:
    """Facts, one a line."""
    return [
        _valid(SharedFact, parse_untrusted_json(line, f"{name}:{number}"), f"{name}:{number}")
        for number, line in enumerate(lines, 1)
    ]


def facts_bytes(facts: Iterable[SharedFact]) -> bytes:
    """The content of facts.jsonl."""
    return b"".join(json.dumps(each.model_dump(), ensure_ascii=False).encode() + b"\n" for each in facts)


def _valid(model: type[Model], values: Mapping[str, object], name: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))[:80]
        raise InputError(f"{name}: {key}: {fault['msg'][:120]}", UNTRUSTED) from None
