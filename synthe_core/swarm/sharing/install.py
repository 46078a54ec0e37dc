"""A specialist from a .synapse file of somebody, whole or not at all.

Everything is written beside what is there and named by swarm.yaml last: the change of that file is the installation. A
kill before it leaves folders that nobody refers to. Facts wait in a file until they are in the database, and whoever
opens the database next goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.events import Event, Progress, Result
from synthe_core.model.session import check_entries, is_session
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.contents import read_range
from synthe_core.packing.members import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from synthe_core.packing.specialist import SharedFact, SpecialistManifest, facts_bytes, read_facts, read_specialist
from synthe_core.packing.verify import check_contents
from synthe_core.storage.atomic import WAIT, new_file, new_folder, write_file
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.claim import claim
from synthe_core.storage.finite import check_finite
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.storage.json_reader import UNTRUSTED
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.facts import Facts
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.remembered_states import SLACK, SLACK_BYTES, state_path
from synthe_core.swarm.sharing.waiting_facts import facts_path
from synthe_core.swarm.spec import SpecialistSpec, name_fault
from synthe_core.swarm.store import LimitReached
from synthe_core.swarm.versions import Versions

DOCUMENTS = "documents"


def install(folder: SwarmFolder, path: Path, name: str | None = None, *, trust: bool = False) -> Iterator[Event]:
    """Adds the specialist of the file at `path` to a swarm and yields events; the last is a Result.

    name: another one than the file's. trust: whether its facts enter prompts without a review; where a trusted fact of
    this swarm says otherwise, that one stays. InputError for a file of another base, a damaged or hostile one, and a
    name that is taken: nothing has changed then.
    """
    bundle = Bundle(path)
    about = read_specialist(bundle)
    total, done = sum(each.bytes for each in bundle.pack_manifest.files.values()), 0
    for member, facts in bundle.pack_manifest.files.items():
        bundle.check(member)
        done += facts.bytes
        yield Progress("check", done, total, "bytes")
    check_contents(bundle)
    known = read_facts(bundle)
    if len(known) != about.facts:
        raise InputError(f"{path} has {len(known)} facts, and its manifest says {about.facts}", UNTRUSTED)
    base = _matching_base(folder, about, path)
    _check_state(bundle, about, base)
    with claim(folder.path / DOCUMENTS, "installing into", wait=WAIT):
        folder.reload()  # another installation may have ended meanwhile
        new = about.name if name is None else name
        _check_name(folder, new, name is None)
        _check_room(folder, known)
        spec = _write(bundle, about, folder, new, known, trust)
    version = None if spec.adapter is None else Path(spec.adapter).name
    folder.record("installed", new, version=version, digest=about.adapter, file=path.name)
    if known:
        open_store(folder).close()  # which takes the facts up
    values = {"specialist": new, "documents": len(spec.documents), "facts": len(known)}
    values |= {} if spec.adapter is None else {"adapter": spec.adapter}
    yield Result({**values, "remembered_tokens": about.remembered_tokens}, folder.path)


def _write(
    bundle: Bundle, about: SpecialistManifest, folder: SwarmFolder, new: str, known: Sequence[SharedFact], trust: bool
) -> SpecialistSpec:
    """Writes everything, swarm.yaml last. After an error nothing refers to what is removed again."""
    spec = SpecialistSpec(
        **{key: getattr(about, key) for key in ("description", "capabilities", "prompt", "priority", "remember")}
    )
    staged: list[Path] = []
    try:
        if about.adapter is not None:
            staged.append(target := Versions(folder.path, new, None).next_path())
            _write_adapter(bundle, about, folder, target)
            spec = spec.model_copy(update={"adapter": target.relative_to(folder.path).as_posix()})
        if about.documents:
            staged.append(target := _free(folder.path / DOCUMENTS / new))
            spec = spec.model_copy(update={"documents": _write_documents(bundle, about, folder, target)})
        if about.remembered_tokens is not None:
            _copy(bundle, f"sessions/{about.name}.safetensors", state_path(folder.path, new))
        if known:
            waiting = facts_path(folder.path, new, spec, trust)
            waiting.parent.mkdir(parents=True, exist_ok=True)
            write_file(waiting, facts_bytes(known))
            staged.append(waiting)
        folder.add(new, spec)
    except BaseException:
        if SwarmFolder(folder.path).spec.specialists.get(new) != spec:  # else it is installed
            for each in staged:
                each.unlink(missing_ok=True) if each.is_file() else shutil.rmtree(each, ignore_errors=True)
        raise
    return spec


def _check_room(folder: SwarmFolder, known: Sequence[SharedFact]) -> None:
    """LimitReached if the swarm may not have so many more facts."""
    if not known:
        return
    store, most = open_store(folder), folder.spec.knowledge.max_facts
    try:
        count = Facts(store).count("")
    finally:
        store.close()
    if count + len(known) > most:
        message = f"{len(known):,} facts come with it, and of {most:,} that everybody may have {count:,} are there"
        raise LimitReached(message, "raise knowledge.max_facts in swarm.yaml, or delete some")


def _matching_base(folder: SwarmFolder, about: SpecialistManifest, path: Path) -> Checkpoint:
    """The swarm's base, if it is the specialist's."""
    base = Checkpoint.open(folder.base)
    if not set(base.base_digests) & set(about.base.digests):
        own, other = model_name(Path(folder.base)), about.base.name[:100]
        raise InputError(
            f"{path} is of the base {other} ({about.base.digests[0][:12]}), and this swarm's base is {own} "
            f"({base.digest[:12]})",
            "install it in a swarm on that base: synthe swarm init NAME --base MODEL",
        )
    return base


def _check_name(folder: SwarmFolder, name: str, is_its_own: bool) -> None:
    if is_its_own and name in folder.spec.specialists:
        hint = "give it another name: --name NAME"
        raise InputError(f"{folder.path} has a specialist '{name}' already", hint)
    if fault := name_fault(name):
        raise InputError(fault, "give it another name: --name NAME")
    folder.check_new(name)


def _check_state(bundle: Bundle, about: SpecialistManifest, base: Checkpoint) -> None:
    """InputError for a remembered state that is not one of the base's, in names, types, shapes and size."""
    if about.remembered_tokens is None:
        return
    file = bundle.open(f"sessions/{about.name}.safetensors")
    if not is_session(file) or file.shape("pending") != (1,):
        raise InputError(f"{file.name} is no remembered state", UNTRUSTED)
    model = base.recipe.meta_model(base.vocab)
    check_entries(file, model.init_state(1))
    most = SLACK * model.state_bytes(about.remembered_tokens) + SLACK_BYTES
    size = sum(entry.end - entry.begin for entry in file.entries.values())
    if size > most:
        raise InputError(f"{file.name} has {size:,} bytes, and a state has {most:,} at most", UNTRUSTED)
    for key in file:
        check_finite(key, file[key], file.name)


def _write_adapter(bundle: Bundle, about: SpecialistManifest, folder: SwarmFolder, target: Path) -> None:
    """Writes the adapter, after it was compared with the base."""
    with new_folder(target) as partial:
        for part in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            _copy(bundle, f"adapters/{about.name}/{part}", partial / part, sync=False)
        opened = Checkpoint.open(partial, base=folder.base)
        adapter = opened.fitted_adapter
        if opened.digest != about.adapter:
            raise InputError(f"{bundle.path} has another adapter than its manifest says", UNTRUSTED)
        for name, tensor in (adapter.tensors if adapter is not None else {}).items():
            check_finite(name, tensor, bundle.path)


def _write_documents(bundle: Bundle, about: SpecialistManifest, folder: SwarmFolder, target: Path) -> list[str]:
    """Writes the documents; their paths as swarm.yaml has them."""
    with new_folder(target) as partial:
        for number, name in enumerate(about.documents, 1):
            (partial / str(number)).mkdir()
            _copy(bundle, f"documents/{number}", partial / str(number) / name, sync=False)
    place = target.relative_to(folder.path).as_posix()
    return [f"{place}/{number}/{name}" for number, name in enumerate(about.documents, 1)]


def _copy(bundle: Bundle, member: str, target: Path, *, sync: bool = True) -> None:
    """Writes a member to a file; sync: atomically, in a folder that it makes."""
    if sync:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target, wait=WAIT) as partial:
            _copy(bundle, member, partial, sync=False)
        return
    with target.open("wb") as file:
        for piece in read_range(*bundle.locate(member)):
            file.write(piece)


def _free(path: Path) -> Path:
    """`path`, or with the first number behind it that nothing has yet."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
