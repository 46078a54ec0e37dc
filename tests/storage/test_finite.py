"""NaN and infinity in weights are named before they are used, whatever uses them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.adapters.lora_linear import linear_maps
from synthe_core.adapters.targets import new_adapter
from synthe_core.errors import InputError
from synthe_core.evaluation.perplexity import evaluate as perplexity
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.huggingface.exporter import export_hf
from synthe_core.interop.importer import import_hf
from synthe_core.merging.config import MergeSpec
from synthe_core.merging.merge import merge
from synthe_core.model.session import Session
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.verify import verify
from synthe_core.storage import adapter_files
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.finite import check_finite
from synthe_core.storage.manifest import MANIFEST, Manifest
from synthe_core.training import train
from tests.merging.models import folder, llama
from tests.packing.conftest import result, write_checkpoint

NAME = "blocks.1.learners.2.out.weight"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_detected(dtype: torch.dtype, value: float) -> None:
    tensor = torch.linspace(-3, 3, 999).to(dtype)
    assert check_finite("x", tensor, "here") is tensor
    tensor[500] = value
    if math.isinf(value) and dtype == torch.float8_e4m3fn:
        pytest.skip("the type has no infinity")
    kind = "NaN" if math.isnan(value) else "infinity"
    with pytest.raises(InputError, match=f"x of here contains {kind}"):
        check_finite("x", tensor, "here")


@pytest.mark.parametrize("tensor", [torch.zeros(0), torch.tensor([2**62]), torch.tensor([True])])
def test_tensors_without_such_values_pass(tensor: torch.Tensor) -> None:
    check_finite("x", tensor, "here")


def test_large_finite_values_pass() -> None:
    """Whose sum would be infinite."""
    check_finite("x", torch.full((999,), 3e38), "here")
    check_finite("x", torch.full((999,), 6e4, dtype=torch.float16), "here")


def spoil(path: Path, value: float, name: str = NAME, at: int = -1) -> Path:
    """The checkpoint with one weight changed, and its digests put right: its author says that it is so."""
    tensors = load_file(path / "model.safetensors")
    tensors[name].view(-1)[at] = value
    save_file(tensors, path / "model.safetensors")
    manifest = Manifest.read(path).with_files(path)
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return path


USES: dict[str, Callable[[Path, Path], Any]] = {
    "serve": lambda path, out: LoadedModel.load(path),
    "generate": lambda path, out: Checkpoint.open(path).model(),
    "eval": lambda path, out: list(perplexity(path, sources=(str(out / "text.txt"),))),
    "pack": lambda path, out: list(pack(path, out / "x.synapse")),
    "pack --quantize": lambda path, out: list(pack(path, out / "x.synapse", PackOptions(quantize="int8"))),
    "pack --no-weights": lambda path, out: list(pack(path, out / "x.synapse", PackOptions(weights=False))),
    "train --init": lambda path, out: list(train(recipe_for(path, out), out=out / "run", init=path)),
    "merge": lambda path, out: list(merge(pair(path, out), out=out / "merged")),
}


def pair(path: Path, out: Path) -> MergeSpec:
    models = [{"model": str(each)} for each in (path, write_checkpoint(out / "b"))]
    return MergeSpec.model_validate({"merge_method": "linear", "models": models})


def recipe_for(path: Path, out: Path) -> Any:
    values = Checkpoint.open(path).recipe.model_dump(mode="json")
    values["data"] |= {"sources": str(out / "text.txt"), "validation": 0.2}
    values["train"] |= {"budget": "1steps", "batch": 2}
    return type(Checkpoint.open(path).recipe).model_validate(values)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_by_every_verb(tmp_path: Path, use: str, value: float) -> None:
    (tmp_path / "text.txt").write_text("words and words\n" * 500)
    path = spoil(write_checkpoint(tmp_path / "a"), value)
    with pytest.raises(InputError, match=rf"{NAME}.*(NaN|infinity)"):
        USES[use](path, tmp_path)
    assert not (tmp_path / "x.synapse").exists() and not (tmp_path / "merged").exists()


def test_a_file_with_such_weights_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spoil(write_checkpoint(tmp_path / "a"), math.nan)
    monkeypatch.setattr("synthe_core.packing.pack.check_finite", lambda name, tensor, source: tensor)
    file = result(pack(path, tmp_path / "x.synapse")).path
    assert file is not None
    with pytest.raises(InputError, match=rf"{NAME} of .*model\.safetensors contains NaN"):
        list(verify(file))
    with pytest.raises(InputError, match="contains NaN"):
        Checkpoint.open(file).model()


def test_a_session_of_weights_that_differ_in_one_number_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a")
    model = Checkpoint.open(path).model()
    _, state = model(torch.tensor([[1, 2, 3]]))
    Session(state, torch.tensor([4])).save(tmp_path / "s.safetensors", model)
    Session.load(tmp_path / "s.safetensors", Checkpoint.open(path).model())
    packed = result(pack(path, tmp_path / "x.synapse")).path
    assert packed is not None
    Session.load(tmp_path / "s.safetensors", Checkpoint.open(packed).model())  # the same weights elsewhere
    spoil(path, 0.125)
    other = Checkpoint.open(path).model()
    with pytest.raises(InputError, match="belongs to another model"):
        Session.load(tmp_path / "s.safetensors", other)
    with pytest.raises(InputError, match="belongs to another model"):
        list(pack(path, tmp_path / "y.synapse", PackOptions(sessions=[tmp_path / "s.safetensors"])))


def test_the_digest_of_weights_without_a_checkpoint_is_computed_once_and_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthe_core.model import session as sessions

    model = Checkpoint.open(write_checkpoint(tmp_path / "a")).model()
    del model._weights_digest
    counted: list[int] = []
    compute = sessions.tensors_digest
    monkeypatch.setattr(sessions, "tensors_digest", lambda tensors: counted.append(1) or compute(tensors))
    first = sessions.fingerprint(model)
    assert sessions.fingerprint(model) == first and len(counted) == 1
    with torch.no_grad():
        model.get_parameter(NAME).view(-1)[-1] += 1
    assert sessions.fingerprint(model) != first and len(counted) == 2


def test_an_adapter_of_other_weights_is_refused_and_one_that_records_none_is_loaded_with_a_note(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a")
    base = Checkpoint.open(path)
    spec = type(base.recipe.train).model_validate({"lora": {"rank": 2, "targets": ["mlp"]}}).lora
    assert spec is not None
    model = base.model()
    adapter = new_adapter(model, spec)
    assert set(adapter.maps) <= set(linear_maps(model))
    lora = tmp_path / "lora"
    lora.mkdir()
    adapter_files.write(lora, adapter.tensors, spec, lora, path, base.digest)
    assert Checkpoint.open(lora).base is not None
    served = LoadedModel.load(path)
    served.load_adapter("lora", lora)
    list(pack(path, tmp_path / "x.synapse", PackOptions(adapters=[f"lora={lora}"])))
    quantised = result(pack(path, tmp_path / "q.synapse", PackOptions(quantize="int8", sources=[text(tmp_path)]))).path
    assert quantised is not None
    LoadedModel.load(quantised).load_adapter("lora", lora)  # made from the weights that it was trained on
    list(pack(quantised, tmp_path / "r.synapse", PackOptions(adapters=[f"lora={lora}"])))

    spoil(path, 0.125)
    for use in (
        lambda: Checkpoint.open(lora).base,
        lambda: Checkpoint.open(lora, base=path).model(),
        lambda: LoadedModel.load(path).load_adapter("lora", lora),
        lambda: list(pack(path, tmp_path / "x.synapse", PackOptions(adapters=[f"lora={lora}"]))),
    ):
        with pytest.raises(InputError, match="is an adapter of: its weights are others") as refused:
            use()
        assert refused.value.hint

    adapter_files.peft.write(lora, adapter.tensors, spec, str(path))  # as PEFT writes them
    with pytest.warns(UserWarning, match="does not record which weights it was trained on"):
        LoadedModel.load(path).load_adapter("lora", lora)


def text(at: Path) -> str:
    (at / "held-out.txt").write_text("words and words\n" * 500)
    return str(at / "held-out.txt")


def test_published_models_are_checked_in_both_directions(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf", llama())
    list(import_hf(source, out=tmp_path / "ours"))
    name = "blocks.0.learners.1.out.weight"
    spoil(tmp_path / "ours", math.inf, name)
    with pytest.raises(InputError, match=f"{name} of .* contains infinity"):
        list(export_hf(tmp_path / "ours", out=tmp_path / "back"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight of .* contains NaN"):
        list(import_hf(source, out=tmp_path / "again"))
    assert not (tmp_path / "back").exists() and not (tmp_path / "again").exists()
