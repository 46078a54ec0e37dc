"""Checkpoints: written whole or not at all, read lazily, checked before use."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint, best_checkpoint, checkpoints, load_weights, save, weights
from synthe_core.storage.checkpoint import write as module
from synthe_core.storage.manifest import FORMAT, Manifest
from tests.paths import ROOT
from tests.processes import run_program

BLOCK = [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 32}]


def make(tie: bool = True) -> tuple[Recipe, LanguageModel]:
    recipe = Recipe.model_validate({"model": {"width": 16, "blocks": 2, "block": BLOCK, "tie": tie}})
    torch.manual_seed(1)
    return recipe, LanguageModel(recipe.model, 257)


def write(path: Path, shard_bytes: int = module.SHARD_BYTES, tie: bool = True, **facts) -> LanguageModel:
    recipe, model = make(tie)
    save(
        path,
        recipe=recipe,
        vocab=257,
        tensors=weights(model),
        manifest=Manifest(**facts),
        tokenizer=ByteTokenizer(),
        shard_bytes=shard_bytes,
    )
    return model


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shard_bytes", [module.SHARD_BYTES, 5000])
def test_a_model_round_trips(tmp_path, shard_bytes, tie):
    model = write(tmp_path / "c", shard_bytes, tie)
    opened = Checkpoint.open(tmp_path / "c")
    assert opened.manifest.format == FORMAT and opened.recipe == make(tie)[0] and opened.vocab == 257
    assert opened.tokenizer().decode(opened.tokenizer().encode("é")) == "é"
    torch.rand(1)
    before = torch.get_rng_state()
    twin = opened.model()
    assert torch.equal(torch.get_rng_state(), before), "opening a model must not draw from the caller's numbers"
    tokens = torch.randint(257, (2, 7))
    assert torch.equal(model(tokens)[0], twin(tokens)[0])
    assert opened.model(dtype=torch.float64).norm.weight.dtype == torch.float64
    assert set(opened.tensors) == set(weights(model)) and ("head.weight" in opened.tensors) == (not tie)
    if tie:
        assert twin.head.weight is twin.embedding.weight


def test_past_the_limit_weights_are_sharded_with_an_index(tmp_path):
    model = write(tmp_path / "c", shard_bytes=5000)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "c").glob("model-*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "c" / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in weights(model).values())
    for file in files:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            assert {index["weight_map"][name] for name in names} == {file.name}
            assert len(names) == 1 or sum(opened.get_tensor(name).numel() * 4 for name in names) <= 5000


def test_tensors_are_read_lazily(tmp_path):
    write(tmp_path / "c", shard_bytes=5000)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())["weight_map"]
    broken = tmp_path / "c" / index["norm.weight"]
    broken.write_bytes(b"\0" * broken.stat().st_size)
    opened = Checkpoint.open(tmp_path / "c")
    assert opened.tensors["embedding.weight"].shape == (257, 16)
    with pytest.raises(InputError, match=f"{broken.name} is damaged"):
        opened.tensors["norm.weight"]


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "tokenizer.json", "config.json"])
def test_damage_is_named(tmp_path, harm, name):
    write(tmp_path / "c")
    harm(tmp_path / "c" / name)
    with pytest.raises(InputError) as refused:
        opened = Checkpoint.open(tmp_path / "c")
        opened.model()
        opened.tokenizer()
    assert str(tmp_path / "c" / name) in refused.value.message and refused.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "x"}', "\xff"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    write(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"manifest\.json"):
        Checkpoint.open(tmp_path / "c")


def test_an_older_format_is_refused(tmp_path):
    write(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps({"format": 1, "files": {}}))
    with pytest.raises(InputError, match=f"has checkpoint format 1, and this synthe reads format {FORMAT}") as refused:
        Checkpoint.open(tmp_path / "c")
    assert "\n" not in refused.value.message and "train it again" in refused.value.hint


def test_a_newer_format_is_refused(tmp_path):
    write(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_text(json.dumps({"format": FORMAT + 1, "files": "another thing by then"}))
    with pytest.raises(InputError, match=f"format {FORMAT + 1}") as refused:
        Checkpoint.open(tmp_path / "c")
    assert "upgrade" in refused.value.hint


def test_a_missing_folder_suggests_a_near_one(tmp_path):
    write(tmp_path / "mine")
    with pytest.raises(InputError, match="no such checkpoint") as refused:
        Checkpoint.open(tmp_path / "mien")
    assert refused.value.hint == f"did you mean {tmp_path / 'mine'}?"
    with pytest.raises(InputError, match="holds no checkpoint"):
        Checkpoint.open(tmp_path)


def test_a_run_opens_at_its_best_and_resumes_from_its_newest(tmp_path):
    run = tmp_path / "run"
    for step, score in ((5, 3.0), (10, 2.0), (15, 2.5), (20, None)):
        write(run / "checkpoints" / f"step-{step:08}", step=step, metrics={"bits_per_byte": score} if score else {})
    assert [Manifest.read(path).step for path in checkpoints(run)] == [5, 10, 15, 20]
    assert Checkpoint.open(run).manifest.step == 10
    assert Checkpoint.open(run, latest=True).manifest.step == 20
    assert best_checkpoint(checkpoints(run)[3:]) is None
    flip(run / "checkpoints" / "step-00000020" / "model.safetensors")
    with pytest.raises(InputError, match=r"step-00000020/model\.safetensors is damaged") as refused:
        Checkpoint.open(run, latest=True).model()
    assert "step-00000015" in refused.value.hint


def test_weights_of_another_model_are_named(tmp_path):
    write(tmp_path / "c")
    tensors = Checkpoint.open(tmp_path / "c").tensors
    spec = make()[0].model
    with pytest.raises(InputError, match=r"embedding.weight is \[257, 16\] .* and \[300, 16\]"):
        load_weights(LanguageModel(spec, 300), tensors, tmp_path)
    with pytest.raises(InputError, match=r"has no tensor blocks\.2\."):
        load_weights(LanguageModel(spec.model_copy(update={"blocks": 3}), 257), tensors, tmp_path)
    with pytest.raises(InputError, match=r"has a tensor blocks\.1\."):
        load_weights(LanguageModel(spec.model_copy(update={"blocks": 1}), 257), tensors, tmp_path)


@pytest.mark.parametrize("how", ["os", "safetensors"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, how):
    model = write(tmp_path / "c", step=1)

    def full(*args, **kwargs):
        if how == "os":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_tensors", full)
    with pytest.raises(WorkError, match="the disk is full") as failed:
        write(tmp_path / "c", step=2)
    assert failed.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    opened = Checkpoint.open(tmp_path / "c")
    assert opened.manifest.step == 1
    assert torch.equal(opened.tensors["embedding.weight"], model.embedding.weight)


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_write_that_the_system_refuses(tmp_path):
    write(tmp_path / "c", step=1)
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from tests.storage.test_checkpoint import write\n"
        "from synthe_core.errors import WorkError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try: write(Path({str(tmp_path / 'c')!r}), step=2)\n"
        "except WorkError as error: sys.exit(f'refused: {error.message}')\n"
    )
    root = ROOT
    done = run_program([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "refused:" in done.stderr and "could not be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert Checkpoint.open(tmp_path / "c").manifest.step == 1


def test_files_have_default_permissions(tmp_path):
    write(tmp_path / "c")
    modes = {file.stat().st_mode for file in (tmp_path / "c").iterdir()}
    assert len(modes) == 1


def test_replacing_a_checkpoint_leaves_one(tmp_path):
    write(tmp_path / "c", step=1)
    write(tmp_path / "c", step=2)
    assert Checkpoint.open(tmp_path / "c").manifest.step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
