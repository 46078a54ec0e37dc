"""What is packed comes back: the same digests, the same bytes, the same text; every verb takes the file as it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.model.session import Session
from synthe_core.packing.archive import ALIGN, Archive
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.diff import diff
from synthe_core.packing.inspect import inspect
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.unpack import unpack
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint, weights
from synthe_core.storage.manifest import FORMAT
from tests.packing.conftest import Things, result, write_adapter, write_checkpoint, write_graph
from tests.paths import ROOT
from tests.processes import run_program


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def text(checkpoint: Checkpoint, count: int = 24) -> str:
    model = checkpoint.model().eval()
    return "".join(
        piece.text for piece in generate(LoadedModel("model", model, checkpoint.tokenizer()), ["def "], count, seed=3)
    )


def test_generate_from_the_file_is_generate_from_the_folder(things, packed):
    from_file, from_folder = Checkpoint.open(packed), Checkpoint.open(things.checkpoint)
    assert text(from_file) == text(from_folder)
    assert from_file.recipe == from_folder.recipe and from_file.vocab == from_folder.vocab
    assert from_file.manifest.step == 10 and from_file.manifest.metrics == from_folder.manifest.metrics
    assert not from_file.resumable
    own, other = weights(from_file.model()), weights(from_folder.model())
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_unpacking_gives_the_same_digests(packed, tmp_path):
    result(unpack(packed, tmp_path / "out"))
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        for name in names:
            assert (tmp_path / "out" / name).read_bytes() == archive.read(name)
        manifest = json.loads(archive.read("manifest.json"))
    assert names[0] == "manifest.json" and names[-1] == "signature.json"
    assert {name: facts["sha256"] for name, facts in manifest["files"].items()} == {
        name: digest(tmp_path / "out" / name) for name in names if name not in ("manifest.json", "signature.json")
    }
    assert set(names) == {
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }


def test_an_unpacked_file_is_used_verified_and_packed_to_the_same_bytes(things, packed, tmp_path):
    result(unpack(packed, tmp_path / "out"))
    assert text(Checkpoint.open(tmp_path / "out")) == text(Checkpoint.open(packed))
    assert result(verify(tmp_path / "out", things.public)).values["status"] == "signed"
    one = result(pack(things.checkpoint, tmp_path / "one.synapse", things.parts)).path
    two = result(pack(tmp_path / "out", tmp_path / "two.synapse")).path
    three = result(pack(packed, tmp_path / "three.synapse")).path
    assert digest(one) == digest(two) == digest(three)


def test_packing_twice_in_two_processes_gives_the_same_bytes(things, tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from synthe_core.packing.pack import PackOptions, pack\n"
        "folder, out = map(Path, sys.argv[1:])\n"
        "parts = PackOptions(adapters=[f'code={folder / \"lora\"}'], knowledge=folder / 'graph.sqlite',\n"
        "    sessions=[folder / 'chat.safetensors'], agent=folder / 'agent.yaml', licence='mit')\n"
        "list(pack(folder / 'small', out, parts))\n"
    )
    command = [sys.executable, "-c", program, str(things.folder), str(tmp_path / "1.synapse")]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    run_program(command, check=True, env=surroundings, cwd=tmp_path)
    result(pack(things.checkpoint, tmp_path / "2.synapse", things.parts))
    assert digest(tmp_path / "1.synapse") == digest(tmp_path / "2.synapse")


def test_members_are_stored_and_aligned(packed):
    archive = Archive(packed)
    with zipfile.ZipFile(packed) as other:
        for info in other.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0)
            path, offset, size = archive.locate(info.filename)
            assert offset % ALIGN == 0
            with path.open("rb") as file:
                file.seek(offset)
                assert file.read(size) == other.read(info)


def test_weights_are_memory_mapped_in_place(packed):
    """A tensor is a mapping of the file itself, not a copy: the process's map names the file."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    tensors = Checkpoint.open(packed).tensors
    loaded = [tensors[name] for name in tensors]
    lines = [line for line in maps.read_text().splitlines() if line.endswith(str(packed))]
    assert lines and all(" rw-p " in line for line in lines)  # private: what is written stays in memory
    before = digest(packed)
    for tensor in loaded:
        tensor.zero_()
    assert digest(packed) == before


def test_parts_are_unpacked_separately(things, packed, tmp_path):
    model = result(unpack(packed, tmp_path / "m", "model")).path
    assert Checkpoint.open(model).manifest.format == FORMAT  # an ordinary checkpoint
    assert text(Checkpoint.open(model)) == text(Checkpoint.open(things.checkpoint))
    adapters = result(unpack(packed, tmp_path / "a", "adapters")).path
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (adapters / "adapters" / "code" / name).read_bytes() == (things.adapter / name).read_bytes()
    knowledge = result(unpack(packed, tmp_path / "k", "knowledge")).path
    rows = sqlite3.connect(knowledge / "knowledge" / "graph.sqlite").execute("SELECT count(*) FROM facts").fetchone()
    assert rows == (50,) and [p.name for p in knowledge.iterdir()] == ["knowledge"]
    with pytest.raises(InputError, match="exists already"):
        list(unpack(packed, tmp_path / "m"))
    with pytest.raises(InputError, match="unknown part 'modle'") as refused:
        list(unpack(packed, tmp_path / "x", "modle"))
    assert refused.value.hint == "did you mean 'model'?"


def test_a_packed_session_continues(things, packed):
    opened = Checkpoint.open(packed)
    model = opened.model().eval()
    by_name, by_file = opened.session(Path("chat"), model), Session.load(things.session, model)

    def go_on(session: Session) -> str:
        return "".join(
            p.text for p in generate(LoadedModel("model", model, ByteTokenizer()), [" and"], 12, session=session)
        )

    assert go_on(by_name) == go_on(by_file)
    with pytest.raises(InputError, match="no such session: other"):
        opened.session(Path("other"), model)


def test_inspect_lists_the_contents(things, packed):
    values = result(inspect(packed)).values
    assert (values["name"], values["licence"], values["capabilities"]) == ("small", "mit", ["python", "sql", "prose"])
    assert values["specialists"] == ["coder", "writer"] and values["sessions"] == ["chat"]
    (adapter,) = values["adapters"]
    assert (adapter["rank"], adapter["alpha"], adapter["parameters"]) == (4, 8.0, 4 * (64 + 320))
    assert adapter["modules"] == ["blocks.0.learners.2.gate_up"]
    assert values["knowledge"] == {"facts": 50}
    assert values["scores"][0] == {"name": "bits_per_byte", "value": 8.0, "how": "validation at step 10, on stdlib"}
    assert values["signed_by"].startswith("SHA256:")
    recipe = Checkpoint.open(things.checkpoint).recipe
    assert values["base"]["parameters"] == recipe.meta_model(257).parameter_count()


def test_more_is_added_to_a_file(things, packed, tmp_path):
    write_adapter(tmp_path / "second")
    result(pack(packed, tmp_path / "more.synapse", PackOptions(adapters=[str(tmp_path / "second")])))
    about = Bundle(tmp_path / "more.synapse").pack_manifest
    assert [adapter.name for adapter in about.adapters] == ["code", "second"]
    assert about.licence == "mit" and about.sessions == ["chat"]


def test_an_external_base_is_resolved_by_its_digest(things, tmp_path):
    path = tmp_path / "alone.synapse"
    result(pack(things.checkpoint, path, PackOptions(weights=False)))
    assert path.stat().st_size < 50_000
    with pytest.raises(InputError, match="does not contain its base model small"):
        Checkpoint.open(path)
    write_checkpoint(tmp_path / "other", seed=2)
    with pytest.raises(InputError, match="does not contain its base model small"):
        Checkpoint.open(path)
    shutil.copytree(things.checkpoint, tmp_path / "small")
    assert text(Checkpoint.open(path)) == text(Checkpoint.open(things.checkpoint))
    shutil.rmtree(tmp_path / "small")
    result(pack(things.checkpoint, tmp_path / "base.synapse"))
    assert text(Checkpoint.open(path)) == text(Checkpoint.open(things.checkpoint))
    result(pack(path, tmp_path / "whole.synapse"))  # and carried again
    assert digest(tmp_path / "whole.synapse") == digest(tmp_path / "base.synapse")
    result(unpack(path, tmp_path / "out", "model"))
    assert text(Checkpoint.open(tmp_path / "out")) == text(Checkpoint.open(things.checkpoint))


def test_an_encoder(tmp_path):
    """A model that classifies: packed, quantised without a loss in bits per byte, and read from the file."""
    from synthe_core.model.classifier import build_model
    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage.checkpoint import save
    from synthe_core.storage.manifest import Manifest

    model = {"width": 64, "blocks": 1, "block": ["mlp"], "head": {"type": "classify", "classes": 3}}
    recipe = Recipe.model_validate({"name": "namer", "model": model, "data": {"sources": "x", "labels": "path"}})
    built = build_model(recipe.model, 257)
    common = {"recipe": recipe, "vocab": 257, "tokenizer": ByteTokenizer(), "manifest": Manifest()}
    save(tmp_path / "namer", tensors=weights(built), classes=["a", "b", "c"], **common)
    for kind in (None, "int8"):
        path = result(pack(tmp_path / "namer", tmp_path / f"{kind}.synapse", PackOptions(quantize=kind))).path
        opened = Checkpoint.open(path)
        assert opened.classes == ["a", "b", "c"]
        about = Bundle(path).pack_manifest
        assert (about.base.quantization is None) == (kind is None)
        assert kind is None or about.base.quantization.loss is None
        tokens = torch.randint(257, (2, 9))
        tolerance = 0 if kind is None else 0.1
        difference = opened.classifier().eval()(tokens) - built.eval()(tokens)
        assert float(difference.abs().max()) <= tolerance
        assert b"text-classification" in opened.source.read("README.md")
        with pytest.raises(InputError, match="does not write text"):
            opened.model()


def test_an_adapter_of_peft(tmp_path):
    """The names that PEFT gives to what it trains besides the usual pairs, as PEFT 0.21 writes them."""
    from synthe_core.packing.adapters import check_adapter
    from synthe_core.storage.tensor_file import TensorFile

    base = {"a.weight": (320, 64), "embedding.weight": (257, 64), "norm.weight": (64,)}

    def check(**tensors: tuple[int, ...]):
        named = {f"base_model.model.{name.replace('__', '.')}": torch.zeros(size) for name, size in tensors.items()}
        save_file(named, tmp_path / "x")
        return check_adapter("x", {"lora_alpha": 8}, TensorFile(tmp_path / "x"), base.get)

    pair = {"a__lora_A__weight": (4, 64), "a__lora_B__weight": (320, 4)}
    assert check(**pair).rank == 4
    assert check(**pair, a__lora_magnitude_vector=(320,)).modules == ["a"]  # DoRA
    assert check(embedding__lora_embedding_A=(4, 257), embedding__lora_embedding_B=(64, 4)).rank == 4
    assert check(**pair, norm__weight=(64,)).modules == ["a", "norm"]  # a module that was trained whole
    other = {"embedding__lora_embedding_A": (2, 257), "embedding__lora_embedding_B": (64, 2)}
    assert check(**pair, **other).rank is None  # two ranks in one adapter
    for wrong, message in (
        ({"a__lora_A__weight": (4, 64)}, "only one half"),
        ({"a__lora_A__weight": (4, 64), "a__lora_B__weight": (320, 5)}, "two ranks"),
        ({**pair, "a__lora_magnitude_vector": (7,)}, "does not fit"),
        ({"norm__weight": (65,)}, "does not fit"),
        ({"embedding__lora_embedding_A": (4, 64), "embedding__lora_embedding_B": (257, 4)}, "does not fit"),
        ({}, "holds no tensors"),
    ):
        with pytest.raises(InputError, match=message):
            check(**wrong)


def test_diff(things, packed, tmp_path):
    assert result(diff(packed, packed)).values["same"]
    write_checkpoint(tmp_path / "other", seed=2)
    values = result(diff(things.checkpoint, tmp_path / "other")).values
    assert not values["same"] and values["recipe"] == [] and values["members"]["changed"]
    assert values["tensors"] and all(each["relative"] > 0.1 for each in values["tensors"])
    assert values["tensors"] == sorted(values["tensors"], key=lambda each: -each["relative"])
    result(pack(things.checkpoint, tmp_path / "bare.synapse"))
    values = result(diff(tmp_path / "bare.synapse", packed)).values
    assert values["tensors"] == [] and "agent.yaml" in values["members"]["only in the second"]
    assert any(line.startswith("licence: null") for line in values["manifest"])


def test_a_live_database_packs_consistently(things, tmp_path):
    """A writer in the midst of a transaction: what is packed is the state before it, and the writer goes on."""
    graph = write_graph(tmp_path / "live.sqlite", rows=200)
    writer = sqlite3.connect(graph, isolation_level=None)
    writer.execute("BEGIN")
    writer.executemany("INSERT INTO facts VALUES (?, 'is', 'new')", [(f"n{i}" * 50,) for i in range(2000)])
    out = result(pack(things.checkpoint, tmp_path / "live.synapse", PackOptions(knowledge=graph))).path
    writer.execute("COMMIT")
    assert writer.execute("SELECT count(*) FROM facts").fetchone() == (2200,)
    assert result(inspect(out)).values["knowledge"] == {"facts": 200}
    result(pack(things.checkpoint, tmp_path / "later.synapse", PackOptions(knowledge=graph)))
    assert result(inspect(tmp_path / "later.synapse")).values["knowledge"] == {"facts": 2200}
    writer.close()
    result(pack(things.checkpoint, tmp_path / "quiet.synapse", PackOptions(knowledge=graph)))
    assert sorted(p.name for p in tmp_path.glob("live.sqlite*")) == ["live.sqlite"]  # and nothing is left beside it


def test_knowledge_is_opened_read_only(packed):
    from synthe_core.packing.knowledge import open_database

    with open_database(Bundle(packed)) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM facts")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda t, p: PackOptions(quantize="int2"), "unknown quantisation 'int2'"),
        (lambda t, p: PackOptions(name="../x"), "is not a valid name"),
        (lambda t, p: PackOptions(adapters=["a/b=x"]), "is not a valid name for an adapter"),
        (lambda t, p: PackOptions(adapters=[f"x={p}"]), "is not an adapter: it has no adapter_config.json"),
        (
            lambda t, p: PackOptions(adapters=[f"x={write_adapter(p / 'w', 'blocks.7.x')}"]),
            "changes blocks.7.x.weight, which",
        ),
        (lambda t, p: PackOptions(adapters=[f"x={write_adapter(p / 's', sizes=(65, 320))}"]), "does not fit"),
        (lambda t, p: PackOptions(adapters=[f"x={write_adapter(p / 's', sizes=(64, 64))}"]), "does not fit"),
        (lambda t, p: PackOptions(knowledge=p / "none.sqlite"), "no such database"),
        (lambda t, p: PackOptions(knowledge=t.agent), "cannot be copied: file is not a database"),
        (lambda t, p: PackOptions(sessions=[p / "none"]), "no such session"),
        (lambda t, p: PackOptions(sessions=[t.adapter / "adapter_model.safetensors"]), "is not a session"),
        (lambda t, p: PackOptions(agent=t.agent), "names the adapter 'code', which is not in the file"),
        (lambda t, p: PackOptions(base="nonsense"), "is not a model of the hub"),
        (lambda t, p: PackOptions(weights=False, quantize="int8"), "cannot be quantised"),
        (
            lambda t, p: PackOptions(quantize="int8", sessions=[t.session], tokens=32),
            "the quantised model is another",
        ),
    ],
)
def test_unsuitable_inputs_are_refused(things: Things, tmp_path, monkeypatch, parts, message):
    monkeypatch.setenv("SYNTHE_CACHE", str(things.folder / "cache"))
    options = parts(things, tmp_path)
    if options.quantize in ("int8",):
        options = PackOptions(**{**options.__dict__, "sources": [str(ROOT / "README.md")]})
    with pytest.raises(InputError) as refused:
        list(pack(things.checkpoint, tmp_path / "x.synapse", options))
    assert message in refused.value.message and refused.value.hint
    assert not list(tmp_path.glob("*.synapse")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("specialists: [{name: a}, {name: a}]", "two specialists are named 'a'"),
        ("specialists: [{nme: a}]", "agent.yaml:1:"),
        ("specialist: []", "specialists"),
        ("specialists: [{name: a, priority: high}]", "priority"),
        ("specialists: &x [*x]", "alias"),
        ("- a", "not a mapping"),
    ],
)
def test_invalid_agents(things, tmp_path, content, message):
    (tmp_path / "agent.yaml").write_text(content)
    with pytest.raises(InputError) as refused:
        list(pack(things.checkpoint, tmp_path / "x.synapse", PackOptions(agent=tmp_path / "agent.yaml")))
    assert message in refused.value.message


def test_a_session_of_another_model_is_refused(things, tmp_path):
    write_checkpoint(tmp_path / "other", seed=2)
    with pytest.raises(InputError, match="belongs to another model"):
        list(pack(tmp_path / "other", tmp_path / "x.synapse", PackOptions(sessions=[things.session])))


def test_a_folder_that_cannot_be_written(things, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list(pack(things.checkpoint, tmp_path / "no" / "x.synapse"))
    with pytest.raises(InputError, match="is a folder"):
        list(pack(things.checkpoint, tmp_path))


def test_a_full_disk_leaves_the_old_file(things, tmp_path, monkeypatch):
    def full(path: Path, contents: object) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(28, "No space left on device")

    (tmp_path / "x.synapse").write_text("before")
    monkeypatch.setattr("synthe_core.packing.contents.write", full)
    with pytest.raises(WorkError, match="the disk is full"):
        list(pack(things.checkpoint, tmp_path / "x.synapse"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.synapse"] and (tmp_path / "x.synapse").read_text() == "before"


def test_a_failed_unpack_leaves_no_folder(packed, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr("synthe_core.packing.unpack.read_range", full)
    with pytest.raises(WorkError, match="the disk is full"):
        list(unpack(packed, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
