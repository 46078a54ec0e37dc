"""A specialist as a .synapse file: who it is, its adapter, its remembered state, and what everybody may know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synthe_core.errors import InputError
from synthe_core.events import Event, Notice
from synthe_core.packing.adapters import adapter_members, check_adapter
from synthe_core.packing.base import BaseReference
from synthe_core.packing.contents import Bytes, Content, FileRange
from synthe_core.packing.manifest import Base, PackManifest
from synthe_core.packing.members import ADAPTER_WEIGHTS, BASE, FACTS, SPECIALIST, is_weights
from synthe_core.packing.pack import target_path, write_pack
from synthe_core.packing.specialist import BaseIdentity, SharedFact, SpecialistManifest, facts_bytes
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.claim import claim
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.storage.json_reader import canonical_json
from synthe_core.storage.tensor_file import TensorFile
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.facts import Facts
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.prompting import system_text
from synthe_core.swarm.redaction import SECRET, redact
from synthe_core.swarm.remembered_states import state_path
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.team import open_swarm

Knowledge = Literal["trusted", "all", "none"]


@dataclass(frozen=True)
class ExportOptions:
    """knowledge: which facts of everybody. state: whether the remembered state is in the file; without it the texts
    are read again where the specialist is installed."""

    knowledge: Knowledge = "trusted"
    state: bool = True
    licence: str | None = None
    device: str = "cpu"


def export(
    folder: SwarmFolder, name: str, out: Path | None = None, options: ExportOptions = ExportOptions()
) -> Iterator[Event]:
    """Writes a specialist into one file and yields events; the last is a Result with its path.

    out: NAME.synapse by default. Facts of users, conversations, answers and pairs are never in it. InputError for a
    specialist of another model or server, and for a prompt or document with a secret in it.
    """
    spec = folder.specialist(name)
    _check_base(name, spec)
    _check_secrets(folder, name, spec)
    out = target_path(out, name)
    base = Checkpoint.open(folder.base)
    contents: dict[str, Content] = {
        f"documents/{number}": FileRange.of(Path(folder.resolve(each))) for number, each in enumerate(spec.documents, 1)
    }
    adapters, digest = [], None
    if (adapter := folder.adapter(name)) is not None:
        digest = Checkpoint.open(adapter, base=folder.base).digest
        contents |= adapter_members(name, adapter)
        adapters = [check_adapter(name, {}, TensorFile(adapter / ADAPTER_WEIGHTS), None)]
    tokens = None
    if options.state and spec.remembers:
        tokens = _remembered_tokens(folder, name, options.device)
    if tokens is not None:
        contents[f"sessions/{name}.safetensors"] = FileRange.of(state_path(folder.path, name))
    if facts := _facts(folder, options.knowledge):
        contents[FACTS] = Bytes(facts_bytes(facts))
    about = SpecialistManifest(
        name=name,
        **{key: getattr(spec, key) for key in ("description", "capabilities", "prompt", "priority", "remember")},
        documents=[Path(each).name for each in spec.documents],
        base=BaseIdentity(name=model_name(Path(folder.base)), digests=list(dict.fromkeys(base.base_digests))),
        adapter=digest,
        remembered_tokens=tokens,
        facts=len(facts),
    )
    weights = {each: facts.sha256 for each, facts in base.manifest.files.items() if is_weights(each)}
    reference = BaseReference(name=about.base.name, files=weights)
    contents[SPECIALIST] = Bytes(canonical_json(about.model_dump(mode="json")))
    contents[BASE] = Bytes(canonical_json(reference.model_dump(mode="json")))
    manifest = PackManifest(
        name=name,
        description=spec.description,
        base=Base(model=about.base.name, carried=False),
        capabilities=spec.capabilities,
        adapters=adapters,
        specialists=[name],
        sessions=[name] if tokens is not None else [],
        licence=options.licence,
        files={},
    )
    yield Notice(_summary(about))
    with claim(out):
        yield from write_pack(out, contents, manifest, classifies=False)


def _check_base(name: str, spec: SpecialistSpec) -> None:
    """InputError for a specialist whose weights are not the base's: there is nothing of it to take along."""
    if spec.url is None and spec.model is None:
        return
    what = "on another server" if spec.url is not None else "on another model than the base"
    where = f"--url {spec.url} " if spec.url is not None else ""
    hint = f"add it to the other swarm by its name: synthe swarm add OTHER {name} {where}--model {spec.model}"
    raise InputError(f"{name} runs {what}, so its weights are not in this swarm", hint)


def _summary(about: SpecialistManifest) -> str:
    parts = [f"adapter {about.adapter[:12]}"] if about.adapter else []
    parts += [f"{len(about.documents)} document{'s' * (len(about.documents) > 1)}"] if about.documents else []
    parts += [f"a state after {about.remembered_tokens:,} tokens"] if about.remembered_tokens else []
    parts += [f"{about.facts:,} fact{'s' * (about.facts > 1)}"] if about.facts else []
    return f"{about.name}: {', '.join(parts) or 'its prompt alone'}"


def _check_secrets(folder: SwarmFolder, name: str, spec: SpecialistSpec) -> None:
    """InputError if the prompt or a document has what looks like a key or a password."""
    parts = {"the prompt": SpecialistSpec(prompt=spec.prompt)}
    parts |= {f"the document {each}": SpecialistSpec(documents=[each]) for each in spec.documents}
    for what, part in parts.items():
        text = system_text(name, part, {each: folder.resolve(each) for each in part.documents})
        if redact(text).count(SECRET) > text.count(SECRET):
            hint = "take it out: `synthe swarm knowledge` explains what counts as one"
            raise InputError(f"{what} of {name} has a secret in it, such as a key or a password", hint)


def _remembered_tokens(folder: SwarmFolder, name: str, device: str) -> int | None:
    """What the remembered state has read, after it was brought to the adapter and the text of now."""
    with open_swarm(folder, device) as swarm:
        state = swarm.remembered.get(name)
    return None if state is None else state.tokens


def _facts(folder: SwarmFolder, which: Knowledge) -> list[SharedFact]:
    """The current facts that everybody sees, redacted once more."""
    if which == "none" or not folder.has_database:
        return []
    store = open_store(folder)
    try:
        known = Facts(store).current("", trusted=True if which == "trusted" else None)
    finally:
        store.close()
    return [
        SharedFact(
            subject=redact(each.subject),
            predicate=redact(each.predicate),
            object=redact(each.object),
            negated=each.negated,
            functional=each.functional,
            confidence=each.confidence,
            valid_from=each.valid_from,
        )
        for each in known
    ]
