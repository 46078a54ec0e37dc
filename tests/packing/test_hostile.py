"""Files that mean harm: each refused in one line, by the name of what is wrong, and nothing written anywhere."""

from __future__ import annotations

import os
import random
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthe_core.errors import InputError
from synthe_core.packing.archive import CENTRAL, Archive, Member, layout
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.sign import sign
from synthe_core.packing.unpack import unpack
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint
from tests.packing.conftest import Things, make_things, result
from tests.packing.hostile import BOMB, case, exercise, members, rebuild, tree
from tests.paths import ROOT


def zipped(path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    """What an ordinary ZIP program writes."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            if isinstance(name, str):
                name = zipfile.ZipInfo(name)
                name.create_system, name.external_attr, name.compress_type = 3, (stat.S_IFREG | 0o644) << 16, method
            archive.writestr(name, content)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def patched(path: Path, name: str, field: int, value: int) -> Path:
    """A sound file with one field of a member's entry in the directory changed."""
    content = bytearray(path.read_bytes())
    at = content.find(name.encode(), content.rfind(b"manifest.json") - 46) - CENTRAL.size
    fields = list(CENTRAL.unpack_from(content, at))
    fields[field] = value
    CENTRAL.pack_into(content, at, *fields)
    path.write_bytes(content)
    return path


def overlapping(path: Path) -> Path:
    """Two entries of the directory that lead to one member's bytes."""
    plan = layout([Member("manifest.json", 0, 0), Member("recipe.yaml", 0, 0)])
    content = bytearray(b"".join(plan.heads) + plan.tail)
    at = content.rfind(b"recipe.yaml") - CENTRAL.size
    fields = list(CENTRAL.unpack_from(content, at))
    fields[-1] = 0
    CENTRAL.pack_into(content, at, *fields)
    path.write_bytes(content)
    return path


TRICKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "path traversal": (lambda p: zipped(p, [("../evil", b"x")]), "'../evil' points out of its folder (path traversal)"),
    "deeper traversal": (lambda p: zipped(p, [("adapters/../../evil", b"")]), "(path traversal)"),
    "backslashes": (lambda p: zipped(p, [("a\\..\\evil", b"")]), "(path traversal)"),
    "absolute": (lambda p: zipped(p, [("/etc/passwd", b"x")]), "'/etc/passwd' has an absolute path"),
    "drive": (lambda p: zipped(p, [("C:/x", b"x")]), "has an absolute path"),
    "pickle": (lambda p: zipped(p, [("model.bin", b"x")]), "is a pickle by its name"),
    "unknown": (lambda p: zipped(p, [("run.sh", b"x")]), "is not a member of a .synapse file"),
    "device": (lambda p: zipped(p, [("sessions/con.safetensors", b"")]), "is not a member of a .synapse file"),
    "control characters": (lambda p: zipped(p, [("a\x1b[2Jb", b"")]), "\\x1b"),
    "symbolic link": (lambda p: zipped(p, [(link("recipe.yaml"), b"/etc/passwd")]), "recipe.yaml is a symbolic link"),
    "folder": (lambda p: zipped(p, [("adapters/", b"")]), "is not a member of a .synapse file"),
    "zip bomb": (
        lambda p: zipped(p, [("recipe.yaml", b"\0" * 10**7)], zipfile.ZIP_DEFLATED),
        "bytes that claim to be 10000000",
    ),
    "too large": (lambda p: zipped(p, [("agent.yaml", b" " * 300_000)]), "may have 262144"),
    "no manifest": (lambda p: rebuild(p, {"recipe.yaml": b"a"}), "has no manifest.json"),
    "not aligned": (lambda p: zipped(p, [("manifest.json", b"{}")]), "is refused"),
    "two of a name": (
        lambda p: rebuild(p, {"README.md": b"{}", "README.MD": b"{}"}, rehash=False),
        "two members named 'README.MD'",
    ),
    "two of an adapter": (
        lambda p: rebuild(
            p, {"adapters/a/adapter_config.json": b"", "adapters/A/adapter_config.json": b""}, rehash=False
        ),
        "two members named 'adapters/A/adapter_config.json'",
    ),
    "overlap": (overlapping, "the members manifest.json and recipe.yaml overlap"),
    "order": (lambda p: rebuild(p, {"README.md": b"", "manifest.json": b"{}"}), "not in their order"),
    "empty": (lambda p: _write(p, b""), "is not a .synapse file"),
    "text": (lambda p: _write(p, b"hello, this is no zip"), "is not a .synapse file"),
    "zip mark alone": (lambda p: _write(p, b"PK\3\4"), "is cut short"),
    "no members": (lambda p: _write(p, b"PK\3\4" + b"PK\5\6" + b"\0" * 18), "does not say where its directory is"),
}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("trick", TRICKS)
def test_malicious_archives_are_refused_with_the_reason(tmp_path, trick):
    make, message = TRICKS[trick]
    box = tmp_path / "box"
    box.mkdir()
    path = make(box / "x.synapse")
    before = list(tree(tmp_path))
    for verb in (lambda: list(verify(path)), lambda: list(unpack(path, box / "out")), lambda: Checkpoint.open(path)):
        with pytest.raises(InputError) as refused:
            verb()
        assert message in refused.value.message and refused.value.message.isprintable()
    assert list(tree(tmp_path)) == before


def test_duplicates_that_python_writes(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "x.synapse", [("recipe.yaml", b"1"), ("recipe.yaml", b"2")])
    with pytest.raises(InputError, match=r"two members named 'recipe\.yaml'"):
        Archive(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (3, 1, "is encrypted"),
        (3, 8, "differs|not as a"),  # sizes in a record that follows
        (4, 8, "is compressed"),
        (7, 12345, "differs|not as a"),  # the checksum
        (9, 10**9, "is compressed|longer than the file"),
        (15, 0o120777 << 16, "symbolic link"),
        (15, 0o040755 << 16, "not a regular file"),
        (16, 7, "overlap|not as a"),
    ],
)
def test_header_fields_that_disagree(copy, field, value, message):
    with pytest.raises(InputError, match=message):
        Archive(patched(copy, "recipe.yaml", field, value))


def test_a_claim_of_sixteen_exabytes(tmp_path):
    """Sizes are held against the file before anything is made of them."""
    for size in (2**32, 2**62, 2**63 + 5):
        plan = layout([Member("manifest.json", 2, 1), Member("model.safetensors", size, 1)])
        path = _write(tmp_path / "x.synapse", plan.heads[0] + b"{}" + plan.heads[1] + plan.tail)
        with pytest.raises(InputError):
            Archive(path)


@pytest.mark.parametrize("where", ["before", "after", "between"])
def test_bytes_outside_any_member(copy, where):
    content = copy.read_bytes()
    plan = layout(Archive(copy).members.values())
    middle = len(content) - len(plan.tail)
    changed = {
        "before": b"PK\3\4" + content,
        "after": content + b"x",
        "between": content[:middle] + b"hidden" + content[middle:],
    }
    copy.write_bytes(changed[where])
    with pytest.raises(InputError, match="is refused"):
        Archive(copy)


def test_every_truncation_is_detected(copy):
    content = copy.read_bytes()
    for length in [*range(1, 200, 7), *range(200, len(content), len(content) // 40), len(content) - 1]:
        copy.write_bytes(content[:length])
        with pytest.raises(InputError):
            Archive(copy)


def test_files_past_four_gigabytes_are_laid_out_as_zip64(tmp_path):
    """A sparse file: 5 GB of zeros that take no room."""
    size = 5 * 10**9
    plan = layout([Member("manifest.json", 2, 0), Member("model.safetensors", size, 0), Member("signature.json", 2, 0)])
    path = tmp_path / "x.synapse"
    with path.open("wb") as file:
        for head, member in zip(plan.heads, plan.members, strict=True):
            file.seek(member.offset - len(head))
            file.write(head)
        file.seek(plan.size - len(plan.tail))
        file.write(plan.tail)
    archive = Archive(path)
    assert archive.size("model.safetensors") == size and archive.members == {m.name: m for m in plan.members}
    with zipfile.ZipFile(path) as other:
        assert [(i.filename, i.file_size) for i in other.infolist()] == [(m.name, m.size) for m in plan.members]
        assert other.infolist()[2].header_offset == plan.members[2].offset - len(plan.heads[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"recipe.yaml": BOMB}, "it has an alias"),
        (lambda m: m | {"recipe.yaml": b"[" * 5000}, "more than 64 deep"),
        (lambda m: m | {"recipe.yaml": b"model: 2001-99-99"}, "recipe.yaml"),
        (lambda m: m | {"config.json": b"{}"}, "vocab_size"),
        (lambda m: m | {"config.json": b'{"vocab_size": 257, "vocab_size": 3}'}, "a key is given twice"),
        (lambda m: m | {"config.json": b'{"vocab_size": 1000000000000000}'}, "embedding.weight"),
        (lambda m: m | {"tokenizer.json": b"[]"}, "is no tokenizer.json"),
        (lambda m: m | {"manifest.json": b"[" * 100_000}, "is not JSON"),
        (lambda m: m | {"manifest.json": b'{"format": "synapse", "version": "3.0"}'}, "a newer synthe wrote it"),
        (lambda m: m | {"manifest.json": b'{"format": "synapse", "version": "2.0"}'}, "field required"),
        (
            lambda m: m | {"manifest.json": b'{"format": "synapse", "version": "1.0"}'},
            "1.0, and this synthe reads 2",
        ),
        (lambda m: m | {"adapters/x/adapter_config.json": b"{}"}, "the adapter x has no adapter_model.safetensors"),
        (lambda m: m | {"base.json": b'{"name": "x", "files": {}, "hub": "../../x"}'}, "hub"),
        (lambda m: m | {"knowledge/graph.sqlite": b"SQLite format 3\0" + b"\0" * 5000}, "SQLite says"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_members_that_do_not_match_their_header(packed, tmp_path, change, message):
    """The digests are right: their author made them. What they are of is still held against what it must be."""
    contents = change(members(packed))
    contents.pop("signature.json")
    order = sorted(contents, key=lambda name: (name != "manifest.json", _rank(name)))
    path = rebuild(tmp_path / "x.synapse", {name: contents[name] for name in order})
    with pytest.raises(InputError) as refused:
        list(verify(path))
        opened = Checkpoint.open(path)
        opened.tokenizer()
        opened.model()
    assert message.lower() in f"{refused.value.message} {refused.value.hint}".lower()


def _rank(name: str) -> tuple[int, str]:
    from synthe_core.packing.members import member_order

    return member_order(name)


@pytest.mark.parametrize("change", ["width: 1000000000", "blocks: 100000000", "blocks: 999", "hidden: 1000000000000"])
def test_a_recipe_larger_than_its_weights_is_refused(packed, tmp_path, change):
    """A few bytes of YAML that describe a model of petabytes: refused at once, in no memory."""
    contents = members(packed)
    contents.pop("signature.json")
    key = change.partition(":")[0]
    text = contents["recipe.yaml"].decode()
    old = next(line.strip() for line in text.splitlines() if line.strip().startswith(f"{key}:"))
    path = rebuild(tmp_path / "x.synapse", contents | {"recipe.yaml": text.replace(old, change, 1).encode()})
    started = time.process_time()
    with pytest.raises(InputError):
        Checkpoint.open(path).model()
    assert time.process_time() - started < 20


def test_links_in_folders(packed, tmp_path):
    result(unpack(packed, tmp_path / "out"))
    (tmp_path / "out" / "agent.yaml").unlink()
    (tmp_path / "out" / "agent.yaml").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="is a symbolic link"):
        Bundle(tmp_path / "out")


def test_a_database_with_an_endless_query(things, packed, tmp_path):
    """A view in the place of a table that never ends: it is no table, so it is never queried."""
    import sqlite3

    graph = tmp_path / "g.sqlite"
    connection = sqlite3.connect(graph)
    connection.execute(
        "CREATE VIEW facts AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"
    )
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    connection.close()
    path = result(pack(things.checkpoint, tmp_path / "x.synapse", PackOptions(knowledge=graph))).path
    assert result(verify(path)).values["status"] == "unsigned"


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small files of every kind of member: signed, and quantised."""
    folder = tmp_path_factory.mktemp("victims")
    things: Things = make_things(folder, width=32, blocks=1, subwords=True)
    os.environ.setdefault("SYNTHE_CACHE", str(folder / "cache"))
    whole, codes = folder / "whole.synapse", folder / "codes.synapse"
    result(pack(things.checkpoint, whole, things.parts))
    result(sign(whole, things.private))
    text = PackOptions(quantize="int4", sources=[str(ROOT / "README.md")], tokens=32)
    result(pack(things.checkpoint, codes, text))
    return [whole, codes]


def survive(rng: random.Random, victims: list[Path], box: Path) -> None:
    """One case: every verb refuses it in words or does its work, in reasonable time, and leaves nothing behind."""
    shutil.rmtree(box, ignore_errors=True)
    (box / "in").mkdir(parents=True)
    path = case(rng, rng.choice(victims), box / "in" / "x.synapse")
    before, started = list(tree(box)), time.process_time()
    exercise(path, box / "in")
    assert time.process_time() - started < 60
    assert list(tree(box)) == before


def test_the_unmodified_files_are_valid(victims, tmp_path):
    assert exercise(victims[0], tmp_path) == 0
    assert exercise(victims[1], tmp_path) == 1  # it has no session


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(10**6, 10**9))
def test_mutated_files(victims, tmp_path_factory, seed):
    survive(random.Random(seed), victims, tmp_path_factory.getbasetemp() / "hypothesis")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_ten_thousand_mutated_files(victims, tmp_path, monkeypatch, part):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what is unpacked is thrown away
    for seed in range(part * 500, part * 500 + 500):
        survive(random.Random(seed), victims, tmp_path / "box")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(content=st.binary(max_size=400))
def test_arbitrary_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.synapse"
    for head in (b"", b"PK\3\4"):
        path.write_bytes(head + content)
        with pytest.raises(InputError):
            Archive(path)
