"""`merge` from the outside: what is written, that it is the same every time, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.events import Notice, Progress
from synthe_core.merging.config import MergeSpec, load
from synthe_core.merging.merge import merge
from synthe_core.storage.checkpoint import Checkpoint
from tests.merging.models import CONFIG, adapter, checkpoint, family, folder, llama, moved, result, run


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear", "karcher"])
def test_the_same_bytes_on_any_number_of_threads(tmp_path: Path, method: str) -> None:
    base, models = family(tmp_path, 3)
    ground = base if method in ("ties", "dare_ties") else None
    values = {"density": 0.5} if ground else {}
    outs = []
    for threads in (1, 2, 5, 2):
        outs.append(tmp_path / f"out{len(outs)}")
        run(outs[-1], method, models, ground, parameters=values, threads=threads)
    for name in ("model.safetensors", "config.json", "merge.json", "merge.yaml"):
        assert len({digest(out / name) for out in outs}) == 1, name


def test_a_checkpoint_of_ours(tmp_path: Path) -> None:
    base, a, b = (checkpoint(tmp_path / name, seed) for name, seed in (("base", None), ("a", 1), ("b", 2)))
    ours = result(tmp_path / "out", "linear", [a, b])
    merged = Checkpoint.open(tmp_path / "out")
    parents = [load_file(path / "model.safetensors") for path in (a, b)]
    for name, tensor in merged.tensors.items():
        assert torch.allclose(tensor, (parents[0][name] + parents[1][name]) / 2, atol=1e-7), name
        assert torch.equal(tensor, ours[name])
    logits, _ = merged.model()(torch.arange(20)[None])
    assert logits.shape == (1, 20, 257) and torch.isfinite(logits).all()
    assert merged.recipe.model == Checkpoint.open(a).recipe.model and merged.recipe.name == "out"
    facts = merged.manifest.model_extra["merge"]  # type: ignore[index]
    assert facts["method"] == "linear" and merged.manifest.parents == [str(a), str(b)]
    for parent, path in zip(facts["parents"], (a, b), strict=True):
        assert parent["files"]["model.safetensors"]["sha256"] == digest(path / "model.safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert digest(a / "model.safetensors") in card and "arXiv:2203.05482" in card
    # a merge of merges, and the recipe of a result makes it again
    result(tmp_path / "again", "ties", [tmp_path / "out", b], base, parameters={"density": 0.5})
    list(merge(load(tmp_path / "again" / "merge.yaml"), out=tmp_path / "repeated"))
    assert digest(tmp_path / "repeated" / "model.safetensors") == digest(tmp_path / "again" / "model.safetensors")


def test_counters_come_from_the_base(tmp_path: Path) -> None:
    base = llama() | {"model.steps": torch.tensor(3)}
    paths = [folder(tmp_path / str(i), moved(base, i) | {"model.steps": torch.tensor(3 + i)}) for i in range(3)]
    ours = result(tmp_path / "out", "ties", paths[1:], paths[0])
    assert int(ours["model.steps"]) == 3 and ours["model.steps"].dtype == torch.int64


def test_shards_have_an_index_that_others_read(tmp_path: Path) -> None:
    base = llama()
    models = [folder(tmp_path / str(i), moved(base, i), files=3) for i in range(2)]
    whole = result(tmp_path / "whole", "linear", models)
    parts = result(tmp_path / "parts", "linear", models, shard_bytes=4000)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in whole.values())
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor)
        assert name in load_file(tmp_path / "parts" / index["weight_map"][name])
    facts = json.loads((tmp_path / "parts" / "merge.json").read_text())
    assert {name: each["sha256"] for name, each in facts["files"].items()} == {
        file.name: digest(file) for file in files
    }


def test_transformers_read_the_result(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base, models = family(tmp_path, 2)
    ours = result(tmp_path / "out", "ties", models, base, dtype="bfloat16", shard_bytes=4000)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ours[name]), name


def test_arithmetic_is_float32_whatever_is_stored(tmp_path: Path) -> None:
    base = {name: tensor.bfloat16() for name, tensor in llama().items()}
    models = [folder(tmp_path / str(i), {n: t.bfloat16() for n, t in moved(base, i).items()}) for i in range(3)]
    stored = result(tmp_path / "stored", "linear", models)
    wide = result(tmp_path / "wide", "linear", models, dtype="float32")
    parents = [load_file(path / "model.safetensors") for path in models]
    for name, tensor in stored.items():
        mean = torch.stack([each[name].double() for each in parents]).mean(0)
        assert tensor.dtype == torch.bfloat16 and wide[name].dtype == torch.float32
        assert (wide[name] - mean).abs().max() <= 1e-6
        assert torch.equal(tensor, wide[name].bfloat16())


def test_seeds(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    outs = [
        result(tmp_path / str(i), "dare_linear", models, base, parameters={"density": 0.5}, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(outs[0][name], outs[1][name]) for name in outs[0])
    assert any(not torch.equal(outs[0][name], outs[2][name]) for name in outs[0])
    q, k = (outs[0][f"model.layers.0.{part}_layernorm.weight"] for part in ("input", "post_attention"))
    assert not torch.equal(q, k)


def test_a_gradient_over_the_layers_and_filters(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in llama().items()}
    ones = {name: torch.ones_like(tensor) for name, tensor in zeros.items()}
    paths = [folder(tmp_path / name, tensors) for name, tensors in (("zeros", zeros), ("ones", ones))]
    weight = [{"filter": "mlp", "value": [0.0, 0.5, 1.0]}, {"filter": "norm", "value": 0.25}]
    listed = [{"model": str(paths[0])}, {"model": str(paths[1]), "parameters": {"weight": weight}}]
    ours = result(tmp_path / "out", "linear", listed, parameters={"normalize": False, "weight": 0.75})
    for layer, share in enumerate((0.0, 0.5, 1.0)):
        assert float(ours[f"model.layers.{layer}.mlp.up_proj.weight"].mean()) == share
        assert float(ours[f"model.layers.{layer}.self_attn.q_proj.weight"].mean()) == 0.75
        assert float(ours[f"model.layers.{layer}.input_layernorm.weight"].mean()) == 0.25
    assert float(ours["lm_head.weight"].mean()) == 0.75


def test_layers_of_ours_stacked(tmp_path: Path) -> None:
    a, b = (checkpoint(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    slices = [
        {"sources": [{"model": str(a), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(b), "layer_range": [1, 2]}]},
    ]
    spec = MergeSpec.model_validate({"merge_method": "passthrough", "slices": slices})
    list(merge(spec, out=tmp_path / "out"))
    merged = Checkpoint.open(tmp_path / "out")
    assert merged.recipe.model.blocks == 3 and merged.config["num_hidden_layers"] == 3
    one, other = (load_file(path / "model.safetensors") for path in (a, b))
    name = "learners.1.gate_up.weight"
    assert torch.equal(merged.tensors[f"blocks.1.{name}"], one[f"blocks.1.{name}"])
    assert torch.equal(merged.tensors[f"blocks.2.{name}"], other[f"blocks.1.{name}"])
    assert torch.equal(merged.tensors["embedding.weight"], one["embedding.weight"])
    assert torch.equal(merged.tensors["norm.weight"], other["norm.weight"])
    merged.model()


def test_progress_counts_bytes_to_the_total(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    events = [event for event in run(tmp_path / "out", "ties", models, base) if isinstance(event, Progress)]
    size = sum((path / "model.safetensors").stat().st_size for path in (base, *models))
    assert events[-1].done == events[-1].total and events[-1].unit == "bytes"
    assert size < events[-1].total < size * 1.5 and events[-1].eta == 0  # type: ignore[operator]
    assert [event.done for event in events] == sorted(event.done for event in events)


def test_a_differing_config_is_reported_and_the_first_is_used(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", llama())
    b = folder(tmp_path / "b", moved(llama(), 1), CONFIG | {"rope_theta": 1e6, "_name_or_path": "elsewhere"})
    warnings = [
        e.message for e in run(tmp_path / "out", "linear", [a, b]) if isinstance(e, Notice) and e.level == "warning"
    ]
    assert len(warnings) == 1 and "rope_theta" in warnings[0] and "elsewhere" not in warnings[0]
    assert "rope_theta" not in json.loads((tmp_path / "out" / "config.json").read_text())


# What it refuses. Each case makes two Hugging Face folders and changes the second.


def without_tensor(b: Path) -> None:
    tensors = load_file(b / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, b / "model.safetensors")


def longer(b: Path) -> None:
    save_file(load_file(b / "model.safetensors") | {"extra.weight": torch.ones(2)}, b / "model.safetensors")


def another_shape(b: Path) -> None:
    tensors = load_file(b / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(17)}, b / "model.safetensors")
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(config | {"hidden_size": 17}))


def holding(value: float) -> Any:
    def change(b: Path) -> None:
        tensors = load_file(b / "model.safetensors")
        tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = value
        save_file(tensors, b / "model.safetensors")

    return change


def whole_numbers(b: Path) -> None:
    tensors = load_file(b / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(16, dtype=torch.int32)}, b / "model.safetensors")


def quantised(b: Path) -> None:
    tensors = load_file(b / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(16).to(torch.float8_e4m3fn)}, b / "model.safetensors")


def cut(b: Path) -> None:
    with (b / "model.safetensors").open("r+b") as file:
        file.truncate(5000)


def no_header(b: Path) -> None:
    (b / "model.safetensors").write_bytes(b"\xff" * 100)


def pickled(b: Path) -> None:
    (b / "model.safetensors").rename(b / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_tensor, "b has no tensor model.layers.1.mlp.up_proj.weight"),
        (longer, "b has a tensor extra.weight, which"),
        (another_shape, "model.norm.weight: [16] in"),
        (holding(float("nan")), "model.layers.2.mlp.down_proj.weight of"),
        (holding(float("inf")), "b contains infinity"),
        (whole_numbers, "model.norm.weight is F32 in"),
        (quantised, "model.norm.weight is stored as F8_E4M3"),
        (cut, "model.safetensors is damaged"),
        (no_header, "model.safetensors is damaged"),
        (pickled, "has its weights as pickle"),
        (shutil.rmtree, "no such model"),
    ],
    ids=lambda value: getattr(value, "__name__", "")[:20],
)
def test_bad_models(tmp_path: Path, change: Any, message: str) -> None:
    _, (a, b) = family(tmp_path, 2)
    change(b)
    with pytest.raises(InputError) as caught:
        run(tmp_path / "runs" / "out", "linear", [a, b])
    assert message in caught.value.message and "\n" not in caught.value.message
    assert list((tmp_path / "runs").glob("*")) + list((tmp_path / "runs").glob(".*")) == []


def test_different_architectures_name_the_difference(tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", 1)
    b = checkpoint(tmp_path / "b", 2, blocks=3)
    with pytest.raises(InputError, match=r"b has a tensor blocks\.2") as caught:
        run(tmp_path / "out", "linear", [a, b])
    assert caught.value.hint == "they differ in model.blocks: 2 -> 3"
    with pytest.raises(InputError, match="is a huggingface folder and"):
        run(tmp_path / "out", "linear", [a, folder(tmp_path / "c", llama())])


def test_a_damaged_checkpoint_is_detected_while_merging(tmp_path: Path) -> None:
    a, b = (checkpoint(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    with (b / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")
    with pytest.raises(InputError, match="it is not what was written"):
        run(tmp_path / "out", "linear", [a, b])
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", "linear", [a, b], hashes=False)  # unchecked, when asked for
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["merge"]["parents"][1]["files"] == {"model.safetensors": None}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, models = family(tmp_path, 2)
    real, calls = os.write, []

    def full(handle: int, data: Any) -> int:
        calls.append(handle)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr("synthe_core.merging.output.os.write", full)
        with pytest.raises(WorkError, match="the disk is full"):
            run(tmp_path / "runs" / "out", "linear", models)
    assert not list((tmp_path / "runs").glob("*")) and not list((tmp_path / "runs").glob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr("synthe_core.merging.merge.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10**6))
        with pytest.raises(WorkError, match=r"the disk is full: the result has [\d,]+ bytes, and 1,000,000 are free"):
            run(tmp_path / "runs" / "out", "linear", models)


def test_interrupted(tmp_path: Path) -> None:
    _, models = family(tmp_path, 2)
    stop = threading.Event()
    events = merge(
        MergeSpec.model_validate({"merge_method": "linear", "models": [{"model": str(path)} for path in models]}),
        out=tmp_path / "runs" / "out",
        stop=stop,
    )
    with pytest.raises(Interrupted, match="nothing was written"):
        for event in events:
            if isinstance(event, Progress) and event.done > 10_000:
                stop.set()
    assert not list((tmp_path / "runs").glob("*")) and not list((tmp_path / "runs").glob(".*"))


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    _, models = family(tmp_path, 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InputError, match="out is not empty"):
        run(tmp_path / "out", "linear", models)
    assert (tmp_path / "out" / "precious").exists()


@pytest.mark.parametrize(
    ("method", "count", "based", "more", "message"),
    [
        ("ties", 2, False, {}, "ties needs a base"),
        ("slerp", 2, True, {}, "slerp merges 1 model beside the base, and got 2"),
        ("linear", 2, False, {"parameters": {"density": 0.5}}, "unknown parameter of linear 'density'"),
        ("ties", 2, True, {"parameters": {"density": 0.0}}, "density 0.0: input should be greater than 0"),
        ("ties", 2, True, {"parameters": {"density": [0.5, 1.2]}}, "density 1.2"),
        ("nearswap", 1, True, {}, "t is not given"),
        ("ties", 2, True, {"rank": 4}, "a rank is for adapters"),
        ("ties", 2, True, {"as": "adapter"}, "is no adapter"),
    ],
)
def test_bad_requests(tmp_path: Path, method: str, count: int, based: bool, more: dict[str, Any], message: str) -> None:
    base, models = family(tmp_path, count)
    with pytest.raises(InputError) as caught:
        run(tmp_path / "out", method, models, base if based else None, **more)
    assert message in caught.value.message


def test_adapters_stay_adapters_or_go_into_the_base(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", llama())
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"]
    one = adapter(tmp_path / "one", str(base), llama(), modules, seed=1)
    other = adapter(tmp_path / "other", str(base), llama(), modules[:1], rank=2, seed=2)
    lora = result(tmp_path / "adapter", "task_arithmetic", [one, other], rank=6)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (6, 6, str(base))
    assert sorted(config["target_modules"]) == sorted(modules)
    model = result(tmp_path / "model", "task_arithmetic", [one, other], **{"as": "model"})
    for module in modules:
        name = f"{module}.weight"
        down, up = (lora[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        assert (llama()[name] + up @ down - model[name]).abs().max() < 2e-6  # of rank 6 nothing is lost
    assert torch.equal(model["lm_head.weight"], llama()["lm_head.weight"])
    assert json.loads((tmp_path / "model" / "merge.json").read_text())["parents"][1]["kind"] == "adapter"
    lossy = result(tmp_path / "lossy", "task_arithmetic", [one, other], rank=1)
    assert lossy[f"base_model.model.{modules[0]}.lora_A.weight"].shape == (1, 16)
    # the merged adapter goes into the base like any other
    applied = result(tmp_path / "applied", "linear", [f"{base}+{tmp_path / 'adapter'}"])
    assert all((applied[name] - model[name]).abs().max() < 2e-6 for name in model)


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", llama())
    module = "model.layers.0.self_attn.q_proj"
    good = adapter(tmp_path / "good", str(base), llama(), [module])
    wider = {f"{module}.weight": torch.zeros(16, 20), "nowhere.weight": torch.zeros(4, 4)}
    wide = adapter(tmp_path / "wide", str(base), wider, [module])
    stray = adapter(tmp_path / "stray", str(base), wider, ["nowhere"])
    homeless = adapter(tmp_path / "homeless", None, llama(), [module])
    whole = adapter(
        tmp_path / "whole", str(base), llama(), [module], whole={"base_model.model.lm_head.weight": torch.ones(40, 16)}
    )
    for models, options, message in (
        ([good, wide], {}, "q_proj.weight is [16, 16] in one adapter and [16, 20] in"),
        ([good, wide], {"as": "model"}, "q_proj.weight is [16, 16] in"),
        ([stray], {"as": "model"}, "adapts nowhere.weight, which"),
        ([homeless], {"as": "model"}, "does not name the model it is for"),
        ([good, whole], {}, "replaces lm_head.weight as a whole"),
        ([good, adapter(tmp_path / "thin", str(base), llama(), [module], rank=2)], {"as": "factors"}, "has ranks 4, 2"),
        ([good, base], {"as": "factors"}, "base is no adapter"),
    ):
        with pytest.raises(InputError) as caught:
            run(tmp_path / "out", "task_arithmetic", models, **options)
        assert message in caught.value.message, caught.value.message
    assert not (tmp_path / "out").exists()
