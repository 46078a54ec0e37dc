"""The files are PEFT's: it reads what we write, we read what it writes, and both compute the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.adapters import peft as format
from synthe_core.adapters.lora_linear import attach
from synthe_core.adapters.spec import LoraSpec
from synthe_core.errors import InputError
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.storage.checkpoint import Checkpoint
from tests.adapters.conftest import random_adapter, saved

TOKENS = torch.arange(24).view(2, 12) * 7 % 257
SPECS = [
    {"rank": 4},
    {"rank": 8, "alpha": 12.5, "rslora": True, "targets": ["delta", "mlp"]},
    {"rank": 64, "dropout": 0.1},  # more than any matrix here can have
]


@pytest.mark.parametrize("lora", SPECS, ids=str)
def test_what_is_written_is_read(base, lora, tmp_path):
    expected = random_adapter(base, LoraSpec(**lora))
    opened = saved(tmp_path / "a", base, lora)
    config = json.loads((opened.path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == lora["rank"]
    assert config["target_modules"] == sorted(expected.maps)
    assert opened.adapter.dropout == lora.get("dropout", 0.0)
    assert opened.adapter.maps.keys() == expected.maps.keys()
    for name, change in expected.maps.items():
        change_read = opened.adapter.maps[name]
        assert torch.equal(change_read.lora_A, change.lora_A) and torch.equal(change_read.lora_B, change.lora_B)
        assert change_read.scaling == pytest.approx(change.scaling, rel=1e-12)


@pytest.mark.parametrize("lora", SPECS, ids=str)
def test_peft_loads_it_and_computes_the_same(base, lora, tmp_path):
    peft = pytest.importorskip("peft")
    opened = saved(tmp_path / "a", base, lora)
    config = peft.PeftConfig.from_pretrained(str(opened.path))
    assert type(config) is peft.LoraConfig and config.r == lora["rank"]
    theirs = peft.PeftModel.from_pretrained(Checkpoint.open(base).model(), str(opened.path)).eval()
    wrapped = {name for name, module in theirs.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert wrapped == set(opened.adapter.maps)
    ours = Checkpoint.open(base).model().eval()
    with torch.no_grad():
        plain = ours(TOKENS)[0]
        attach(ours, opened.adapter)
        expected = theirs.base_model.model(TOKENS)[0]
        assert (expected - plain).abs().max() > 0.01
        torch.testing.assert_close(ours(TOKENS)[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(opened.model()(TOKENS)[0], expected, rtol=1e-4, atol=1e-4)


def test_what_peft_writes_is_read(base, tmp_path):
    peft = pytest.importorskip("peft")
    patterns = {"rank_pattern": {"gate_up": 2}, "alpha_pattern": {"project": 9}}
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["gate_up", "project"], **patterns)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(Checkpoint.open(base).model(), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
        theirs.save_pretrained(str(tmp_path / "theirs"))
        expected = theirs.base_model.model(TOKENS)[0]
    with pytest.raises(InputError, match="does not say which model"):
        _ = Checkpoint.open(tmp_path / "theirs").tensors
    opened = Checkpoint.open(tmp_path / "theirs", base=base)
    assert {change.lora_A.shape[0] for change in opened.adapter.maps.values()} == {2, 3}
    with torch.no_grad():
        torch.testing.assert_close(opened.model().eval()(TOKENS)[0], expected, rtol=1e-4, atol=1e-4)
    assert opened.recipe.model.width == 16 and opened.vocab == 257
    config = tmp_path / "theirs" / "adapter_config.json"
    facts = json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}
    config.write_text(json.dumps(facts))
    assert len(Checkpoint.open(tmp_path / "theirs").tensors) == len(Checkpoint.open(base).tensors)


def changed(key, value):
    def change(folder: Path) -> None:
        path = folder / format.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def with_tensors(change):
    def rewrite(folder: Path) -> None:
        path = folder / format.WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


NAME = "base_model.model.blocks.0.learners.2.out"
BROKEN = {
    "dora": (changed("use_dora", True), "use_dora is not read"),
    "bias": (changed("bias", "all"), "bias 'all' is not read"),
    "saved modules": (changed("modules_to_save", ["head"]), "modules_to_save is not read"),
    "another kind": (changed("peft_type", "IA3"), "is of IA3, and only LORA is read"),
    "no rank": (changed("r", "many"), "is many, which is no positive number"),
    "a negative alpha": (changed("lora_alpha", -1), "is -1, which is no positive number"),
    "an infinite alpha": (changed("lora_alpha", float("inf")), "is inf, which is no positive number"),
    "another rank": (changed("r", 7), "the config gives it rank 7"),
    "a pattern that hangs": (changed("rank_pattern", {"(a+)+b": 2}), r"the rank_pattern '\(a\+\)\+b' is not read"),
    "a list for patterns": (changed("rank_pattern", ["a"]), "rank_pattern is no mapping"),
    "no JSON": (lambda folder: (folder / format.CONFIG).write_text("{"), "cannot be read"),
    "a list": (lambda folder: (folder / format.CONFIG).write_text("[]"), "is of no adapter"),
    "no weights": (lambda folder: (folder / format.WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "damaged": (lambda folder: (folder / format.WEIGHTS).write_bytes(b"\x01" * 99), "is damaged"),
    "a truncated file": (
        lambda folder: (folder / format.WEIGHTS).write_bytes((folder / format.WEIGHTS).read_bytes()[:-9]),
        "is damaged",
    ),
    "another tensor": (with_tensors(lambda t: t.update({"head.weight": torch.ones(2)})), "is no factor of LoRA"),
    "half a pair": (with_tensors(lambda t: t.pop(f"{NAME}.lora_B.weight")), "has no lora_B of blocks.0.learners.2.out"),
    "not a number": (with_tensors(lambda t: t[f"{NAME}.lora_A.weight"].fill_(torch.nan)), "is not finite"),
    "a vector": (with_tensors(lambda t: t.update({f"{NAME}.lora_A.weight": torch.ones(3)})), "is no matrix of numbers"),
    "integers": (
        with_tensors(lambda t: t.update({f"{NAME}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)})),
        "is no matrix of numbers",
    ),
    "another size": (
        with_tensors(lambda t: t.update({f"{NAME}.lora_A.weight": torch.ones(4, 33)})),
        r"as a matrix \[16, 33\], and the model's is \[16, 32\]",
    ),
    "another module": (
        with_tensors(lambda t: t.update({k.replace("learners.2", "learners.9"): v.clone() for k, v in t.items()})),
        "changes blocks.0.learners.9.gate_up, which the model has not",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_is_wrong_is_refused_in_one_line(base, fault, tmp_path):
    spoil, message = BROKEN[fault]
    saved(tmp_path / "a", base, {"rank": 4})
    folder = tmp_path / "a"
    for name in ("manifest.json", "recipe.yaml"):  # without a manifest, nothing has seen the files before
        (folder / name).unlink()
    spoil(folder)
    with pytest.raises(InputError, match=message) as refused:
        Checkpoint.open(folder, base=base).model()
    assert "\n" not in refused.value.message and refused.value.hint


def test_a_pickle_is_not_read(base, tmp_path):
    saved(tmp_path / "a", base, {"rank": 4})
    folder = tmp_path / "a"
    (folder / "manifest.json").unlink()
    (folder / format.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors") as refused:
        Checkpoint.open(folder, base=base)
    assert "pickle" in refused.value.hint


def test_a_flipped_bit_is_detected(base, tmp_path):
    path = saved(tmp_path / "a", base, {"rank": 4}).path / format.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: it is not what was written"):
        Checkpoint.open(tmp_path / "a").model()


def test_a_base_whose_weights_changed_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    saved(tmp_path / "a", tmp_path / "base", {"rank": 4})
    shutil.rmtree(tmp_path / "base")
    torch.manual_seed(5)
    from synthe_core.storage.checkpoint import save, weights
    from synthe_core.storage.manifest import Manifest

    recipe = Checkpoint.open(base).recipe
    model = LanguageModel(ModelSpec.model_validate(recipe.model.model_dump()), 257)
    save(tmp_path / "base", recipe=recipe, vocab=257, tensors=weights(model), manifest=Manifest())
    with pytest.raises(InputError, match="its weights are others"):
        Checkpoint.open(tmp_path / "a").model()
