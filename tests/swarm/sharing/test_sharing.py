"""A specialist in a file: it answers the same on another machine, and a file that lies changes nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError, SyntheError
from synthe_core.events import drain
from synthe_core.model.language_model import LanguageModel
from synthe_core.packing.archive import Archive
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.contents import Bytes, Content, FileRange, digest_and_crc, write_archive
from synthe_core.packing.hub import push
from synthe_core.packing.members import FACTS, MANIFEST, README, SPECIALIST
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.claim import Busy, claim
from synthe_core.storage.manifest import Manifest
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.facts import Facts
from synthe_core.swarm.knowledge.knowledge import Knowledge
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.remembered_states import state_path
from synthe_core.swarm.sharing.export import ExportOptions, export
from synthe_core.swarm.sharing.install import install
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.team import Swarm, SwarmRequest, open_swarm
from tests.adapters.conftest import recipe_with, saved
from tests.hub_standin import Hub, hub_on_this_machine
from tests.swarm.killing import run_killed

OPTIONS: dict[str, Any] = {"max_state_bytes": 1 << 28, "cache_bytes": 1 << 24}
TEXT = "The red door is open, and the green one is shut. " * 6
QUESTION = "Where is the harbour office?"


@pytest.fixture
def team(folder: SwarmFolder, base: Path, tmp_path: Path) -> SwarmFolder:
    """A specialist with everything that can be in a file, and facts and words of users beside it."""
    (folder.path / "notes.md").write_text(f"# Doors\n\n{TEXT}")
    adapter = saved(tmp_path / "other", base, {"rank": 4}, seed=4).path
    spec = SpecialistSpec(
        description="It knows the doors.", capabilities=["doors"], prompt="You know.", priority=0.25,
        documents=["notes.md"],
    )  # fmt: skip
    folder.add("notes", spec, str(adapter))
    with open_swarm(folder, **OPTIONS) as swarm:
        known = swarm.recollection.knowledge
        known.add("", "the harbour office", "opens at", "9:00")
        known.add("", "the harbour office", "is in", "Nowhere", trusted=False)
        known.add("ann", "user", "lives in", "Paris")
        list(swarm.answer(SwarmRequest([{"role": "user", "content": "I like tea."}], user="ann", max_tokens=3)))
    return folder


def answer(swarm: Swarm, name: str = "notes") -> Any:
    request = SwarmRequest(
        [{"role": "user", "content": QUESTION}], specialist=name, max_tokens=20, sampling={"temperature": 0}
    )
    return list(swarm.answer(request))


def exported(team: SwarmFolder, path: Path, **options: Any) -> Path:
    result = drain(export(team, "notes", path, ExportOptions(**options))).path
    assert result == path
    return path


def fresh(base: Path, path: Path) -> SwarmFolder:
    """A swarm on a copy of the base, as on another machine."""
    shutil.copytree(base, path / "model")
    return SwarmFolder.create(path / "team", str(path / "model"))


def facts_of(folder: SwarmFolder) -> list[tuple[str, str, bool]]:
    store = open_store(folder)
    known = [(fact.user, fact.object, fact.trusted) for fact in Facts(store).current("")]
    store.close()
    return known


def test_it_answers_the_same_on_another_machine(team, base, tmp_path):
    file = exported(team, tmp_path / "notes.synapse")
    with open_swarm(team, **OPTIONS) as swarm:
        here = answer(swarm)
        state = swarm.remembered.get("notes")
    shutil.move(team.path, tmp_path / "gone")
    other = fresh(base, tmp_path / "machine")
    values = drain(install(other, file, trust=True)).values
    assert (values["facts"], values["remembered_tokens"]) == (1, state.tokens)
    assert facts_of(other) == [("", "9:00", True)]
    with open_swarm(other, **OPTIONS) as swarm:
        assert not swarm.remembered.get("notes").was_read  # the state came with the file
        there = answer(swarm)
    assert there[0].facts == here[0].facts and "9:00" in there[0].facts[0]
    assert there[-1].text == here[-1].text and there[-1].drafts[0].signals == here[-1].drafts[0].signals
    assert there[-1].drafts[0].digests == here[-1].drafts[0].digests
    assert there[-1].drafts[0].num_remembered_tokens == state.tokens
    was, now = SwarmFolder(tmp_path / "gone").spec.specialists["notes"], other.spec.specialists["notes"]
    same = {"description", "capabilities", "prompt", "priority", "remember"}
    assert was.model_dump(include=same) == now.model_dump(include=same)
    assert other.ledger()[-1]["event"] == "installed"


def test_nothing_of_users_and_nothing_unreviewed_is_in_a_file(team, tmp_path):
    content = exported(team, tmp_path / "a.synapse").read_bytes()
    assert not any(word in content for word in (b"Paris", b"tea", b"ann", b"Nowhere"))
    assert b"9:00" in content and b"You know." in content
    assert b"Nowhere" in exported(team, tmp_path / "b.synapse", knowledge="all").read_bytes()
    bare = Bundle(exported(team, tmp_path / "c.synapse", knowledge="none", state=False))
    assert {name.partition("/")[0] for name in bare.pack_manifest.files} == {
        "README.md", "adapters", "base.json", "documents", "specialist.json",
    }  # fmt: skip
    assert b"swarm install TEAM notes.synapse" in bare.read(README)
    assert drain(verify(tmp_path / "a.synapse")).values["status"] == "unsigned"
    with pytest.raises(InputError, match="contains no model that can be run"):
        Checkpoint.open(tmp_path / "a.synapse").model()


@pytest.mark.parametrize("where", ["prompt", "document"])
def test_secrets_and_foreign_models_are_not_exported(team, tmp_path, where):
    secret = "password: hunter22x"
    (team.path / "secret.txt").write_text(secret if where == "document" else TEXT)
    team.add("leak", SpecialistSpec(prompt=secret if where == "prompt" else "x", documents=["secret.txt"]))
    with pytest.raises(InputError, match=f"the {where}.*of leak has a secret in it"):
        list(export(team, "leak", tmp_path / "x.synapse"))
    team.add("far", SpecialistSpec(url="https://a.example/v1", model="m"))
    with pytest.raises(InputError, match="far runs on another server"):
        list(export(team, "far", tmp_path / "x.synapse"))
    assert not (tmp_path / "x.synapse").exists()


def test_what_is_trusted_here_outranks_what_comes_with_a_file(team, base, tmp_path):
    file = exported(team, tmp_path / "notes.synapse")
    other = fresh(base, tmp_path / "machine")
    store = open_store(other)
    Knowledge(store).add("", "the harbour office", "opens at", "10:00")
    store.close()
    drain(install(other, file, trust=True))
    known = facts_of(other)
    assert ("", "10:00", True) in known
    drain(install(other, file, "second"))
    assert ("", "10:00", True) in facts_of(other)
    untrusted = fresh(base, tmp_path / "third")
    drain(install(untrusted, file))
    assert facts_of(untrusted) == [("", "9:00", False)]


def test_names_and_bases_are_checked(team, base, tmp_path):
    file = exported(team, tmp_path / "notes.synapse")
    with pytest.raises(InputError, match="has a specialist 'notes' already") as error:
        list(install(team, file))
    assert "--name" in error.value.hint
    with pytest.raises(InputError, match="'Big Name' is no name"):
        list(install(team, file, "Big Name"))
    drain(install(team, file, "doors"))
    with open_swarm(team, **OPTIONS) as swarm:
        assert answer(swarm, "doors")[-1].text == answer(swarm, "notes")[-1].text
        assert not swarm.remembered.get("doors").was_read
    torch.manual_seed(99)
    save(
        tmp_path / "stranger", recipe=recipe_with(), vocab=257,
        tensors=weights(LanguageModel(recipe_with().model, 257)), manifest=Manifest(), tokenizer=ByteTokenizer(),
    )  # fmt: skip
    other = SwarmFolder.create(tmp_path / "elsewhere", str(tmp_path / "stranger"))
    with pytest.raises(InputError) as error:
        list(install(other, file))
    own = Checkpoint.open(tmp_path / "stranger").digest[:12]
    theirs = Checkpoint.open(base).digest[:12]
    assert f"of the base base ({theirs})" in error.value.message and f"is stranger ({own})" in error.value.message
    assert not other.spec.specialists and not list((other.path / "adapters").iterdir())


def test_a_running_server_takes_it_up(team, base, tmp_path):
    file = exported(team, tmp_path / "notes.synapse")
    other = fresh(base, tmp_path / "machine")
    with open_swarm(team, **OPTIONS) as swarm:
        expected = answer(swarm)[-1].text
    with open_swarm(other, **OPTIONS) as swarm:
        drain(install(other, file, trust=True))
        assert swarm.follow_specialists() == ["notes"]
        assert answer(swarm)[-1].text == expected and not swarm.remembered.get("notes").was_read


Change = Callable[[dict[str, Content]], None]


def changed(file: Path, out: Path, change: Change) -> Path:
    """The file with other members, and digests that fit them."""
    bundle = Bundle(file)
    contents: dict[str, Content] = {name: FileRange(*bundle.locate(name)) for name in bundle.pack_manifest.files}
    change(contents)
    digests = {name: digest_and_crc(content)[0] for name, content in contents.items()}
    manifest = bundle.pack_manifest.model_copy(update={"files": digests})
    write_archive(out, {MANIFEST: Bytes(manifest.to_bytes()), **contents})
    return out


def json_change(**values: Any) -> Change:
    def change(contents: dict[str, Content]) -> None:
        about = json.loads(b"".join(contents[SPECIALIST].pieces()))
        contents[SPECIALIST] = Bytes(json.dumps({**about, **values}).encode())

    return change


def put(name: str, content: bytes) -> Change:
    return lambda contents: contents.__setitem__(name, Bytes(content))


def cut_state(contents: dict[str, Content]) -> None:
    content = b"".join(contents["sessions/notes.safetensors"].pieces())
    contents["sessions/notes.safetensors"] = Bytes(content.replace(b"state.blocks.0.0", b"state.blocks.9.0", 1))


def infinite_state(contents: dict[str, Content]) -> None:
    content = b"".join(contents["sessions/notes.safetensors"].pieces())
    contents["sessions/notes.safetensors"] = Bytes(content[:-64] + b"\xff" * 64)


HOSTILE: dict[str, tuple[Change, str]] = {
    "no JSON": (put(SPECIALIST, b"{"), "specialist.json is not JSON"),
    "another key": (json_change(shell="rm"), "shell: Extra inputs are not permitted"),
    "a name with a path": (json_change(name="../x"), "name: String should match pattern"),
    "a document's path": (json_change(documents=["../../x"]), "documents.0: String should match"),
    "a hidden document": (json_change(documents=[".bashrc"]), "documents.0: String should match"),
    "too long a prompt": (json_change(prompt="x" * 20_001), "prompt: String should have at most"),
    "a document too many": (json_change(documents=["a.md", "b.md"]), "members differ in documents/2"),
    "no document": (lambda contents: contents.pop("documents/1"), "members differ in documents/1"),
    "another adapter's digest": (json_change(adapter="0" * 64), "another adapter than its manifest says"),
    "a state that is none": (put("sessions/notes.safetensors", b"x" * 99), "is damaged"),
    "a state of other names": (cut_state, "which the model has not"),
    "a state that is no number": (infinite_state, "(NaN|infinity|is no number)"),
    "facts that are none": (put(FACTS, b'{"subject": "a"}\n'), "facts.jsonl:1: predicate: Field required"),
    "facts cut short": (put(FACTS, b'{"subj'), "is cut short"),
    "more facts than it says": (json_change(facts=2), "has 1 facts, and its manifest says 2"),
    "a confidence that is none": (
        put(FACTS, b'{"subject":"a","predicate":"b","object":"c","confidence":1e999}\n'),
        "(is not a number|no number|is not JSON)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_lies_changes_nothing(team, base, tmp_path, kind):
    change, message = HOSTILE[kind]
    file = changed(exported(team, tmp_path / "good.synapse"), tmp_path / "bad.synapse", change)
    other = fresh(base, tmp_path / "machine")
    before = other.spec_path.read_bytes()
    with pytest.raises(InputError, match=message) as error:
        list(install(other, file))
    assert "\n" not in error.value.message
    left = [path for path in other.path.rglob("*") if path.is_file() and ".synthe-lock" not in path.name]
    assert {path.name for path in left} <= {
        "swarm.yaml",
        "swarm.db",
        "swarm.db-wal",
        "swarm.db-shm",
        "swarm.db.queue",
    } | {path.name for path in left if path.parent == other.path}
    assert other.spec_path.read_bytes() == before and facts_of(other) == []


def test_a_file_that_was_tampered_with_is_refused(team, base, tmp_path):
    file = exported(team, tmp_path / "notes.synapse")
    other = fresh(base, tmp_path / "machine")
    content = bytearray(file.read_bytes())
    place = Archive(file).members["documents/1"].offset
    content[place] ^= 1
    (tmp_path / "bad.synapse").write_bytes(content)
    with pytest.raises(InputError, match=r"tampered with or damaged|is not what was packed"):
        list(install(other, tmp_path / "bad.synapse"))
    (tmp_path / "short.synapse").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError):
        list(install(other, tmp_path / "short.synapse"))
    assert not other.spec.specialists


KILLS = [6, pytest.param(50, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_a_kill_leaves_it_whole_or_absent(team, base, tmp_path, kills):
    file = exported(team, tmp_path / "notes.synapse")
    chance, seen = random.Random(3), set[bool]()
    trial = fresh(base, tmp_path / "trial")
    total = run_killed(lambda: drain(install(trial, file, trust=True)))
    assert total > 20 and "notes" in SwarmFolder(trial.path).spec.specialists
    for number in range(kills):
        other = fresh(base, tmp_path / f"machine {number}")
        moment = total - number % 12 if number % 2 else chance.randrange(1, total + 1)
        run_killed(lambda other=other: drain(install(other, file, trust=True)), at_event=moment)
        after = SwarmFolder(other.path)
        is_there = "notes" in after.spec.specialists
        seen.add(is_there)
        if is_there:
            assert Checkpoint.open(after.adapter("notes"), base=after.base).fitted_adapter is not None
            assert Path(after.resolve(after.spec.specialists["notes"].documents[0])).read_text().startswith("# Doors")
            assert state_path(after.path, "notes").is_file()
        assert facts_of(after) == ([("", "9:00", True)] if is_there else [])
        if not is_there:  # what the kill has left is in nobody's way
            drain(install(after, file, trust=True))
            assert facts_of(after) == [("", "9:00", True)]
        store = open_store(after)
        assert not store.faults()
        store.close()
    assert False in seen


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_on_this_machine(monkeypatch, tmp_path) as server:
        yield server


def test_it_travels_through_the_hub(hub, team, base, tmp_path):
    from synthe_core.packing.hub import pull

    file = exported(team, tmp_path / "notes.synapse")
    assert drain(push(file, "acme/notes")).values["file"] == "notes.synapse"
    card = hub.find("acme/notes", "main")[1]["README.md"].decode()
    assert "swarm install TEAM notes.synapse" in card and "- doors" in card
    other = fresh(base, tmp_path / "machine")
    pulled = drain(pull("acme/notes", tmp_path / "pulled.synapse")).path
    assert pulled.read_bytes() == file.read_bytes()
    assert drain(install(other, pulled)).values["specialist"] == "notes"


def test_limits_hold(team, base, tmp_path):
    file = exported(team, tmp_path / "notes.synapse")
    other = fresh(base, tmp_path / "machine")
    text = other.spec_path.read_text().replace("max_facts: 100000", "max_facts: 0")
    other.spec_path.write_text(text)
    other.reload()
    with pytest.raises(SyntheError, match="1 facts come with it"):
        list(install(other, file))
    assert not other.spec.specialists


def test_no_other_file_is_written_over(team, tmp_path):
    for victim in (team.path / "notes.md", team.spec_path, team.database):
        before = victim.read_bytes()
        with pytest.raises(InputError, match="is there already"):
            list(export(team, "notes", victim))
        assert victim.read_bytes() == before
    file = exported(team, tmp_path / "notes.synapse")
    assert exported(team, file) == file


@pytest.mark.parametrize("names", [("one", "two", "three"), ("same", "same", "same")])
def test_installations_at_once_wait_for_each_other(team, base, tmp_path, names):
    """Each process has read swarm.yaml before the first of them writes it."""
    file = exported(team, tmp_path / "notes.synapse")
    other = fresh(base, tmp_path / "machine")
    folders = [SwarmFolder(other.path) for _ in names]
    assert all(not folder.spec.specialists for folder in folders)
    ends = []
    for folder, name in zip(folders, names, strict=True):
        try:
            drain(install(folder, file, name))
            ends.append("")
        except InputError as error:
            ends.append(error.message)
    assert set(SwarmFolder(other.path).spec.specialists) == set(names)
    taken = [each for each in ends if each]
    assert len(taken) == len(names) - len(set(names)) and all("'same' already" in each for each in taken)
    for name in set(names):
        spec = SwarmFolder(other.path).spec.specialists[name]
        assert Path(other.path / spec.documents[0]).read_text().startswith("# Doors")
    with claim(other.path / "documents"), pytest.raises(Busy, match="another process"):
        busy(other, file)


def busy(folder: SwarmFolder, file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthe_core.swarm.sharing.install.WAIT", 0.0)
        list(install(folder, file, "late"))
