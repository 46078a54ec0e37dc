"""swarm.yaml and the folder around it: strict, commented, and changed without touching what the user wrote."""

from __future__ import annotations

import pytest

from synthe_core.errors import InputError
from synthe_core.storage.yaml_reader import parse_yaml
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.spec import SpecialistSpec, SwarmSpec
from synthe_core.swarm.yaml_text import new_text, with_specialist, without_specialist
from tests.adapters.conftest import saved


def test_a_new_file_has_every_key_with_its_default():
    text = new_text("model.gguf")
    assert SwarmSpec.from_source(parse_yaml(text, "swarm.yaml")) == SwarmSpec(base="model.gguf")
    keys = [key for section in ("router", "pathways", "confidence", "answers", "knowledge") for key in _keys(section)]
    assert all(f"  {key}: " in text for key in keys)


def _keys(section: str) -> list[str]:
    return list(type(getattr(SwarmSpec(base="x"), section)).model_fields)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("base: x\nrouter:\n  margn: 0.1\n", "swarm.yaml:3:3: unknown key 'router.margn'", "did you mean 'margin'?"),
        ("base: x\nrooter: {}\n", "swarm.yaml:2:1: unknown key 'rooter'", "did you mean 'router'?"),
        ("specialists: {}\n", "swarm.yaml: missing key 'base'", None),
        ("base: x\nspecialists: {a: {promt: b}}\n", "unknown key 'specialists.a.promt'", "did you mean 'prompt'?"),
        ("base: x\nspecialists: {Base: {}}\n", "swarm.yaml:2:15: specialists.Base: 'Base' is no name", None),
        ("base: x\nspecialists: {swarm: {}}\n", "'swarm' is a name of the API", None),
        (
            "base: x\nrouter: {fallback: pyton}\nspecialists: {python: {}}\n",
            "no specialist is named 'pyton'",
            "'python'?",
        ),
        ("base: x\nrouter: {threshold: 2}\n", "swarm.yaml:2:10: router.threshold:", None),
        ("base: x\nsynthesis: bost\n", "synthesis.type", None),
        ("base: x\nsynthesis: fuse\nspecialists: {a: {model: b}}\n", "mixes answers of one model", "best or write"),
        ("base: x\nrouter: {max_specialists: yes}\n", "a number is expected, not true", None),
    ],
)
def test_faults_have_a_line_and_the_nearest_name(text, message, hint):
    with pytest.raises(InputError) as error:
        SwarmSpec.from_source(parse_yaml(text, "swarm.yaml"))
    assert message in error.value.message
    assert hint is None or hint in (error.value.hint or "")


def test_specialists_are_added_and_removed_around_what_the_user_wrote(folder):
    text = folder.spec_path.read_text()
    assert list(folder.spec.specialists) == ["python", "maths", "history"]
    changed = text.replace("  maths:\n", "  maths: # counts\n").replace("prompt: You count.", "prompt: You count well.")
    folder.spec_path.write_text(changed + "\n# my own last words\n")
    folder.reload()
    folder.add("law", SpecialistSpec(capabilities=["contracts"], prompt="One.\nTwo."))
    folder.remove("history")
    after = folder.spec_path.read_text()
    assert "# counts" in after and "# my own last words" in after and "history" not in after
    assert list(folder.spec.specialists) == ["python", "maths", "law"]
    assert folder.spec.specialists["maths"].prompt == "You count well."
    assert folder.spec.specialists["law"].prompt == "One.\nTwo."


@pytest.mark.parametrize("form", ["specialists: {}\n", "", "specialists:\n", "specialists:\n  a: {prompt: b}\n"])
@pytest.mark.parametrize("rest", ["", "\nrouter:\n  margin: 0.2\n", "\n# a comment"])
def test_every_form_of_the_file_takes_a_specialist(form, rest):
    text = f"base: x\n{form}{rest}"
    spec = SpecialistSpec(prompt='a "b": c', capabilities=["d, e"])
    added = SwarmSpec.from_source(parse_yaml(with_specialist(text, "new", spec), "swarm.yaml"))
    before = SwarmSpec.from_source(parse_yaml(text, "swarm.yaml"))
    assert added.specialists == {**before.specialists, "new": spec} and added.router == before.router
    removed = without_specialist(with_specialist(text, "new", spec), "new")
    assert SwarmSpec.from_source(parse_yaml(removed, "swarm.yaml")) == before


def test_a_file_in_another_form_is_left_alone(folder):
    flow = f"base: {folder.spec.base}\nspecialists: {{a: {{prompt: b}}}}\n"
    folder.spec_path.write_text(flow)
    folder.reload()
    with pytest.raises(InputError, match="cannot be changed as it is written"):
        folder.add("b", SpecialistSpec(prompt="c"))
    assert folder.spec_path.read_text() == flow


def test_an_adapter_is_copied_and_recorded(folder, base, tmp_path):
    spec = folder.spec.specialists["python"]
    assert spec.adapter == "adapters/python/1" and (folder.path / spec.adapter / "adapter_model.safetensors").is_file()
    (entry,) = folder.ledger()
    assert (entry["event"], entry["specialist"], entry["version"]) == ("added", "python", "1") and entry["digest"]
    folder.remove("python")
    folder.add("python", spec.model_copy(update={"adapter": None}), str(tmp_path / "adapter"))
    assert folder.spec.specialists["python"].adapter == "adapters/python/2"
    assert [each["event"] for each in folder.ledger()] == ["added", "removed", "added"]


def test_what_does_not_fit_changes_nothing(folder, base, tmp_path):
    before = folder.spec_path.read_text()
    spec = SpecialistSpec(prompt="a")
    with pytest.raises(InputError, match="already"):
        folder.add("python", spec)
    with pytest.raises(InputError, match="no such document"):
        folder.add("law", SpecialistSpec(documents=["gone.txt"]))
    with pytest.raises(InputError, match="no adapter"):
        folder.add("law", spec, str(base))
    with pytest.raises(InputError, match="is no name"):
        folder.add("../law", spec)
    with pytest.raises(InputError, match="unknown specialist 'pyton'"):
        folder.remove("pyton")
    assert folder.spec_path.read_text() == before and not (folder.path / "adapters" / "law").exists()


def test_an_adapter_of_another_model_is_refused(folder, base, tmp_path):
    other = saved(tmp_path / "other", base, {"rank": 2}).path
    moved = folder.spec_path.read_text().replace(f"base: {base}", f"base: {tmp_path / 'copy'}")
    _other_model(tmp_path / "copy")
    folder.spec_path.write_text(moved)
    folder.reload()
    with pytest.raises(InputError, match="is not the model that"):
        folder.add("law", SpecialistSpec(prompt="a"), str(other))


def _other_model(path):
    import torch

    from synthe_core.data.tokenizers import ByteTokenizer
    from synthe_core.model.language_model import LanguageModel
    from synthe_core.storage.checkpoint import save, weights
    from synthe_core.storage.manifest import Manifest
    from tests.adapters.conftest import recipe_with

    with torch.random.fork_rng():
        torch.manual_seed(9)
        model = LanguageModel(recipe_with().model, 257)
    facts = {"manifest": Manifest(), "tokenizer": ByteTokenizer()}
    save(path, recipe=recipe_with(), vocab=257, tensors=weights(model), **facts)


def test_folders_that_are_no_swarm(tmp_path, base):
    with pytest.raises(InputError, match="is no swarm") as error:
        SwarmFolder(tmp_path)
    assert "synthe swarm init" in (error.value.hint or "")
    with pytest.raises(InputError, match="no such model"):
        SwarmFolder.create(tmp_path / "team", "gone.gguf")
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "notes").touch()
    with pytest.raises(InputError, match="not empty"):
        SwarmFolder.create(tmp_path / "team", str(base))
    SwarmFolder.create(tmp_path / "new", str(base))
    with pytest.raises(InputError, match="already"):
        SwarmFolder.create(tmp_path / "new", str(base))


def test_a_relative_base_is_relative_to_the_folder(tmp_path, base, monkeypatch):
    monkeypatch.chdir(base.parent)
    swarm = SwarmFolder.create(tmp_path / "team", base.name)
    assert not swarm.spec.base.startswith("/") and (swarm.path / swarm.spec.base).samefile(base)
    monkeypatch.chdir("/")
    assert swarm.base and SwarmFolder(tmp_path / "team").base == swarm.base


def test_the_end_of_the_ledger_may_be_cut_off(folder):
    path = folder.path / "ledger.jsonl"
    path.write_text(path.read_text() + '{"time": 1, "eve')
    assert len(folder.ledger()) == 1
    folder.record("removed", "python")
    assert [each["event"] for each in folder.ledger()] == ["added", "removed"]
    path.write_text('{"tim\n' + path.read_text())
    with pytest.raises(InputError, match=r"ledger.jsonl:1 is no JSON"):
        folder.ledger()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("empty.txt", b"", "no text"), ("binary.txt", b"\x80\x81\x82", "UTF-8"), ("cut.pdf", b"%PDF-1.4", "")],
)
def test_a_document_that_cannot_be_read_is_refused_before_the_swarm_has_it(folder, tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    before = folder.spec_path.read_text()
    with pytest.raises(InputError, match=f"law cannot read its document.*{word}"):
        folder.add("law", SpecialistSpec(documents=[str(tmp_path / name)]))
    assert folder.spec_path.read_text() == before


def test_what_another_process_adds_meanwhile_stays(folder):
    other = SwarmFolder(folder.path)
    assert "tax" not in other.spec.specialists and "law" not in folder.spec.specialists
    folder.add("tax", SpecialistSpec(prompt="You know taxes."))
    other.add("law", SpecialistSpec(prompt="You know the law."))
    folder.remove("maths")
    assert set(SwarmFolder(folder.path).spec.specialists) == {"python", "history", "tax", "law"}
    with pytest.raises(InputError, match="'law' already"):
        folder.add("law", SpecialistSpec(prompt="Another."))
