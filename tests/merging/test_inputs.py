"""What can be named as an input, and what a merge recipe may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from synthe_core.errors import InputError, SyntheError
from synthe_core.events import Result
from synthe_core.merging.config import load
from synthe_core.merging.difference import diff
from synthe_core.merging.extract import extract_lora
from synthe_core.merging.hashed_file import HashedFile
from synthe_core.merging.inputs import open_input
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.storage.checkpoint import Checkpoint
from tests.merging.models import adapter, checkpoint, family, folder, llama, moved, result
from tests.paths import ROOT


def test_kinds_are_recognised(tmp_path: Path) -> None:
    run = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint(run, 1)
    hf = folder(tmp_path / "hf", llama(), files=2)
    lora = adapter(tmp_path / "lora", str(hf), llama(), ["model.layers.0.mlp.up_proj"])
    kinds = [open_input(str(path)).kind for path in (run, tmp_path / "run", hf, lora)]
    assert kinds == ["checkpoint", "checkpoint", "huggingface", "adapter"]
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "no model that can be merged"), ("hg", "no such model")):
        with pytest.raises(InputError, match=message):
            open_input(str(tmp_path / name))
    with pytest.raises(InputError) as caught:
        open_input(str(tmp_path / "lara"))
    assert "lora" in str(caught.value.hint)


def test_hub_ids_are_resolved_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, what was fetched before serves; the rest is one line."""
    import huggingface_hub.constants as constants

    commit = "0123456789" * 4
    snapshot = tmp_path / "models--org--small" / "snapshots" / commit
    folder(snapshot, llama())
    refs = tmp_path / "models--org--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    opened = open_input("org/small")
    assert opened.kind == "huggingface" and opened.path == snapshot
    assert torch.equal(opened.read("lm_head.weight"), llama()["lm_head.weight"])
    with pytest.raises(SyntheError, match="'org/other' cannot be read: offline mode is on"):
        open_input("org/other")


def test_tensors_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "hf", llama())
    file = HashedFile(path / "model.safetensors")
    opened = open_input(str(path))
    places = [file.offset(name) for name in opened.tensors]
    assert places == sorted(places) and len(places) == len(llama())
    for name, tensor in llama().items():
        assert torch.equal(file.read(name), tensor)


def test_a_synapse_file_is_merged_like_its_folder(tmp_path: Path) -> None:
    base, tuned = (checkpoint(tmp_path / name, seed) for name, seed in (("base", None), ("tuned", 1)))
    files = [tmp_path / f"{name}.synapse" for name in ("base", "tuned")]
    for source, file in zip((base, tuned), files, strict=True):
        list(pack(source, file))
    expected = result(tmp_path / "of-folders", "linear", [base, tuned])
    merged = result(tmp_path / "of-files", "linear", files)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    parents = json.loads((tmp_path / "of-files" / "manifest.json").read_text())["merge"]["parents"]
    assert [parent["files"]["model.safetensors"] for parent in parents] == [
        Checkpoint.open(file).manifest.files["model.safetensors"].model_dump() for file in files
    ]


def test_quantised_weights_are_not_merged(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", width=64)
    list(pack(base, tmp_path / "q.synapse", PackOptions(quantize="int8", sources=[str(ROOT / "README.md")])))
    with pytest.raises(InputError, match="quantised"):
        result(tmp_path / "out", "linear", [base, tmp_path / "q.synapse"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: ties\nmodles: []\n", "m.yaml:2:1: unknown key 'modles'"),
        ("merge_method: ties\n", "give either `models` or `slices`"),
        ("models: [{model: a}]\n", "missing key 'merge_method'"),
        ("merge_method: tise\nmodels: [{model: a}]\n", "unknown merge method 'tise'"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {density: 2}}]\n", "a: density 2: input should be less"),
        ("merge_method: ties\nmodels: [{model: a}]\nparameters: {densty: 1}\n", "unknown parameter of ties 'densty'"),
        (
            "merge_method: ties\nmodels: [{model: a}]\nparameters: {density: [{filter: x}]}\n",
            "is not a filter with",
        ),
        ("merge_method: ties\nmodels: [{model: a}]\nparameters: {density: []}\n", "density is an empty list"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: int8\n", "m.yaml:3:1: dtype: input should be 'float32'"),
        ("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 2]}]}]\n", "] is empty"),
        ("merge_method: linear\nmodels: [{model: a, weight: 2}]\n", "unknown key 'models.0.weight'"),
        ("merge_method: linear\nmodels: [{model: a}]\ntokenizer: {sauce: base}\n", "sauce"),
        ("- a\n", "is not a mapping"),
    ],
)
def test_a_bad_recipe_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "m.yaml")
    assert message in caught.value.message


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    _, (one, _) = family(tmp_path, 2)
    text = f"merge_method: passthrough\nslices: [{{sources: [{{model: {one}, layer_range: [1, 5]}}]}}]\n"
    (tmp_path / "m.yaml").write_text(text)
    from synthe_core.merging.merge import merge

    with pytest.raises(InputError, match="has no layer 3"):
        list(merge(load(tmp_path / "m.yaml"), out=tmp_path / "out"))


def test_diff(tmp_path: Path) -> None:
    base = llama()
    half = {n: t.clone() for n, t in base.items()}
    half["lm_head.weight"][:20] += 1.0
    other = {n: t.clone() for n, t in base.items()}
    other["lm_head.weight"][10:30] -= 2.0
    paths = [folder(tmp_path / name, tensors) for name, tensors in (("base", base), ("a", half), ("b", other))]
    done = list(diff(str(paths[1]), str(paths[2]), base=str(paths[0])))[-1]
    assert isinstance(done, Result)
    tensors = {each["name"]: each for each in done.values["tensors"]}  # type: ignore[attr-defined]
    head = tensors.pop("lm_head.weight")
    assert head["distance"] == pytest.approx((160 + 160 * 9 + 160 * 4) ** 0.5, rel=1e-5)
    assert head["cosine"] == pytest.approx(-160 * 2 / (320**0.5 * (320 * 4) ** 0.5), rel=1e-4)
    assert head["signs"] == 0.0 and head["changed"] == 480
    assert all(each["distance"] == 0 and each["cosine"] is None for each in tensors.values())
    total = done.values["total"]
    assert total["distance"] == pytest.approx(head["distance"])  # type: ignore[index]
    alone = list(diff(str(paths[1]), str(paths[1])))[-1]
    assert alone.values["total"]["cosine"] == pytest.approx(1.0)  # type: ignore[attr-defined]


def test_extract_lora_of_ours(tmp_path: Path) -> None:
    """The best of its rank: what is lost is what the singular values beyond it hold."""
    base, tuned = checkpoint(tmp_path / "base"), checkpoint(tmp_path / "tuned", 3)
    (done,) = [
        e
        for e in extract_lora(str(base), str(tuned), rank=2, out=tmp_path / "lora", rest=True)
        if isinstance(e, Result)
    ]
    ours = result(tmp_path / "back", "linear", [tmp_path / "lora"], base)
    before, after = open_input(str(base)), open_input(str(tuned))
    lost = whole = 0.0
    for name in before.tensors:
        difference = (after.read(name) - before.read(name)).double()
        whole += float(difference.square().sum())
        if difference.ndim == 2:
            lost += float(torch.linalg.svdvals(difference)[2:].square().sum())
        error = (ours[name].double() - after.read(name).double()).square().sum()
        bound = torch.linalg.svdvals(difference)[2:].square().sum() if difference.ndim == 2 else torch.tensor(0.0)
        assert float(error) == pytest.approx(float(bound), rel=1e-3, abs=1e-9), name
    assert done.values["retained"] == pytest.approx(1 - lost / whole, rel=1e-4)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and "blocks.0.learners.0.out" in config["target_modules"]


def test_extract_lora_refuses(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", llama())
    b = folder(tmp_path / "b", moved(llama(), 1))
    for arguments, options, message in (
        ((a, a), {}, "is the same as"),
        ((a, b), {"rank": 0}, "rank 0 is below 1"),
        ((a, b), {"targets": ("nowhere",)}, "no matrix's name contains nowhere"),
        ((a, checkpoint(tmp_path / "c", 1)), {}, "is a checkpoint folder"),
    ):
        with pytest.raises(InputError) as caught:
            list(extract_lora(*map(str, arguments), **{"rank": 4, "out": tmp_path / "out", **options}))  # type: ignore[arg-type]
        assert message in caught.value.message
    assert not (tmp_path / "out").exists()
